"""How well a trained model does on prompts that it has not seen, measured from the clips alone.

    python -m training.evaluate [--source FOLDER] [--clips 24] [--floors] [--out report.json] [--sheet out.png]

The rows: colour-shape pairs that were held out of the training, pairs of the training (with other numbers and words),
a first frame given, and held-out pairs whose prompts do not say when the shape lands, so that picture and sound agree
only as far as they heed each other. The floors: alignment guidance off, all guidance off, sounds shuffled between
clips, untrained weights; and above them the ceiling, the world's own clips through the autoencoders.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from PIL import Image

from nava_core import Guidance, NavaPipeline, load_pipeline
from nava_core.decode import encode_audio, encode_video
from nava_core.mel import log_mel_spectrogram
from nava_core.pipeline import NavaPipelineOutput
from training import world
from training.captions import caption
from training.measure import measure_clip
from training.scores import Outcome, score, shuffled
from training.sheet import clip_row, stack_rows

logger = logging.getLogger(__name__)

# The caches of the training draw scene i with seed i; a pair of numbers as the seed is none of those.
SEED = 7_000_003
SOUND_RATE, MEL_RATE = 48_000, 16_000
SHEET_CLIPS = 12
GUIDANCE_OFF = Guidance(video=1.0, audio=1.0, align=False)
ROWS = {
    "held_out": "held-out pairs",
    "train": "training pairs",
    "image": "first frame given",
    "no_moment": "moment not named",
}
SHUFFLED = "sounds shuffled"
FLOORS = {
    "no_align": "alignment guidance off",
    "no_guidance": "guidance off",
    "shuffled": SHUFFLED,
    "untrained": "untrained weights",
    "ceiling": "autoencoders alone",
}
COLUMNS = (
    "colour", "shape", "colour&shape", "side", "size", "release", "place", "sync", "sync first", "sync 60ms",
    "first 60ms", "count equal", "count true", "pan", "material", "contact std", "contact range", "sync error",
    "seconds",
)  # fmt: skip
PLAIN_COLUMNS = ("contact std", "contact range", "sync error", "seconds")


@dataclass(frozen=True)
class Case:
    """One clip to make."""

    scene: world.Scene
    prompt: str
    seed: int


@dataclass(frozen=True)
class Clip:
    """A made clip: uint8 frames (frames, height, width, 3), sound (channels, samples) and its rate."""

    frames: np.ndarray
    audio: np.ndarray
    rate: int


Maker = Callable[[NavaPipeline, Case], Clip]


def make_cases(count: int, pairs: str, seed: int = SEED, moment: bool = True) -> list[Case]:
    """`count` fresh scenes with dense prompts and seeds; case i does not depend on `count`.

    moment: whether the prompts say when the shape lands.
    """
    cases = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        scene = world.sample_scene(rng, pairs)
        cases.append(Case(scene, caption(scene, rng, "dense", moment), int(rng.integers(2**31))))
    return cases


def generate(pipeline: NavaPipeline, case: Case, **options: Any) -> Clip:
    """The clip that the pipeline makes of the case's prompt."""
    return as_clip(pipeline(prompt=case.prompt, seed=case.seed, output_type="np", **options))


def generate_from_image(pipeline: NavaPipeline, case: Case) -> Clip:
    """The same with the scene's first frame given."""
    first = world.render_frames(case.scene, pipeline.spec.width, pipeline.spec.height, num_frames=1)[0]
    return generate(pipeline, case, image=Image.fromarray(first))


def reconstruct(pipeline: NavaPipeline, case: Case) -> Clip:
    """The scene's own render through the autoencoders: what a perfect backbone would reach."""
    frames = world.render_frames(case.scene, pipeline.spec.width, pipeline.spec.height)
    return through_autoencoders(pipeline, frames, world.render_sound(case.scene, rate=SOUND_RATE))


def through_autoencoders(pipeline: NavaPipeline, frames: np.ndarray, sound: np.ndarray) -> Clip:
    """uint8 `frames` (frames, height, width, 3) and `sound` (2, samples) at 48 kHz, encoded and decoded again."""
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
    low = soxr.resample(sound.T, SOUND_RATE, MEL_RATE).T
    mel = log_mel_spectrogram(torch.from_numpy(np.ascontiguousarray(low)))
    latents = NavaPipelineOutput(
        latents=encode_video(pipeline.vae, pixels), audio_latents=encode_audio(pipeline.audio_vae, mel)
    )
    with torch.no_grad():
        return as_clip(pipeline.decode(latents, "np"))


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


def run_row(name: str, pipeline: NavaPipeline, cases: list[Case], maker: Maker) -> Iterator[tuple[Case, Clip, Outcome]]:
    """Make and measure the clips of one row."""
    for number, case in enumerate(cases):
        started = time.perf_counter()
        clip = maker(pipeline, case)
        seconds = time.perf_counter() - started
        measured = measure_clip(clip.frames, clip.audio, pipeline.spec.fps, clip.rate)
        logger.info("%s: clip %d of %d, %.1f s", name, number + 1, len(cases), seconds)
        yield case, clip, Outcome(case.scene, measured, seconds)


