"""Weight files as lazy mappings from name to tensor, and the one strict way to put them into a module.

A mapping here yields a tensor when it is asked for and keeps none, so that loading needs the memory of the
finished module and of one tensor, whatever the size and the precision of the file.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

logger = logging.getLogger(__name__)

FP8_SCALE_SUFFIX = "_scale"
# A memory map counts as resident memory as far as it has been read. Opening the file anew before more than this
# share of it has been read keeps that part small; the cost is a few dozen reads of the header.
REOPEN_AFTER_SHARE = 1 / 64
REOPEN_AFTER_AT_LEAST = 4 * 2**20
NAMES_SHOWN = 20


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, read when asked for. What it yields shares no memory with any tensor of the caller's."""

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor, without reading it, which `Mapping`'s own would do."""
        raise NotImplementedError

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        raise NotImplementedError

    def dtype_of(self, name: str) -> torch.dtype:
        """The precision that a tensor is stored in, without reading it."""
        raise NotImplementedError

    def original_name(self, name: str) -> str:
        """What the publisher calls a tensor, also one that is missing; for messages to people."""
        return name


class TensorFile(LazyTensors):
    """One `.safetensors` file, or one torch file (`.ckpt`, `.pth`, `.pt`) of tensors or of `{"state_dict": tensors}`.

    Raises ValueError where the file is neither, is cut short or holds things other than tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"There is no weight file at {self.path}.")
        self._budget = max(REOPEN_AFTER_AT_LEAST, int(self.path.stat().st_size * REOPEN_AFTER_SHARE))
        self._bytes_read = 0
        self.metadata: dict[str, str] = {}
        self._reader, self._index = self._open()

    def _open(self) -> tuple[Callable[[str], torch.Tensor], dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        if self.path.suffix == ".safetensors":
            return self._open_safetensors()
        tensors = read_torch_file(self.path)
        tensors = tensors.get("state_dict", tensors)
        if strangers := [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]:
            raise ValueError(
                f"{self.path} holds entries that are no tensors: {listing(strangers)}. Expected is a state dict."
            )
        return tensors.__getitem__, {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    def _open_safetensors(self) -> tuple[Callable[[str], torch.Tensor], dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        try:
            handle = safe_open(self.path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{self.path} is not a readable safetensors file ({error}). Download it again.") from error
        self.metadata = handle.metadata() or {}
        index = getattr(self, "_index", None)
        if index is None:
            index = {}
            for name in handle.offset_keys():
                entry = handle.get_slice(name)
                if entry.get_dtype() not in _SAFETENSORS_DTYPES:
                    raise ValueError(f"{self.path}: {name} is of the type {entry.get_dtype()}, which is not supported.")
                index[name] = (tuple(entry.get_shape()), _SAFETENSORS_DTYPES[entry.get_dtype()])
        return handle.get_tensor, index

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._index[name][0]

    def dtype_of(self, name: str) -> torch.dtype:
        return self._index[name][1]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._index:
            raise KeyError(name)
        shape, dtype = self._index[name]
        size = math.prod(shape) * dtype.itemsize
        if self._bytes_read and self._bytes_read + size > self._budget:
            del self._reader  # first, so that what it held is free for the next
            self._reader, self._index = self._open()
            self._bytes_read = 0
        self._bytes_read += size
        return self._reader(name)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class InMemoryTensors(LazyTensors):
    """A mapping of tensors that somebody else owns; each one is copied when it is asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype_of(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().clone()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class RenamedTensors(LazyTensors):
    """Another mapping under new names; `names` maps each new name to the (source, old name) it stands for.

    `undo` turns a new name into an old one where `names` cannot, because the tensor is missing.
    """

    def __init__(self, names: Mapping[str, tuple[LazyTensors, str]], undo: Callable[[str], str] | None = None) -> None:
        self._names = names
        self._undo = undo
        self._source = next(iter(names.values()))[0] if names else None

    def original_name(self, name: str) -> str:
        if name in self._names:
            source, old = self._names[name]
            return source.original_name(old)
        old = self._undo(name) if self._undo else name
        return self._source.original_name(old) if self._source is not None else old

    def shape_of(self, name: str) -> tuple[int, ...]:
        source, old = self._names[name]
        return source.shape_of(old)

    def dtype_of(self, name: str) -> torch.dtype:
        source, old = self._names[name]
        return source.dtype_of(old)

    def __getitem__(self, name: str) -> torch.Tensor:
        source, old = self._names[name]
        return source[old]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class DequantisedTensors(LazyTensors):
    """Another mapping with its float8 weights multiplied out: `X` (out, in) by `X_scale` (out) gives float32 `X`.

    Raises ValueError where a float8 weight has no scale or one of another length.
    """

    def __init__(self, tensors: LazyTensors) -> None:
        self._tensors = tensors
        self._quantised = {name for name in tensors if tensors.dtype_of(name) == torch.float8_e4m3fn}
        bad = [name for name in self._quantised if self._scale_shape(name) != tensors.shape_of(name)[:1]]
        if bad:
            raise ValueError(
                f"float8 weights need a scale for each output row, named X{FP8_SCALE_SUFFIX}; missing or of another "
                f"length for: {listing(sorted(bad))}."
            )

    def _scale_shape(self, name: str) -> tuple[int, ...] | None:
        scale = name + FP8_SCALE_SUFFIX
        return self._tensors.shape_of(scale) if scale in self._tensors else None

    def original_name(self, name: str) -> str:
        return self._tensors.original_name(name)

    def _is_scale(self, name: str) -> bool:
        return name.removesuffix(FP8_SCALE_SUFFIX) in self._quantised and name.endswith(FP8_SCALE_SUFFIX)

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape_of(name)

    def dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._quantised else self._tensors.dtype_of(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self:
            raise KeyError(name)
        tensor = self._tensors[name]
        if name not in self._quantised:
            return tensor
        scale = self._tensors[name + FP8_SCALE_SUFFIX].float()
        return tensor.float().mul_(scale.view(-1, *[1] * (tensor.dim() - 1)))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors and not self._is_scale(str(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._tensors if not self._is_scale(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_torch_file(path: Path) -> dict[str, Any]:
    """A torch file's dictionary, memory-mapped, with nothing but tensors and plain data allowed in it.

    Raises ValueError where the file is broken, holds code, or is no dictionary.
    """
    try:
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError, by what is broken
        raise ValueError(f"{path} cannot be read as a file of weights alone ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected is a dictionary of tensors.")
    return content


def as_lazy(tensors: str | Path | Mapping[str, torch.Tensor]) -> LazyTensors:
    """A weight file's path, or a mapping of tensors, as `LazyTensors`."""
    if isinstance(tensors, LazyTensors):
        return tensors
    if isinstance(tensors, Mapping):
        return InMemoryTensors(tensors)
    return TensorFile(tensors)


def backbone_tensors(weights: str | Path | Mapping[str, torch.Tensor], prefix: str = "backbone.") -> LazyTensors:
    """The backbone's tensors under its own names: the prefix dropped where it is there, float8 multiplied out."""
    source = as_lazy(weights)
    names = {name.removeprefix(prefix): (source, name) for name in source}
    if len(names) < len(source):
        doubles = sorted(name for name in source if name.startswith(prefix) and name.removeprefix(prefix) in source)
        raise ValueError(f"The weights hold tensors both with and without the prefix {prefix!r}: {listing(doubles)}.")
    prefixed = any(name.startswith(prefix) for name in source)
    return DequantisedTensors(RenamedTensors(names, undo=lambda name: prefix + name if prefixed else name))


def empty_weights() -> AbstractContextManager[None]:
    """A context in which a module is built without memory for its weights, ready for `load_strictly`.

    Its buffers are real, so that those which no file holds (tables that the constructor computes) are valid.
    """
    return init_empty_weights(include_buffers=False)


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    source: str = "",
) -> None:
    """Puts each tensor into the module, one at a time, in place of what stands there (built under `empty_weights`).

    The module owns its weights afterwards, except that with `dtype` None a file's tensors stay memory-mapped in
    the precision they have. A class's `_keep_in_fp32_modules` is respected as its library does. Weights that the
    module ties together may come under any of their names.

    Raises ValueError with the names of all missing, surplus and misshapen tensors; `source` says whose they are.
    """
    lazy = as_lazy(tensors)
    slots = module.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}
    for name, slot in slots.items():
        aliases.setdefault(id(slot), []).append(name)
    _check(lazy, slots, aliases, source or type(module).__name__)

    # In the file's order, which a disk reads fastest; of tied weights the first name serves for all.
    for name in lazy:
        slot = slots[name]
        names = aliases.pop(id(slot), None)
        if names is None:
            continue
        target = _target_dtype(module, name, slot, dtype)
        value = lazy[name]
        if target is not None or device is not None:
            # A copy even where nothing changes: the pages of the file are to be let go.
            value = value.to(device=device, dtype=target, copy=target is not None)
        if isinstance(slot, nn.Parameter):
            value = nn.Parameter(value, requires_grad=slot.requires_grad and value.is_floating_point())
        for alias in names:
            path, _, leaf = alias.rpartition(".")
            setattr(module.get_submodule(path), leaf, value)
    _finish_buffers(module, slots, device)


def _check(lazy: LazyTensors, slots: Mapping[str, torch.Tensor], aliases: Mapping[int, list[str]], source: str) -> None:
    missing = [lazy.original_name(names[0]) for names in aliases.values() if not any(name in lazy for name in names)]
    surplus = [lazy.original_name(name) for name in lazy if name not in slots]
    misshapen = [
        f"{lazy.original_name(name)} is {lazy.shape_of(name)} and should be {tuple(slots[name].shape)}"
        for name in lazy
        if name in slots and lazy.shape_of(name) != tuple(slots[name].shape)
    ]
    faults = [
        f"{len(found)} {what}: {listing(found)}"
        for what, found in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if found
    ]
    if faults:
        raise ValueError(f"{source}: the weights do not fit the model. Tensors {'; '.join(faults)}.")


def _target_dtype(module: nn.Module, name: str, slot: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
    """What a tensor is to become: `dtype`, float32 where its class insists, its own where it counts things."""
    if dtype is None:
        return None
    if not slot.is_floating_point():
        return slot.dtype
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    # transformers applies the list to float16 alone, diffusers to every precision.
    applies = dtype == torch.float16 or isinstance(module, ModelMixin)
    return torch.float32 if applies and any(part in name.split(".") for part in kept) else dtype


def _finish_buffers(module: nn.Module, slots: Mapping[str, torch.Tensor], device: torch.device | str | None) -> None:
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise ValueError(
                f"The buffer {name} has no values: build the module under nava_core.weights.empty_weights()."
            )
        if device is not None and name not in slots:
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, buffer.to(device))


def listing(names: list[str]) -> str:
    """Names for a message, the first few where there are many."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
