"""How well speech passes through the autoencoder and vocoder, and how well the speaker encoder tells voices apart.

    python -m training.measure_voices --voices runs/voices/voices.npz [--audio-vae FOLDER] [--vocoder FOLDER]
        [--speaker-encoder FOLDER] [--clips 40] [--recogniser tiny.en] [--timbre] [--out report.json]

Words: the word error rate of the voices as rendered, after the codec (what a perfect backbone would reach), and of
shuffled texts (the floor). Side: whether speech stays where it was. Impacts: whether the world's sounds keep their
material, side and moments. Timbre: whether the decoded voice is nearer to a reference of its own than to one of
another voice of its sex, by encoders trained elsewhere and by ours.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nava_core import ReDimNetSpeakerEncoder
from nava_core.mel import SAMPLING_RATE
from training.codec import Codec
from training.measure_sound import measure_sound
from training.recognise import WordRecogniser, word_error_rate
from training.sounds import CLIP_SAMPLES, OUTPUT_RATE, random_utterance
from training.speech_scores import mouth_correlation, speech_balance
from training.timbre import (
    Encoder,
    OurEncoder,
    equal_error_rate,
    independent_encoders,
    labelled_pairs,
    nearer_own,
    rivals,
)
from training.voices import Utterance, Voice, VoiceBank, mix, place
from training.world import contacts, render_sound, sample_scene

logger = logging.getLogger(__name__)
SEED = 7_000_006
FPS = 24
SIDES = (0.25, 0.75)


@dataclass(frozen=True)
class Case:
    """One clip with speech: float32 `sound` (2, samples) at 48 kHz, from `start` seconds on, `pan` in [0, 1]."""

    voice: Voice
    utterance: Utterance
    start: float
    pan: float
    sound: np.ndarray


def make_cases(bank: VoiceBank, split: str, count: int, seed: int = SEED) -> Iterator[Case]:
    """`count` fresh clips of 1 to 4 words on the left or right; case i does not depend on `count`."""
    seconds = CLIP_SAMPLES / OUTPUT_RATE
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        voice, utterance = random_utterance(bank, rng, split)
        start = float(rng.uniform(0, seconds - utterance.seconds))
        pan = SIDES[rng.integers(2)]
        sound = mix([place(utterance, start, pan, seconds, OUTPUT_RATE)], rng)
        yield Case(voice, utterance, start, pan, sound)


def measure_words(
    cases: list[Case], sounds: dict[str, list[np.ndarray]], recogniser: WordRecogniser
) -> dict[str, float]:
    """Word error rates of each list of sounds, one for each case, and of the first with shuffled texts."""
    said = [tuple(word for word, _, _ in case.utterance.words) for case in cases]
    heard = {name: [recogniser(sound, OUTPUT_RATE) for sound in listed] for name, listed in sounds.items()}
    result = {name: word_error_rate(list(zip(said, answers, strict=True))) for name, answers in heard.items()}
    first = next(iter(heard.values()))
    for texts, answer in list(zip(said, heard[list(heard)[-1]], strict=True))[:12]:
        logger.info("said %s; heard %s", " ".join(texts), " ".join(answer))
    moved = [*first[len(first) // 2 :], *first[: len(first) // 2]]
    return {**result, "shuffled": word_error_rate(list(zip(said, moved, strict=True)))}


def measure_signals(cases: list[Case], sounds: list[np.ndarray]) -> dict[str, float]:
    """Of sounds after the codec: speech on its side, and the correlation of its loudness with the true mouth."""
    sides, mouths = [], []
    times = np.arange(round(CLIP_SAMPLES / OUTPUT_RATE * FPS)) / FPS
    for case, sound in zip(cases, sounds, strict=True):
        balance = speech_balance(sound, OUTPUT_RATE, case.start, case.start + case.utterance.seconds)
        sides.append((balance > 0) == (case.pan < 0.5))
        mouths.append(mouth_correlation(case.utterance.opening(times - case.start), sound, OUTPUT_RATE, FPS))
    return {"side": float(np.mean(sides)), "mouth": float(np.mean(mouths))}


def measure_impacts(codec: Codec | None, count: int) -> dict[str, float]:
    """Shares of the world's sounds, after a codec if one is given: material, side, contacts heard within 30 ms."""
    material, side, heard = [], [], []
    for number in range(count):
        scene = sample_scene(np.random.default_rng([SEED, 2, number]), "all")
        sound = render_sound(scene, CLIP_SAMPLES / OUTPUT_RATE, OUTPUT_RATE)
        measured = measure_sound(sound if codec is None else codec(sound), OUTPUT_RATE)
        material.append(measured.material == scene.shape)
        side.append(measured.column == scene.column)
        heard += [any(abs(contact.time - o) < 0.03 for o in measured.onsets) for contact in contacts(scene)]
    return {"material": float(np.mean(material)), "side": float(np.mean(side)), "contacts": float(np.mean(heard))}


