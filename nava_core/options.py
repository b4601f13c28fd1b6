"""Flags that the command lines share: how a model is laid out, ways to be faster, LoRAs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nava_core.profiles import profile_names
from nava_core.request import RequestError, Shortcuts

INTERVALS = {
    "negative": "the pass of the negative prompt",
    "align": "the pass that holds picture and sound together",
    "timbre": "the pass that follows the voice references",
}


def add_profile_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--profile",
        choices=profile_names(),
        default="auto",
        help="how the model is laid out on the device; auto (default): by its free memory; see docs/small-cards.md",
    )


def add_layout_flags(parser: argparse._ActionsContainer) -> None:
    """--profile and the published switches, which go before what the profile says."""
    add_profile_flag(parser)
    parser.add_argument("--t5_offload", action="store_true", help="keep the text encoder in host memory")
    parser.add_argument("--group_offload", action="store_true", help="bring each block to the device once a step")
    parser.add_argument("--vae_tiling", action="store_true", help="decode the picture in overlapping tiles")


def layout_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the switches change in the profile; `load_pipeline(layout=)`."""
    layout: dict[str, Any] = {}
    if args.t5_offload:
        layout["text_encoder"] = "streamed"
    if args.group_offload:
        layout |= {"blocks": "offloaded", "weights": "stored"}
    if args.vae_tiling:
        layout["vae"] = "tiled"
    return layout


def add_shortcut_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "faster, but another clip", "off by default; docs/performance.md has what each changes"
    )
    group.add_argument(
        "--step_cache",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="skip most of a step where its first block's update changed by less than this share, such as 0.1",
    )
    for axis, words in INTERVALS.items():
        group.add_argument(
            f"--{axis}_steps",
            type=_interval,
            default=(0.0, 1.0),
            metavar="START:STOP",
            help=f"run {words} in this part of the steps alone, such as 0:0.5",
        )
    group.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA for the backbone, repeatable; scale 1 by default",
    )


def shortcuts_of(args: argparse.Namespace) -> Shortcuts:
    """Raises RequestError."""
    return Shortcuts(args.step_cache, args.negative_steps, args.align_steps, args.timbre_steps)


def _interval(text: str) -> tuple[float, float]:
    start, colon, stop = text.partition(":")
    try:
        interval = (float(start or 0.0), float(stop or 1.0))
        Shortcuts(align=interval)
    except (ValueError, RequestError):
        colon = ""
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is no part of the steps; give START:STOP from 0 to 1, as 0:0.5")
    return interval


def _lora(text: str) -> tuple[str, float]:
    """`path` or `path:scale`; a colon that no number follows belongs to the path."""
    path, colon, scale = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return path, float(scale)
        except ValueError:
            pass
    return text, 1.0
