"""Loading: the official bundle, a diffusers folder or a model on the hub -> a NavaPipeline, strictly.

`python -m nava_core.checkpoint convert SRC DST` writes any of them as a diffusers folder.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UniPCMultistepScheduler
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from transformers import PreTrainedModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from nava_core.bundle import (
    BACKBONE_FILES,
    BACKBONE_SUFFIXES,
    OfficialBundle,
    find_bundle,
    is_bundle,
    pipeline_defaults,
    read_settings,
)
from nava_core.hub import MODEL_INDEX, download, is_hub_id
from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.official import load_audio_parts, load_text_encoder, load_tokenizer, load_video_vae
from nava_core.pipeline import NavaPipeline
from nava_core.placement import apply_profile, pick_profile
from nava_core.profiles import AUTO, find_profile
from nava_core.weights import LazyTensors, RenamedTensors, TensorFile, empty_weights, load_strictly

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = REPOSITORY / "assets" / "nava-nano"
DEFAULT_SETTINGS = REPOSITORY / "configs" / "nava.yaml"

MODEL_CLASSES: dict[str, type[ModelMixin] | type[PreTrainedModel]] = {
    "transformer": NavaTransformer3DModel,
    "text_encoder": UMT5EncoderModel,
    "vae": AutoencoderKLWan,
    "audio_vae": AutoencoderKLLTX2Audio,
    "vocoder": LTX2VocoderWithBWE,
    "speaker_encoder": ReDimNetSpeakerEncoder,
}
Places = Mapping[str, torch.device]
# Small parts through whose many layers in a row the rounding of bf16 becomes audible.
FLOAT32_PARTS = ("audio_vae", "vocoder", "speaker_encoder")


def load_pipeline(
    source: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    profile: str | None = None,
    *,
    layout: Mapping[str, Any] | None = None,
    settings: str | Path | None = None,
    speaker_encoder: str | Path | None = None,
) -> NavaPipeline:
    """A pipeline with all its weights.

    Args:
        source: an official bundle's folder or the weight file of one, a diffusers folder, or a hub id (`owner/name`).
            None: nava-nano, which comes with the repository.
        device: None means the first GPU, where there is one, else the CPU.
        dtype: of backbone, text encoder and video VAE. None means bfloat16, or float32 on a CPU that cannot compute in
            bfloat16. The audio VAE, the vocoder and the speaker encoder are float32 at least.
        profile: how the model is laid out on the device (configs/profiles.yaml). None or "auto": by the device's free
            memory, the largest that fits; on the CPU everything stays in memory.
        layout: values that go before the profile's, such as `{"vae": "tiled"}`.
        settings: a nava.yaml in place of the bundle's.
        speaker_encoder: a ReDimNet release (`.pt`) in place of the one in the model's folder.

    Raises:
        ValueError: the source is none of these, lacks a file, asks for what the code does not do, or has a tensor that
            is missing, surplus or misshapen; the message names it.
    """
    if profile not in (None, AUTO):
        find_profile(profile)  # a wrong name is said before anything is downloaded
    device = _device(device)
    dtype = _default_dtype(device) if dtype is None else dtype
    located = _locate(source)
    chosen = pick_profile(profile, device, _weight_bytes(located[0]))
    chosen = replace(chosen, **(layout or {}))
    hosted = {"transformer"} if chosen.weights != "stored" or chosen.blocks == "offloaded" else set()
    if chosen.text_encoder == "streamed":
        hosted.add("text_encoder")
    pipeline = _load(located, device, dtype, _path(settings), _path(speaker_encoder), hosted)
    apply_profile(pipeline, chosen, device)
    return pipeline


def _load(
    located: tuple[Path, Path | None],
    device: torch.device,
    dtype: torch.dtype | None,
    settings: Path | None = None,
    speaker_encoder: Path | None = None,
    hosted: Collection[str] = (),
) -> NavaPipeline:
    """`dtype` None keeps each tensor as it is stored. hosted: parts that are left in host memory."""
    folder, backbone = located
    places = {name: torch.device("cpu") if name in hosted else device for name in MODEL_CLASSES}
    logger.info("Loading %s", backbone or folder)
    if backbone is None and (folder / MODEL_INDEX).is_file():
        if settings is not None:
            raise ValueError(f"{folder} is a diffusers folder, which has its settings inside; leave {settings} out.")
        return _from_diffusers_folder(folder, places, dtype, speaker_encoder)
    return _from_bundle(find_bundle(folder, backbone, settings, speaker_encoder), places, dtype)


def _weight_bytes(folder: Path) -> int:
    """All weight files of a model's folder, which are at least what it needs."""
    files = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".ckpt", ".pth", ".pt"))
    return sum(path.stat().st_size for path in files)


def _locate(source: str | Path | None) -> tuple[Path, Path | None]:
    """The model's folder and, where the source is a weight file, that file."""
    if source is None:
        if not (DEFAULT_MODEL / MODEL_INDEX).is_file():
            raise ValueError(
                f"The model that comes with the repository is not at {DEFAULT_MODEL}. Clone the repository as a whole, "
                "or say which model to load."
            )
        return DEFAULT_MODEL, None
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in BACKBONE_SUFFIXES:
        return path.parent, path
    if path.is_dir():
        if (path / MODEL_INDEX).is_file() or is_bundle(path):
            return path, None
        raise ValueError(
            f"{path} is no NAVA model: it holds neither {MODEL_INDEX} (a diffusers folder) nor one of "
            f"{', '.join(BACKBONE_FILES)} (an official bundle)."
        )
    if not path.exists() and is_hub_id(str(source)):
        return download(str(source)), None
    raise ValueError(
        f"There is no model at {path}. Give a folder, a weight file of a bundle, or a hub id (owner/name)."
    )


