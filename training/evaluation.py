"""What the evaluations share: cases, the ways to make their clips, rows of numbers, reports and their command.

Falling shapes are `training.evaluate`'s, rolling balls `training.evaluate_roll`'s, people `training.evaluate_people`'s.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from nava_core import Guidance, NavaPipeline
from nava_core.decode import encode_video
from nava_core.pipeline import NavaPipelineOutput
from training import shots, speaking, world
from training.cache_latents import sound_tokens
from training.captions_people import shot_caption
from training.rolling import Roll
from training.sheet import clip_row, stack_rows
from training.shots import LENGTHS, SECONDS, Shot, speakers
from training.video_windows import to_pixels
from training.voices import VoiceBank

logger = logging.getLogger(__name__)

# The caches of the training draw clip i with seed i; a pair of numbers as the seed is none of those.
SEED = 7_000_003
SHEET_CLIPS = 12
GUIDANCE_OFF = Guidance(video=1.0, audio=1.0, timbre=0.0, align=False)
SHUFFLED = "sounds shuffled"


@dataclass(frozen=True)
class Case:
    """One clip to make: a shot, its prompt and a seed."""

    shot: Shot
    prompt: str
    seed: int

    @property
    def scene(self) -> world.Scene:
        assert self.shot.scene is not None
        return self.shot.scene

    @property
    def roll(self) -> Roll:
        assert self.shot.roll is not None
        return self.shot.roll


def draw_cases(
    count: int, draw: Callable[[np.random.Generator], Shot], seed: int = SEED, moment: bool = True
) -> list[Case]:
    """`count` fresh shots with dense prompts and seeds; case i does not depend on `count`.

    moment: whether the prompts say when something lands, hits or begins to speak.
    """
    cases = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        shot = draw(rng)
        cases.append(Case(shot, shot_caption(shot, rng, "dense", moment), int(rng.integers(2**31))))
    return cases


def clip_lengths(pipeline: NavaPipeline) -> list[float]:
    """Seconds of the world's clips that the model makes, the shortest at least."""
    return [seconds for seconds in LENGTHS if seconds <= max(pipeline.spec.max_seconds, SECONDS)]


@dataclass(frozen=True)
class Clip:
    """A made clip: uint8 frames (frames, height, width, 3), sound (channels, samples) and its rate."""

    frames: np.ndarray
    audio: np.ndarray
    rate: int


# The bank is of the voices that speak in the case; None where nobody does.
Maker = Callable[[NavaPipeline, Case, VoiceBank | None], Clip]


def generate(
    pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None, voiced: bool = True, **options: Any
) -> Clip:
    """The clip that the pipeline makes of the case's prompt, with references of the voices where it takes them."""
    if voiced and bank is not None and case.shot.people and pipeline.spec.accepts_speakers:
        people = [case.shot.people[number] for number in speakers(case.shot)]
        options["speakers"] = [speaking.reference(person, bank) for person in people]
    options |= {"width": case.shot.width, "height": case.shot.height, "seconds": case.shot.seconds}
    return as_clip(pipeline(prompt=case.prompt, seed=case.seed, output_type="np", **options))


