"""How well a trained model shows and voices people, on prompts, looks and voices that it has not seen.

    python -m training.evaluate_people --source FOLDER [--rows talk pair] [--clips 24] [--floors] [--out report.json]

The rows: one person who speaks (looks held out of the training, a voice reference given where the model takes one),
the same with looks of the training, the same without a reference, a first frame given, two people, and cameras with
ambiences. The floors: alignment guidance off, all guidance off, sounds shuffled between clips, untrained weights; and
above them the ceiling, the world's own clips through the autoencoders. Falling shapes are `training.evaluate`'s.

With --timbre, encoders trained elsewhere say whether each speaker's span is nearer to its own reference than to another
voice's ("voice"), to one's of the same sex and like pitch ("like"), and of two people, whether each has the right voice
("binding"). The chance of the first two is a half and that of the last about a quarter.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nava_core import NavaPipeline, load_pipeline
from training import shots, speaking
from training.captions_people import shot_caption
from training.evaluate import (
    GUIDANCE_OFF,
    SHUFFLED,
    Clip,
    as_clip,
    format_table,
    through_autoencoders,
    untrained,
    write_report,
)
from training.likeness import clip_likeness, likeness_columns
from training.recognise import WordRecogniser
from training.scores_people import Outcome, measure_people_clip, score, shuffled
from training.sheet import clip_row, stack_rows
from training.shots import Shot, speakers
from training.timbre import Encoder, independent_encoders
from training.voices import VoiceBank

logger = logging.getLogger(__name__)

SEED = 7_000_003
SHEET_CLIPS = 12
COLUMNS = (
    "people", "hair", "clothes", "skin", "side", "camera", "mouth", "mouth follows", "sync 60ms", "stereo", "order",
    "carried", "wer", "start error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("mouth", "start error", "seconds")


@dataclass(frozen=True)
class Case:
    """One clip to make: a shot whose people have words and voices, its prompt and a seed."""

    shot: Shot
    prompt: str
    seed: int


Maker = Callable[[NavaPipeline, VoiceBank, Case], Clip]


@dataclass(frozen=True)
class Row:
    """What a row of the table draws and how its clips are made; split: of looks and of voices."""

    title: str
    kind: str
    looks: str
    voices: str
    make: Maker


def make_cases(bank: VoiceBank, count: int, row: Row, size: str | None = None, seed: int = SEED) -> list[Case]:
    """`count` fresh shots with dense prompts; case i does not depend on `count`."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        shot = shots.sample_shot(rng, row.kind, row.looks, size)
        while not shot.people:
            shot = shots.sample_shot(rng, row.kind, row.looks, size)
        shot = speaking.give_voices(shot, bank, rng, row.voices)
        cases.append(Case(shot, shot_caption(shot, rng, "dense", moment=True), int(rng.integers(2**31))))
    return cases


def generate(pipeline: NavaPipeline, bank: VoiceBank, case: Case, voiced: bool = True, **options: Any) -> Clip:
    """The clip that the pipeline makes of the case's prompt, with references of the voices where it takes them."""
    if voiced and pipeline.spec.accepts_speakers:
        people = [case.shot.people[number] for number in speakers(case.shot)]
        options["speakers"] = [speaking.reference(person, bank) for person in people]
    options |= {"width": case.shot.width, "height": case.shot.height}
    return as_clip(pipeline(prompt=case.prompt, seed=case.seed, output_type="np", **options))


def generate_unvoiced(pipeline: NavaPipeline, bank: VoiceBank, case: Case) -> Clip:
    return generate(pipeline, bank, case, voiced=False)


def generate_from_image(pipeline: NavaPipeline, bank: VoiceBank, case: Case) -> Clip:
    """With the shot's first frame given."""
    return generate(pipeline, bank, case, image=Image.fromarray(_frames(case.shot, bank)[0]))


def generate_without_alignment(pipeline: NavaPipeline, bank: VoiceBank, case: Case) -> Clip:
    guidance = replace(pipeline.spec.guidance, video_align=0.0, audio_align=0.0)
    return generate(pipeline, bank, case, guidance=guidance)