def measure_likeness(
    bank: VoiceBank, cases: list[Case], sounds: list[np.ndarray], encoders: dict[str, Encoder]
) -> dict[str, float]:
    """Shares of sounds nearer to a reference of their own voice than to one of another, which says other words too.

    For each encoder against a voice of the same sex and another base ("sex"), and one of like pitch too ("like").
    """
    found: dict[str, list[bool]] = {}
    for number, (case, sound) in enumerate(zip(cases, sounds, strict=True)):
        rng = np.random.default_rng([SEED, 1, number])
        said = [word for word, _, _ in case.utterance.words]
        own = bank.reference(case.voice, rng, avoid=said)
        first = round(case.start * OUTPUT_RATE)
        spoken = sound[:, first : first + round(case.utterance.seconds * OUTPUT_RATE)]
        for kind, pool in rivals(bank, case.voice).items():
            if not pool:
                continue
            other = bank.reference(pool[rng.integers(len(pool))], rng, avoid=said)
            for name, encoder in encoders.items():
                found.setdefault(f"{name} {kind}", []).append(nearer_own(encoder, spoken, own, other, OUTPUT_RATE))
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure_pairs(bank: VoiceBank, split: str, count: int, encoders: dict[str, Encoder]) -> dict[str, float]:
    """Equal error rates on references of one voice and of two; "like": two of one sex and like pitch."""
    result = {}
    for across in (True, False):
        pairs = labelled_pairs(bank, split, count, np.random.default_rng(SEED), across_bases=across)
        kind = "other base" if across else "any"
        for name, encoder in encoders.items():
            scores = [float(encoder(p.first, SAMPLING_RATE) @ encoder(p.second, SAMPLING_RATE)) for p in pairs]
            for label, chosen in ((kind, pairs), (f"{kind}, like", [p for p in pairs if p.same or p.like])):
                kept = [score for score, pair in zip(scores, pairs, strict=True) if any(pair is c for c in chosen)]
                if len({pair.same for pair in chosen}) == 2:
                    result[f"{name}: {label}"] = round(equal_error_rate(kept, [pair.same for pair in chosen]), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure speech through the codec, and voices by their embeddings.")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"))
    parser.add_argument("--audio-vae", type=Path)
    parser.add_argument("--vocoder", type=Path)
    parser.add_argument("--phase-rounds", type=int, default=0, help="of nava_core.phase, after the vocoder")
    parser.add_argument("--speaker-encoder", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--splits", nargs="+", default=["train", "held_out"], choices=["train", "held_out"])
    parser.add_argument("--recogniser", default="tiny.en", help="base, tiny.en, a folder, or none")
    parser.add_argument("--timbre", action="store_true", help="judge voices by encoders trained elsewhere")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bank = VoiceBank.load(arguments.voices)
    encoders: dict[str, Encoder] = independent_encoders() if arguments.timbre else {}
    if arguments.speaker_encoder:
        model = ReDimNetSpeakerEncoder.from_pretrained(arguments.speaker_encoder, torch_dtype=torch.float32)
        encoders["ours"] = OurEncoder(model.eval())
    codec = None
    if arguments.audio_vae and arguments.vocoder:
        codec = Codec(arguments.audio_vae, arguments.vocoder, arguments.phase_rounds)
    recogniser = WordRecogniser(arguments.recogniser) if arguments.recogniser != "none" else None
    report: dict[str, Any] = {"impacts": measure_impacts(codec, arguments.clips)}
    logger.info("impacts: %s", json.dumps(report["impacts"]))
    for split in arguments.splits:
        cases = list(make_cases(bank, split, arguments.clips))
        sounds = {"original": [case.sound for case in cases]}
        if codec is not None:
            sounds["codec"] = [codec(case.sound) for case in cases]
        last = list(sounds.values())[-1]
        report[split] = {
            "words": measure_words(cases, sounds, recogniser) if recogniser else {},
            "signals": measure_signals(cases, last),
            "likeness": measure_likeness(bank, cases, last, encoders),
            "equal error": measure_pairs(bank, split, arguments.clips, encoders) if encoders else {},
        }
        logger.info("%s: %s", split, json.dumps(report[split]))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
