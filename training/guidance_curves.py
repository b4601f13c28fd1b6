"""What each guidance axis is good for: the same cases and seeds at several scales.

    python -m training.guidance_curves --source FOLDER [--clips 12] [--alone] [--timbre] [--out report.json] \
        [--plot curves.png]

All other axes stand at the model's own scales, or at 0 with --alone. video_align, audio_align: how many contacts of
falling shapes are heard in time where the prompt does not name the moment, as `training.evaluate` measures it. timbre:
how much nearer a speaker's span is to its own reference than to another voice's of the same sex, as mean cosines, by
the model's own speaker encoder and, with --timbre, by encoders trained elsewhere.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nava_core import Guidance, NavaPipeline, load_pipeline
from nava_core.request import GUIDANCE_AXES
from training import evaluate, evaluate_people
from training.evaluation import SEED, Case, Evaluation, format_table, generate, with_guidance, write_report
from training.likeness import clip_likeness, likeness_margins
from training.sheet import line_chart, stack_rows
from training.timbre import Encoder, OurEncoder, independent_encoders
from training.voices import VoiceBank

logger = logging.getLogger(__name__)

ALIGN = (0.0, 1.0, 2.0, 4.0, 6.0)
AXES = {"video_align": ALIGN, "audio_align": ALIGN, "timbre": (0.0, 1.0, 2.0, 3.0, 5.0)}
VOICE_ROWS = ("talk", "talk_voices", "pair", "pair_voices")
SYNC_COLUMNS = ("sync share", "sync", "sync error")
PLAIN_COLUMNS = ("sync error",)

Numbers = dict[str, float]
Curves = dict[str, dict[float, Numbers]]


def measure_sync(pipeline: NavaPipeline, cases: Sequence[Case], guidance: Guidance) -> Numbers:
    """Shares of contacts and of clips that are heard in time, and the median error in seconds."""
    result = Evaluation()
    result.run_row("sync", with_guidance(guidance), pipeline, cases, evaluate.QUESTIONS)
    values = result.rows["sync"]
    return {column: values[column] for column in SYNC_COLUMNS}


def measure_voices(
    pipeline: NavaPipeline, bank: VoiceBank, cases: Sequence[Case], encoders: Mapping[str, Encoder],
    guidance: Guidance,
) -> Numbers:  # fmt: skip
    """The margin of likeness by each encoder."""
    found = []
    for number, case in enumerate(cases):
        clip = generate(pipeline, case, bank, guidance=guidance)
        found.append(clip_likeness(case.shot, bank, clip.audio, clip.rate, encoders))
        logger.info("voices: clip %d of %d", number + 1, len(cases))
    return likeness_margins(found)


def sweep(plain: Guidance, measures: Mapping[str, Callable[[Guidance], Numbers]]) -> Iterator[Curves]:
    """The curve of each axis that has a measure; yields what there is after each point.

    plain: the scales of the axes that stand still. Where two axes meet at it, their point is measured once.
    """
    curves: Curves = {axis: {} for axis in measures}
    known: dict[tuple[Callable[[Guidance], Numbers], Guidance], Numbers] = {}
    for axis, measure in measures.items():
        for scale in AXES[axis]:
            changes: dict[str, Any] = {axis: scale}
            point = measure, replace(plain, align=True, **changes)
            if point not in known:
                known[point] = measure(point[1])
            curves[axis][scale] = known[point]
            logger.info("%s %g: %s", axis, scale, known[point])
            yield curves


def format_curves(curves: Curves) -> str:
    """A table of all points."""
    rows = {f"{axis} {scale:g}": values for axis, curve in curves.items() for scale, values in curve.items()}
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    plain = [column for column in columns if column in PLAIN_COLUMNS or column.startswith("likeness")]
    return format_table(rows, {name: name for name in rows}, columns, plain)


def draw(curves: Curves, path: Path) -> None:
    """A chart for each axis: shares, or margins of likeness."""
    charts = []
    for axis, curve in curves.items():
        names = [name for name in next(iter(curve.values())) if name not in PLAIN_COLUMNS]
        lines = {name: [values[name] for values in curve.values()] for name in names}
        charts.append(line_chart(axis, list(curve), lines))
    stack_rows(charts).save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="model folder or hub id; without it nava-nano")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="what training.voices made")
    parser.add_argument("--clips", type=int, default=12, help="clips a point")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--alone", action="store_true", help="with all other axes at 0: they may have done it already")
    parser.add_argument("--row", choices=VOICE_ROWS, default="talk_voices", help="whose voices")
    parser.add_argument("--timbre", action="store_true", help="judge the voices by encoders trained elsewhere too")
    parser.add_argument("--out", type=Path, default=None, help="JSON report, written anew after each point")
    parser.add_argument("--plot", type=Path, default=None, help="PNG of the curves")
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = load_pipeline(chosen.source)
    pipeline.set_progress_bar_config(disable=True)
    falling = evaluate.make_cases(chosen.clips, "held_out", chosen.seed, moment=False)

    def synchrony(guidance: Guidance) -> Numbers:
        return measure_sync(pipeline, falling, guidance)

    measures: dict[str, Callable[[Guidance], Numbers]] = {"video_align": synchrony, "audio_align": synchrony}
    if "timbre" in chosen.axes:
        if not pipeline.spec.accepts_speakers:
            parser.error(f"{pipeline.spec.name} takes no voice references; give --axes video_align audio_align")
        bank = VoiceBank.load(chosen.voices)
        encoders = {"ours": OurEncoder(pipeline.speaker_encoder)} | (independent_encoders() if chosen.timbre else {})
        talking = evaluate_people.make_cases(
            bank, chosen.clips, evaluate_people.ROWS[chosen.row], "square", chosen.seed
        )
        measures["timbre"] = lambda guidance: measure_voices(pipeline, bank, talking, encoders, guidance)
    curves: Curves = {}
    plain = pipeline.spec.guidance
    if chosen.alone:
        nothing: dict[str, Any] = dict.fromkeys(GUIDANCE_AXES, 0.0)
        plain = replace(plain, **nothing)
    for curves in sweep(plain, {axis: measures[axis] for axis in chosen.axes}):
        if chosen.out:
            asked = {name: getattr(chosen, name) for name in ("clips", "seed", "row", "alone")}
            write_report(chosen.out, {"model": pipeline.spec.name, **asked, "curves": curves})
    if chosen.plot:
        draw(curves, chosen.plot)
    print(format_curves(curves))


if __name__ == "__main__":
    main()