def plan_rows(pipeline: NavaPipeline, names: list[str]) -> dict[str, tuple[str, Maker]]:
    """For each row that makes clips of its own: the pairs it draws from and how its clips are made."""
    plain = pipeline.spec.guidance
    makers: dict[str, tuple[str, Maker]] = {
        "held_out": ("held_out", generate),
        "train": ("train", generate),
        "image": ("held_out", generate_from_image),
        "no_moment": ("held_out", generate),
        "no_align": ("held_out", with_guidance(replace(plain, video_align=0.0, audio_align=0.0))),
        "no_guidance": ("held_out", with_guidance(GUIDANCE_OFF)),
        "untrained": ("held_out", generate),
        "ceiling": ("held_out", reconstruct),
    }
    return {name: makers[name] for name in names if name in makers}


def with_guidance(guidance: Guidance) -> Maker:
    def make(pipeline: NavaPipeline, case: Case) -> Clip:
        return generate(pipeline, case, guidance=guidance)

    return make


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


def sheet_label(case: Case, outcome: Outcome) -> str:
    """What was asked for and what was measured, for the contact sheet."""
    scene, picture, sound = case.scene, outcome.clip.picture, outcome.clip.sound
    seen = " ".join(f"{moment:.2f}" for moment in picture.contacts)
    heard = " ".join(f"{moment:.2f}" for moment in sound.onsets)
    asked = f"{scene.colour} {scene.shape}, {scene.size}, {scene.column}, {scene.drop}, {scene.release}"
    return f"asked: {asked}; is: {picture.colour} {picture.shape}, {picture.column}; seen {seen}; heard {heard}"


def format_table(
    rows: dict[str, dict[str, float]], titles: dict[str, str], columns: Sequence[str], plain: Sequence[str]
) -> str:
    """Rows of numbers under short headings; shares in percent, `plain` columns as they are, "-" what is missing."""
    widths = {column: max(14, len(column) + 2) for column in columns}
    lines = [" " * 22 + "".join(f"{column:>{width}}" for column, width in widths.items())]
    for name, values in rows.items():
        cells = (f"{_cell(values.get(column, float('nan')), column in plain):>{widths[column]}}" for column in columns)
        lines.append(f"{titles[name]:<22}" + "".join(cells))
    return "\n".join(lines)


def _cell(value: float, plain: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if plain else f"{100 * value:.0f}%"


def write_report(path: Path, report: dict[str, Any]) -> None:
    """`report` as JSON, in which null stands for a number that is missing (NaN)."""
    path.write_text(json.dumps(_finite(report), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class Evaluation:
    """Numbers for each row, data for each clip and, of the first row, pictures."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: list[Image.Image] = field(default_factory=list)

    def save(self, path: Path, **more: Any) -> None:
        write_report(path, {**more, "rows": self.rows, "details": self.details})


def evaluate(pipeline: NavaPipeline, names: list[str], clips: int, seed: int = SEED) -> Iterator[Evaluation]:
    """Run the rows `names` (keys of ROWS and FLOORS) with `clips` clips each; yields what there is after each row."""
    if "shuffled" in names and "held_out" not in names:
        raise ValueError("the row shuffled is made of the clips of held_out; ask for that row too")
    result = Evaluation()
    for name, (pairs, maker) in plan_rows(pipeline, names).items():
        used = untrained(pipeline) if name == "untrained" else pipeline
        outcomes = []
        for case, clip, outcome in run_row(name, used, make_cases(clips, pairs, seed, name != "no_moment"), maker):
            outcomes.append(outcome)
            result.details.setdefault(name, []).append(describe(case, outcome))
            if name == names[0] and len(result.pictures) < SHEET_CLIPS:
                result.pictures.append(clip_row(clip.frames, clip.audio, clip.rate, sheet_label(case, outcome)))
        result.rows[name] = score(outcomes)
        if name == "held_out" and "shuffled" in names:
            result.rows["shuffled"] = score(shuffled(outcomes))
        yield result


@dataclass(frozen=True)
class Table:
    """What a report may hold: rows, made unless others are asked for; floors, made when asked for; titles; columns."""

    rows: Sequence[str]
    floors: Sequence[str]
    titles: dict[str, str]
    columns: Sequence[str]
    plain: Sequence[str]


def report_from_arguments(
    arguments: list[str] | None,
    description: str | None,
    table: Table,
    load: Callable[[str | None], NavaPipeline],
    run: Callable[[NavaPipeline, list[str], int, int], Iterator[Evaluation]],
) -> None:
    """The command of an evaluation: `run` the asked rows, save what there is after each, print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="model folder or hub id; without it nava-nano")
    parser.add_argument("--clips", type=int, default=24, help="clips a row")
    parser.add_argument("--rows", nargs="+", choices=[*table.rows, *table.floors], default=list(table.rows))
    parser.add_argument("--floors", action="store_true", help="add the floors and the ceiling")
    parser.add_argument("--out", type=Path, default=None, help="JSON report, written anew after each row")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG of the first row's clips")
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = list(dict.fromkeys([*chosen.rows, *(table.floors if chosen.floors else ())]))
    pipeline = load(chosen.source)
    pipeline.set_progress_bar_config(disable=True)
    result = Evaluation()
    try:
        for result in run(pipeline, names, chosen.clips, chosen.seed):
            if chosen.out:
                result.save(chosen.out, model=pipeline.spec.name, clips=chosen.clips, seed=chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    if chosen.sheet:
        stack_rows(result.pictures).save(chosen.sheet)
    print(format_table(result.rows, table.titles, table.columns, table.plain))


def main(arguments: list[str] | None = None) -> None:
    table = Table(list(ROWS), list(FLOORS), ROWS | FLOORS, COLUMNS, PLAIN_COLUMNS)
    report_from_arguments(arguments, __doc__, table, load_pipeline, evaluate)


if __name__ == "__main__":
    main()
