"""Make the clips that the page's examples show, with nava-nano: `assets/examples/<name>.mp4`, recipe inside.

    python scripts/prerender_examples.py [--seeds 1 2 3] [--out FOLDER]

Without --seeds each example is made with its own seed from examples.json. With them it is made once for each, as
`<name>-<seed>.mp4`, so that one can look and choose; the chosen seed goes into examples.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

from nava_core import GenerationRequest, load_pipeline
from nava_core.export import save_output
from nava_core.ffmpeg import input_url, run

logger = logging.getLogger("prerender")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = Path("assets") / "examples"
MODEL = "nava-nano"
STEPS = 60
POSTER_SIZE = 256
LARGEST = 8 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the clips that the page's examples show.")
    parser.add_argument("--seeds", type=int, nargs="+", help="make every example with each of these, to choose from")
    parser.add_argument("--out", type=Path, default=ROOT / EXAMPLES)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = options.out.resolve()
    os.chdir(ROOT)  # recipes name an example's picture as it stands in the repository
    out.mkdir(parents=True, exist_ok=True)
    listed = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))[MODEL]
    pipeline = load_pipeline()
    for example in listed:
        for seed in options.seeds or [example["seed"]]:
            name = f"{example['clip']}-{seed}" if options.seeds else example["clip"]
            _make(pipeline, example, seed, out / f"{name}.mp4")
    size = sum(path.stat().st_size for path in out.glob("*.mp4"))
    logger.info("%d bytes in all", size)
    if not options.seeds and size > LARGEST:
        raise SystemExit(f"the clips take {size} bytes; they may take {LARGEST}")


def _make(pipeline: Any, example: dict[str, Any], seed: int, path: Path) -> None:
    image = str(EXAMPLES / example["image"]) if example.get("image") else None
    width, height = example.get("size", (None, None))
    request = GenerationRequest(
        example["prompt"],
        image=image,
        seed=seed,
        width=width,
        height=height,
        seconds=example.get("seconds"),
        num_inference_steps=STEPS,
    )
    resolved = request.resolve(pipeline.spec)
    output = pipeline.run(resolved, output_type="latent")
    save_output(pipeline, output, resolved, path)
    _poster(path, example.get("poster_second", 0.0))
    logger.info("%s, %d bytes", path.name, path.stat().st_size)


def _poster(clip: Path, second: float) -> None:
    """The picture that stands for a clip until it plays, beside it as a JPEG; small worlds are enlarged smoothly."""
    scale = f"scale={POSTER_SIZE}:-2:flags=lanczos"
    run(
        ["-y", "-ss", str(second), "-i", input_url(clip), "-frames:v", "1", "-vf", scale, str(clip.with_suffix(".jpg"))]
    )


if __name__ == "__main__":
    main()
