"""Decoding a picture on all ranks: each has a strip of it, and the strips meet at every convolution.

A clip's time cannot be cut without repeating most of the work: the decoder's causal convolutions see some 38 latent
frames back, as many as a clip has. Its picture can: where a convolution looks across a strip's edge, the neighbours
send their outermost line, and for the one attention, at the lowest resolution, every rank gathers the whole picture
(0.1% of the work). So each rank does its share of every latent frame, with its share of the feature cache, and the
result is that of one rank up to the rounding of convolutions of another width. The strips of a latent frame go to the
first rank, which hands them on before the next one: nobody holds the clip.

Strips are cut along the longer side; more ranks than lines leave the last ones idle. A decoder with tiling on (small
devices) is not split: the first rank tiles alone, since overlapping tiles blend to another picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanAttentionBlock
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nava_core.decode import FrameDecoder, as_frames, decode_video, denormalised, needs_tiles
from nava_core.engine.rank_plan import share
from nava_core.engine.ulysses import RankFailure, reaching_others

if TYPE_CHECKING:
    from nava_core.engine.parallel import Parallelism


class SplitDecode:
    """A `decoder` for `save_output` on the first rank, whose picture the others `help` to decode.

    The first rank says before each latent frame whether it wants it, so that it may end early; used as a context it
    tells the others when it does. is_broken: an error came in the middle of a frame, and the others are left waiting.
    """

    def __init__(self, state: Parallelism, vae: AutoencoderKLWan | None, latents: Tensor | None):
        self.state = state
        self.is_broken = False
        self._vae = vae
        self._latents = latents
        self._left = 0  # latent frames that have not been announced
        if vae is not None and latents is not None and not needs_tiles(vae, latents):
            self._left = latents.shape[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._left and not self.is_broken and not isinstance(error, RankFailure):
            self._left = 0
            self.state.signal(False)

    def __call__(self, vae: AutoencoderKLWan, latents: Tensor) -> Iterator[Tensor]:
        """As `decode_video`."""
        if not self._left:
            return decode_video(vae, latents)
        return self._frames(StripDecoder(self.state, vae, latents))

    def help(self) -> None:
        """The other ranks' part."""
        if self._left:
            assert self._vae is not None and self._latents is not None
            self.is_broken = True
            strips = StripDecoder(self.state, self._vae, self._latents)
            self.is_broken = False
            while self._left and self.state.signal():
                self._left -= 1
                self._decode(strips)

    def _frames(self, strips: StripDecoder) -> Iterator[Tensor]:
        while self._left:
            self._left -= 1
            self.state.signal(True)
            frames = self._decode(strips)
            assert frames is not None, "only the first rank iterates"
            yield frames

    def _decode(self, strips: StripDecoder) -> Tensor | None:
        self.is_broken = True
        frames = strips.next_frames()
        self.is_broken = False
        return frames


