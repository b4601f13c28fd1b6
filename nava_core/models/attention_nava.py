"""Attention of the NAVA transformer: modules that hold projections, processors that compute.

The processors carry `_attention_backend` and `_parallel_config`, so that `set_attention_backend` and the library's
context parallelism reach them from outside; another processor may be set for another way of attending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

STREAM_SUFFIXES = ("", "_audio")
"""Names of a module's video and audio parameter sets, as the official tensors name them."""


@dataclass(frozen=True)
class TokenLayout:
    """What the rows of a token sequence `[video tokens; audio tokens]` are.

    video, audio: token counts. clean: leading video tokens with a diffusion time of their own, the clean first
    frame's (time 0) or all.
    isolated: for each sample, whether video and audio attend only to themselves; empty means no sample does.
    """

    video: int
    audio: int
    clean: int = 0
    isolated: tuple[bool, ...] = ()

    def ranges(self, streams: int) -> list[tuple[int, int, int]]:
        """(stream, start, stop) of the runs of tokens that share parameters: one run, or one a present stream."""
        total = self.video + self.audio
        if streams == 1:
            return [(0, 0, total)]
        runs = [(0, 0, self.video), (1, self.video, total)]
        return [run for run in runs if run[2] > run[1]]

    def samples(self, start: int, stop: int) -> Self:
        """The layout of some samples of a batch."""
        return replace(self, isolated=self.isolated[start:stop])


class NavaRMSNorm(nn.Module):
    """RMS norm over all heads at once; the result is float32 (or float64), ready for the rotary turn."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        compute_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        # vector_norm reads half-precision rows and sums in float32 without a float32 copy of its input
        norm = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=compute_dtype)
        inverse_rms = torch.rsqrt(norm.square() / hidden_states.shape[-1] + self.eps)
        return hidden_states * inverse_rms * self.weight.to(compute_dtype)


class NavaAttention(nn.Module, AttentionModuleMixin):
    """Projections and query/key norms of one attention, one set for each stream that has its own."""

    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, eps: float, streams: int, processor: Any):
        super().__init__()
        self.heads = num_heads
        self.streams = streams
        for suffix in STREAM_SUFFIXES[:streams]:
            for name in ("q", "k", "v", "o"):
                self.add_module(f"{name}{suffix}", nn.Linear(dim, dim))
            for name in ("norm_q", "norm_k"):
                self.add_module(f"{name}{suffix}", NavaRMSNorm(dim, eps))
        self.processor = processor

    def layer(self, name: str, stream: int) -> Any:
        return getattr(self, name + STREAM_SUFFIXES[stream])

    def forward(self, parts: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        """parts: one (batch, tokens, dim) tensor for each of `layout.ranges(self.streams)`; returns the same."""
        processor: Any = self.processor  # may be replaced from outside
        return processor(self, parts, *args, **kwargs)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along the tokens; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def split_heads(hidden_states: Tensor, heads: int) -> Tensor:
    return hidden_states.unflatten(-1, (heads, -1))  # (batch, tokens, heads * dim) -> (batch, tokens, heads, dim)


def apply_rotary(hidden_states: Tensor, rotary: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn neighbouring channel pairs of (batch, tokens, heads, dim) by `rotary`, complex (tokens, dim / 2)."""
    pairs = torch.view_as_complex(hidden_states.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary[None, :, None, :]).flatten(-2).to(dtype)


class NavaSelfAttnProcessor:
    """Joint self-attention of video and audio tokens; isolated samples attend within each stream."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: NavaAttention, parts: Sequence[Tensor], rotary: Tensor, layout: TokenLayout
    ) -> list[Tensor]:
        ranges = layout.ranges(attn.streams)
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        values = []
        for (stream, start, stop), rows in zip(ranges, parts, strict=True):
            for name, turned in (("q", queries), ("k", keys)):
                projected = attn.layer(f"norm_{name}", stream)(attn.layer(name, stream)(rows))
                turned.append(apply_rotary(split_heads(projected, attn.heads), rotary[start:stop], rows.dtype))
            values.append(split_heads(attn.layer("v", stream)(rows), attn.heads))
        query, key, value = (join(tensors) for tensors in (queries, keys, values))
        attended = self.attend(query, key, value, layout).flatten(-2)
        return [attn.layer("o", stream)(attended[:, start:stop]) for stream, start, stop in ranges]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, tokens, heads, dim) of each -> the same shape."""
        isolated = layout.isolated if layout.video and layout.audio else ()
        if not any(isolated):
            return self._dispatch(query, key, value)
        if all(isolated):
            runs = [slice(start, stop) for _, start, stop in layout.ranges(2)]
            return torch.cat([self._dispatch(query[:, run], key[:, run], value[:, run]) for run in runs], dim=1)
        attended, start = [], 0
        for _, run in groupby(isolated):
            stop = start + len(list(run))
            own_query, own_key, own_value = (rows[start:stop] for rows in (query, key, value))
            attended.append(self.attend(own_query, own_key, own_value, layout.samples(start, stop)))
            start = stop
        return torch.cat(attended)

    def _dispatch(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )


