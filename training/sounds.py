"""Sounds to train the audio autoencoder and the vocoder on: impacts, speech, ambience and a wider family of sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch

from nava_core.mel import SAMPLING_RATE, log_mel_spectrogram
from training.ambience import AMBIENCES, ambience
from training.lexicon import WORDS
from training.voices import Utterance, Voice, VoiceBank, mix, place
from training.world import CLIP_SECONDS, contacts, render_sound, sample_scene
from training.world_sound import MATERIALS, NOISE_FLOOR, render_impacts

OUTPUT_RATE = 48000
# Half a mel hop at the end would cut the last frame's centre off; whole frames keep both rates on one grid.
CLIP_SAMPLES = round(CLIP_SECONDS * 100) * (OUTPUT_RATE // 100)


@dataclass(frozen=True)
class SoundClip:
    """One clip: `high` float32 (2, samples) at 48 kHz, `low` the same at 16 kHz, `mel` (2, frames, 64) of `low`."""

    high: torch.Tensor
    low: torch.Tensor
    mel: torch.Tensor


def make_clip(high: np.ndarray) -> SoundClip:
    """Resample `high` (2, samples) at 48 kHz to 16 kHz and take its log-mel."""
    low = soxr.resample(high.T, OUTPUT_RATE, SAMPLING_RATE).T
    low_tensor = torch.from_numpy(np.ascontiguousarray(low, dtype=np.float32))
    return SoundClip(torch.from_numpy(high), low_tensor, log_mel_spectrogram(low_tensor))


def world_sound(rng: np.random.Generator, pairs: str = "train") -> np.ndarray:
    """The sound of a scene of the world, float32 (2, samples) at 48 kHz."""
    return _fit(render_sound(sample_scene(rng, pairs), CLIP_SAMPLES / OUTPUT_RATE, OUTPUT_RATE))


def loose_impacts(rng: np.random.Generator) -> np.ndarray:
    """The world's materials at any size, place, moment and loudness, so that the grid of its captions is not learnt."""
    seconds = CLIP_SAMPLES / OUTPUT_RATE
    shape = list(MATERIALS)[rng.integers(len(MATERIALS))]
    times = np.sort(rng.uniform(0, seconds, rng.integers(1, 7)))
    hits = [(float(time), float(rng.uniform(0.5, 2.6))) for time in times]
    sound = render_impacts(
        shape, rng.uniform(0.07, 0.15), rng.uniform(0, 1), hits, seconds, OUTPUT_RATE, int(rng.integers(2**31))
    )
    return _fit(sound)


def wide_sound(rng: np.random.Generator) -> np.ndarray:
    """One of: random damped modes, noise bursts, pitch sweeps, harmonic tones; a few events a clip."""
    mono = np.zeros(CLIP_SAMPLES, dtype=np.float32)
    kind = _WIDE[rng.integers(len(_WIDE))]
    for _ in range(rng.integers(1, 6)):
        start = int(rng.uniform(0, 0.95) * CLIP_SAMPLES)
        event = kind(rng)[: CLIP_SAMPLES - start]
        level = 10 ** rng.uniform(-1.5, 0)
        mono[start : start + len(event)] += level * event / max(np.abs(event).max(), 1e-3)
    mono *= 0.6 / max(np.abs(mono).max(), 0.6)
    angle = np.pi / 2 * rng.uniform(0, 1)
    stereo = np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32) * mono
    return _fit(stereo + NOISE_FLOOR * rng.standard_normal(stereo.shape, dtype=np.float32))


def random_utterance(bank: VoiceBank, rng: np.random.Generator, split: str = "train") -> tuple[Voice, Utterance]:
    """A random voice, and one to four words that it says, short enough for a clip."""
    voice = bank.draw(rng, split)
    words = [str(word) for word in rng.choice(WORDS, rng.integers(1, 5))]
    while True:
        try:
            return voice, bank.utterance(voice, words, rng, longest=CLIP_SAMPLES / OUTPUT_RATE)
        except ValueError:  # a slow voice has time for fewer words
            words.pop()


def speech(bank: VoiceBank, rng: np.random.Generator, split: str = "train") -> np.ndarray:
    """An utterance anywhere in a clip and on the screen, now and then with a second voice, an impact or an ambience."""
    seconds = CLIP_SAMPLES / OUTPUT_RATE
    parts = []
    for _ in range(1 + (rng.random() < 0.12)):
        _, utterance = random_utterance(bank, rng, split)
        start = rng.uniform(0, seconds - utterance.seconds)
        # Characters stand left, right or in the middle.
        pan = float(np.clip(rng.choice([0.25, 0.5, 0.75]) + rng.normal(0, 0.08), 0, 1))
        parts.append(10 ** (rng.normal(0, 3) / 20) * place(utterance, start, pan, seconds, OUTPUT_RATE))
    if rng.random() < 0.15:
        parts.append(loose_impacts(rng))
    if rng.random() < 0.25:
        parts.append(10 ** (rng.normal(0, 2) / 20) * ambience(_any_place(rng), seconds, rng, OUTPUT_RATE))
    return _fit(mix(parts, rng))


def place_sound(rng: np.random.Generator) -> np.ndarray:
    """An ambience, half of the time with the impacts of a scene."""
    parts = [ambience(_any_place(rng), CLIP_SAMPLES / OUTPUT_RATE, rng, OUTPUT_RATE)]
    if rng.random() < 0.5:
        parts.append(world_sound(rng))
    return _fit(mix(parts, rng))


def _any_place(rng: np.random.Generator) -> str:
    return str(rng.choice(list(AMBIENCES)))


