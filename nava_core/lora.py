"""LoRAs on the backbone, through the library's adapters: load, scale, fuse, and change them from request to request."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nava_core.models.official_config import block_renamer
from nava_core.offload import blocks_restored
from nava_core.request import RequestError
from nava_core.weights import listing

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "backbone.")
_KINDS = {
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "alpha": "alpha",
}
_KEY = re.compile(rf"(?P<module>.+)\.(?P<kind>{'|'.join(map(re.escape, _KINDS))})")


def read_lora(path: str | os.PathLike[str], transformer: Any) -> dict[str, Tensor]:
    """The adapter of a `.safetensors` file (or the only one of a folder) under the transformer's own names.

    Known are the library's and peft's names (`lora_A`, `lora_B`) and the trainers' (`lora_down`, `lora_up`, `alpha`,
    which is multiplied in), with official or our block names and the usual prefixes. Raises RequestError where the file
    cannot be read, holds something else, or names a layer that the model does not have.
    """
    file = _lora_file(Path(path).expanduser())
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RequestError("loras", f"the LoRA {file} cannot be read ({error}); give a .safetensors file") from error
    return _converted(tensors, transformer, str(file))


class NavaLoraLoaderMixin(LoraBaseMixin):
    """`load_lora_weights`, `set_adapters`, `fuse_lora` and their kin for a pipeline with a NAVA transformer."""

    _lora_loadable_modules = ["transformer"]  # noqa: RUF012 (the library's contract)
    transformer_name = "transformer"
    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Put an adapter on the transformer; it is active with scale 1. See `read_lora` for files."""
        if kwargs:
            raise TypeError(f"load_lora_weights takes no {', '.join(kwargs)}; give a file or its tensors")
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Mapping):
            tensors = _converted(source, self.transformer, "the LoRA given in memory")
        else:
            tensors = read_lora(source, self.transformer)
        tensors = {name: tensor.to(self.transformer.dtype) for name, tensor in tensors.items()}
        with blocks_restored(self.transformer):
            self.transformer.load_lora_adapter(tensors, prefix=None, adapter_name=adapter_name)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: dict[str, torch.nn.Module | Tensor],
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write an adapter, as `peft.get_peft_model_state_dict(transformer)` gives it, to a folder."""
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: None},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(self, components: Sequence[str] = ("transformer",), **kwargs: Any) -> None:
        """Add the active adapters to the weights, so that they cost nothing."""
        with blocks_restored(self.transformer):
            super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("transformer",), **kwargs: Any) -> None:
        """Take fused adapters out of the weights again."""
        with blocks_restored(self.transformer):
            super().unfuse_lora(components=list(components), **kwargs)

    def unload_lora_weights(self) -> None:
        """Remove all adapters."""
        with blocks_restored(self.transformer):
            super().unload_lora_weights()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove some adapters."""
        with blocks_restored(self.transformer):
            super().delete_adapters(adapter_names)

    def use_loras(self, loras: Sequence[tuple[str, float]]) -> None:
        """Make exactly these files, each at its scale, the request's adapters; those of an earlier request go.

        Adapters that somebody else has loaded under other names are left alone, and are off while there are any.
        Raises RequestError as `read_lora` does.
        """
        wanted = {_adapter_name(path): (path, scale) for path, scale in loras}
        present = self.transformer.peft_config if hasattr(self.transformer, "peft_config") else {}
        stale = [name for name in present if name.startswith(_OURS) and name not in wanted]
        if not wanted and not stale:
            return
        if stale:
            self.delete_adapters(stale)
        for name, (path, _) in wanted.items():
            if name not in getattr(self.transformer, "peft_config", {}):
                self.load_lora_weights(path, adapter_name=name)
        if wanted:
            self.transformer.set_adapters(list(wanted), [scale for _, scale in wanted.values()])


_OURS = "request-"


def _adapter_name(path: str) -> str:
    """One name for one content: a file that was written anew is another adapter."""
    file = _lora_file(Path(path).expanduser())
    seen = f"{file.resolve()} {file.stat().st_mtime_ns}"
    return _OURS + hashlib.sha256(seen.encode()).hexdigest()[:12]


def _lora_file(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        held = f"holds {len(files)} .safetensors files" if path.is_dir() else "is no file"
        raise RequestError("loras", f"the LoRA {path} {held}; give the path of one .safetensors file")
    return files[0]


def _converted(tensors: Mapping[str, Tensor], transformer: Any, source: str) -> dict[str, Tensor]:
    modules = {name.replace(".base_layer", "") for name, _ in transformer.named_modules()}
    rename = block_renamer(transformer.config)
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        module = "" if match is None else rename(_without_prefixes(match["module"]))
        if match is None or module not in modules:
            unknown.append(key)
        else:
            found.setdefault(module, {})[_KINDS[match["kind"]]] = tensor
    if unknown or not found:
        names = listing(unknown) if unknown else "none"
        raise RequestError("loras", f"{source} is no LoRA for this model: it has tensors for {names}")
    converted = {}
    for module, parts in found.items():
        if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
            raise RequestError("loras", f"{source} is incomplete: of {module} it has only {', '.join(sorted(parts))}")
        down, up = parts["lora_A.weight"], parts["lora_B.weight"]
        if "alpha" in parts:
            up = up * (parts["alpha"].item() / down.shape[0])
        converted[f"{module}.lora_A.weight"], converted[f"{module}.lora_B.weight"] = down, up
    return converted


def _without_prefixes(name: str) -> str:
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, changed = name.removeprefix(prefix), True
    return name
