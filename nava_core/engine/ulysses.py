"""Ulysses sequence parallelism around the transformer: hooks and an attention processor, the model untouched.

Each rank of a group carries a part of the tokens through the blocks and all of them through a part of the heads in
self-attention. What the library's `_cp_plan` with `ContextParallelConfig` does not give us here, and so is done here:

- it splits tensors among a module's arguments along one axis. Our rows are `[video; audio]` with parameters and
  diffusion times of their own (`TokenLayout`), so each stream is split separately and every rank gets its own layout:
  any count of tokens, the first frame's clean tokens tracked, per-stream parameters working as they are;
- the isolated passes attend within each stream, so the global order `[video; audio]` is restored inside attention;
- it moves q, k and v in one exchange each (4 a layer); here they travel together: 2 exchanges a layer, the fewest;
- streams are cut into unequal parts (they differ by one token), so that nothing is padded and no byte sent in vain;
- `enable_parallelism` divides by the number of accelerators, which is zero on a CPU.

Norms, cross-attention and the feed-forward network are local. The exchanges carry the model's dtype. Inference only:
a gradient does not pass through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nava_core.engine.rank_plan import share
from nava_core.models.attention_nava import NavaSelfAttnProcessor, TokenLayout
from nava_core.models.transformer_nava import NavaTransformer3DModel


class RankFailure(RuntimeError):
    """The ranks have lost each other inside shared work; this process must end, and with it its group.

    Its cause is this rank's own error; None where only the others did not come.
    """


@contextmanager
def reaching_others() -> Iterator[None]:
    """Around collectives: their failure is no error of this rank's own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankFailure(f"the other ranks cannot be reached: {error}") from None


@dataclass
class Traffic:
    """What a rank has begun to exchange so far; equal on ranks that did the same.

    exchanges: all-to-all calls, 2 a layer. gathers: one a pass. shares: velocities of a pass sent to all ranks.
    halos: edges of a picture sent to neighbours (decoding). sums: decisions of a step cache.
    bytes_sent: to other ranks, by exchanges and gathers.
    """

    exchanges: int = 0
    gathers: int = 0
    shares: int = 0
    halos: int = 0
    sums: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardedLayout(TokenLayout):
    """The layout of one rank's rows `[its video; its audio]`. whole: that of all ranks' rows together."""

    whole: TokenLayout
    exchange: SequenceExchange

    @classmethod
    def of(cls, whole: TokenLayout, exchange: SequenceExchange) -> ShardedLayout:
        """The part of `whole` that belongs to the exchange's own rank."""
        start, stop = share(whole.video, exchange.ranks, exchange.rank)
        first, last = share(whole.audio, exchange.ranks, exchange.rank)
        clean = min(max(whole.clean - start, 0), stop - start)
        return cls(stop - start, last - first, clean, whole.isolated, whole=whole, exchange=exchange)

    def samples(self, start: int, stop: int) -> Self:
        """The layout of some samples of a batch."""
        return replace(self, isolated=self.isolated[start:stop], whole=self.whole.samples(start, stop))

    def rows(self, rank: int) -> tuple[slice, slice]:
        """Where a rank's video and audio rows lie in the whole sequence."""
        start, stop = share(self.whole.video, self.exchange.ranks, rank)
        first, last = share(self.whole.audio, self.exchange.ranks, rank)
        return slice(start, stop), slice(self.whole.video + first, self.whole.video + last)

    def counts(self) -> list[tuple[int, int]]:
        """Video and audio rows of each rank."""
        slices = [self.rows(rank) for rank in range(self.exchange.ranks)]
        return [(video.stop - video.start, audio.stop - audio.start) for video, audio in slices]

    def own(self, rows: Tensor, dim: int) -> Tensor:
        """This rank's part of something with a row for each token of the whole sequence along `dim`."""
        parts = [rows.narrow(dim, run.start, run.stop - run.start) for run in self.rows(self.exchange.rank)]
        return torch.cat(parts, dim=dim)


