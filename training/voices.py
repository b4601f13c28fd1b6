"""Many voices that say the words of the lexicon, and utterances put together from them.

`python -m training.voices --config training/configs/voices.yaml --out runs/voices` speaks each word once in each voice
into `runs/voices/voices.npz`, which `VoiceBank.load` reads. A voice is one of a synthesiser's, its base, with its own
pitch, vocal-tract length and tempo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr

from nava_core.mel import SAMPLING_RATE
from training.common import save_arrays
from training.lexicon import WORDS, check_words
from training.world_sound import NOISE_FLOOR

GAP_SECONDS = (0.04, 0.12)
LEAST_GAP = 0.02
PEAK = 0.6
# The mouth: how long a moment it heeds, and the levels between which it opens, relative to the loudest moment.
OPENING_SECONDS = 0.05
OPENING_STEP = 0.005
SHUT = 0.08


@dataclass(frozen=True)
class Voice:
    """Who speaks: `pitch` is its median in Hz, `tract` its vocal-tract length over the base's own; sex "f" or "m"."""

    name: str
    base: str
    sex: str
    pitch: float
    tract: float
    split: str


@dataclass(frozen=True)
class Utterance:
    """Words said: float32 `samples` (n,) at 16 kHz, and (word, start, end) in seconds from its beginning."""

    samples: np.ndarray
    words: tuple[tuple[str, float, float], ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE

    def opening(self, times: np.ndarray) -> np.ndarray:
        """How far the mouth is open at `times`, in seconds from the beginning: float32 in [0, 1], 0 outside."""
        levels = mouth_levels(self.samples, SAMPLING_RATE)
        moments = np.arange(len(levels)) * OPENING_STEP
        return np.interp(times, moments, levels, left=0.0, right=0.0).astype(np.float32)


def mouth_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """How open a mouth would be that makes the sound `(samples,)`: in [0, 1], one number every 5 ms.

    The square root of the amplitude over about 50 ms, from shut at 8% of the loudest moment's to 1 there.
    """
    step = round(OPENING_STEP * rate)
    frames = np.pad(np.asarray(samples, dtype=np.float64), (step // 2, -len(samples) % step + step))
    power = np.mean(frames[: len(frames) // step * step].reshape(-1, step) ** 2, axis=1)
    width = round(OPENING_SECONDS / OPENING_STEP)
    window = np.hanning(2 * width + 1)
    smooth = np.sqrt(np.convolve(power, window / window.sum(), mode="same"))
    top = max(smooth.max(), 1e-6)
    return np.sqrt(np.clip((smooth / top - SHUT) / (1 - SHUT), 0, 1))


class VoiceBank:
    """The words as all voices say them. `words[voice][word]` is float32 (samples,) at 16 kHz."""

    def __init__(self, voices: Sequence[Voice], words: dict[str, dict[str, np.ndarray]]) -> None:
        self._voices, self._words = list(voices), words

    @classmethod
    def load(cls, path: str | Path) -> VoiceBank:
        """Read what `save` wrote; raises FileNotFoundError saying how to make it."""
        path = Path(path)
        if not path.exists():
            command = "python -m training.voices --config training/configs/voices.yaml --out runs/voices"
            raise FileNotFoundError(f"{path} does not exist; the voices are made by: {command}")
        with np.load(path) as stored:
            samples, lengths, details = stored["samples"], stored["lengths"], json.loads(str(stored["details"]))
        if tuple(details["words"]) != WORDS:
            raise ValueError(f"{path} holds other words than the lexicon; delete it and make the voices again")
        voices = [Voice(**values) for values in details["voices"]]
        pieces = iter(np.split(samples, np.cumsum(lengths)[:-1]))
        return cls(voices, {voice.name: {word: next(pieces) for word in WORDS} for voice in voices})

    def save(self, path: str | Path) -> None:
        """Write all words, as 16-bit numbers, and the voices into one file."""
        words = [self.word(voice, word) for voice in self._voices for word in WORDS]
        samples = np.concatenate([np.rint(32767 * word).astype(np.int16) for word in words])
        details = json.dumps({"words": WORDS, "voices": [asdict(voice) for voice in self._voices]})
        save_arrays(path, {"samples": samples, "lengths": [len(word) for word in words], "details": details})

    def voices(self, split: str | None = None) -> list[Voice]:
        """The voices of "train" or "held_out", or all."""
        return [voice for voice in self._voices if split in (None, voice.split)]

    def voice(self, name: str) -> Voice:
        """The voice of that name; raises ValueError where there is none."""
        for voice in self._voices:
            if voice.name == name:
                return voice
        raise ValueError(f"there is no voice {name!r} among the {len(self._voices)} of this bank")

    def only(self, names: Sequence[str]) -> VoiceBank:
        """A bank of these voices alone; raises ValueError for a name that is none's."""
        return VoiceBank([self.voice(name) for name in names], {name: self._words[name] for name in names})

    def draw(self, rng: np.random.Generator, split: str = "train") -> Voice:
        """A random voice: first its base, then one of its variants."""
        voices = self.voices(split)
        if not voices:
            raise ValueError(f"there are no voices of the split {split!r}; it is train or held_out")
        bases = sorted({voice.base for voice in voices})
        base = bases[rng.integers(len(bases))]
        family = [voice for voice in voices if voice.base == base]
        return family[rng.integers(len(family))]

    def word(self, voice: Voice, word: str) -> np.ndarray:
        """One word, float32 (samples,) at 16 kHz."""
        samples = self._words[voice.name][word]
        return samples.astype(np.float32) / 32767 if samples.dtype == np.int16 else samples

    def utterance(
        self, voice: Voice, words: Sequence[str] | str, rng: np.random.Generator, longest: float | None = None
    ) -> Utterance:
        """`words` (1 to 4) said by `voice` with small gaps, in at most `longest` seconds if that is given."""
        chosen = check_words(words)
        parts = [self.word(voice, word) for word in chosen]
        spoken = sum(len(part) for part in parts) / SAMPLING_RATE
        gaps = rng.uniform(*GAP_SECONDS, len(parts) - 1)
        if longest is not None and spoken + gaps.sum() > longest:
            left = longest - spoken
            if left < LEAST_GAP * len(gaps):
                raise ValueError(
                    f"{' '.join(chosen)} takes {spoken:.2f} s in the voice {voice.name} and there are {longest:.2f} s; "
                    "give fewer words or more time"
                )
            gaps *= left / gaps.sum() if len(gaps) else 1
        pieces, marks, position = [], [], 0
        for index, (word, part) in enumerate(zip(chosen, parts, strict=True)):
            if index:
                pieces.append(np.zeros(int(gaps[index - 1] * SAMPLING_RATE), dtype=np.float32))
                position += len(pieces[-1])
            marks.append((word, position / SAMPLING_RATE, (position + len(part)) / SAMPLING_RATE))
            # Words are not all equally loud.
            pieces.append(part * np.float32(10 ** (rng.uniform(-1.5, 0.5) / 20)))
            position += len(part)
        return Utterance(np.clip(np.concatenate(pieces), -PEAK, PEAK), tuple(marks))

    def reference(
        self, voice: Voice, rng: np.random.Generator, avoid: Sequence[str] = (), seconds: float = 3.0
    ) -> np.ndarray:
        """A sample of the voice that says other words than `avoid`: float32 (16000 * seconds,) at 16 kHz."""
        pieces: list[np.ndarray] = []
        length = round(seconds * SAMPLING_RATE)
        while sum(map(len, pieces)) < length:
            for word in rng.permutation([word for word in WORDS if word not in set(avoid)]):
                pieces.append(self.word(voice, str(word)))
                pieces.append(np.zeros(int(rng.uniform(*GAP_SECONDS) * SAMPLING_RATE), dtype=np.float32))
        return np.concatenate(pieces)[:length]


def place(utterance: Utterance, start: float, pan: float, seconds: float, rate: int = 48_000) -> np.ndarray:
    """The utterance in a clip: float32 (2, seconds * rate), from `start` s on, at `pan` in [0, 1] from left to right.

    Raises ValueError where it does not end within the clip. Sides get the loudness that impacts get at the same place.
    """
    if start < 0 or start + utterance.seconds > seconds + 1e-6:
        raise ValueError(f"{utterance.seconds:.2f} s of speech from {start:.2f} s on do not fit into {seconds:.2f} s")
    mono = np.zeros(round(seconds * rate), dtype=np.float32)
    samples = soxr.resample(utterance.samples, SAMPLING_RATE, rate, quality="HQ")
    first = round(start * rate)
    samples = samples[: len(mono) - first]
    mono[first : first + len(samples)] = samples
    angle = np.pi / 2 * np.clip(pan, 0, 1)
    return np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32) * mono


def mix(parts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The sum of `parts`, (2, samples) each, with the world's noise floor, turned down where it would clip."""
    total = np.sum(parts, axis=0, dtype=np.float32)
    total = total * np.float32(min(1.0, 0.95 / max(np.abs(total).max(), 1e-6)))
    return total + np.float32(NOISE_FLOOR) * rng.standard_normal(total.shape, dtype=np.float32)


def main() -> None:
    from training.voice_rendering import render_from_arguments

    render_from_arguments()


if __name__ == "__main__":
    main()