class StripDecoder:
    """This rank's strip of a picture through the decoder, one latent frame after another."""

    @torch.no_grad()
    def __init__(self, state: Parallelism, vae: AutoencoderKLWan, latents: Tensor):
        height, width = latents.shape[-2:]
        self.state = state
        self.vae = vae
        self.dim = -1 if width >= height else -2
        self.lines = max(height, width)
        self.ranks = min(state.ranks, self.lines)
        self._index = 0
        if state.rank < self.ranks:
            start, stop = share(self.lines, self.ranks, state.rank)
            strip = denormalised(vae, latents).narrow(self.dim, start, stop - start)
            self._strip = vae.post_quant_conv(strip)
            self._decoder = FrameDecoder(vae)

    @torch.no_grad()
    def next_frames(self) -> Tensor | None:
        """The next `(frames, height, width, 3)` in [0, 1] on the first rank; None on the others."""
        index, self._index = self._index, self._index + 1
        if self.state.rank >= self.ranks:
            return None
        with self._meeting_neighbours():
            piece = self._decoder(self._strip[:, :, index : index + 1])
        if self.state.rank > 0:
            self._wait([self._send(piece.contiguous(), 0)])
            return None
        scale = piece.shape[self.dim] // self._strip.shape[self.dim]
        pieces = [piece] + [piece.new_empty(self._shape_of(rank, scale, piece)) for rank in range(1, self.ranks)]
        self._wait([self._receive(pieces[rank], rank) for rank in range(1, self.ranks)])
        return as_frames(self.vae, torch.cat(pieces, dim=self.dim))

    @contextmanager
    def _meeting_neighbours(self) -> Iterator[None]:
        """Inside, the decoder's layers see beyond the strip's edges; outside, it is as ever (previews use it)."""
        handles: list[RemovableHandle] = []
        try:
            for layer in self.vae.decoder.modules():
                if isinstance(layer, WanAttentionBlock):
                    handles.append(layer.register_forward_pre_hook(self._with_whole_picture))
                    handles.append(layer.register_forward_hook(self._own_lines))
                elif isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.kernel_size[self.dim] > 1:
                    assert layer.kernel_size[self.dim] == 3 and layer.stride[self.dim] == 1, layer
                    handles.append(layer.register_forward_pre_hook(self._with_edges))
                    handles.append(layer.register_forward_hook(self._without_edges))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _with_edges(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A convolution's input, and the frames it remembers, with the neighbours' outermost lines."""
        rows, *rest = args
        remembered = rest[0] if rest else None
        if not isinstance(remembered, Tensor):
            return self._widened(rows), *rest
        frames = torch.cat([remembered.to(rows.device), rows], dim=2)
        widened = self._widened(frames)
        past = remembered.shape[2]
        return widened[:, :, past:], widened[:, :, :past]

    def _without_edges(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.narrow(self.dim, 1, output.shape[self.dim] - 2)

    def _widened(self, rows: Tensor) -> Tensor:
        """One more line at either side: the neighbour's, or zeros at the picture's edge."""
        rank, last = self.state.rank, rows.shape[self.dim] - 1
        first_line, last_line = (rows.narrow(self.dim, line, 1).contiguous() for line in (0, last))
        before, after = torch.zeros_like(first_line), torch.zeros_like(last_line)
        operations = []
        if rank > 0:
            operations += [self._send(first_line, rank - 1), self._receive(before, rank - 1)]
        if rank < self.ranks - 1:
            operations += [self._send(last_line, rank + 1), self._receive(after, rank + 1)]
        self._wait(operations)
        return torch.cat([before, rows, after], dim=self.dim)

    def _with_whole_picture(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (rows,) = args
        own = rows.contiguous()
        scale = own.shape[self.dim] // self._strip.shape[self.dim]
        pieces = [own.new_empty(self._shape_of(rank, scale, own)) for rank in range(self.ranks)]
        pieces[self.state.rank] = own
        others = [rank for rank in range(self.ranks) if rank != self.state.rank]
        operations = [self._send(own, rank) for rank in others]
        self._wait(operations + [self._receive(pieces[rank], rank) for rank in others])
        return (torch.cat(pieces, dim=self.dim),)

    def _own_lines(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        scale = output.shape[self.dim] // self.lines
        start, stop = share(self.lines, self.ranks, self.state.rank)
        return output.narrow(self.dim, start * scale, (stop - start) * scale)

    def _shape_of(self, rank: int, scale: int, like: Tensor) -> list[int]:
        """The shape of another rank's piece, which differs in its lines alone."""
        start, stop = share(self.lines, self.ranks, rank)
        shape = list(like.shape)
        shape[self.dim] = (stop - start) * scale
        return shape

    def _send(self, tensor: Tensor, rank: int) -> dist.P2POp:
        self.state.traffic.bytes_sent += tensor.nbytes
        return dist.P2POp(dist.isend, tensor, group=self.state.group, group_peer=rank)

    def _receive(self, tensor: Tensor, rank: int) -> dist.P2POp:
        return dist.P2POp(dist.irecv, tensor, group=self.state.group, group_peer=rank)

    def _wait(self, operations: list[dist.P2POp]) -> None:
        if operations:
            self.state.traffic.halos += 1
            with reaching_others():
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
