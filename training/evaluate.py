"""How well a trained model does on prompts that it has not seen, measured from the clips alone.

    python -m training.evaluate [--source FOLDER] [--clips 24] [--floors] [--out report.json] [--sheet FOLDER]

The rows: colour-shape pairs that were held out of the training, pairs of the training (with other numbers and words), a
first frame given, and held-out pairs whose prompts do not say when the shape lands, so that picture and sound agree
only as far as they heed each other. "place" is of the first frame, which the third row is given; "carried" is whether
colour and x are still its own in the last third of the clip, "carried shape" whether the shape is too, which already
the autoencoders lose of some. The floors: alignment guidance off, all guidance off, sounds shuffled between clips,
untrained weights; and above them the ceiling, the world's own clips through the autoencoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from nava_core import NavaPipeline, load_pipeline
from training import shots, world
from training.evaluation import (
    SEED,
    Case,
    Clip,
    Evaluation,
    Questions,
    Row,
    Table,
    draw_cases,
    generate,
    generate_from_image,
    generate_without_alignment,
    generate_without_guidance,
    make_rows,
    reconstruct,
    run_command,
)
from training.measure import measure_clip
from training.scores import Outcome, score, shuffled

COLUMNS = (
    "colour", "shape", "colour&shape", "side", "size", "release", "place", "carried", "carried shape", "sync",
    "sync first", "sync 60ms", "first 60ms", "count equal", "count true", "pan", "material", "contact std",
    "contact range", "sync error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("contact std", "contact range", "sync error", "seconds")
ROWS = {
    "held_out": Row("held-out pairs", "fall", "held_out", generate),
    "train": Row("training pairs", "fall", "train", generate),
    "image": Row("first frame given", "fall", "held_out", generate_from_image),
    "no_moment": Row("moment not named", "fall", "held_out", generate, moment=False),
}
FLOORS = {
    "no_align": Row("alignment guidance off", "fall", "held_out", generate_without_alignment),
    "no_guidance": Row("guidance off", "fall", "held_out", generate_without_guidance),
    "untrained": Row("untrained weights", "fall", "held_out", generate),
    "ceiling": Row("autoencoders alone", "fall", "held_out", reconstruct),
}
TABLE = Table(ROWS, FLOORS, COLUMNS, PLAIN_COLUMNS)


def make_cases(count: int, pairs: str, seed: int = SEED, moment: bool = True) -> list[Case]:
    """`count` fresh falls of `pairs`; moment: whether the prompts say when the shape lands."""
    return draw_cases(count, lambda rng: shots.fall(world.sample_scene(rng, pairs)), seed, moment)


def measure(case: Case, clip: Clip, fps: float, seconds: float) -> Outcome:
    return Outcome(case.scene, measure_clip(clip.frames, clip.audio, fps, clip.rate), seconds)


def describe(case: Case, outcome: Outcome) -> dict[str, Any]:
    """One clip as data for the report."""
    picture, sound = outcome.clip.picture, outcome.clip.sound
    return {
        "prompt": case.prompt,
        "seed": case.seed,
        "asked": asdict(case.scene),
        "seen": {
            "shape": picture.shape, "colour": picture.colour, "column": picture.column, "radius": picture.radius,
            "likeness": picture.likeness, "contacts": picture.contacts,
        },
        "heard": {"onsets": sound.onsets, "balance": sound.balance, "material": sound.material},
        "seconds": outcome.seconds,
    }  # fmt: skip


def label(outcome: Outcome) -> str:
    """What was asked for and what was measured."""
    scene, picture, sound = outcome.scene, outcome.clip.picture, outcome.clip.sound
    seen = " ".join(f"{moment:.2f}" for moment in picture.contacts)
    heard = " ".join(f"{moment:.2f}" for moment in sound.onsets)
    asked = f"{scene.colour} {scene.shape}, {scene.size}, {scene.column}, {scene.drop}, {scene.release}"
    return f"asked: {asked}; is: {picture.colour} {picture.shape}, {picture.column}; seen {seen}; heard {heard}"


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
