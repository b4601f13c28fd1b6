"""From the voices of a config to the bank of all words in all voices."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from nava_core.mel import SAMPLING_RATE
from training.common import load_config, save_arrays
from training.lexicon import WORDS
from training.voice_shaping import AnalysedWord, analyse, blend, shape
from training.voice_sources import speak
from training.voices import Voice, VoiceBank

logger = logging.getLogger(__name__)
BANK_NAME = "voices.npz"


@dataclass(frozen=True)
class Base:
    """A speaker's words, and what the config says of it."""

    words: dict[str, AnalysedWord]
    facts: dict[str, Any]

    @property
    def pitch(self) -> float:
        """The median in Hz."""
        return float(np.median(np.concatenate([word.pitch[word.pitch > 0] for word in self.words.values()])))


def spoken_words(name: str, base: dict[str, Any], folder: Path) -> dict[str, AnalysedWord]:
    """The words of one base, analysed; what the synthesiser said is kept in `folder`."""
    path = folder / f"{name}.npz"
    if not path.exists():
        sounds = {word: speak(word, base["source"], base["voice"]) for word in WORDS}
        arrays = {word: samples for word, (samples, _) in sounds.items()}
        rate = next(iter(sounds.values()))[1]
        save_arrays(path, {"rate": rate, **arrays})
    with np.load(path) as stored:
        return {word: analyse(stored[word], int(stored["rate"])) for word in WORDS}


def variant_factors(count: int, config: dict[str, Any], rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """(pitch, tract, tempo) of `count` voices of a base: its own first, the others spread evenly (Roberts' R3)."""
    root = 1.2207440846057596  # the real root of x^4 = x + 1
    steps = 1 / root ** np.arange(1, 4)
    start = rng.random(3)
    factors = [(1.0, 1.0, 1.0)]
    for index in range(1, count):
        place = (start + index * steps) % 1
        pitch, tract, tempo = (
            low * (high / low) ** share
            for share, (low, high) in zip(place, (config["pitch"], config["tract"], config["tempo"]), strict=True)
        )
        factors.append((float(pitch), float(tract), float(tempo)))
    return factors


def render(config: dict[str, Any], folder: Path) -> VoiceBank:
    """All voices of the config; deterministic."""
    voices: list[Voice] = []
    words: dict[str, dict[str, np.ndarray]] = {}
    bases = {name: Base(spoken_words(name, base, folder), base) for name, base in config["bases"].items()}
    families = [*bases.items(), *_blends(bases, config["blend_shares"])]
    for number, (name, base) in enumerate(families):
        median = base.pitch
        even = float(np.mean([word.seconds for word in base.words.values()])) / config["word_seconds"]
        rng = np.random.default_rng([config["seed"], number])
        split = base.facts["split"]
        for index, (pitch, tract, tempo) in enumerate(variant_factors(config["variants"][split], config, rng)):
            voice = Voice(
                f"{name}-{index:02d}", name, base.facts["sex"], round(median * pitch, 1), round(tract, 4), split
            )
            voices.append(voice)
            words[voice.name] = {word: shape(parts, pitch, tract, tempo * even) for word, parts in base.words.items()}
        lengths = [
            len(sound) / SAMPLING_RATE for voice in voices if voice.base == name for sound in words[voice.name].values()
        ]
        logger.info("%s: %.0f Hz, words of %.2f to %.2f s", name, median, min(lengths), max(lengths))
    return VoiceBank(voices, words)


def _blends(bases: dict[str, Base], shares: Sequence[float]) -> Iterator[tuple[str, Base]]:
    """Speakers between any two of the training's of one sex, by names such as "awb+joe-25": a quarter of joe's."""
    pairs = combinations([(name, base) for name, base in bases.items() if base.facts["split"] == "train"], 2)
    for ((name, one), (other_name, other)), share in product(pairs, shares):
        if one.facts["sex"] == other.facts["sex"]:
            mixed = {word: blend(parts, other.words[word], share) for word, parts in one.words.items()}
            yield f"{name}+{other_name}-{100 * share:.0f}", Base(mixed, {**one.facts, "split": "blended"})


def render_from_arguments() -> None:
    """The command line of `python -m training.voices`."""
    parser = argparse.ArgumentParser(description="Speak the lexicon in all voices of a config.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for voices.npz")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bank = render(load_config(arguments.config), arguments.out)
    bank.save(arguments.out / BANK_NAME)
    logger.info("%d voices in %s", len(bank.voices()), arguments.out / BANK_NAME)
