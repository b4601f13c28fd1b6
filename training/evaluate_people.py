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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nava_core import NavaPipeline, load_pipeline
from training import shots, speaking
from training.evaluation import (
    SEED,
    Case,
    Clip,
    Evaluation,
    Questions,
    Row,
    Table,
    asked_rows,
    draw_cases,
    evaluation_parser,
    format_table,
    generate,
    generate_from_image,
    generate_unvoiced,
    generate_without_alignment,
    generate_without_guidance,
    make_rows,
    reconstruct,
    run_evaluation,
)
from training.likeness import clip_likeness, likeness_columns
from training.recognise import WordRecogniser
from training.scores_people import Outcome, measure_people_clip, score, shuffled
from training.shots import Shot
from training.timbre import Encoder, independent_encoders
from training.voices import VoiceBank

COLUMNS = (
    "people", "hair", "clothes", "skin", "side", "camera", "mouth", "mouth follows", "sync 60ms", "stereo", "order",
    "carried", "wer", "start error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("mouth", "start error", "seconds")
ROWS = {
    "talk": Row("held-out looks", "talk", "held_out", generate),
    "talk_train": Row("looks of the training", "talk", "train", generate),
    "talk_voices": Row("held-out voices", "talk", "held_out", generate, voices="held_out"),
    "talk_unvoiced": Row("no reference", "talk", "held_out", generate_unvoiced),
    "image": Row("first frame given", "talk", "held_out", generate_from_image),
    "pair": Row("two people", "pair", "held_out", generate),
    "tour": Row("cameras, ambiences", "tour", "held_out", generate),
}
PLAIN_ROWS = ("talk", "talk_train", "image", "pair")
FLOORS = {
    "no_align": Row("alignment guidance off", "talk", "held_out", generate_without_alignment),
    "no_guidance": Row("guidance off", "talk", "held_out", generate_without_guidance),
    "untrained": Row("untrained weights", "talk", "held_out", generate),
    "ceiling": Row("autoencoders alone", "talk", "held_out", reconstruct),
    "ceiling_pair": Row("the same, two people", "pair", "held_out", reconstruct),
    "ceiling_voices": Row("the same, new voices", "talk", "held_out", reconstruct, voices="held_out"),
    "ceiling_tour": Row("the same, cameras", "tour", "held_out", reconstruct),
}
PLAIN_FLOORS = ("no_align", "no_guidance", "untrained", "ceiling", "ceiling_pair")
TABLE = Table(ROWS, FLOORS, COLUMNS, PLAIN_COLUMNS)


def make_cases(bank: VoiceBank, count: int, row: Row, size: str | None = None, seed: int = SEED) -> list[Case]:
    """`count` fresh shots of people who speak, with prompts that say when."""

    def draw(rng: np.random.Generator) -> Shot:
        shot = shots.sample_shot(rng, row.kind, row.split, size)
        while not shot.people:
            shot = shots.sample_shot(rng, row.kind, row.split, size)
        return speaking.give_voices(shot, bank, rng, row.voices)

    return draw_cases(count, draw, seed, row.moment)


@dataclass(frozen=True)
class Listeners:
    """What hears the words and the voices of clips, where it is asked for."""

    recogniser: WordRecogniser | None = None
    encoders: Mapping[str, Encoder] = field(default_factory=dict)


def ask(bank: VoiceBank, listeners: Listeners) -> Questions[Outcome]:
    """What is asked of a clip of people."""

    def measure(case: Case, clip: Clip, fps: float, seconds: float) -> Outcome:
        heard = listeners.recogniser(clip.audio, clip.rate) if listeners.recogniser else None
        voices = clip_likeness(case.shot, bank, clip.audio, clip.rate, listeners.encoders)
        measured = measure_people_clip(clip.frames, clip.audio, fps, clip.rate)
        return Outcome(case.shot, measured, seconds, heard, voices)

    return Questions(measure, describe, label, score, unmatched)


def unmatched(made: Sequence[tuple[Outcome, Clip]], fps: float) -> list[Outcome]:
    return shuffled([outcome for outcome, _ in made], [clip.audio for _, clip in made], fps, made[0][1].rate)


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
    pipeline: NavaPipeline, bank: VoiceBank, names: list[str], clips: int, listeners: Listeners, seed: int = SEED
) -> Iterator[Evaluation]:
    """Run the rows `names` (keys of ROWS and FLOORS) with `clips` clips each; yields what there is after each row."""

    def cases_of(row: Row) -> list[Case]:
        size = None if row.kind == "tour" and len(pipeline.spec.sizes) > 1 else "square"
        return make_cases(bank, clips, row, size, seed)

    return make_rows(pipeline, TABLE, names, cases_of, ask(bank, listeners), bank)


def main(arguments: list[str] | None = None) -> None:
    parser = evaluation_parser(__doc__, TABLE, PLAIN_ROWS)
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="what training.voices made")
    parser.add_argument("--recogniser", default=None, help="tiny.en, base or a folder: measure the word error rate too")
    parser.add_argument("--timbre", action="store_true", help="judge the voices by encoders trained elsewhere")
    chosen = parser.parse_args(arguments)
    names, bank = asked_rows(chosen, PLAIN_FLOORS), VoiceBank.load(chosen.voices)
    recogniser = WordRecogniser(chosen.recogniser) if chosen.recogniser else None
    listeners = Listeners(recogniser, independent_encoders() if chosen.timbre else {})
    result = run_evaluation(
        parser, chosen, TABLE, load_pipeline,
        lambda pipeline: evaluate(pipeline, bank, names, chosen.clips, listeners, chosen.seed),
    )  # fmt: skip
    if chosen.timbre:
        print(format_table(result.rows, TABLE.titles, likeness_columns(list(listeners.encoders)), ()))


if __name__ == "__main__":
    main()