def sound_clips(count: int, shares: dict[str, float], seed: int, bank: VoiceBank | None = None) -> list[SoundClip]:
    """Draw `count` clips, deterministic in `seed`.

    `shares` weighs "world", "loose", "wide", "ambience" and "speech", which takes the training voices of a `bank`.
    """
    rng = np.random.default_rng(seed)
    makers: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "world": world_sound,
        "loose": loose_impacts,
        "wide": wide_sound,
        "ambience": place_sound,
    }
    if bank is not None:
        makers["speech"] = lambda generator: speech(bank, generator)
    unknown = set(shares) - set(makers)
    if unknown:
        without = " (speech needs `voices`, the path of a voice bank)" if "speech" in unknown else ""
        raise ValueError(f"shares names {', '.join(sorted(unknown))}; it may name {', '.join(makers)}{without}")
    weights = np.array(list(shares.values())) / sum(shares.values())
    kinds = rng.choice(list(shares), size=count, p=weights)
    return [make_clip(makers[kind](rng)) for kind in kinds]


def clips_of(data: dict[str, Any], count: int, seed: int, shares: dict[str, float] | None = None) -> list[SoundClip]:
    """`sound_clips` with the shares and the voices of a trainer's `data`."""
    bank = VoiceBank.load(data["voices"]) if data.get("voices") else None
    return sound_clips(count, shares or data["shares"], seed, bank)


def _fit(sound: np.ndarray) -> np.ndarray:
    """Cut or pad `sound` (2, samples) to a clip."""
    sound = sound[:, :CLIP_SAMPLES]
    return np.pad(sound, ((0, 0), (0, CLIP_SAMPLES - sound.shape[1]))).astype(np.float32)


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * OUTPUT_RATE), dtype=np.float32) / OUTPUT_RATE


def _modes(rng: np.random.Generator) -> np.ndarray:
    decay = 10 ** rng.uniform(-2, -0.5)
    time = _time(min(7 * decay, 1.5))
    sound = np.zeros_like(time)
    base = 80 * 50 ** rng.uniform(0, 1)
    for index in range(rng.integers(1, 8)):
        frequency = base * (1 + index * rng.uniform(0.4, 1.6))
        if frequency < 0.4 * OUTPUT_RATE:
            sound += (
                rng.uniform(0.2, 1) * np.exp(-time * (1 + index) ** 0.6 / decay) * np.sin(2 * np.pi * frequency * time)
            )
    return sound * np.minimum(time / 0.001, 1)


def _noise(rng: np.random.Generator) -> np.ndarray:
    decay = 10 ** rng.uniform(-2.5, -0.7)
    time = _time(min(7 * decay, 1.5))
    noise = rng.standard_normal(len(time)).astype(np.float32)
    smooth = int(rng.integers(1, 40))
    noise = np.convolve(noise, np.hanning(smooth + 2), mode="same").astype(np.float32)
    attack = 10 ** rng.uniform(-3, -1.5)
    return (np.exp(-time / decay) * np.minimum(time / attack, 1) * noise).astype(np.float32)


def _sweep(rng: np.random.Generator) -> np.ndarray:
    time = _time(rng.uniform(0.05, 0.6))
    start, end = 80 * 60 ** rng.uniform(0, 1, 2)
    frequency = start * (end / start) ** (time / time[-1])
    return (np.sin(2 * np.pi * np.cumsum(frequency) / OUTPUT_RATE) * _fade(time)).astype(np.float32)


def _harmonics(rng: np.random.Generator) -> np.ndarray:
    time = _time(rng.uniform(0.1, 0.8))
    vibrato = 1 + 0.02 * rng.uniform(0, 1) * np.sin(2 * np.pi * rng.uniform(3, 7) * time)
    pitch = 80 * 6 ** rng.uniform(0, 1) * vibrato * (1 + rng.uniform(-0.2, 0.2) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / OUTPUT_RATE
    tilt = rng.uniform(0.7, 2)
    formants = rng.uniform(300, 4000, 3)
    sound = np.zeros_like(time)
    for number in range(1, 40):
        frequency = number * float(pitch.mean())
        if frequency > 12000:
            break
        sound += number**-tilt * (0.1 + np.exp(-(((frequency - formants) / 300) ** 2)).sum()) * np.sin(number * phase)
    return sound * _fade(time)


def _fade(time: np.ndarray) -> np.ndarray:
    return np.minimum(np.minimum(time / 0.005, 1), np.minimum((time[-1] - time) / 0.02, 1)).astype(np.float32)


_WIDE = (_modes, _noise, _sweep, _harmonics)


def true_onsets(count: int, seed: int) -> Iterator[tuple[SoundClip, tuple[float, ...]]]:
    """`count` fresh clips of the world with their contact times in seconds; all colour-shape pairs."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = sample_scene(rng, "all")
        sound = render_sound(scene, CLIP_SAMPLES / OUTPUT_RATE, OUTPUT_RATE)
        yield make_clip(_fit(sound)), tuple(contact.time for contact in contacts(scene))


def crossing_frame(log_envelope: torch.Tensor, near: float, reach: int) -> float | None:
    """Where `log_envelope` first passes half of its rise within `reach` frames of `near`, in frames and parts of one.

    None where it rises by less than 1 (neper).
    """
    first = max(int(near) - reach, 0)
    window = log_envelope[first : int(near) + reach + 1]
    top = int(window.argmax())
    if top == 0 or window[top] - window[: top + 1].min() < 1:
        return None
    bottom = int(window[: top + 1].argmin())
    level = (window[top] + window[bottom]) / 2
    for frame in range(bottom, top):
        if window[frame + 1] >= level:
            step = (level - window[frame]) / (window[frame + 1] - window[frame])
            return first + frame + float(step)
    return None