def generate_without_guidance(pipeline: NavaPipeline, bank: VoiceBank, case: Case) -> Clip:
    return generate(pipeline, bank, case, voiced=False, guidance=GUIDANCE_OFF)


def reconstruct(pipeline: NavaPipeline, bank: VoiceBank, case: Case) -> Clip:
    """The shot's own render through the autoencoders."""
    return through_autoencoders(pipeline, _frames(case.shot, bank), speaking.render_sound(case.shot, bank))


def _frames(shot: Shot, bank: VoiceBank) -> np.ndarray:
    return shots.render_frames(shot, speaking.openings(shot, bank))


ROWS = {
    "talk": Row("held-out looks", "talk", "held_out", "train", generate),
    "talk_train": Row("looks of the training", "talk", "train", "train", generate),
    "talk_voices": Row("held-out voices", "talk", "held_out", "held_out", generate),
    "talk_unvoiced": Row("no reference", "talk", "held_out", "train", generate_unvoiced),
    "image": Row("first frame given", "talk", "held_out", "train", generate_from_image),
    "pair": Row("two people", "pair", "held_out", "train", generate),
    "tour": Row("cameras, ambiences", "tour", "held_out", "train", generate),
}
FLOORS = {
    "no_align": Row("alignment guidance off", "talk", "held_out", "train", generate_without_alignment),
    "no_guidance": Row("guidance off", "talk", "held_out", "train", generate_without_guidance),
    "untrained": Row("untrained weights", "talk", "held_out", "train", generate),
    "ceiling": Row("autoencoders alone", "talk", "held_out", "train", reconstruct),
    "ceiling_pair": Row("the same, two people", "pair", "held_out", "train", reconstruct),
    "ceiling_voices": Row("the same, new voices", "talk", "held_out", "held_out", reconstruct),
    "ceiling_tour": Row("the same, cameras", "tour", "held_out", "train", reconstruct),
}


@dataclass(frozen=True)
class Listeners:
    """What hears the words and the voices of clips, where it is asked for."""

    recogniser: WordRecogniser | None = None
    encoders: Mapping[str, Encoder] = field(default_factory=dict)


@dataclass
class Evaluation:
    """Numbers for each row, data for each clip and pictures of each row's first clips."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)


def run_row(
    result: Evaluation, name: str, row: Row, pipeline: NavaPipeline, bank: VoiceBank, cases: list[Case],
    listeners: Listeners,
) -> tuple[list[Outcome], list[np.ndarray], int]:  # fmt: skip
    """Make and measure a row's clips; returns the outcomes, the sounds and their rate."""
    outcomes, sounds, rate = [], [], 0
    for number, case in enumerate(cases):
        started = time.perf_counter()
        clip = row.make(pipeline, bank, case)
        seconds = time.perf_counter() - started
        rate = clip.rate
        heard = listeners.recogniser(clip.audio, clip.rate) if listeners.recogniser else None
        voices = clip_likeness(case.shot, bank, clip.audio, clip.rate, listeners.encoders)
        measured = measure_people_clip(clip.frames, clip.audio, pipeline.spec.fps, clip.rate)
        outcome = Outcome(case.shot, measured, seconds, heard, voices)
        outcomes.append(outcome)
        sounds.append(clip.audio)
        result.details.setdefault(name, []).append(describe(case, outcome))
        if number < SHEET_CLIPS:
            picture = clip_row(clip.frames, clip.audio, clip.rate, label(outcome))
            result.pictures.setdefault(name, []).append(picture)
        logger.info("%s: clip %d of %d, %.1f s; %s", name, number + 1, len(cases), seconds, label(outcome))
    result.rows[name] = score(outcomes)
    return outcomes, sounds, rate


def describe(case: Case, outcome: Outcome) -> dict[str, Any]:
    """One clip as data for the report."""
    speech = outcome.clip.speech
    seen = [
        {"x": person.x / outcome.clip.width, "skin": person.skin, "hair": person.hair, "clothes": person.clothes}
        for person in outcome.clip.people
    ]
    return {"prompt": case.prompt, "seed": case.seed, "asked": asdict(case.shot), "seen": seen,
            "camera": outcome.clip.camera, "speech": asdict(speech), "heard": outcome.heard,
            "voices": outcome.voices, "seconds": outcome.seconds}  # fmt: skip


