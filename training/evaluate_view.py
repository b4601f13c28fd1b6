"""How well a trained model shows places and lets them sound: rain, waves, wind and night, with every camera move.

    python -m training.evaluate_view --source FOLDER [--clips 24] [--floors] [--out report.json] [--sheet FOLDER]

Sizes and lengths are drawn among those of the model. "place": the picture is nearest to the asked place's; "sound": so
is what is heard; a quarter of clips would be so by chance. "camera still" and "camera moves": it does as asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nava_core import NavaPipeline, load_pipeline
from training import shots
from training.evaluation import (
    SEED,
    Case,
    Clip,
    Evaluation,
    Questions,
    Row,
    Table,
    clip_lengths,
    draw_cases,
    generate,
    generate_without_guidance,
    make_rows,
    reconstruct,
    run_command,
)
from training.measure_camera import measure_camera
from training.measure_place import heard_place, shown_place
from training.scores import shares, with_others
from training.shots import Shot

COLUMNS = ("place", "sound", "place&sound", "camera still", "camera moves", "seconds")
PLAIN_COLUMNS = ("seconds",)
ROWS = {"view": Row("places", "view", "all", generate)}
FLOORS = {
    "no_guidance": Row("guidance off", "view", "all", generate_without_guidance),
    "untrained": Row("untrained weights", "view", "all", generate),
    "ceiling": Row("autoencoders alone", "view", "all", reconstruct),
}
TABLE = Table(ROWS, FLOORS, COLUMNS, PLAIN_COLUMNS)


@dataclass(frozen=True)
class Outcome:
    """A view that was asked for, the places that its clip shows and sounds like, its camera, and how long it took."""

    shot: Shot
    shown: str
    heard: str
    camera: str
    seconds: float


def make_cases(pipeline: NavaPipeline, count: int, seed: int = SEED) -> list[Case]:
    """`count` fresh views of the sizes and lengths that the model makes."""
    sizes = [name for name, size in shots.SIZES.items() if size in pipeline.spec.sizes]
    choices = clip_lengths(pipeline)

    def draw(rng: np.random.Generator) -> Shot:
        size, length = sizes[rng.integers(len(sizes))], choices[rng.integers(len(choices))]
        return shots.sample_shot(rng, "view", size=size, seconds=length)

    return draw_cases(count, draw, seed)


def measure(case: Case, clip: Clip, fps: float, seconds: float) -> Outcome:
    heard = heard_place(clip.audio, clip.rate)
    return Outcome(case.shot, shown_place(clip.frames), heard, measure_camera(clip.frames), seconds)


def describe(case: Case, outcome: Outcome) -> dict[str, Any]:
    """One clip as data for the report."""
    return {"prompt": case.prompt, "seed": case.seed, **asdict(outcome)}


def label(outcome: Outcome) -> str:
    """What was asked for and what was measured."""
    shot = outcome.shot
    asked = f"{shot.backdrop}, {shot.camera}, {shot.width}x{shot.height}, {shot.seconds:g} s"
    return f"asked: {asked}; shows {outcome.shown}, sounds like {outcome.heard}, camera {outcome.camera}"


def _camera(outcome: Outcome, moves: bool) -> bool | float:
    asked = outcome.shot.camera
    return outcome.camera == asked if (asked != "still") == moves else np.nan


def score(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares (0 to 1) of COLUMNS, and the mean seconds a clip."""
    rules = {
        "place": lambda outcome: outcome.shown == outcome.shot.backdrop,
        "sound": lambda outcome: outcome.heard == outcome.shot.backdrop,
        "place&sound": lambda outcome: outcome.shown == outcome.heard == outcome.shot.backdrop,
        "camera still": lambda outcome: _camera(outcome, moves=False),
        "camera moves": lambda outcome: _camera(outcome, moves=True),
    }
    return shares(outcomes, rules) | {"seconds": float(np.mean([outcome.seconds for outcome in outcomes]))}


def unmatched(made: Sequence[tuple[Outcome, Clip]], fps: float) -> list[Outcome]:
    outcomes = [outcome for outcome, _ in made]
    return with_others(outcomes, lambda one, other: replace(one, heard=other.heard))


QUESTIONS = Questions(measure, describe, label, score, unmatched)


def evaluate(pipeline: NavaPipeline, names: list[str], clips: int, seed: int = SEED) -> Iterator[Evaluation]:
    """Run the rows `names` (keys of ROWS and FLOORS) with `clips` clips each; yields what there is after each row."""
    cases = make_cases(pipeline, clips, seed)
    return make_rows(pipeline, TABLE, names, lambda row: cases, QUESTIONS)


def main(arguments: list[str] | None = None) -> None:
    run_command(__doc__, TABLE, load_pipeline, evaluate, arguments)


if __name__ == "__main__":
    main()
