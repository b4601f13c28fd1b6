"""How a backbone's run is getting on: its curves, and sheets of the same few clips each time.

    python -m training.watch --run runs/backbone_stage2 [--every 20]

`curves.png` in the run's folder has a line for each loss of its metrics log, and `samples_STEP.png` the first clips of
each evaluation's first rows, as the averaged weights make them, with what was asked for and what was measured.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from itertools import chain
from pathlib import Path

import torch
from PIL import Image

from nava_core import NavaPipeline, load_pipeline
from training import common, evaluate, evaluate_people, evaluate_roll
from training.assemble import assemble
from training.evaluate_people import Listeners
from training.sheet import line_chart, stack_rows
from training.voices import VoiceBank

logger = logging.getLogger(__name__)
MARKS = 6


def curves(log: common.MetricsLog) -> Image.Image:
    """A chart for each loss of `log`, over the steps; raises ValueError where nothing has been logged yet."""
    rows = log.read()
    if not rows:
        raise ValueError(f"{log.path} has no rows yet; the trainer writes one every 50 steps")
    names = sorted({name for row in rows for name in row} - {"step", "time", "spent"})
    steps = [row["step"] for row in rows]
    marks = steps[:: math.ceil(len(steps) / MARKS)]
    return stack_rows(line_chart(name, steps, {"": [row.get(name, math.nan) for row in rows]}, marks) for name in names)


def samples(pipeline: NavaPipeline, bank: VoiceBank, clips: int) -> Image.Image:
    """`clips` clips each of falls, rolls, one person and two."""
    evaluations = (
        evaluate.evaluate(pipeline, ["held_out"], clips),
        evaluate_roll.evaluate(pipeline, ["held_out"], clips),
        evaluate_people.evaluate(pipeline, bank, ["talk", "pair"], clips, Listeners()),
    )
    pictures: list[Image.Image] = []
    for evaluation in evaluations:
        *_, result = evaluation  # the last holds the rows of all
        pictures += chain.from_iterable(result.pictures.values())
    return stack_rows(pictures)


def look(run: Path, parts: Path, defaults: Path, bank: VoiceBank, clips: int) -> None:
    """Draw both for what the run has saved by now."""
    curves(common.MetricsLog(run / "metrics.jsonl")).save(run / "curves.png")
    checkpoint = common.load_checkpoint(run)
    if checkpoint is None:
        logger.info("%s has no checkpoint yet", run)
        return
    with tempfile.TemporaryDirectory() as folder:
        assemble(run, parts, Path(folder), common.load_config(defaults))
        pipeline = load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    samples(pipeline, bank, clips).save(run / f"samples_{checkpoint['step']:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves and sheets of sample clips of a backbone's run.")
    parser.add_argument("--run", type=Path, default=Path("runs/backbone_stage2"))
    parser.add_argument("--parts", type=Path, default=Path("training/weights"))
    parser.add_argument("--defaults", type=Path, default=Path("training/configs/nano_defaults.yaml"))
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"))
    parser.add_argument("--clips", type=int, default=2, help="of each kind")
    parser.add_argument("--every", type=float, default=0.0, help="minutes between two looks; 0: look once")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    bank = VoiceBank.load(arguments.voices)
    while True:
        look(arguments.run, arguments.parts, arguments.defaults, bank, arguments.clips)
        if not arguments.every:
            break
        time.sleep(60 * arguments.every)


if __name__ == "__main__":
    main()
