"""What each approximation changes on nava-nano: the same prompts and seeds, exactly and with it, compared.

    python -m training.shortcuts [--clips 8] [--only NAME ...] [--out report.json]

A row is one approximation: processor time of a whole call over the exact run's, the share of steps whose blocks were
run, root-mean-square difference of the latents in their standard deviations, PSNR of the frames, and the scores of
`training.evaluate` for colour and for sound within its window of each contact.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nava_core import NavaPipeline, load_pipeline
from nava_core.pipeline import NavaPipelineOutput
from nava_core.request import Shortcuts
from nava_core.step_cache import step_cache
from training.evaluate import make_cases
from training.evaluation import Case, as_clip
from training.measure import measure_clip
from training.scores import Outcome, score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """A way to make the clips. profile: of the weights; options: of the call."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    profile: str = "cpu"


VARIANTS = (
    Variant("exact"),
    Variant("step_cache 0.05", {"shortcuts": Shortcuts(step_cache=0.05)}),
    Variant("step_cache 0.1", {"shortcuts": Shortcuts(step_cache=0.1)}),
    Variant("step_cache 0.2", {"shortcuts": Shortcuts(step_cache=0.2)}),
    Variant("align_steps 0:0.5", {"shortcuts": Shortcuts(align=(0.0, 0.5))}),
    Variant("negative_steps 0:0.5", {"shortcuts": Shortcuts(negative=(0.0, 0.5))}),
    Variant("both 0:0.5", {"shortcuts": Shortcuts(negative=(0.0, 0.5), align=(0.0, 0.5))}),
    Variant("both 0.2:1", {"shortcuts": Shortcuts(negative=(0.2, 1.0), align=(0.2, 1.0))}),
    Variant("20 of 40 steps", {"num_inference_steps": 20}),
    Variant("10 of 40 steps", {"num_inference_steps": 10}),
    Variant("fp8 weights", profile="16gb"),
    Variant("int8 weights", profile="int8"),
)


@dataclass(frozen=True)
class Made:
    """One clip: its latents, frames (uint8), processor seconds and share of steps computed."""

    case: Case
    latents: torch.Tensor
    audio_latents: torch.Tensor
    clip: Any
    seconds: float
    computed: float


def make(pipeline: NavaPipeline, case: Case, options: dict[str, Any]) -> Made:
    """The clip of a case."""
    counts: list[tuple[int, int]] = []

    def count(*_: Any) -> None:
        cache = step_cache(pipeline.transformer)
        counts.append((1, 1) if cache is None else (cache.computed, cache.computed + cache.skipped))

    started = time.process_time()
    output = pipeline(prompt=case.prompt, seed=case.seed, output_type="latent", callback_on_step_end=count, **options)
    seconds = time.process_time() - started
    assert output.latents is not None and output.audio_latents is not None
    latents = NavaPipelineOutput(latents=output.latents, audio_latents=output.audio_latents)
    with torch.no_grad():
        clip = as_clip(pipeline.decode(latents, "np"))
    return Made(case, output.latents, output.audio_latents, clip, seconds, counts[-1][0] / counts[-1][1])


def compare(made: Sequence[Made], exact: Sequence[Made], fps: float) -> dict[str, float]:
    """One row of the table."""
    outcomes = [
        Outcome(item.case.scene, measure_clip(item.clip.frames, item.clip.audio, fps, item.clip.rate), item.seconds)
        for item in made
    ]
    scores = score(outcomes)
    errors = [np.square(a.clip.frames / 255.0 - b.clip.frames / 255.0).mean() for a, b in zip(made, exact, strict=True)]
    return {
        "time": float(np.median([a.seconds / b.seconds for a, b in zip(made, exact, strict=True)])),
        "computed": float(np.mean([item.computed for item in made])),
        "video": _difference([item.latents for item in made], [item.latents for item in exact]),
        "audio": _difference([item.audio_latents for item in made], [item.audio_latents for item in exact]),
        "psnr": float(np.mean([99.0 if value == 0 else -10 * np.log10(value) for value in errors])),
        "colour": scores["colour"],
        "sync": scores["sync share"],
    }


def _difference(made: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    pairs = zip(made, exact, strict=True)
    return float(np.mean([((a - b).square().mean().sqrt() / b.std()).item() for a, b in pairs]))


def format_table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column]:.1f}" if column == "psnr" else f"{row[column]:.2f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="model folder or hub id; without it nava-nano")
    parser.add_argument("--clips", type=int, default=8, help="clips a row")
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS[1:]], help="these rows")
    parser.add_argument("--out", type=Path, default=None, help="JSON report, written anew after each row")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cases = make_cases(chosen.clips, "held_out")
    exact: list[Made] = []
    rows: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        if exact and chosen.only and variant.name not in chosen.only:
            continue
        try:
            pipeline: Any = load_pipeline(chosen.source, profile=variant.profile)
        except ValueError as error:  # a package that is not installed
            logger.warning("%s: %s", variant.name, error)
            continue
        pipeline.set_progress_bar_config(disable=True)
        made = [make(pipeline, case, variant.options) for case in cases]
        exact = exact or made
        rows[variant.name] = compare(made, exact, pipeline.spec.fps)
        logger.info("%s: %s", variant.name, {name: round(value, 3) for name, value in rows[variant.name].items()})
        if chosen.out:
            chosen.out.write_text(json.dumps({"clips": chosen.clips, "rows": rows}, indent=1), encoding="utf-8")
    print(format_table(rows))


if __name__ == "__main__":
    main()
