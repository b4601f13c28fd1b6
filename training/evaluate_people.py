"""How well a trained model shows and voices people, on prompts, looks and voices that it has not seen.

    python -m training.evaluate_people --source FOLDER [--rows talk pair] [--clips 24] [--floors] [--out report.json]

Looks (pairs of hair and clothes) are held out of the training in all rows but "talk_train". Voices are held out in
"talk_voices", "pair_voices" and their ceilings, and of the training in all others. The rows: one person who speaks,
with a voice reference where the model takes one ("talk", "talk_train", "talk_voices"), a first frame given ("image"),
two people ("pair", "pair_voices"), and cameras, ambiences, sizes and lengths ("tour"). The floors: no references
("talk_unvoiced", "pair_unvoiced"), alignment guidance off, all guidance off, sounds shuffled between clips, untrained
weights; and above them the ceilings, the world's own clips through the autoencoders. Falling shapes are
`training.evaluate`'s.

With --recogniser, "wer" is the word error rate of a clip that is cut midway between two speakers' turns, as recordings
of several speakers are ("wer whole": of all of it at once, where the recogniser mostly ends with the first speaker and
leaves out a word that the second one says again).

With --timbre, encoders trained elsewhere say whether each speaker's span is nearer to its own reference than to another
voice's of the same sex ("voice"), to one's of like pitch too ("like"), and of two people, whether each has the right
voice ("binding"). A model that ignores the references gets a half of the first two. Of two people of one sex it binds
("one sex") a quarter if each speaks in any voice, and nobody if both speak in the same; of a woman and a man up to all,
since the prompt says who is which.
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
    clip_lengths,
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
from training.likeness import clip_likeness, likeness_columns, turns
from training.recognise import WordRecogniser
from training.scores_people import Outcome, measure_people_clip, score, shuffled
from training.shots import SECONDS, Shot
from training.timbre import Encoder, independent_encoders
from training.voices import VoiceBank

COLUMNS = (
    "people", "hair", "clothes", "skin", "side", "camera still", "camera moves", "mouth", "mouth follows", "sync 60ms",
    "stereo", "order", "carried", "wer", "wer whole", "start error", "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("mouth", "start error", "seconds")
ROWS = {
    "talk": Row("held-out looks", "talk", "held_out", generate),
    "talk_train": Row("looks of the training", "talk", "train", generate),
    "talk_voices": Row("held-out looks, voices", "talk", "held_out", generate, voices="held_out"),
    "image": Row("held-out looks, first frame given", "talk", "held_out", generate_from_image),
    "pair": Row("two, held-out looks", "pair", "held_out", generate),
    "pair_voices": Row("two, held-out looks, voices", "pair", "held_out", generate, voices="held_out"),
    "tour": Row("tours, held-out looks", "tour", "held_out", generate),
}
PLAIN_ROWS = ("talk", "talk_train", "talk_voices", "image", "pair", "pair_voices")
FLOORS = {
    "talk_unvoiced": Row("no reference", "talk", "held_out", generate_unvoiced),
    "pair_unvoiced": Row("two, no references", "pair", "held_out", generate_unvoiced),
    "no_align": Row("alignment guidance off", "talk", "held_out", generate_without_alignment),
    "no_guidance": Row("guidance off", "talk", "held_out", generate_without_guidance),
    "untrained": Row("untrained weights", "talk", "held_out", generate),
    "ceiling": Row("autoencoders alone", "talk", "held_out", reconstruct),
    "ceiling_voices": Row("autoencoders, voices held out", "talk", "held_out", reconstruct, voices="held_out"),
    "ceiling_pair": Row("autoencoders, two", "pair", "held_out", reconstruct),
    "ceiling_pair_voices": Row(
        "autoencoders, two, voices held out", "pair", "held_out", reconstruct, voices="held_out"
    ),
    "ceiling_tour": Row("autoencoders, tours", "tour", "held_out", reconstruct),
}
PLAIN_FLOORS = tuple(name for name in FLOORS if name != "ceiling_tour")
TABLE = Table(ROWS, FLOORS, COLUMNS, PLAIN_COLUMNS)


def make_cases(
    bank: VoiceBank, count: int, row: Row, size: str | None = None, seed: int = SEED,
    lengths: Sequence[float] = (SECONDS,),
) -> list[Case]:  # fmt: skip
    """`count` fresh shots of people who speak, of any of the `lengths` in seconds, with prompts that say when."""

    def draw(rng: np.random.Generator) -> Shot:
        seconds = lengths[int(rng.integers(len(lengths)))]
        shot = shots.sample_shot(rng, row.kind, row.split, size, seconds)
        while not shot.people:
            shot = shots.sample_shot(rng, row.kind, row.split, size, seconds)
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
        heard = whole = None
        if listeners.recogniser:
            pieces = turns(case.shot, bank, clip.audio, clip.rate)
            heard = tuple(word for piece in pieces for word in listeners.recogniser(piece, clip.rate))
            whole = listeners.recogniser(clip.audio, clip.rate) if len(pieces) > 1 else heard
        voices = clip_likeness(case.shot, bank, clip.audio, clip.rate, listeners.encoders)
        measured = measure_people_clip(clip.frames, clip.audio, fps, clip.rate)
        return Outcome(case.shot, measured, seconds, heard, whole, voices)

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
            "heard_whole": outcome.heard_whole, "voices": outcome.voices, "seconds": outcome.seconds}  # fmt: skip


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
        if row.kind != "tour":
            return make_cases(bank, clips, row, "square", seed)
        size = None if len(pipeline.spec.sizes) > 1 else "square"
        return make_cases(bank, clips, row, size, seed, clip_lengths(pipeline))

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
    for encoder in listeners.encoders:
        print(format_table(result.rows, TABLE.titles, likeness_columns([encoder]), ()))


if __name__ == "__main__":
    main()
