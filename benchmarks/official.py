"""The official structure of a pass, written plainly, with each of its costs as a switch.

From the description in the project's notes on the published code, in our words: the same mathematics on the same
weights, done the costly way. With every switch off it is a plain version of what ours does.

Matrix products are in the model's dtype (under autocast, as published), norm statistics and modulation in float32.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.subject import Inputs, Streams
from nava_core.models.embeddings_nava import sinusoidal_embedding
from nava_core.models.transformer_nava import NavaTransformer3DModel


@dataclass(frozen=True)
class Costs:
    """recast: weights are float32 and cast at every use (nothing to do where the computing is float32 itself).
    rotary: angles in complex128, in a loop over samples, built again in every layer.
    modulation: one set of vectors for every token, [batch, tokens, 6, dim]; the time MLP runs on every token.
    varlen: argsort, gather and attention by lengths on sequences that have no padding; a device sync in each layer.
    text: text states and their keys and values are projected in every pass.
    """

    recast: bool = True
    rotary: bool = True
    modulation: bool = True
    varlen: bool = True
    text: bool = True

    @classmethod
    def none(cls) -> Costs:
        return cls(**dict.fromkeys(cls.names(), False))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in fields(cls))

    def but(self, name: str, on: bool) -> Costs:
        return replace(self, **{name: on})


Runs = list[tuple[str, int, int]]
"""(suffix of the parameters, start, stop) of the tokens that share them."""


class Ledger:
    """Processor seconds by what they were spent on; inside another entry, only of the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def entry(self, name: str) -> Iterator[None]:
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class OfficialPass:
    """Passes of a model's weights in the official structure. Inference only.

    Without the cost `text` the first pass's prompt and speakers are those of all passes.
    """

    def __init__(self, model: NavaTransformer3DModel, costs: Costs | None = None):
        self.config = model.config
        self.costs = costs if costs is not None else Costs()
        self.dtype = model.dtype
        stored = torch.float32 if self.costs.recast else self.dtype
        self.weights = {name: tensor.detach().to(stored) for name, tensor in model.state_dict().items()}
        blocks: Any = model.transformer_blocks
        self.layers: list[tuple[int, int]] = [(block.streams, block.ffn_streams) for block in blocks]
        self.heads: int = self.config.num_attention_heads
        self.ledger = Ledger()
        self.block_seconds = [0.0] * len(self.layers)
        self._kept_text: dict[str, Tensor] = {}
        self._kept_rotary: dict[object, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        inputs: Inputs,
        isolated: bool = False,
        first_frame_is_clean: bool = False,
        speakers: tuple[Tensor, Sequence[int]] | None = None,
    ) -> Streams:
        """Velocities of a pass. speakers: embeddings (speakers, speaker_dim) and the text row of each."""
        parts: list[Tensor] = []
        grid: tuple[int, ...] = (0, 0, 0)
        if inputs.video is not None:
            patches = F.conv3d(
                inputs.video.to(self.dtype),
                self._cast("patch_embedding.weight"),
                self._cast("patch_embedding.bias"),
                stride=tuple(self.config.patch_size),
            )
            grid = tuple(patches.shape[2:])
            parts.append(patches.flatten(2).transpose(1, 2))
        if inputs.audio is not None:
            parts.append(self.linear("patch_embedding_audio", inputs.audio))
        x = torch.cat(parts, dim=1)
        video_tokens = 0 if inputs.video is None else parts[0].shape[1]
        clean = grid[1] * grid[2] if first_frame_is_clean else 0
        e, e0 = self.embed_time(inputs.timestep, x.shape[:2], clean)
        text = self.embed_text(inputs.text, speakers)
        for index in range(len(self.layers)):
            started = time.process_time()
            block = OfficialBlock(self, index, video_tokens, isolated)
            x = block(x, e0, text, grid)
            self.block_seconds[index] += time.process_time() - started
        sample = audio = None
        if inputs.video is not None:
            tokens = self._head("head", x[:, :video_tokens], _of_tokens(e, 0, video_tokens))
            sample = self._unpatchify(tokens, grid)
        if inputs.audio is not None:
            audio = self._head("head_audio", x[:, video_tokens:], _of_tokens(e, video_tokens, x.shape[1]))
        return sample, audio

    # What the blocks share

    def _cast(self, name: str) -> Tensor:
        with self.ledger.entry("recast"):
            return self.weights[name].to(self.dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self._cast(f"{name}.weight"), self._cast(f"{name}.bias"))

    def embed_time(self, timestep: Tensor, shape: torch.Size, clean: int) -> tuple[Tensor, Tensor]:
        """e (batch, rows, dim) and e0 (batch, rows, 6, dim), float32; rows: one for each token, or one for all."""
        with self.ledger.entry("modulation"):
            times = timestep.reshape(-1, 1).expand(shape).clone()
            times[:, :clean] = 0
            if not self.costs.modulation and not clean:
                times = times[:, :1]
            spots = None
            if not self.costs.modulation and clean:
                times, spots = torch.stack([times[:, 0], times[:, -1]], dim=1), _spots(shape[1], clean)
            waves = sinusoidal_embedding(times, self.config.freq_dim)
            e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", waves)))
            e0 = self.linear("time_projection.1", F.silu(e)).unflatten(-1, (6, -1))
            e, e0 = e.float(), e0.float()
            return (e, e0) if spots is None else (e[:, spots], e0[:, spots])

    def embed_text(self, states: Tensor, speakers: tuple[Tensor, Sequence[int]] | None) -> Tensor:
        with self.ledger.entry("text"):
            if "states" in self._kept_text:
                return self._kept_text["states"]
            padded = F.pad(states, (0, 0, 0, self.config.text_len - states.shape[1]))
            hidden = F.gelu(self.linear("text_embedding.0", padded), approximate="tanh")
            text = self.linear("text_embedding.2", hidden)
            if speakers is not None:
                embeds, rows = speakers
                text = text.clone()
                text[:, list(rows)] = self._speakers(embeds).to(text.dtype)
            if not self.costs.text:
                self._kept_text["states"] = text
            return text

    def _speakers(self, embeds: Tensor) -> Tensor:
        name = "speaker_embedding"
        rows = self._affine_norm(f"{name}.net.0", embeds.to(self.dtype))
        rows = self.linear(f"{name}.net.3", F.silu(self.linear(f"{name}.net.1", rows)))
        rows = self._affine_norm(f"{name}.out_norm", rows)
        silent = embeds.float().square().sum(-1, keepdim=True) <= 1e-6
        return torch.where(silent, self._cast(f"{name}.null_token"), rows)

    def _affine_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._cast(f"{name}.weight"), self._cast(f"{name}.bias"))

    def _head(self, name: str, x: Tensor, e: Tensor) -> Tensor:
        with self.ledger.entry("modulation"):
            shift, scale = (self.weights[f"{name}.modulation"].float()[:, None] + e[:, :, None]).unbind(2)
            x = F.layer_norm(x.float(), x.shape[-1:], eps=self.config.eps) * (1 + scale) + shift
        return self.linear(f"{name}.head", x)

    def _unpatchify(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        patch = self.config.patch_size
        x = tokens.unflatten(1, tuple(grid)).unflatten(-1, (*patch, -1))  # (b, f, h, w, pf, ph, pw, c)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        sizes = [count * size for count, size in zip(grid, patch, strict=True)]
        return x.reshape(x.shape[0], x.shape[1], *sizes)


class OfficialBlock:
    """One layer of a pass: an alignment layer with parameters for each stream, or a fusion layer."""

    def __init__(self, owner: OfficialPass, index: int, video_tokens: int, isolated: bool = False):
        self.owner, self.name = owner, f"transformer_blocks.{index}"
        self.streams, self.ffn_streams = owner.layers[index]
        self.video_tokens, self.isolated = video_tokens, isolated

    def __call__(self, x: Tensor, e0: Tensor, text: Tensor, grid: Sequence[int]) -> Tensor:
        runs = self.runs(x.shape[1])
        with self.owner.ledger.entry("modulation"):
            e = [self._modulation(suffix, _of_tokens(e0, start, stop)) for suffix, start, stop in runs]
        y = self._self_attention(self._modulated(x, runs, e, 0), runs, grid)
        x = self._gated(x, y, runs, e, 2)
        x = x + torch.cat(
            [self._cross_attention(x[:, start:stop], suffix, text) for suffix, start, stop in runs], dim=1
        )
        parts = self._modulated(x, runs, e, 3)
        y = torch.cat([self._ffn(part, suffix) for part, (suffix, _, _) in zip(parts, runs, strict=True)], dim=1)
        return self._gated(x, y, runs, e, 5)

    def runs(self, tokens: int) -> Runs:
        if self.streams == 1:
            return [("", 0, tokens)]
        runs = [("", 0, self.video_tokens), ("_audio", self.video_tokens, tokens)]
        return [run for run in runs if run[2] > run[1]]

    def _modulation(self, suffix: str, e0: Tensor) -> list[Tensor]:
        name = f"{self.name}.modulation{suffix}.modulation"
        return list((self.owner.weights[name].float()[:, None] + e0).unbind(2))

    def _modulated(self, x: Tensor, runs: Runs, e: list[list[Tensor]], vector: int) -> list[Tensor]:
        parts = []
        with self.owner.ledger.entry("modulation"):
            for (_, start, stop), vectors in zip(runs, e, strict=True):
                normed = F.layer_norm(x[:, start:stop].float(), x.shape[-1:], eps=self.owner.config.eps)
                parts.append((normed * (1 + vectors[vector + 1]) + vectors[vector]).to(self.owner.dtype))
        return parts

    def _gated(self, x: Tensor, y: Tensor, runs: Runs, e: list[list[Tensor]], vector: int) -> Tensor:
        with self.owner.ledger.entry("modulation"):
            parts = []
            for (_, start, stop), vectors in zip(runs, e, strict=True):
                summed = x[:, start:stop].float() + y[:, start:stop].float() * vectors[vector]
                parts.append(summed.to(self.owner.dtype))
            return torch.cat(parts, dim=1)

    def _rms(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.owner.config.eps)
        return wide * self.owner.weights[f"{self.name}.{name}.weight"].float()

    def _self_attention(self, parts: list[Tensor], runs: Runs, grid: Sequence[int]) -> Tensor:
        owner, layer = self.owner, f"{self.name}.self_attn"
        q, k, v = [], [], []
        for part, (suffix, _, _) in zip(parts, runs, strict=True):
            q.append(self._rms(owner.linear(f"{layer}.q{suffix}", part), f"self_attn.norm_q{suffix}"))
            k.append(self._rms(owner.linear(f"{layer}.k{suffix}", part), f"self_attn.norm_k{suffix}"))
            v.append(owner.linear(f"{layer}.v{suffix}", part))
        query, key, value = (torch.cat(rows, dim=1).unflatten(-1, (owner.heads, -1)) for rows in (q, k, v))
        with owner.ledger.entry("rotary"):
            query, key = self._turned(query, grid), self._turned(key, grid)
        with owner.ledger.entry("varlen"):
            attended = self._attend(query, key, value)
        outputs = [owner.linear(f"{layer}.o{suffix}", attended[:, start:stop]) for suffix, start, stop in runs]
        return torch.cat(outputs, dim=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, tokens, heads, dim) of each -> (batch, tokens, heads * dim)."""
        attend = attention_by_lengths if self.owner.costs.varlen else attention
        if not self.isolated or not 0 < self.video_tokens < q.shape[1]:
            return attend(q, k, v).flatten(2)
        streams = [slice(0, self.video_tokens), slice(self.video_tokens, None)]
        return torch.cat([attend(q[:, run], k[:, run], v[:, run]) for run in streams], dim=1).flatten(2)

    def _turned(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """(batch, tokens, heads, dim), turned, in the computing dtype."""
        owner = self.owner
        sizes = (tuple(grid), x.shape[1] - self.video_tokens)
        if not owner.costs.rotary:
            if sizes not in owner._kept_rotary:
                owner._kept_rotary[sizes] = rotary_angles(*sizes, owner.config).to(torch.complex64)
            pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * owner._kept_rotary[sizes]).flatten(-2).to(owner.dtype)
        turned = []
        for sample in x:
            angles = rotary_angles(*sizes, owner.config)
            pairs = torch.view_as_complex(sample.to(torch.float64).unflatten(-1, (-1, 2)))
            turned.append(torch.view_as_real(pairs * angles).flatten(-2))
        return torch.stack(turned).float().to(owner.dtype)

    def _cross_attention(self, x: Tensor, suffix: str, text: Tensor) -> Tensor:
        owner, layer = self.owner, f"{self.name}.cross_attn"
        norm = f"{self.name}.norm3{suffix if self.ffn_streams > 1 else ''}"
        weight, bias = (owner.weights[f"{norm}.{name}"].float() for name in ("weight", "bias"))
        normed = F.layer_norm(x.float(), x.shape[-1:], weight, bias, owner.config.eps)
        query = self._rms(owner.linear(f"{layer}.q{suffix}", normed), f"cross_attn.norm_q{suffix}")
        with owner.ledger.entry("text"):
            key, value = self.text_rows("k", suffix, text), self.text_rows("v", suffix, text)
        with owner.ledger.entry("varlen"):
            heads = [rows.to(owner.dtype).unflatten(-1, (owner.heads, -1)) for rows in (query, key, value)]
            attend = attention_by_lengths if owner.costs.varlen else attention
            attended = attend(*heads).flatten(2)
        return owner.linear(f"{layer}.o{suffix}", attended)

    def text_rows(self, kind: str, suffix: str, text: Tensor) -> Tensor:
        """Keys or values of the text."""
        owner, name = self.owner, f"{self.name}.cross_attn.{kind}{suffix}"
        if name in owner._kept_text:
            return owner._kept_text[name]
        rows = owner.linear(name, text)
        if kind == "k":
            rows = self._rms(rows, f"cross_attn.norm_k{suffix}")
        if not owner.costs.text:
            owner._kept_text[name] = rows
        return rows

    def _ffn(self, x: Tensor, suffix: str) -> Tensor:
        name = f"{self.name}.ffn{suffix if self.ffn_streams > 1 else ''}"
        return self.owner.linear(f"{name}.2", F.gelu(self.owner.linear(f"{name}.0", x), approximate="tanh"))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch, tokens, heads, dim) of each -> the same."""
    q, k, v = (rows.transpose(1, 2) for rows in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attention_by_lengths(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Real rows to the front, all samples packed, each attended by itself, then everything put back."""
    packed, places, lengths = zip(*(_packed(rows) for rows in (q, k, v)), strict=True)
    runs = zip(*(rows.split(sizes) for rows, sizes in zip(packed, lengths, strict=True)), strict=True)
    answers = torch.cat([attention(*(rows[None] for rows in run))[0] for run in runs])
    padded = torch.zeros_like(q.flatten(0, 1)).index_copy(0, places[0], answers)
    return padded.view_as(q)


def _packed(rows: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """All samples' real rows (n, heads, dim), where they came from, and how many each sample has."""
    batch, tokens = rows.shape[:2]
    is_real = torch.ones(batch, tokens, dtype=torch.bool, device=rows.device)
    order = torch.argsort((~is_real).to(torch.uint8), dim=1, stable=True)
    places = order + torch.arange(batch, device=rows.device)[:, None] * tokens
    places = places[torch.gather(is_real, 1, order)]  # how many: the host waits for the device
    return rows.flatten(0, 1).index_select(0, places), places, is_real.sum(1).tolist()  # and again


def rotary_angles(grid: Sequence[int], audio_tokens: int, config: Any) -> Tensor:
    """Unit complex numbers (tokens, 1, head_dim / 2) in complex128: video tokens in (f, h, w) order, then audio."""
    head_dim = config.attention_head_dim
    space = 2 * (head_dim // 6)
    axes = [head_dim - 2 * space, space, space]
    time, rows, columns = (_turns(torch.arange(n), channels) for n, channels in zip(grid, axes, strict=True))
    frames, height, width = grid
    parts = [
        time[:, None, None].expand(frames, height, width, -1),
        rows[None, :, None].expand(frames, height, width, -1),
        columns[None, None, :].expand(frames, height, width, -1),
    ]
    video = torch.cat(parts, dim=-1).flatten(0, 2)
    audio = _turns(torch.arange(audio_tokens) * config.audio_rope_scale, axes[0])
    still = torch.ones(audio_tokens, space, dtype=torch.complex128)
    return torch.cat([video, torch.cat([audio, still], dim=-1)])[:, None]


def _turns(positions: Tensor, channels: int) -> Tensor:
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.outer(positions.double(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def _of_tokens(e: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a run of tokens; one row serves all."""
    return e if e.shape[1] == 1 else e[:, start:stop]


def _spots(tokens: int, clean: int) -> Tensor:
    """Row 0 for the clean tokens, row 1 for the others."""
    return (torch.arange(tokens) >= clean).long()
