"""What a video autoencoder loses of fresh shots, and whether a new one may take an old one's place.

python -m training.measure_vae --vae training/weights/vae --against assets/nava-nano/vae [--sheets runs/sheets]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image

from training.fast_vae import reconstruct, use_fast_norms
from training.measure_people import correlation, measure_people
from training.sheet import stack_rows
from training.shots import KINDS, Shot, sample_shot
from training.video_windows import babbling

VALIDATION_SEED = 900_000
# The gate: a shape may lose this much against the older autoencoder, and mouths must be this right on average.
MOST_LOSS = 0.5
LEAST_MOUTH = 0.9


def validation_shot(index: int, kind: str, split: str) -> tuple[Shot, np.random.Generator]:
    rng = np.random.default_rng([VALIDATION_SEED + index, *kind.encode()])
    return sample_shot(rng, kind, split), rng


def measure(
    vae: AutoencoderKLWan, clips: int, kind: str = "fall", split: str = "all"
) -> tuple[dict[str, float], list[np.ndarray]]:
    """What fresh clips of a kind lose, and pictures, truth over reconstruction.

    PSNR in dB, whole, in the boxes of mouths or shape, and in those where they move; the correlation of measured and
    true mouth openings, its mean and its least.
    """
    errors: dict[str, list[float]] = {"psnr": [], "psnr_shape": [], "psnr_moving": []}
    mouths: list[float] = []
    pictures = []
    for index in range(clips):
        shot, rng = validation_shot(index, kind, split)
        clip, openings = babbling(shot, rng)
        decoded = reconstruct(vae, clip.frames)
        squared = ((decoded.astype(np.float32) - clip.frames) / 255) ** 2
        inside = clip.mask == 1
        errors["psnr"].append(squared.mean())
        if inside.any():
            errors["psnr_shape"].append(squared[inside].mean())
            moving = clip.moving + 1
            errors["psnr_moving"].append(squared[moving][inside[moving]].mean())
        people = measure_people(decoded) if openings else []
        found = [correlation(person.opening, opening) for person, opening in zip(people, openings, strict=False)]
        mouths += [*found, *[0.0] * (len(openings) - len(found))]
        pictures.append(np.concatenate([clip.frames, decoded], axis=1))
    result = {name: round(float(-10 * np.log10(np.mean(values))), 2) for name, values in errors.items() if values}
    if mouths:
        result |= {"mouth": round(float(np.mean(mouths)), 3), "mouth_least": round(float(np.min(mouths)), 3)}
    return result, pictures


def save_sheet(pictures: list[np.ndarray], path: Path, shown: int = 10) -> None:
    """A PNG of each clip's frames around its motion, the truth above what was decoded."""
    rows = []
    for frames in pictures:
        change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
        first = int(np.clip(np.flatnonzero(change > change.max() / 4)[0] - 1, 0, len(frames) - 2 * shown))
        rows.append(Image.fromarray(np.concatenate(list(frames[first : first + 2 * shown : 2]), axis=1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    stack_rows(rows).save(path)


def passes(new: dict[str, dict[str, float]], old: dict[str, float]) -> dict[str, bool]:
    """The gate's conditions; new: measures by kind; old: the older autoencoder's of falling shapes."""
    return {
        f"shape within {MOST_LOSS} dB": new["fall"]["psnr_shape"] >= old["psnr_shape"] - MOST_LOSS,
        f"mouths at {LEAST_MOUTH}": new["talk"]["mouth"] >= LEAST_MOUTH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--against", type=Path, default=Path("assets/nava-nano/vae"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["fall", "talk", "pair", "tour", "view"])
    parser.add_argument("--clips", type=int, default=8, help="of each kind, twice as many falling ones")
    parser.add_argument("--split", choices=("train", "held_out", "all"), default="all")
    parser.add_argument("--sheets", type=Path, default=None, help="folder for a PNG of each kind")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    new, old = (
        use_fast_norms(AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32))
        for folder in (arguments.vae, arguments.against)
    )
    found = {}
    for kind in arguments.kinds:
        count = 2 * arguments.clips if kind == "fall" else arguments.clips
        found[kind], pictures = measure(new, count, kind, arguments.split)
        print(kind, found[kind], flush=True)
        if arguments.sheets:
            save_sheet(pictures[:6], arguments.sheets / f"{kind}_{arguments.split}.png")
    before, _ = measure(old, 2 * arguments.clips, "fall", arguments.split)
    print("fall, the older one", before)
    if {"fall", "talk"} <= found.keys():
        verdict = passes(found, before)
        for condition, holds in verdict.items():
            print("passes" if holds else "FAILS", condition)
        if not all(verdict.values()):
            raise SystemExit("the autoencoder does not pass its gate; give its training more minutes and run it again")


if __name__ == "__main__":
    main()
