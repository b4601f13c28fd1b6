"""Voice references -> 16 kHz mono waveforms -> speaker embeddings."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from nava_core.request import EMBEDDING_DIM, RequestError, is_embedding

REFERENCE_RATE = 16_000
MIN_SECONDS = 1.0
MAX_SECONDS = 30.0
SILENCE_DBFS = -60.0
MAX_CHANNELS = 32


def load_reference(reference: str | os.PathLike[str] | tuple[Any, int]) -> np.ndarray:
    """The voice of a reference: float32 `(samples,)`, 16 kHz mono, the first 30 s, at the level it was recorded.

    reference: a file that soundfile reads, or `(samples, rate)` with samples `(samples,)` or `(samples, channels)`,
    floats in [-1, 1] or integers of full range. Raises RequestError, which names the file and what to do, where it
    cannot be read, is shorter than 1 s, or is silent (level about its mean under -60 dBFS).
    """
    if isinstance(reference, str | os.PathLike):
        name = Path(reference).name
        samples, rate = _read_file(Path(reference))
    else:
        name = "the voice reference given in memory"
        samples, rate = _check_array(reference)
    mono = samples[: math.ceil(MAX_SECONDS * rate)].mean(axis=1)
    if not np.isfinite(mono).all():
        raise RequestError("speakers", f"{name} holds numbers that are not finite; export the recording again")
    if len(mono) < MIN_SECONDS * rate:
        raise RequestError(
            "speakers",
            f"{name} is {len(mono) / rate:.2f} s long and a voice needs at least {MIN_SECONDS:g} s (best 3 to 30 s); "
            "give a longer recording",
        )
    level = 20 * math.log10(max(float(np.std(mono)), 1e-10))
    if level < SILENCE_DBFS:
        raise RequestError(
            "speakers",
            f"{name} is silent: its level is {level:.0f} dBFS and a voice needs at least {SILENCE_DBFS:g} dBFS; "
            f"give a louder recording, with the voice in its first {MAX_SECONDS:g} s",
        )
    resampled = soxr.resample(mono, rate, REFERENCE_RATE, quality="HQ")
    return np.ascontiguousarray(resampled[: int(MAX_SECONDS * REFERENCE_RATE)], dtype=np.float32)


@torch.no_grad()
def embed_speakers(speaker_encoder: Any | None, references: Sequence[Any]) -> torch.Tensor:
    """One row for each reference: float32 `(speakers, 192)` on the CPU.

    A reference is what `load_reference` takes, an array of 16 kHz samples, `(samples,)` or `(channels, samples)`, an
    embedding of 192 numbers, or None for a row of zeros (which the transformer turns into its null token). Raises
    RequestError where a voice comes without a `speaker_encoder`.
    """
    rows: list[torch.Tensor] = []
    heard: dict[str, torch.Tensor] = {}  # one voice may speak many spans
    for reference in references:
        if reference is None:
            rows.append(torch.zeros(EMBEDDING_DIM))
        elif is_embedding(reference):
            rows.append(_check_embedding(reference))
        elif isinstance(reference, torch.Tensor | np.ndarray):
            rows.append(_embed(speaker_encoder, load_reference(_at_reference_rate(reference))))
        elif isinstance(reference, str | os.PathLike):
            path = os.fspath(reference)
            if path not in heard:
                heard[path] = _embed(speaker_encoder, load_reference(path))
            rows.append(heard[path])
        else:
            rows.append(_embed(speaker_encoder, load_reference(reference)))
    return torch.stack(rows) if rows else torch.zeros(0, EMBEDDING_DIM)


def _embed(speaker_encoder: Any | None, waveform: np.ndarray) -> torch.Tensor:
    if speaker_encoder is None:
        raise RequestError(
            "speakers",
            "a voice reference needs the speaker encoder, and this model was loaded without one; put a ReDimNet "
            "release (ReDimNet-M, ft_mix, vb2+vox2+cnc: <name>.pt) into the bundle, or remove the references",
        )
    batch = torch.from_numpy(waveform)[None].to(speaker_encoder.device)
    return speaker_encoder(batch)[0].float().cpu()


def _at_reference_rate(waveform: torch.Tensor | np.ndarray) -> tuple[np.ndarray, int]:
    """A bare array as `(samples, rate)`; of two axes the longer one is time."""
    samples = waveform.detach().float().cpu().numpy() if isinstance(waveform, torch.Tensor) else waveform
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T  # (channels, samples) -> (samples, channels)
    return samples, REFERENCE_RATE


def _check_embedding(embedding: torch.Tensor | np.ndarray) -> torch.Tensor:
    row = torch.as_tensor(embedding).detach().float().cpu()
    if not torch.isfinite(row).all():
        raise RequestError("speakers", "a speaker embedding holds numbers that are not finite; compute it again")
    return row.reshape(EMBEDDING_DIM)


def _read_file(path: Path) -> tuple[np.ndarray, int]:
    """The first 30 s of a file as float32 `(samples, channels)`, and its rate."""
    if not path.is_file():
        raise RequestError("speakers", f"the voice reference {path} does not exist; check the path")
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(math.ceil(MAX_SECONDS * file.samplerate), dtype="float32", always_2d=True)
            return samples, file.samplerate
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: samples without a header (.raw)
        raise RequestError(
            "speakers", f"{path.name} cannot be read as sound ({error}); convert it to WAV, FLAC, OGG or MP3"
        ) from error


def _check_array(reference: Any) -> tuple[np.ndarray, int]:
    """Samples given in memory as floats `(samples, channels)`, and their rate."""
    if not isinstance(reference, tuple | list) or len(reference) != 2 or not _is_rate(reference[1]):
        raise RequestError(
            "speakers",
            f"a voice reference is a path, (samples, rate) or an embedding of {EMBEDDING_DIM} numbers; "
            f"this is {_describe(reference)}",
        )
    samples, rate = np.asarray(reference[0]), int(reference[1])
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not 1 <= samples.shape[1] <= MAX_CHANNELS or samples.dtype.kind not in "fiu":
        raise RequestError(
            "speakers",
            f"a voice reference in memory has the shape {np.shape(reference[0])} and the type {samples.dtype}; "
            "give numbers of the shape (samples,) or (samples, channels)",
        )
    if samples.dtype.kind == "f":
        return samples.astype(np.float32), rate
    limits = np.iinfo(samples.dtype)
    centre = 0 if samples.dtype.kind == "i" else (limits.max + 1) // 2
    return ((samples.astype(np.float64) - centre) / (limits.max + 1 - centre)).astype(np.float32), rate


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float | np.integer) and bool(1_000 <= value <= 1_000_000)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__
