"""A loaded pipeline put on its device as a profile says, with the library's own means."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _get_group_onload_device, _is_group_offload_enabled

from nava_core.offload import offload_blocks, offload_counter
from nava_core.profiles import AUTO, Profile, choose_profile, find_profile

if TYPE_CHECKING:
    from nava_core.models.transformer_nava import NavaTransformer3DModel
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn


def pick_profile(name: str | None, device: torch.device, weight_bytes: int) -> Profile:
    """The profile that `name` stands for on this device; None and "auto" choose by its free memory."""
    if name not in (None, AUTO):
        return find_profile(name)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    profile = choose_profile(free, weight_bytes)
    if free is not None:
        logger.info("%.1f GB are free on %s: profile %s", free / 1e9, device, profile.name)
    return profile


def apply_profile(
    pipeline: NavaPipeline,
    profile: Profile,
    device: torch.device,
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Lay `pipeline` out on `device`. To be called once, on a pipeline in host memory or on the device.

    folder: where what waits outside the device waits; None: in host memory.

    Raises:
        ValueError: the profile needs a package that is not installed.
    """
    transformer = pipeline.transformer
    transformer.enable_forward_chunking(profile.ffn_chunk)
    if profile.weights == "fp8":
        transformer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=transformer.dtype)
    if profile.weights == "int8":
        quantise_int8(transformer)
    if profile.blocks == "offloaded":
        offload_blocks(transformer, device, offload_to_disk_path=folder)
        pipeline.execution = replace(pipeline.execution, in_turn=True)
    else:
        transformer.to(device)
    if profile.text_encoder == "streamed" and pipeline.text_encoder is not None:
        # Its stack: the model around it holds the token embedding a second time, which on disk would be overwritten.
        stream_layers(pipeline.text_encoder.encoder, device, folder)
    elif pipeline.text_encoder is not None:
        pipeline.text_encoder.to(device)
    for part in (pipeline.vae, pipeline.audio_vae, pipeline.vocoder, pipeline.speaker_encoder):
        if part is not None:
            part.to(device)
    if profile.vae == "tiled" and pipeline.vae is not None:
        pipeline.vae.enable_tiling()
    pipeline.profile, pipeline.decodes_alone = profile.name, profile.decode == "alone"


@contextmanager
def room_to_decode(pipeline: NavaPipeline, latents: torch.Tensor | None) -> Iterator[None]:
    """Inside, the backbone is in host memory where the profile wants the device for the decoder (9.7 GB at 720p).

    latents: the picture's; None: there is no picture to decode, and sound needs little.
    """
    if latents is None or not pipeline.decodes_alone:
        yield
        return
    transformer = pipeline.transformer
    parts = [part for name, part in transformer.named_children() if name != "transformer_blocks"]
    if offload_counter(transformer) is None:
        parts.append(transformer.transformer_blocks)
    device = transformer.patch_embedding.weight.device
    _move(parts, torch.device("cpu"))
    try:
        yield
    finally:
        _move(parts, device)


def _move(parts: Sequence[Any], device: torch.device) -> None:
    for part in parts:
        part.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stream_layers(model: Any, device: torch.device, folder: str | os.PathLike[str] | None = None) -> None:
    """Keep a model's weights in host memory (or in `folder`) and bring each layer's to the device for its own call."""
    uses_stream = device.type == "cuda"
    apply_group_offloading(
        model,
        onload_device=device,
        offload_type="leaf_level",
        use_stream=uses_stream,
        non_blocking=uses_stream,
        low_cpu_mem_usage=True,  # used once a prompt: pinning twice its size for good would not pay
        offload_to_disk_path=None if folder is None else os.fspath(folder),
    )


def working_device(model: Any) -> torch.device:
    """Where a model computes, which for a streamed one is not where its weights are."""
    if _is_group_offload_enabled(model):
        return _get_group_onload_device(model)
    device: torch.device = model.device
    return device


def quantise_int8(transformer: NavaTransformer3DModel) -> None:
    """The blocks' linear weights as 8-bit integers with a scale for each row (torchao), the rest as it is."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ValueError(
            f"8-bit integer weights need the package torchao ({error}): pip install torchao, "
            "or take the profile 16gb, whose fp8 weights need none"
        ) from error
    quantize_(transformer.transformer_blocks, Int8WeightOnlyConfig())
