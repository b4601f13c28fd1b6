"""Blocks that wait in host memory and come to the device one at a time, once a step for all its passes.

The library's group offloading moves a block at every call, so once a pass. Here one forward call carries all passes of
a step as a batch (`Execution.in_turn`) and every block takes the samples one after another: its weights come once, and
the working memory is that of one pass. The copies, pinned memory and prefetching on a second stream are the library's
(`ModuleGroup`, `GroupOffloadingHook`); that the next block is fetched while one works is set here, since blocks always
run in the same order. What stands around the blocks (1.3 GB of the 6.3B model in bfloat16) stays on the device.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING,
    GroupOffloadingConfig,
    GroupOffloadingHook,
    GroupOffloadingType,
    ModuleGroup,
)
from diffusers.hooks.hooks import HookRegistry, ModelHook

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nava_core.models.attention_nava import NavaTextContext, TokenLayout
    from nava_core.models.transformer_nava import NavaTransformer3DModel

_IN_TURN = "nava_samples_in_turn"
_ATTRIBUTE = "_nava_offload"


class SamplesInTurnHook(ModelHook):
    """A block takes the samples of a batch one after another; the results are those of the batch.

    They are written over the batch, unless a cache of the transformer remembers what it was.
    """

    def __init__(self, transformer: NavaTransformer3DModel):
        super().__init__()
        self._transformer = transformer

    def new_forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        context: NavaTextContext,
        time_rows: Tensor,
        rotary: Tensor,
        layout: TokenLayout,
    ) -> Tensor:
        """Everything as in `NavaTransformerBlock.forward`."""
        forward, batch = self.fn_ref.original_forward, hidden_states.shape[0]
        if batch == 1:
            return forward(hidden_states, context, time_rows, rotary, layout)
        result = hidden_states
        if self._transformer.is_cache_enabled or hidden_states.stride(0) == 0:
            result = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        for index in range(batch):
            one = slice(index, index + 1)
            times = time_rows if time_rows.shape[0] == 1 else time_rows[one]
            own_layout = layout.samples(index, index + 1)
            result[one] = forward(hidden_states[one], context.sample(index), times, rotary, own_layout)
        return result


@dataclass
class OffloadCounter:
    """What block offloading has moved to the device since `reset`. block_bytes: the weights of all blocks.

    trips: how often a block came. bytes_onloaded / block_bytes is 1 in a step whose passes carry the same streams.
    """

    block_bytes: int = 0
    bytes_onloaded: int = 0
    trips: int = 0

    def reset(self) -> None:
        self.bytes_onloaded = self.trips = 0

    def _add(self, size: int) -> None:
        self.bytes_onloaded += size
        self.trips += 1


@dataclass(frozen=True)
class _Offload:
    counter: OffloadCounter
    config: GroupOffloadingConfig


def offload_blocks(
    transformer: NavaTransformer3DModel,
    onload_device: str | torch.device,
    offload_device: str | torch.device = "cpu",
    use_stream: bool | None = None,
    offload_to_disk_path: str | os.PathLike[str] | None = None,
) -> OffloadCounter:
    """Keep the blocks on `offload_device` and bring each to `onload_device` while it works; the rest moves there now.

    Args:
        use_stream: fetch the next block while one works (needs pinned host memory for the blocks, and the room of two
            blocks on the device). None: where the device has streams.
        offload_to_disk_path: a folder for the blocks, where host memory is short too.

    Raises:
        ValueError: the blocks are offloaded already.
    """
    if offload_counter(transformer) is not None:
        raise ValueError("the blocks are offloaded already; call restore_blocks(transformer) first")
    onload_device, offload_device = torch.device(onload_device), torch.device(offload_device)
    if use_stream is None:
        use_stream = onload_device.type == "cuda"
    config = GroupOffloadingConfig(
        onload_device=onload_device,
        offload_device=offload_device,
        offload_type=GroupOffloadingType.BLOCK_LEVEL,
        non_blocking=use_stream,
        record_stream=use_stream,
        low_cpu_mem_usage=False,
        num_blocks_per_group=1,
        offload_to_disk_path=None if offload_to_disk_path is None else os.fspath(offload_to_disk_path),
        stream=torch.cuda.Stream(onload_device) if use_stream else None,
    )
    for name, module in transformer.named_children():
        if name != "transformer_blocks":
            module.to(onload_device)
    counter = OffloadCounter()
    _install(transformer, config, counter)
    setattr(transformer, _ATTRIBUTE, _Offload(counter, config))
    return counter


def offload_counter(transformer: NavaTransformer3DModel) -> OffloadCounter | None:
    """The counter of a transformer whose blocks are offloaded."""
    offload: _Offload | None = getattr(transformer, _ATTRIBUTE, None)
    return None if offload is None else offload.counter


def restore_blocks(transformer: NavaTransformer3DModel) -> None:
    """Undo `offload_blocks`: all blocks on the device."""
    offload: _Offload | None = getattr(transformer, _ATTRIBUTE, None)
    if offload is None:
        return
    for block in transformer.transformer_blocks:
        registry = HookRegistry.check_if_exists_or_initialize(block)
        group = registry.get_hook(_GROUP_OFFLOADING).group
        ModuleGroup.onload_(group)
        if group.stream is not None:
            group.stream.synchronize()
        registry.remove_hook(_GROUP_OFFLOADING, recurse=False)
        registry.remove_hook(_IN_TURN, recurse=False)
    delattr(transformer, _ATTRIBUTE)


@contextmanager
def blocks_restored(transformer: NavaTransformer3DModel) -> Iterator[None]:
    """Inside, no block is offloaded, so that its weights may be exchanged; they are in host memory meanwhile."""
    offload: _Offload | None = getattr(transformer, _ATTRIBUTE, None)
    if offload is None:
        yield
        return
    restore_blocks(transformer)
    transformer.transformer_blocks.to(offload.config.offload_device)
    try:
        yield
    finally:
        _install(transformer, offload.config, offload.counter)
        setattr(transformer, _ATTRIBUTE, offload)


def _install(transformer: NavaTransformer3DModel, config: GroupOffloadingConfig, counter: OffloadCounter) -> None:
    counter.block_bytes = 0
    # A folder of its own each time: the library takes a file that is there already for the block's.
    folder = config.offload_to_disk_path and tempfile.mkdtemp(prefix="blocks-", dir=config.offload_to_disk_path)
    previous: GroupOffloadingHook | None = None
    for index, block in enumerate(transformer.transformer_blocks):
        size = sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))
        counter.block_bytes += size
        registry = HookRegistry.check_if_exists_or_initialize(block)
        registry.register_hook(SamplesInTurnHook(transformer), _IN_TURN)
        group = ModuleGroup(
            modules=[block],
            offload_device=config.offload_device,
            onload_device=config.onload_device,
            offload_leader=block,
            onload_leader=block,
            non_blocking=config.non_blocking,
            stream=config.stream,
            record_stream=config.record_stream,
            # With a stream the first block fetches itself and every other one was fetched by the one before it.
            onload_self=config.stream is None or index == 0,
            offload_to_disk_path=folder,
            group_id=f"transformer_blocks_{index}",
        )
        group.onload_ = partial(_counted, group, counter, size)  # type: ignore[method-assign]
        hook = GroupOffloadingHook(group, config=config)
        registry.register_hook(hook, _GROUP_OFFLOADING)
        if previous is not None and config.stream is not None:
            previous.next_group = group
        previous = hook


def _counted(group: Any, counter: OffloadCounter, size: int) -> None:
    counter._add(size)
    ModuleGroup.onload_(group)
