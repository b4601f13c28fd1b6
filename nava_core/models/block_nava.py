"""One layer of the NAVA transformer and the heads after the last: what they are made of.

Source: the released weights (`WanAVModel`). Alignment layers have parameters for video and for audio, fusion layers one
set for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn

from nava_core.models.attention_nava import (
    STREAM_SUFFIXES,
    NavaAttention,
    NavaCrossAttnProcessor,
    NavaSelfAttnProcessor,
    NavaTextContext,
    TokenLayout,
    adaptive_norm,
    join,
)

FFN_CHUNK_SIZE = 8192
"""Rows that a feed-forward network takes at once by default: enough to fill any device."""


class NavaModulation(nn.Module):
    """A learnt offset to the time embedding's vectors: (batch, rows, vectors, dim) -> the same, at least float32."""

    def __init__(self, vectors: int, dim: int):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, vectors, dim) / math.sqrt(dim))

    def forward(self, time_rows: Tensor) -> Tensor:
        return self.modulation[:, None] + time_rows


@dataclass(frozen=True)
class TokenPiece:
    """A run of tokens with one modulation, (batch or 1, vectors, dim), inside part `part` of the sequence."""

    part: int
    start: int
    stop: int
    modulation: Tensor


def token_pieces(layout: TokenLayout, modulation: Sequence[Tensor]) -> list[TokenPiece]:
    """Cut the sequence where parameters or diffusion time change.

    modulation: for each stream (batch or 1, rows, vectors, dim). Row 1, if any, belongs to the layout's `clean`
    tokens, row 0 to all others.
    """
    pieces = []
    for part, (stream, start, stop) in enumerate(layout.ranges(len(modulation))):
        rows = modulation[stream]
        if start < layout.clean:
            pieces.append(TokenPiece(part, start, layout.clean, rows[:, 1]))
            start = layout.clean
        if start < stop:
            pieces.append(TokenPiece(part, start, stop, rows[:, 0]))
    return pieces


def gated_sum(hidden_states: Tensor, parts: Sequence[Tensor], pieces: Sequence[TokenPiece], vector: int) -> Tensor:
    """`hidden_states + gate * update` where `parts` hold the update, each piece with its own gate."""
    update = join(parts)
    if len(pieces) == 1:
        gate = pieces[0].modulation[:, vector, None].to(update.dtype)
        return torch.addcmul(hidden_states, update, gate)
    summed = []
    for piece in pieces:
        run, gate = slice(piece.start, piece.stop), piece.modulation[:, vector, None].to(update.dtype)
        summed.append(torch.addcmul(hidden_states[:, run], update[:, run], gate))
    return torch.cat(summed, dim=1)


class NavaFeedForward(nn.Sequential):
    """Linear, tanh-GELU, linear. In sampling `chunk_size` rows at a time, since the wide middle would be a clip's
    largest tensor (0.94 GB at 32,712 tokens) and rows do not depend on each other; None takes all at once.
    """

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.chunk_size: int | None = FFN_CHUNK_SIZE

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        size = self.chunk_size
        if size is None or hidden_states.shape[1] <= size or torch.is_grad_enabled():
            return super().forward(hidden_states)
        result = torch.empty_like(hidden_states)
        for rows, filled in zip(hidden_states.split(size, dim=1), result.split(size, dim=1), strict=True):
            filled.copy_(super().forward(rows))
        return result


class NavaTransformerBlock(nn.Module):
    """One layer. streams=2: video and audio have their own parameters (alignment layer); 1: shared (fusion layer).

    In an alignment layer `split_ffn` also separates the feed-forward network and the norm before cross-attention.
    """

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float, streams: int = 1, split_ffn: bool = False):
        super().__init__()
        self.eps = eps
        self.streams = streams
        self.ffn_streams = streams if split_ffn else 1
        self.self_attn = NavaAttention(dim, num_heads, eps, streams, NavaSelfAttnProcessor())
        self.cross_attn = NavaAttention(dim, num_heads, eps, streams, NavaCrossAttnProcessor())
        for suffix in STREAM_SUFFIXES[:streams]:
            self.add_module(f"modulation{suffix}", NavaModulation(6, dim))
        for suffix in STREAM_SUFFIXES[: self.ffn_streams]:
            self.add_module(f"norm3{suffix}", nn.LayerNorm(dim, eps))
            self.add_module(f"ffn{suffix}", NavaFeedForward(dim, ffn_dim))

    def forward(
        self,
        hidden_states: Tensor,
        context: NavaTextContext,
        time_rows: Tensor,
        rotary: Tensor,
        layout: TokenLayout,
    ) -> Tensor:
        """hidden_states (batch, tokens, dim) -> the same. time_rows: (batch or 1, rows, 6, dim), as in token_pieces."""
        ranges = layout.ranges(self.streams)
        modulation = [getattr(self, f"modulation{suffix}")(time_rows) for suffix in STREAM_SUFFIXES[: self.streams]]
        pieces = token_pieces(layout, modulation)

        parts = self.self_attn(self._adaptive_norm(hidden_states, pieces, 0), rotary, layout)
        hidden_states = gated_sum(hidden_states, parts, pieces, 2)

        parts = [self._ffn_layer("norm3", stream)(hidden_states[:, start:stop]) for stream, start, stop in ranges]
        hidden_states = hidden_states + join(self.cross_attn(parts, context, layout))

        parts = self._adaptive_norm(hidden_states, pieces, 3)
        parts = [self._ffn_layer("ffn", stream)(part) for (stream, _, _), part in zip(ranges, parts, strict=True)]
        return gated_sum(hidden_states, parts, pieces, 5)

    def _adaptive_norm(self, hidden_states: Tensor, pieces: Sequence[TokenPiece], vector: int) -> list[Tensor]:
        """Norm with shift `vector` and scale `vector + 1` of each piece, joined to parts."""
        parts: list[list[Tensor]] = [[] for _ in range(pieces[-1].part + 1)]
        for piece in pieces:
            shift, scale = piece.modulation[:, vector], piece.modulation[:, vector + 1]
            parts[piece.part].append(adaptive_norm(hidden_states[:, piece.start : piece.stop], shift, scale, self.eps))
        return [join(part) for part in parts]

    def _ffn_layer(self, name: str, stream: int) -> nn.Module:
        return getattr(self, name + STREAM_SUFFIXES[stream if self.ffn_streams > 1 else 0])


# Both kinds of layer return the token sequence alone; the text context is constant through the stack.
TransformerBlockRegistry.register(
    NavaTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class NavaHead(nn.Module):
    """Adaptive norm and projection of one stream's tokens to velocities."""

    def __init__(self, dim: int, out_features: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))

    def forward(self, hidden_states: Tensor, time_rows: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, out_features). time_rows: (batch or 1, rows, dim)."""
        modulation = self.modulation[:, None] + time_rows[:, :, None]
        pieces = token_pieces(layout, [modulation])
        normed = [
            adaptive_norm(hidden_states[:, p.start : p.stop], p.modulation[:, 0], p.modulation[:, 1], self.eps)
            for p in pieces
        ]
        return self.head(join(normed))
