"""How well a trained model rolls a ball into a resting shape, on prompts that it has not seen.

    python -m training.evaluate_roll --source FOLDER [--clips 24] [--floors] [--out report.json] [--sheet FOLDER]

The rows, floors and ceiling are those of `training.evaluate`, of stage 1's other scene: the resting shape's colour and
shape are held out of the training, or not; a first frame is given; the prompt does not say when the ball hits.
"carried": in the last third of the clip both colours are still those asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from nava_core import NavaPipeline, load_pipeline
from training import evaluate as falls
from training import shots
from training.evaluation import (
    SEED,
    Case,
    Clip,
    Evaluation,
    Questions,
    Row,
    Table,
    draw_cases,
    make_rows,
    run_command,
)
from training.measure_roll import measure_roll_clip
from training.scores_roll import Outcome, score, shuffled

COLUMNS = (
    "colour", "shape", "colour&shape", "ball colour", "side", "carried", "contact", "moment", "sync 60ms", "first 60ms",
    "pan sign", "contact std", "moment error", "sync error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("contact std", "moment error", "sync error", "seconds")
ROWS, FLOORS = ({name: replace(row, kind="roll") for name, row in rows.items()} for rows in (falls.ROWS, falls.FLOORS))
TABLE = Table(ROWS, FLOORS, COLUMNS, PLAIN_COLUMNS)


def make_cases(count: int, pairs: str, seed: int = SEED, moment: bool = True) -> list[Case]:
    """`count` fresh rolls into shapes of `pairs`; moment: whether the prompts say when the ball hits."""
    return draw_cases(count, lambda rng: shots.sample_shot(rng, "roll", pairs), seed, moment)


def measure(case: Case, clip: Clip, fps: float, seconds: float) -> Outcome:
    return Outcome(case.roll, measure_roll_clip(clip.frames, clip.audio, fps, clip.rate), seconds)


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
    """What was asked for and what was measured."""
    roll, picture, sound = outcome.roll, outcome.clip.picture, outcome.clip.sound
    asked = f"{roll.ball_colour} ball from the {roll.side} into a {roll.colour} {roll.shape} at {roll.contact:.2f}"
    seen = f"{picture.ball_colour} ball from the {picture.side} into a {picture.colour} {picture.shape}"
    moments = (" ".join(f"{moment:.2f}" for moment in found) for found in (picture.contacts, sound.onsets))
    return f"asked: {asked}; is: {seen}; seen {next(moments)}; heard {next(moments)}; {sound.balance:+.1f} dB"


def unmatched(made: Sequence[tuple[Outcome, Clip]], fps: float) -> list[Outcome]:
    return shuffled([outcome for outcome, _ in made])


QUESTIONS = Questions(measure, describe, label, score, unmatched)


def evaluate(pipeline: NavaPipeline, names: list[str], clips: int, seed: int = SEED) -> Iterator[Evaluation]:
    """Run the rows `names` (keys of ROWS and FLOORS) with `clips` clips each; yields what there is after each row."""

    def cases_of(row: Row) -> list[Case]:
        return make_cases(clips, row.split, seed, row.moment)

    return make_rows(pipeline, TABLE, names, cases_of, QUESTIONS)


def main(arguments: list[str] | None = None) -> None:
    run_command(__doc__, TABLE, load_pipeline, evaluate, arguments)


if __name__ == "__main__":
    main()
