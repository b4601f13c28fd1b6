"""From the voices of a config to the bank of all words in all voices."""

from __future__ import annotations

import argparse
import logging
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from nava_core.mel import SAMPLING_RATE
from training.common import load_config, save_arrays
from training.lexicon import WORDS
from training.voice_shaping import AnalysedWord, analyse, shape
from training.voice_sources import speak
from training.voices import Voice, VoiceBank

logger = logging.getLogger(__name__)
BANK_NAME = "voices.npz"


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


def render(config: dict[str, Any], folder: Path, workers: int = 1) -> VoiceBank:
    """All voices of the config; deterministic. `workers` processes of one thread each."""
    jobs = [(number, name, base, config, folder) for number, (name, base) in enumerate(config["bases"].items())]
    voices: list[Voice] = []
    words: dict[str, dict[str, np.ndarray]] = {}
    with get_context("spawn").Pool(workers) as pool:
        for made in pool.imap(_family, jobs):
            voices += [voice for voice, _ in made]
            words |= {voice.name: spoken for voice, spoken in made}
            lengths = [len(sound) / SAMPLING_RATE for _, spoken in made for sound in spoken.values()]
            first = made[0][0]
            shortest, longest = min(lengths), max(lengths)
            logger.info("%s: %.0f Hz, words of %.2f to %.2f s", first.base, first.pitch, shortest, longest)
    return VoiceBank(voices, words)


def _family(job: tuple[int, str, dict[str, Any], dict[str, Any], Path]) -> list[tuple[Voice, dict[str, np.ndarray]]]:
    """The voices of one base, its own first, and the words as each says them."""
    number, name, base, config, folder = job
    words = spoken_words(name, base, folder)
    median = float(np.median(np.concatenate([word.pitch[word.pitch > 0] for word in words.values()])))
    even = float(np.mean([word.seconds for word in words.values()])) / config["word_seconds"]
    rng = np.random.default_rng([config["seed"], number])
    count = base.get("variants", config["variants"])
    return [
        (
            Voice(f"{name}-{index:02d}", name, base["sex"], round(median * pitch, 1), round(tract, 4), base["split"]),
            {word: shape(parts, pitch, tract, tempo * even) for word, parts in words.items()},
        )
        for index, (pitch, tract, tempo) in enumerate(variant_factors(count, config, rng))
    ]


def render_from_arguments() -> None:
    """The command line of `python -m training.voices`."""
    parser = argparse.ArgumentParser(description="Speak the lexicon in all voices of a config.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for voices.npz")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bank = render(load_config(arguments.config), arguments.out, arguments.workers)
    bank.save(arguments.out / BANK_NAME)
    logger.info("%d voices in %s", len(bank.voices()), arguments.out / BANK_NAME)
