"""What the backbone says after its first phase, on sound alone: words and voices of clips without a picture.

    python -m training.assemble --backbone runs/backbone_sound --out runs/nano_sound
    python -m training.evaluate_sound --source runs/nano_sound [--clips 16] [--out report.json] [--sheet out.png]

Each clip is one person's words in a held-out voice whose reference says others. Words are heard from the latents' own
mel, inverted by Griffin-Lim, so that the vocoder has no part in it, and after the vocoder. "shuffled" is the floor,
"autoencoder" (the true sound there and back) the ceiling. "own voice": nearer, by the small speaker encoder, to a
reference of its own than to another voice's of the same sex; half of them would be so without any reference.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nava_core import NavaPipeline, load_pipeline
from nava_core.decode import decode_mel
from nava_core.mel import HOP_LENGTH, SAMPLING_RATE
from nava_core.phase import refine_phases
from training import speaking, world
from training.cache_latents import sound_tokens
from training.evaluate_people import make_cases
from training.evaluation import Case, Row, finite, generate
from training.recognise import WordRecogniser, word_error_rate
from training.scores import mean_known
from training.shots import speakers
from training.sounds import OUTPUT_RATE
from training.timbre import OurEncoder, nearer_own, rivals
from training.voices import VoiceBank

logger = logging.getLogger(__name__)
ROUNDS = 40
ROW = Row("one person", "talk", "held_out", generate, voices="held_out")


def inverted(mel: torch.Tensor) -> np.ndarray:
    """A waveform (samples,) at 16 kHz of a log-mel (channels, frames, bins), both channels together."""
    noise = torch.randn(1, mel.shape[1] * HOP_LENGTH, generator=torch.Generator().manual_seed(0))
    together = mel.exp().mean(0, keepdim=True).log()
    return refine_phases(noise, together, SAMPLING_RATE, ROUNDS)[0].numpy()


@torch.no_grad()
def say(pipeline: NavaPipeline, bank: VoiceBank, case: Case, **options: Any) -> torch.Tensor:
    """The audio tokens of the case's prompt, in the voice of its reference."""
    person = case.shot.people[speakers(case.shot)[0]]
    output = pipeline(
        prompt=case.prompt,
        seed=case.seed,
        speakers=[speaking.reference(person, bank)],
        modality="audio",
        seconds=case.shot.num_frames / world.FPS,
        output_type="latent",
        **options,
    )
    assert output.audio_latents is not None
    return output.audio_latents


def heard_as_own(pipeline: NavaPipeline, bank: VoiceBank, case: Case, sound: np.ndarray) -> bool | float:
    """Whether `sound` at 16 kHz is nearer to a reference of its voice than to one of another base's of the same sex.

    NaN where the bank has no such voice.
    """
    person = case.shot.people[speakers(case.shot)[0]]
    others = rivals(bank, bank.voice(person.voice))["sex"]
    if not others:
        return np.nan
    rng = np.random.default_rng(case.seed)
    other = bank.reference(others[rng.integers(len(others))], rng, avoid=person.words)
    encoder = OurEncoder(pipeline.speaker_encoder)
    return nearer_own(encoder, sound, speaking.reference(person, bank), other, SAMPLING_RATE)


def picture(mel: torch.Tensor) -> np.ndarray:
    """A log-mel as grey values, low notes below, three pixels a bin."""
    shown = (mel.mean(0).T.flip(0) + 11.5) / 12.5
    return np.kron((shown.clamp(0, 1) * 255).byte().numpy(), np.ones((3, 3), np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="model folder")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"))
    parser.add_argument("--only", nargs="+", metavar="VOICE", help="these voices, of one split, not the held-out ones")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--recogniser", default="base", help="base, tiny.en or a folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="true mels over those that were made")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bank, recogniser = VoiceBank.load(chosen.voices), WordRecogniser(chosen.recogniser)
    row = ROW
    if chosen.only:
        bank, row = bank.only(chosen.only), replace(ROW, voices=bank.voice(chosen.only[0]).split)
    pipeline = load_pipeline(chosen.source, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    said: list[tuple[str, ...]] = []
    heard: dict[str, list[tuple[str, ...]]] = {"made": [], "vocoder": [], "autoencoder": []}
    own: list[bool | float] = []
    pictures: list[np.ndarray] = []
    for case in make_cases(bank, chosen.clips, row):
        said.append(case.shot.people[speakers(case.shot)[0]].words)
        tokens, truth = say(pipeline, bank, case), sound_tokens(pipeline.audio_vae, case.shot, bank)
        mel, true_mel = decode_mel(pipeline.audio_vae, tokens), decode_mel(pipeline.audio_vae, truth)
        wave = inverted(mel)
        with torch.no_grad():
            vocoded = pipeline.vocoder(mel[None].to(pipeline.vocoder.dtype))[0].float().numpy()
        heard["made"].append(recogniser(wave, SAMPLING_RATE))
        heard["vocoder"].append(recogniser(vocoded, OUTPUT_RATE))
        heard["autoencoder"].append(recogniser(inverted(true_mel), SAMPLING_RATE))
        own.append(heard_as_own(pipeline, bank, case, wave))
        pictures += [picture(true_mel), picture(mel)]
        logger.info("said %s; heard %s", " ".join(said[-1]), " ".join(heard["made"][-1]))
    rates = {name: word_error_rate(list(zip(said, answers, strict=True))) for name, answers in heard.items()}
    half = len(said) // 2
    moved = [*heard["made"][half:], *heard["made"][:half]]
    rates |= {"shuffled": word_error_rate(list(zip(said, moved, strict=True))), "own voice": mean_known(own)}
    report = finite({name: round(value, 3) for name, value in rates.items()})
    print(json.dumps(report))
    if chosen.out:
        chosen.out.write_text(json.dumps({"clips": chosen.clips, **report}) + "\n", encoding="utf-8")
    if chosen.sheet:
        width = max(image.shape[1] for image in pictures)
        rows = [np.pad(image, ((0, 6), (0, width - image.shape[1]))) for image in pictures]
        Image.fromarray(np.concatenate(rows)).save(chosen.sheet)


if __name__ == "__main__":
    main()
