"""A recording of a voice: reading it, and finding what about it would make a poor reference."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from nava_core.request import RequestError

# What the speaker encoder reads, and what suits it best (conditioning/speaker.py has the same limits). In seconds.
SHORTEST, LONGEST = 1.0, 30.0
BEST_FROM, BEST_TO = 3.0, 15.0
# More than this is no reference but a file taken by mistake.
READ_SECONDS = 300.0
KEPT_RATE = 48_000
ENCODER_RATE = 16_000

FRAME_SECONDS = 0.02
SILENT_DBFS = -60.0
QUIET_DBFS = -40.0
# One sample in a thousand at full scale is heard as a crackle.
FULL_SCALE, CLIPPED_SHARE = 0.999, 0.001
# A frame so far under the voice's level holds no voice.
PAUSE_BELOW_VOICE_DB, PAUSE_SHARE = 30.0, 0.6
# Under 20 dB the room is part of the timbre that the encoder hears.
LEAST_SNR_DB = 20.0


@dataclass(frozen=True)
class Finding:
    """Something about a recording. code: a short name; value: what was measured; limit: what it is measured against.

    serious: the recording cannot be used; else it can, and may make a worse reference.
    """

    code: str
    value: float
    limit: float
    serious: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Recording:
    """Mono float32 samples in [-1, 1]."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def cut(self, start: float, end: float) -> Recording:
        return Recording(self.samples[round(start * self.rate) : round(end * self.rate)], self.rate)


def read_recording(path: Path) -> Recording:
    """The first READ_SECONDS of a file, all channels as one. Raises RequestError."""
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            if file.frames > READ_SECONDS * rate:
                raise RequestError(
                    "voice",
                    f"{path.name} is {file.frames / rate:.0f} s long; take a recording of up to {READ_SECONDS:.0f} s "
                    f"(a voice needs {BEST_FROM:g} to {BEST_TO:g} s)",
                )
            samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError) as error:
        raise RequestError(
            "voice", f"{path.name} cannot be read as sound ({error}); convert it to WAV, FLAC, OGG or MP3"
        ) from error
    if not np.isfinite(samples).all():
        raise RequestError("voice", f"{path.name} holds numbers that are not finite; export the recording again")
    if rate > KEPT_RATE:
        samples, rate = soxr.resample(samples, rate, KEPT_RATE, quality="HQ"), KEPT_RATE
    return Recording(np.ascontiguousarray(samples, np.float32), rate)


def check(recording: Recording) -> tuple[Finding, ...]:
    """What is to be said of a recording, the serious first."""
    samples, seconds = recording.samples, recording.seconds
    if seconds < SHORTEST:
        return (Finding("short", seconds, SHORTEST, serious=True),)
    if seconds > LONGEST:
        return (Finding("long", seconds, LONGEST, serious=True),)
    level = decibels(float(np.std(samples)))
    if level < SILENT_DBFS:
        return (Finding("silent", level, SILENT_DBFS, serious=True),)
    floor, voice, pauses = _frames(recording)
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE))
    found = (
        (seconds < BEST_FROM, Finding("brief", seconds, BEST_FROM)),
        (seconds > BEST_TO, Finding("lengthy", seconds, BEST_TO)),
        (clipped > CLIPPED_SHARE, Finding("clipped", clipped, CLIPPED_SHARE)),
        (voice < QUIET_DBFS, Finding("quiet", voice, QUIET_DBFS)),
        (pauses > PAUSE_SHARE, Finding("pauses", pauses, PAUSE_SHARE)),
        (voice - floor < LEAST_SNR_DB, Finding("noisy", voice - floor, LEAST_SNR_DB)),
        (recording.rate < ENCODER_RATE, Finding("narrow", recording.rate, ENCODER_RATE)),
    )
    return tuple(finding for applies, finding in found if applies)


def peaks(recording: Recording, count: int = 72) -> tuple[float, ...]:
    """The loudest sample of each of `count` equal parts, 0 to 1, for drawing."""
    edges = np.linspace(0, len(recording.samples), count + 1).astype(int)
    parts = (np.abs(recording.samples[start:end]) for start, end in pairwise(edges))
    return tuple(round(min(float(part.max(initial=0.0)), 1.0), 3) for part in parts)


def decibels(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 1e-10))


def _frames(recording: Recording) -> tuple[float, float, float]:
    """Levels in dBFS: of the quietest tenth of the frames (the room), of the loudest tenth (the voice); and the share
    of frames without voice.
    """
    size = max(round(FRAME_SECONDS * recording.rate), 1)
    framed = recording.samples[: len(recording.samples) // size * size].reshape(-1, size)
    levels = 20 * np.log10(np.maximum(np.sqrt((framed**2).mean(axis=1)), 1e-5))  # below -100 dBFS all is silence
    floor, voice = (float(level) for level in np.percentile(levels, (10, 90)))
    return floor, voice, float(np.mean(levels < voice - PAUSE_BELOW_VOICE_DB))