def _from_bundle(bundle: OfficialBundle, places: Places, dtype: torch.dtype | None) -> NavaPipeline:
    transformer = NavaTransformer3DModel.from_official(str(bundle.backbone), bundle.backbone_config, dtype=dtype)
    audio_vae, vocoder = load_audio_parts(bundle.audio, _part_dtype("audio_vae", dtype), places["audio_vae"])
    speaker_encoder = None
    if bundle.speaker_encoder is not None:
        speaker_dtype = _part_dtype("speaker_encoder", dtype)
        speaker_encoder = ReDimNetSpeakerEncoder.from_official(
            bundle.speaker_encoder, speaker_dtype, places["speaker_encoder"]
        )
    return NavaPipeline(
        transformer=transformer.to(places["transformer"]),
        text_encoder=load_text_encoder(bundle.text_encoder, dtype, places["text_encoder"]),
        tokenizer=load_tokenizer(bundle.tokenizer),
        vae=load_video_vae(bundle.video_vae, dtype, places["vae"]),
        audio_vae=audio_vae,
        vocoder=vocoder,
        speaker_encoder=speaker_encoder,
        defaults=pipeline_defaults(read_settings(DEFAULT_SETTINGS), bundle.settings),
    )


def _from_diffusers_folder(
    folder: Path, places: Places, dtype: torch.dtype | None, speaker_encoder: Path | None
) -> NavaPipeline:
    """A folder that `save_pretrained` wrote, with the same strictness as a bundle."""
    index = _read_json(folder / MODEL_INDEX)
    parts: dict[str, Any] = {}
    for name, cls in MODEL_CLASSES.items():
        _, class_name = index.get(name) or (None, None)
        if class_name is None:
            continue
        if class_name != cls.__name__:
            raise ValueError(
                f"{folder / MODEL_INDEX} asks for a {name} of class {class_name}; NAVA's is {cls.__name__}."
            )
        parts[name] = _load_part(folder / name, cls, _part_dtype(name, dtype), places[name])
    if "transformer" not in parts:
        raise ValueError(f"{folder / MODEL_INDEX} names no transformer: it is not a NAVA model.")
    if speaker_encoder is not None:
        speaker_dtype = _part_dtype("speaker_encoder", dtype)
        parts["speaker_encoder"] = ReDimNetSpeakerEncoder.from_official(
            speaker_encoder, speaker_dtype, places["speaker_encoder"]
        )
    if (index.get("scheduler") or [None])[0]:
        parts["scheduler"] = UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    if (index.get("tokenizer") or [None])[0]:
        parts["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return NavaPipeline(**parts, defaults=index.get("defaults"))


def _load_part(
    folder: Path,
    cls: type[ModelMixin] | type[PreTrainedModel],
    dtype: torch.dtype | None,
    device: torch.device,
) -> torch.nn.Module:
    config = _read_json(folder / "config.json")
    with empty_weights():
        if issubclass(cls, PreTrainedModel):
            model = cls(UMT5Config.from_dict(config))
        else:
            model, unused = cls.from_config(config, return_unused_kwargs=True)
            if unused := [key for key in unused if not key.startswith("_")]:
                raise ValueError(f"{folder / 'config.json'} asks for {', '.join(unused)}, which is not supported.")
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    load_strictly(model, _weights_in(folder), dtype, device, source=str(folder))
    return model.eval()


def _weights_in(folder: Path) -> LazyTensors:
    """The tensors of a part's `.safetensors` file, or of several with an index."""
    for stem in ("diffusion_pytorch_model", "model"):
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            files: Mapping[str, str] = _read_json(index)["weight_map"]
            shards = {name: TensorFile(folder / name) for name in sorted(set(files.values()))}
            return RenamedTensors({name: (shard, name) for shard in shards.values() for name in shard})
        if single.is_file():
            return TensorFile(single)
    raise ValueError(f"{folder} holds no weights (diffusion_pytorch_model.safetensors or model.safetensors).")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"The model is incomplete: there is no {path}.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    return content


def _part_dtype(name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype is None or name not in FLOAT32_PARTS:
        return dtype
    return torch.promote_types(dtype, torch.float32)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device {device!r}. Use 'cpu', 'cuda' or 'cuda:N'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"The device {device} was asked for, but torch finds no GPU. Use device='cpu'.")
    return device


def _default_dtype(device: torch.device) -> torch.dtype:
    # Without the instructions a CPU emulates bfloat16, many times slower than float32.
    return torch.bfloat16 if device.type != "cpu" or cpu_computes_in_bfloat16() else torch.float32


def cpu_computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16, rather than emulating it."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def convert(source: str | Path | None, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model as a diffusers folder.

    With `dtype` None nothing is rounded (fp8 weights become float32), so that both load to the same pipeline at any
    precision. Raises ValueError where the folder has something in it, or the model cannot be loaded.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder. Give another, or remove it.")
    _load(_locate(source), torch.device("cpu"), dtype).save_pretrained(folder)
    logger.info("Wrote %s", folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m nava_core.checkpoint", description="NAVA checkpoints")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("convert", help="write a model as a diffusers folder")
    command.add_argument("source", metavar="SRC", help="official bundle, its weight file, diffusers folder or hub id")
    command.add_argument("folder", metavar="DST", help="folder to write; new or empty")
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="round all weights to this; default: keep what is stored"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(options.source, options.folder, getattr(torch, options.dtype) if options.dtype else None)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
