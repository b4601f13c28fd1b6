"""From a pipeline's output to a file that carries its own recipe, and to the preview that is shown on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from nava_core.decode import clip_length, decode_audio, decode_video, sampling_rate
from nava_core.media import CLIP_SAMPLING_RATE, write_audio, write_clip
from nava_core.placement import room_to_decode
from nava_core.request import GenerationRequest

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline, NavaPipelineOutput

FrameProgress = Callable[[int, int], None]
VideoDecoder = Callable[[AutoencoderKLWan, torch.Tensor], Iterable[torch.Tensor]]


def save_output(
    pipeline: NavaPipeline,
    output: NavaPipelineOutput,
    request: GenerationRequest,
    path: str | os.PathLike[str],
    progress: FrameProgress | None = None,
    job_id: str | None = None,
    decoder: VideoDecoder = decode_video,
) -> dict[str, Any]:
    """Decode what a run made straight into a file: `.mp4` where there is a picture, `.wav` for sound alone.

    The sound is decoded first, then the picture piece by piece into the encoder, so that the clip is never in memory
    as a whole. The file appears when it is complete; after an error nothing is left behind.

    Args:
        pipeline: the one that made `output`; its autoencoders and vocoder decode it.
        output: best with `output_type="latent"`; frames and sound that are decoded already are written as they are.
        request: what was asked, resolved.
        path: where to; `output_suffix` says how it must end.
        progress: called with (frames written, frames in all); may raise to end the export.
        job_id: kept in the recipe as `job`, so that the file can be told to be this job's after a crash.
        decoder: what decodes the picture, as `decode_video` does.

    Returns:
        The recipe that the file carries: the request, the seed, the model, versions, the sampling rate, the time.

    Raises:
        ValueError: if there is nothing to write or `path` has the wrong ending.
        MediaError: if the file cannot be written.
    """
    with room_to_decode(pipeline, output.latents):
        return _save(pipeline, output, request, path, progress, job_id, decoder)


def _save(
    pipeline: NavaPipeline,
    output: NavaPipelineOutput,
    request: GenerationRequest,
    path: str | os.PathLike[str],
    progress: FrameProgress | None,
    job_id: str | None,
    decoder: VideoDecoder,
) -> dict[str, Any]:
    audio, rate = _sound(pipeline, output)
    recipe = _recipe(pipeline, output, request, rate)
    if job_id is not None:
        recipe["job"] = job_id
    if output.latents is None and output.frames is None:
        if audio is None:
            raise ValueError("the run returned neither picture nor sound, so there is nothing to save.")
        write_audio(path, audio, rate, recipe)
        return recipe
    assert request.fps is not None, "a request is resolved before it runs"
    with closing(_frames(pipeline, output, progress, decoder)) as frames:
        write_clip(path, frames, request.fps, audio, rate, recipe)
    return recipe


def output_suffix(output: NavaPipelineOutput) -> str:
    """How the name of a file for `output` ends: `.mp4`, or `.wav` for sound alone."""
    return ".wav" if output.latents is None and output.frames is None else ".mp4"


def preview_image(vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
    """The middle of a clip in the making, cheaply: its middle latent frame decoded as if it were a clip's first.

    Args:
        vae: the video autoencoder.
        latents: predicted clean latents `(channels, latent_frames, latent_height, latent_width)`, normalised.

    Returns:
        `(height, width, 3)` uint8.
    """
    middle = latents.shape[1] // 2
    (frame,) = next(decode_video(vae, latents[:, middle : middle + 1]))
    return _as_uint8(frame)


def _recipe(
    pipeline: NavaPipeline, output: NavaPipelineOutput, request: GenerationRequest, rate: int
) -> dict[str, Any]:
    return {
        **request.to_recipe(),
        "seed": output.seed,
        "model": pipeline.spec.name,
        "sampling_rate": rate,
        "versions": {name: _version(name) for name in ("nava-studio", "torch", "diffusers")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _sound(pipeline: NavaPipeline, output: NavaPipelineOutput) -> tuple[np.ndarray | None, int]:
    """The sound `(channels, samples)`, or None, and its rate in Hz."""
    if output.audio_latents is not None:
        vocoder = _part(pipeline, "vocoder")
        rounds = pipeline.spec.phase_rounds
        decoded = decode_audio(_part(pipeline, "audio_vae"), vocoder, output.audio_latents, rounds)
        return decoded.cpu().numpy(), sampling_rate(vocoder)
    audio = None if output.audio is None else torch.as_tensor(output.audio).float().cpu().numpy()
    return audio, output.sampling_rate or CLIP_SAMPLING_RATE


def _frames(
    pipeline: NavaPipeline, output: NavaPipelineOutput, progress: FrameProgress | None, decoder: VideoDecoder
) -> Generator[np.ndarray, None, None]:
    """Runs of uint8 frames, made uint8 where they were decoded, so that a quarter of the bytes leaves the device."""
    if output.latents is not None:
        vae = _part(pipeline, "vae")
        pieces = decoder(vae, output.latents)
        total = clip_length(vae, output.latents)
    else:
        decoded = torch.as_tensor(output.frames)
        pieces, total = decoded.split(1), len(decoded)
    written = 0
    for piece in pieces:
        yield _as_uint8(piece)
        written += len(piece)
        if progress is not None:
            progress(written, total)


def _part(pipeline: NavaPipeline, name: str) -> Any:
    part = getattr(pipeline, name)
    if part is None:
        raise ValueError(f"this pipeline was built without its {name}, which decoding needs; load a complete model.")
    return part


def _as_uint8(frames: torch.Tensor) -> np.ndarray:
    if not torch.isfinite(frames).all():
        raise ValueError("the decoded picture holds values that are not finite numbers; the model's output is broken.")
    return (frames.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"