class NavaCrossAttnProcessor:
    """Video and audio tokens each ask the text, and the speakers placed in it."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: NavaAttention, parts: Sequence[Tensor], context: NavaTextContext, layout: TokenLayout
    ) -> list[Tensor]:
        answers = []
        for (stream, _, _), rows in zip(layout.ranges(attn.streams), parts, strict=True):
            query = attn.layer("norm_q", stream)(attn.layer("q", stream)(rows)).to(rows.dtype)
            key, value = context.key_value(attn, stream)
            answer = dispatch_attention_fn(split_heads(query, attn.heads), key, value, backend=self._attention_backend)
            answers.append(attn.layer("o", stream)(answer.flatten(-2)))
        return answers


class NavaTextContext:
    """Embedded text rows (batch, text_len, dim) with speaker rows in place, and their projections in every layer.

    keep: each layer's keys and values are computed at its first use and kept, so that a prompt is projected once for
    all steps and passes (at 6.3B in bfloat16 252 MB a sample). Nothing is kept while gradients are recorded.
    """

    def __init__(self, states: Tensor, keep: bool = True):
        self.states = states
        self.keep = keep
        self._parts: Sequence[NavaTextContext] = ()
        self._key_values: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @classmethod
    def batch(cls, contexts: Sequence[NavaTextContext]) -> NavaTextContext:
        """Contexts as the samples of one, each distinct one projected once."""
        joined = cls(torch.cat([context.states for context in contexts]), all(context.keep for context in contexts))
        joined._parts = contexts if all(len(context.states) == 1 for context in contexts) else ()
        return joined

    def sample(self, index: int) -> NavaTextContext:
        """The context of one sample."""
        if self._parts:
            return self._parts[index]
        return self if len(self.states) == 1 else NavaTextContext(self.states[index : index + 1], keep=False)

    def key_value(self, attn: NavaAttention, stream: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one attention, each (batch, text_len, heads, head_dim)."""
        slot = (id(attn), stream)
        if slot in self._key_values:
            return self._key_values[slot]
        pair = self._project(attn, stream)
        if self.keep and not torch.is_grad_enabled():
            self._key_values[slot] = pair
        return pair

    def _project(self, attn: NavaAttention, stream: int) -> tuple[Tensor, Tensor]:
        if len(self._parts) > 1:
            distinct = {id(part): part for part in self._parts}
            made = {name: part._project(attn, stream) for name, part in distinct.items()}
            keys, values = zip(*(made[id(part)] for part in self._parts), strict=True)
            return torch.cat(keys), torch.cat(values)
        key = attn.layer("norm_k", stream)(attn.layer("k", stream)(self.states)).to(self.states.dtype)
        return split_heads(key, attn.heads), split_heads(attn.layer("v", stream)(self.states), attn.heads)


def adaptive_norm(hidden_states: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`LayerNorm(x) * (1 + scale) + shift`; shift and scale are (batch or 1, dim).

    One diffusion time for the whole batch, as always in sampling, is a single fused kernel.
    """
    dim, dtype = hidden_states.shape[-1:], hidden_states.dtype
    if shift.shape[0] == 1:
        return F.layer_norm(hidden_states, dim, (1 + scale[0]).to(dtype), shift[0].to(dtype), eps)
    normed = F.layer_norm(hidden_states, dim, eps=eps)
    return torch.addcmul(shift.to(dtype)[:, None], normed, (1 + scale).to(dtype)[:, None])
