"""Official names and settings of the backbone -> ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nava_core.weights import LazyTensors, RenamedTensors

_RENAMED = {  # official name -> name in NavaTransformer3DModel's config
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "eps": "eps",
    "text_dim": "text_dim",
    "text_len": "text_len",
    "num_heads": "num_attention_heads",
    "num_double_layers": "num_layers",
    "num_single_layers": "num_single_layers",
    "num_double_final_layers": "num_final_layers",
    "vid_in_dim": "in_channels",
    "vid_out_dim": "out_channels",
    "audio_in_dim": "audio_in_channels",
    "audio_out_dim": "audio_out_channels",
    "temporal_rope_scaling_factor": "audio_rope_scale",
}
_ONLY_ONE_WAY = {"qk_norm": True, "cross_attn_norm": True, "window_size": [-1, -1], "model_type": "ti2v"}
_HANDLED = {"dim", "patch_size", "num_layers", "no_split_norm_ffn", "add_spk_emb"}
SPEAKER_DIM = 192
_LAYER_DEFAULTS = {"num_layers": 10, "num_single_layers": 20, "num_final_layers": 0}


def transformer_config(official: Mapping[str, Any], tensors: LazyTensors) -> dict[str, Any]:
    """Arguments of NavaTransformer3DModel for an official config; the tensors' names decide what it lacks.

    Raises ValueError for a key this code does not know or a value it does not do.
    """
    unknown = set(official) - set(_RENAMED) - set(_ONLY_ONE_WAY) - _HANDLED
    if unknown:
        raise ValueError(f"the backbone's config has keys this version does not know: {', '.join(sorted(unknown))}")
    for key, supported in _ONLY_ONE_WAY.items():
        value = official.get(key, supported)
        if (list(value) if isinstance(value, list | tuple) else value) != supported:
            raise ValueError(f"the backbone's config says {key}={value!r}; this version does only {supported!r}")
    settings = {ours: official[key] for key, ours in _RENAMED.items() if key in official}
    if "patch_size" in official:
        settings["patch_size"] = tuple(official["patch_size"])
    if "dim" in official:
        dim, heads = official["dim"], official.get("num_heads", 24)
        if dim % heads:
            raise ValueError(f"the backbone's config says dim={dim}, which {heads} heads do not divide")
        settings["attention_head_dim"] = dim // heads
    _check_layer_count(official, settings)
    split = any(".ffn_audio." in name for name in tensors)
    settings["split_ffn"] = not official["no_split_norm_ffn"] if "no_split_norm_ffn" in official else split
    speakers = official.get("add_spk_emb", "speaker_embedding.null_token" in tensors)
    settings["speaker_dim"] = SPEAKER_DIM if speakers else None
    return settings


def _check_layer_count(official: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    parts = [settings.get(key, default) for key, default in _LAYER_DEFAULTS.items()]
    if "num_layers" in official and official["num_layers"] != sum(parts):
        raise ValueError(
            f"the backbone's config says num_layers={official['num_layers']}, but its double, single and final layers "
            f"are {' + '.join(map(str, parts))}"
        )


_BLOCK_LISTS = {
    "double_blocks": "num_layers",
    "single_blocks": "num_single_layers",
    "double_final_blocks": "num_final_layers",
}


def renamed_blocks(tensors: LazyTensors, settings: Mapping[str, Any]) -> LazyTensors:
    """The official tensors under the model's names: three lists of blocks become one."""
    first_index = _first_indices(settings)
    names = {_model_name(name, first_index): (tensors, name) for name in tensors}
    return RenamedTensors(names, undo=lambda name: _official_name(name, first_index))


def block_renamer(settings: Mapping[str, Any]) -> Callable[[str], str]:
    """From the official name of a tensor or a module to the model's; other names stay."""
    return partial(_model_name, first_index=_first_indices(settings))


def _first_indices(settings: Mapping[str, Any]) -> dict[str, int]:
    """Where each official list of blocks begins in the model's one list."""
    first_index, offset = {}, 0
    for official, key in _BLOCK_LISTS.items():
        first_index[official] = offset
        offset += settings.get(key, _LAYER_DEFAULTS[key])
    return first_index


def _model_name(official: str, first_index: Mapping[str, int]) -> str:
    kind, _, rest = official.partition(".")
    if kind not in first_index:
        return official
    index, _, rest = rest.partition(".")
    return f"transformer_blocks.{first_index[kind] + int(index)}.{rest}"


def _official_name(ours: str, first_index: Mapping[str, int]) -> str:
    """What an official file calls the tensor: for messages about one that it does not hold."""
    kind, _, rest = ours.partition(".")
    if kind != "transformer_blocks":
        return ours
    index, _, rest = rest.partition(".")
    # Of lists that start at the same index, all but the last are empty.
    official = max(
        (first, number, name) for number, (name, first) in enumerate(first_index.items()) if first <= int(index)
    )
    return f"{official[2]}.{int(index) - official[0]}.{rest}"