class SequenceExchange:
    """Moves tokens and heads between the ranks of `group`, which share each sequence."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic):
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.traffic = traffic

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor, layout: ShardedLayout) -> tuple[Tensor, ...]:
        """(batch, own tokens, heads, dim) of each -> (batch, all tokens `[video; audio]`, own heads, dim) of each."""
        batch, _, heads, dim = query.shape
        parts = [rearrange(rows, "b n (p h) d -> p b n h d", p=self.ranks) for rows in (query, key, value)]
        send = torch.stack(parts, dim=1)  # (ranks, 3, batch, own tokens, own heads, dim)
        counts = layout.counts()
        shapes = [(3, batch, video + audio, heads // self.ranks, dim) for video, audio in counts]
        received = self._all_to_all(send.flatten(), [send[0].numel()] * self.ranks, [_size(shape) for shape in shapes])
        pieces = [piece.view(shape) for piece, shape in zip(received, shapes, strict=True)]
        streams = [piece.split(count, dim=2) for piece, count in zip(pieces, counts, strict=True)]
        ordered = [video for video, _ in streams] + [audio for _, audio in streams]
        return torch.cat(ordered, dim=2).unbind(0)

    def to_tokens(self, attended: Tensor, layout: ShardedLayout) -> Tensor:
        """(batch, all tokens, own heads, dim) -> (batch, own tokens, all heads, dim)."""
        batch, _, heads, dim = attended.shape
        rows = attended.transpose(0, 1)  # tokens first, so that a rank's rows lie together for any batch
        pieces = [rows[run] for rank in range(self.ranks) for run in layout.rows(rank)]
        row, own = batch * heads * dim, layout.video + layout.audio
        sizes = [(video + audio) * row for video, audio in layout.counts()]
        received = self._all_to_all(torch.cat(pieces).flatten(), sizes, [own * row] * self.ranks)
        by_rank = torch.stack([piece.view(own, batch, heads, dim) for piece in received])
        return rearrange(by_rank, "p n b h d -> b n (p h) d")

    def whole_sequence(self, rows: Tensor, layout: ShardedLayout) -> Tensor:
        """(batch, own tokens, dim) -> (batch, all tokens, dim) on every rank."""
        counts = layout.counts()
        longest = max(video + audio for video, audio in counts)
        send = rows.new_zeros(rows.shape[0], longest, rows.shape[2])
        send[:, : rows.shape[1]] = rows
        received = [torch.empty_like(send) for _ in range(self.ranks)]
        with reaching_others():
            dist.all_gather(received, send, group=self.group)
        self.traffic.gathers += 1
        self.traffic.bytes_sent += send.nbytes * (self.ranks - 1)
        video = [piece[:, :count] for piece, (count, _) in zip(received, counts, strict=True)]
        audio = [piece[:, first : first + count] for piece, (first, count) in zip(received, counts, strict=True)]
        return torch.cat(video + audio, dim=1)

    def _all_to_all(self, send: Tensor, send_sizes: list[int], receive_sizes: list[int]) -> tuple[Tensor, ...]:
        received = send.new_empty(sum(receive_sizes))
        with reaching_others():
            dist.all_to_all_single(received, send, receive_sizes, send_sizes, group=self.group)
        self.traffic.exchanges += 1
        self.traffic.bytes_sent += (send.numel() - send_sizes[self.rank]) * send.element_size()
        return received.split(receive_sizes)


class UlyssesSelfAttnProcessor(NavaSelfAttnProcessor):
    """Self-attention whose heads are spread over the ranks while its rows are a `ShardedLayout`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, own tokens, heads, dim) of each -> the same shape."""
        local = NavaSelfAttnProcessor()
        local._attention_backend = self._attention_backend
        if not isinstance(layout, ShardedLayout):
            return local.attend(query, key, value, layout)
        query, key, value = layout.exchange.to_heads(query, key, value, layout)
        return layout.exchange.to_tokens(local.attend(query, key, value, layout.whole), layout)


class SequenceSharding:
    """Hooks on the blocks that shard the tokens before the first one and gather them after the last.

    While `exchange` is None the model runs as if nothing had been installed.
    """

    def __init__(self, transformer: NavaTransformer3DModel):
        self.exchange: SequenceExchange | None = None
        self._blocks: list[Any] = list(transformer.transformer_blocks)
        self._handles: list[RemovableHandle] = []
        self._processors: list[Any] = []
        self._last: tuple[Tensor, TokenLayout, SequenceExchange, Tensor, ShardedLayout] | None = None

    def install(self) -> None:
        """Set the processors and the hooks."""
        self._processors = [block.self_attn.processor for block in self._blocks]
        for block in self._blocks:
            _set_processor(block.self_attn, UlyssesSelfAttnProcessor())
            self._handles.append(block.register_forward_pre_hook(self._before_block))
        self._handles.append(self._blocks[-1].register_forward_hook(self._after_last_block))

    def remove(self) -> None:
        """Make the model what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last = None
        for block, processor in zip(self._blocks, self._processors, strict=True):
            _set_processor(block.self_attn, processor)

    def _before_block(self, block: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.exchange is None:
            return None
        tokens, context, time_rows, rotary, layout = args
        if torch.is_grad_enabled() and tokens.requires_grad:
            raise RuntimeError("sequence parallelism passes no gradients; unparallelize(pipeline) before training")
        own_rotary, own_layout = self._own(rotary, layout, self.exchange)
        if block is self._blocks[0]:
            tokens = own_layout.own(tokens, dim=1)
        return tokens, context, time_rows, own_rotary, own_layout

    def _after_last_block(self, block: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        layout = args[4]
        return layout.exchange.whole_sequence(output, layout) if isinstance(layout, ShardedLayout) else None

    def _own(self, rotary: Tensor, layout: TokenLayout, exchange: SequenceExchange) -> tuple[Tensor, ShardedLayout]:
        """This rank's rotary rows and layout; all blocks of a pass ask for the same."""
        if self._last is not None:
            last_rotary, last_layout, last_exchange, own_rotary, own_layout = self._last
            if last_rotary is rotary and last_layout == layout and last_exchange is exchange:
                return own_rotary, own_layout
        own_layout = ShardedLayout.of(layout, exchange)
        own_rotary = own_layout.own(rotary, dim=0)
        self._last = (rotary, layout, exchange, own_rotary, own_layout)
        return own_rotary, own_layout


def _set_processor(attention: Any, processor: Any) -> None:
    """Exchange the processor; a chosen attention backend stays."""
    processor._attention_backend = attention.processor._attention_backend
    attention.processor = processor


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