def generate_unvoiced(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
    """Without references."""
    return generate(pipeline, case, bank, voiced=False)


def generate_from_image(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
    """With the shot's first frame given."""
    return generate(pipeline, case, bank, image=Image.fromarray(render_frames(case.shot, bank)[0]))


def generate_without_alignment(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
    return generate(pipeline, case, bank, guidance=replace(pipeline.spec.guidance, video_align=0.0, audio_align=0.0))


def generate_without_guidance(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
    return generate(pipeline, case, bank, guidance=GUIDANCE_OFF)


def reconstruct(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
    """The shot's own render through the autoencoders: what a perfect backbone would reach."""
    latents = NavaPipelineOutput(
        latents=encode_video(pipeline.vae, to_pixels(render_frames(case.shot, bank))),
        audio_latents=sound_tokens(pipeline.audio_vae, case.shot, bank),
    )
    with torch.no_grad():
        return as_clip(pipeline.decode(latents, "np"))


def with_guidance(guidance: Guidance) -> Maker:
    def make(pipeline: NavaPipeline, case: Case, bank: VoiceBank | None = None) -> Clip:
        return generate(pipeline, case, bank, guidance=guidance)

    return make


def render_frames(shot: Shot, bank: VoiceBank | None) -> np.ndarray:
    """The shot as the world draws it, mouths moving as its people speak."""
    return shots.render_frames(shot, speaking.openings(shot, bank) if bank is not None else ())


def untrained(pipeline: NavaPipeline) -> NavaPipeline:
    """The pipeline with the same backbone configuration and random weights."""
    torch.manual_seed(0)
    backbone = type(pipeline.transformer).from_config(pipeline.transformer.config)
    backbone = backbone.to(pipeline.transformer.device, pipeline.transformer.dtype).eval()
    bare = NavaPipeline(**{**pipeline.components, "transformer": backbone}, defaults=pipeline.config.defaults)
    bare.set_progress_bar_config(disable=True)
    return bare


def as_clip(output: NavaPipelineOutput) -> Clip:
    """What a call with `output_type="np"` returned."""
    frames, audio = np.asarray(output.frames), np.asarray(output.audio)
    assert output.sampling_rate is not None
    return Clip(np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8), np.nan_to_num(audio), output.sampling_rate)


@dataclass(frozen=True)
class Row:
    """A row of a table: what it draws, how its clips are made, and whether its prompts say when things happen.

    kind: of shot; split: of looks, or of colour and shape; voices: the voices' split.
    """

    title: str
    kind: str
    split: str
    make: Maker
    moment: bool = True
    voices: str = "train"


O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True)
class Questions(Generic[O]):
    """What an evaluation asks of its clips.

    measure: an outcome of a case, its clip, frames a second and the seconds that it took to make. describe: one clip as
    data for the report. label: what was asked for and what was measured, for the log and the contact sheet. score: a
    row's numbers. shuffled: outcomes of the pictures with the sounds of other clips, given frames a second.
    """

    measure: Callable[[Case, Clip, float, float], O]
    describe: Callable[[Case, O], dict[str, Any]]
    label: Callable[[O], str]
    score: Callable[[Sequence[O]], dict[str, float]]
    shuffled: Callable[[Sequence[tuple[O, Clip]], float], Sequence[O]]


@dataclass
class Evaluation:
    """Numbers for each row, data for each clip and pictures of each row's first clips."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)

    def run_row(
        self, name: str, make: Maker, pipeline: NavaPipeline, cases: Sequence[Case], questions: Questions[O],
        bank: VoiceBank | None = None,
    ) -> list[tuple[O, Clip]]:  # fmt: skip
        """Make and measure a row's clips, by untrained weights where the row is called so."""
        used = untrained(pipeline) if name == "untrained" else pipeline
        made: list[tuple[O, Clip]] = []
        for number, case in enumerate(cases):
            started = time.perf_counter()
            clip = make(used, case, bank)
            seconds = time.perf_counter() - started
            outcome = questions.measure(case, clip, pipeline.spec.fps, seconds)
            made.append((outcome, clip))
            label = questions.label(outcome)
            self.details.setdefault(name, []).append(questions.describe(case, outcome))
            if number < SHEET_CLIPS:
                self.pictures.setdefault(name, []).append(clip_row(clip.frames, clip.audio, clip.rate, label))
            logger.info("%s: clip %d of %d, %.1f s; %s", name, number + 1, len(cases), seconds, label)
        self.rows[name] = questions.score([outcome for outcome, _ in made])
        return made

    def save(self, path: Path, **more: Any) -> None:
        write_report(path, {**more, "rows": self.rows, "details": self.details})


def format_table(
    rows: dict[str, dict[str, float]], titles: dict[str, str], columns: Sequence[str], plain: Sequence[str]
) -> str:
    """Rows of numbers under short headings; shares in percent, `plain` columns as they are, "-" what is missing."""
    widths = {column: max(14, len(column) + 2) for column in columns}
    first = max([22, *(len(titles[name]) for name in rows)])
    lines = [" " * first + "".join(f"{column:>{width}}" for column, width in widths.items())]
    for name, values in rows.items():
        cells = (f"{_cell(values.get(column, float('nan')), column in plain):>{widths[column]}}" for column in columns)
        lines.append(f"{titles[name]:<{first}}" + "".join(cells))
    return "\n".join(lines)


def _cell(value: float, plain: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if plain else f"{100 * value:.0f}%"


def write_report(path: Path, report: dict[str, Any]) -> None:
    """`report` as JSON, in which null stands for a number that is missing (NaN)."""
    path.write_text(json.dumps(finite(report), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")


def finite(value: Any) -> Any:
    """`value` with None for each number that is missing: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Table:
    """What a report may hold: rows, made unless others are asked for; floors, made when asked for; columns.

    With the first row comes one more, its clips with their sounds shuffled.
    """

    rows: dict[str, Row]
    floors: dict[str, Row]
    columns: Sequence[str]
    plain: Sequence[str]

    @property
    def titles(self) -> dict[str, str]:
        return {name: row.title for name, row in (self.rows | self.floors).items()} | {"shuffled": SHUFFLED}


def evaluation_parser(description: str | None, table: Table, default: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments of every evaluation's command. default: the rows that are made unless others are asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="model folder or hub id; without it nava-nano")
    parser.add_argument("--clips", type=int, default=24, help="clips a row")
    parser.add_argument("--rows", nargs="+", choices=[*table.rows, *table.floors], default=list(default))
    parser.add_argument("--floors", action="store_true", help="add the floors and the ceilings")
    parser.add_argument("--out", type=Path, default=None, help="JSON report, written anew after each row")
    parser.add_argument("--sheet", type=Path, default=None, help="folder for a PNG of each row's first clips")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser


def make_rows(
    pipeline: NavaPipeline, table: Table, names: Sequence[str], cases_of: Callable[[Row], list[Case]],
    questions: Questions[O], bank: VoiceBank | None = None,
) -> Iterator[Evaluation]:  # fmt: skip
    """Make the rows `names` of the table; yields what there is after each."""
    result = Evaluation()
    for name in names:
        row = (table.rows | table.floors)[name]
        made = result.run_row(name, row.make, pipeline, cases_of(row), questions, bank)
        if name == next(iter(table.rows)) and len(made) > 1:
            result.rows["shuffled"] = questions.score(questions.shuffled(made, pipeline.spec.fps))
        yield result


def run_evaluation(
    parser: argparse.ArgumentParser,
    chosen: argparse.Namespace,
    table: Table,
    load: Callable[[str | None], NavaPipeline],
    evaluate: Callable[[NavaPipeline], Iterator[Evaluation]],
) -> Evaluation:
    """Take an evaluation's rows one by one, save what there is after each, print the table.

    A ValueError on the way, such as that no clips have no score, is told as the parser tells errors.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = load(chosen.source)
    pipeline.set_progress_bar_config(disable=True)
    result = Evaluation()
    try:
        for result in evaluate(pipeline):
            if chosen.out:
                result.save(chosen.out, model=pipeline.spec.name, clips=chosen.clips, seed=chosen.seed)
            if chosen.sheet:
                chosen.sheet.mkdir(parents=True, exist_ok=True)
                name = next(reversed(result.pictures))
                stack_rows(result.pictures[name]).save(chosen.sheet / f"{name}.png")
    except ValueError as error:
        parser.error(str(error))
    print(format_table(result.rows, table.titles, table.columns, table.plain))
    return result


def run_command(
    description: str | None,
    table: Table,
    load: Callable[[str | None], NavaPipeline],
    evaluate: Callable[[NavaPipeline, list[str], int, int], Iterator[Evaluation]],
    arguments: list[str] | None,
) -> None:
    """The whole command of an evaluation without arguments of its own. evaluate: of a pipeline, the names of the rows,
    the clips a row and the seed.
    """
    parser = evaluation_parser(description, table, list(table.rows))
    chosen = parser.parse_args(arguments)
    names = asked_rows(chosen, list(table.floors))
    run_evaluation(parser, chosen, table, load, lambda pipeline: evaluate(pipeline, names, chosen.clips, chosen.seed))


def asked_rows(chosen: argparse.Namespace, floors: Sequence[str]) -> list[str]:
    """The rows to make, each once."""
    return list(dict.fromkeys([*chosen.rows, *(floors if chosen.floors else ())]))
