"""The official bundle: a folder as it is published -> its files, the backbone's config and the pipeline's defaults."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nava_core.weights import read_torch_file

logger = logging.getLogger(__name__)

BACKBONE_FILES = ("NAVA.safetensors", "NAVA.ckpt", "NAVA_fp8.safetensors")
BACKBONE_SUFFIXES = (".safetensors", ".ckpt")
PART_FILES = {
    "video VAE": "Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
    "text encoder": "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth",
    "tokenizer": "Wan2.2-TI2V-5B/google/umt5-xxl/tokenizer.json",
    "audio VAE and vocoder": "params/LTX2/ltx-2.3-22b-dev_audio_vae.safetensors",
}
SETTINGS_FILES = ("configs/nava.yaml", "nava.yaml")
BACKBONE_CONFIG_FILES = ("config.json", "configs/config.json", "configs/NAVA_6B.json")
SPEAKER_ENCODER_PATTERN = "*.pt"
PREFERRED_SPEAKER_ENCODER = "ft_mix"

# What a bundle's settings may ask of the code in one way alone.
REQUIRED_SETTINGS = {
    "scheduler_unipc": True,
    "use_mmdit_model": True,
    "spatial_downsample": 16,
    "data.audio_tokens_per_sec": 25,
}
GUIDANCE_NAMES = {
    "video": "video_guidance_scale",
    "audio": "audio_guidance_scale",
    "video_align": "video_align_guidance_scale",
    "audio_align": "audio_align_guidance_scale",
    "timbre": "timbre_align_guidance_scale",
    "align": "align_3d_cfg",
    "timbre_apart": "timbre_apart",
}
PLAIN_DEFAULTS = (
    "name",
    "width",
    "height",
    "sizes",
    "seconds",
    "max_seconds",
    "num_inference_steps",
    "negative_prompt",
    "negative_prompt_audio",
    "hint",
)


@dataclass(frozen=True)
class OfficialBundle:
    """The files of a bundle. speaker_encoder None: it has no ReDimNet release. settings: its nava.yaml, maybe empty."""

    root: Path
    backbone: Path
    video_vae: Path
    text_encoder: Path
    tokenizer: Path
    audio: Path
    speaker_encoder: Path | None
    settings: Mapping[str, Any]
    backbone_config: Mapping[str, Any]


def is_bundle(folder: Path) -> bool:
    """Whether the folder holds an official backbone."""
    return any((folder / name).is_file() for name in BACKBONE_FILES)


def find_bundle(
    root: Path,
    backbone: Path | None = None,
    settings: Path | None = None,
    speaker_encoder: Path | None = None,
) -> OfficialBundle:
    """Finds a bundle's files; `backbone`, `settings` and `speaker_encoder` take the place of those in the folder.

    Raises ValueError that names each file that is expected and missing.
    """
    if backbone is None:
        backbone = next((root / name for name in BACKBONE_FILES if (root / name).is_file()), root / BACKBONE_FILES[0])
    parts = {"backbone": backbone} | {part: root / name for part, name in PART_FILES.items()}
    if settings is None:
        settings = next((root / name for name in SETTINGS_FILES if (root / name).is_file()), None)
    else:
        parts["settings"] = settings
    if speaker_encoder is None:
        speaker_encoder = find_speaker_encoder(root)
    else:
        parts["speaker encoder"] = speaker_encoder
    if missing := [f"the {part} at {path}" for part, path in parts.items() if not path.is_file()]:
        raise ValueError(f"The official bundle in {root} is incomplete. Missing: {'; '.join(missing)}.")

    values = read_settings(settings) if settings else {}
    return OfficialBundle(
        root=root,
        backbone=backbone,
        video_vae=parts["video VAE"],
        text_encoder=parts["text encoder"],
        tokenizer=parts["tokenizer"],
        audio=parts["audio VAE and vocoder"],
        speaker_encoder=speaker_encoder,
        settings=values,
        backbone_config=_backbone_config(root, settings, values),
    )


def find_speaker_encoder(root: Path) -> Path | None:
    """The ReDimNet release in a bundle: a `.pt` file with a model_config; of several the one NAVA is used with."""
    candidates = sorted(root.rglob(SPEAKER_ENCODER_PATTERN), key=lambda path: (len(path.parts), path))
    releases = [path for path in candidates if "model_config" in read_torch_file(path)]
    if not releases:
        logger.info("%s holds no ReDimNet release (*.pt): voices cannot be given as references.", root)
        return None
    chosen = next((path for path in releases if PREFERRED_SPEAKER_ENCODER in path.name), releases[0])
    if len(releases) > 1:
        others = ", ".join(path.name for path in releases if path != chosen)
        logger.warning("%s holds several ReDimNet releases; %s is used, not %s.", root, chosen.name, others)
    return chosen


def read_settings(path: Path) -> dict[str, Any]:
    """A nava.yaml. Raises ValueError where it is no YAML mapping or asks for what this code does not do."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected are settings by name.")
    for name, required in REQUIRED_SETTINGS.items():
        value = setting(values, name)
        if value is not None and value != required:
            raise ValueError(f"{path} asks for {name} = {value!r}; only {required!r} is supported.")
    shift, audio_shift = setting(values, "model.shift"), setting(values, "model.shift_audio")
    if None not in (shift, audio_shift) and shift != audio_shift:
        raise ValueError(
            f"{path} asks for model.shift_audio = {audio_shift!r} beside model.shift = {shift!r}; only one shift for "
            "both streams is supported."
        )
    return values


def setting(values: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name, None where there is none."""
    value: Any = values
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _backbone_config(root: Path, settings: Path | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's JSON config with what nava.yaml adds to it; empty where the bundle leaves all to the code."""
    paths = [root / name for name in BACKBONE_CONFIG_FILES]
    named = setting(values, "model.joint_config")
    if named and settings:
        paths = [root / named, settings.parent / named, *paths]
    path = next((path for path in paths if path.is_file()), None)
    config: dict[str, Any] = {}
    if path is None:
        logger.info("%s holds no config of the backbone: the published sizes are used.", root)
    else:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}).") from error
        # Notes of the library that wrote the file, such as _class_name.
        config = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, name in (("no_split_norm_ffn", "no_split_norm_ffn"), ("add_spk_emb", "data.add_spk_emb")):
        value = setting(values, name)
        if value is not None:
            config[key] = value
    return config


def pipeline_defaults(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `defaults` of a NavaPipeline from settings in nava.yaml's names; of a value given twice the later counts."""

    def latest(name: str) -> Any:
        values = [setting(values, name) for values in settings]
        return next((value for value in reversed(values) if value is not None), None)

    guidance = {axis: latest(name) for axis, name in GUIDANCE_NAMES.items()}
    if latest("timbre_cfg") is False:
        guidance["timbre"] = 0.0
    defaults = {name: latest(name) for name in PLAIN_DEFAULTS}
    defaults |= {"fps": latest("data.video_fps"), "shift": latest("model.shift")}
    defaults["guidance"] = {axis: scale for axis, scale in guidance.items() if scale is not None}
    return {name: value for name, value in defaults.items() if value is not None}