def label(outcome: Outcome) -> str:
    """What was asked for and what was measured, for the contact sheet."""
    asked = "; ".join(
        f"{person.hair} {person.hair_style}, {person.clothes}, {person.column}: {' '.join(person.words)}"
        f" at {person.start:.2f}" for person in outcome.shot.people
    )  # fmt: skip
    seen = "; ".join(f"{person.hair}, {person.clothes}" for person in outcome.clip.people)
    speech, heard = outcome.clip.speech, " ".join(outcome.heard or ())
    sides = [speech.column(number) for number in range(len(speech.balances))]
    return (
        f"asked: {asked}; is: {seen}; mouth {speech.correlation:.2f}, lag {speech.lag:+.2f}, from {sides}, "
        f"camera {outcome.shot.camera}/{outcome.clip.camera}, heard: {heard}"
    )


def evaluate(
    pipeline: NavaPipeline, bank: VoiceBank, names: list[str], clips: int, listeners: Listeners,
    seed: int = SEED, save: Callable[[Evaluation], None] = lambda result: None,
) -> Evaluation:  # fmt: skip
    """Run the rows `names` with `clips` clips each; `save` is called after each row."""
    result = Evaluation()
    for name in names:
        row = (ROWS | FLOORS)[name]
        size = None if row.kind == "tour" and len(pipeline.spec.sizes) > 1 else "square"
        used = untrained(pipeline) if name == "untrained" else pipeline
        cases = make_cases(bank, clips, row, size, seed)
        outcomes, sounds, rate = run_row(result, name, row, used, bank, cases, listeners)
        if name == "talk" and len(outcomes) > 1:
            result.rows["shuffled"] = score(shuffled(outcomes, sounds, pipeline.spec.fps, rate))
        save(result)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="model folder or hub id; without it nava-nano")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="what training.voices made")
    parser.add_argument("--clips", type=int, default=24, help="clips a row")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *FLOORS], default=["talk", "talk_train", "image", "pair"])
    parser.add_argument("--floors", action="store_true", help="add the floors and the ceilings of talk and pair")
    parser.add_argument("--recogniser", default=None, help="tiny.en, base or a folder: measure the word error rate too")
    parser.add_argument("--timbre", action="store_true", help="judge the voices by encoders trained elsewhere")
    parser.add_argument("--out", type=Path, default=None, help="JSON report, written anew after each row")
    parser.add_argument("--sheet", type=Path, default=None, help="folder for a PNG of each row's clips")
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    floors = ["no_align", "no_guidance", "untrained", "ceiling", "ceiling_pair"] if chosen.floors else []
    names = list(dict.fromkeys([*chosen.rows, *floors]))
    pipeline = load_pipeline(chosen.source)
    pipeline.set_progress_bar_config(disable=True)
    recogniser = WordRecogniser(chosen.recogniser) if chosen.recogniser else None
    listeners = Listeners(recogniser, independent_encoders() if chosen.timbre else {})

    def save(result: Evaluation) -> None:
        if chosen.out:
            report = {"model": pipeline.spec.name, "clips": chosen.clips, "seed": chosen.seed,
                      "rows": result.rows, "details": result.details}  # fmt: skip
            write_report(chosen.out, report)
        if chosen.sheet:
            chosen.sheet.mkdir(parents=True, exist_ok=True)
            for name, pictures in result.pictures.items():
                stack_rows(pictures).save(chosen.sheet / f"{name}.png")

    result = evaluate(pipeline, VoiceBank.load(chosen.voices), names, chosen.clips, listeners, chosen.seed, save)
    titles = {name: row.title for name, row in (ROWS | FLOORS).items()} | {"shuffled": SHUFFLED}
    print(format_table(result.rows, titles, COLUMNS, PLAIN_COLUMNS))
    if chosen.timbre:
        print(format_table(result.rows, titles, likeness_columns(list(listeners.encoders)), ()))


if __name__ == "__main__":
    main()
