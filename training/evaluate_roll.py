"""How well a trained model rolls a ball into a resting shape, on prompts that it has not seen.

    python -m training.evaluate_roll --source FOLDER [--clips 24] [--floors] [--out report.json] [--sheet out.png]

The rows, floors and ceiling are those of `training.evaluate`, of stage 1's other scene: the resting shape's colour and
shape are held out of the training, or not; a first frame is given; the prompt does not say when the ball hits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from nava_core import NavaPipeline, load_pipeline
from training import shots, speaking
from training.captions_people import shot_caption
from training.evaluate import (
    GUIDANCE_OFF,
    SEED,
    SHEET_CLIPS,
    SHUFFLED,
    Clip,
    Evaluation,
    Table,
    as_clip,
    report_from_arguments,
    through_autoencoders,
    untrained,
)
from training.measure_roll import measure_roll_clip
from training.rolling import Roll
from training.scores_roll import Outcome, score, shuffled
from training.sheet import clip_row
from training.shots import Shot

logger = logging.getLogger(__name__)

COLUMNS = (
    "colour", "shape", "colour&shape", "ball colour", "side", "contact", "moment", "sync 60ms", "first 60ms",
    "pan sign", "contact std", "moment error", "sync error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("contact std", "moment error", "sync error", "seconds")


@dataclass(frozen=True)
class Case:
    """One clip to make: a shot of a roll, its prompt and a seed."""

    shot: Shot
    prompt: str
    seed: int

    @property
    def roll(self) -> Roll:
        assert self.shot.roll is not None
        return self.shot.roll


Maker = Callable[[NavaPipeline, Case], Clip]


@dataclass(frozen=True)
class Row:
    """What a row of the table draws, how its clips are made, and whether its prompts say when the ball hits."""

    title: str
    split: str
    make: Maker
    moment: bool = True


def make_cases(count: int, split: str, seed: int = SEED, moment: bool = True) -> list[Case]:
    """`count` fresh rolls with dense prompts and seeds; case i does not depend on `count`."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        shot = shots.sample_shot(rng, "roll", split)
        cases.append(Case(shot, shot_caption(shot, rng, "dense", moment), int(rng.integers(2**31))))
    return cases


def generate(pipeline: NavaPipeline, case: Case, **options: Any) -> Clip:
    """The clip that the pipeline makes of the case's prompt."""
    options |= {"width": case.shot.width, "height": case.shot.height}
    return as_clip(pipeline(prompt=case.prompt, seed=case.seed, output_type="np", **options))


def generate_from_image(pipeline: NavaPipeline, case: Case) -> Clip:
    """With the shot's first frame given."""
    return generate(pipeline, case, image=Image.fromarray(shots.render_frames(case.shot)[0]))


def generate_without_alignment(pipeline: NavaPipeline, case: Case) -> Clip:
    guidance = replace(pipeline.spec.guidance, video_align=0.0, audio_align=0.0)
    return generate(pipeline, case, guidance=guidance)


def generate_without_guidance(pipeline: NavaPipeline, case: Case) -> Clip:
    return generate(pipeline, case, guidance=GUIDANCE_OFF)


def reconstruct(pipeline: NavaPipeline, case: Case) -> Clip:
    """The shot's own render through the autoencoders."""
    return through_autoencoders(pipeline, shots.render_frames(case.shot), speaking.render_sound(case.shot, None))


ROWS = {
    "held_out": Row("held-out pairs", "held_out", generate),
    "train": Row("training pairs", "train", generate),
    "image": Row("first frame given", "held_out", generate_from_image),
    "no_moment": Row("moment not named", "held_out", generate, moment=False),
}
FLOORS = {
    "no_align": Row("alignment guidance off", "held_out", generate_without_alignment),
    "no_guidance": Row("guidance off", "held_out", generate_without_guidance),
    "untrained": Row("untrained weights", "held_out", generate),
    "ceiling": Row("autoencoders alone", "held_out", reconstruct),
}


def run_row(name: str, row: Row, pipeline: NavaPipeline, cases: list[Case]) -> Iterator[tuple[Case, Clip, Outcome]]:
    """Make and measure a row's clips."""
    for number, case in enumerate(cases):
        started = time.perf_counter()
        clip = row.make(pipeline, case)
        seconds = time.perf_counter() - started
        outcome = Outcome(case.roll, measure_roll_clip(clip.frames, clip.audio, pipeline.spec.fps, clip.rate), seconds)
        logger.info("%s: clip %d of %d, %.1f s; %s", name, number + 1, len(cases), seconds, label(outcome))
        yield case, clip, outcome


def describe(case: Case, outcome: Outcome) -> dict[str, Any]:
    """One clip as data for the report."""
    sound = outcome.clip.sound
    return {
        "prompt": case.prompt,
        "seed": case.seed,
        "asked": asdict(case.shot),
        "seen": asdict(outcome.clip.picture),
        "heard": {"onsets": sound.onsets, "balance": sound.balance},
        "seconds": outcome.seconds,
    }


def label(outcome: Outcome) -> str:
    """What was asked for and what was measured, for the contact sheet."""
    roll, picture, sound = outcome.roll, outcome.clip.picture, outcome.clip.sound
    asked = f"{roll.ball_colour} ball from the {roll.side} into a {roll.colour} {roll.shape} at {roll.contact:.2f}"
    seen = f"{picture.ball_colour} ball from the {picture.side} into a {picture.colour} {picture.shape}"
    moments = (" ".join(f"{moment:.2f}" for moment in found) for found in (picture.contacts, sound.onsets))
    return f"asked: {asked}; is: {seen}; seen {next(moments)}; heard {next(moments)}; {sound.balance:+.1f} dB"


def evaluate(pipeline: NavaPipeline, names: list[str], clips: int, seed: int = SEED) -> Iterator[Evaluation]:
    """Run the rows `names` (keys of ROWS and FLOORS) with `clips` clips each; yields what there is after each row."""
    result = Evaluation()
    for name in names:
        row = (ROWS | FLOORS)[name]
        used = untrained(pipeline) if name == "untrained" else pipeline
        outcomes = []
        for case, clip, outcome in run_row(name, row, used, make_cases(clips, row.split, seed, row.moment)):
            outcomes.append(outcome)
            result.details.setdefault(name, []).append(describe(case, outcome))
            if name == names[0] and len(result.pictures) < SHEET_CLIPS:
                result.pictures.append(clip_row(clip.frames, clip.audio, clip.rate, label(outcome)))
        result.rows[name] = score(outcomes)
        if name == "held_out" and len(outcomes) > 1:
            result.rows["shuffled"] = score(shuffled(outcomes))
        yield result


def main(arguments: list[str] | None = None) -> None:
    titles = {name: row.title for name, row in (ROWS | FLOORS).items()} | {"shuffled": SHUFFLED}
    table = Table(list(ROWS), list(FLOORS), titles, COLUMNS, PLAIN_COLUMNS)
    report_from_arguments(arguments, __doc__, table, load_pipeline, evaluate)


if __name__ == "__main__":
    main()
