"""What a ball that rolls into a shape is called, in the styles of `training.captions`."""

from __future__ import annotations

import numpy as np

from training import captions
from training.captions import CAMERAS_ZH, MOMENTS_ZH, SOUNDS_EN, SOUNDS_ZH, STYLES_ZH, article, pick
from training.rolling import Roll

WALLS = {
    **captions.WORDS["background"],
    "pale blue": {"zh": ("浅蓝色", "淡蓝色", "天蓝色"), "en": ("pale blue", "light blue")},
    "lilac": {"zh": ("淡紫色", "丁香色", "浅紫色"), "en": ("lilac", "pale purple")},
}
RESTING_ZH = ("地面上静静放着一个{thing}", "一个{thing}停在地板上", "地板上有一个{thing}")
ROLLING_ZH = ("一个{ball}从{side}滚来", "{side}滚来一个{ball}", "一个{ball}由{side}沿地面滚过来")
HITTING_ZH = ("撞上它，把它推开一段", "碰到它，它被撞得滑开", "与它相撞，它向旁边移开")
SOUNDING_ZH = ("相撞时发出{ball}和{thing}", "撞击的瞬间响起{thing}和{ball}")


def roll_caption(roll: Roll, backdrop: str, rng: np.random.Generator, style: str, moment: bool | None = None) -> str:
    """Words for `roll` before the wall `backdrop`: "dense", "short" or "english"; moment: as in `captions.caption`."""
    if style not in captions.MOMENT_SHARES:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(captions.MOMENT_SHARES)}")
    named = bool(rng.random() < captions.MOMENT_SHARES[style]) if moment is None else moment
    return {"dense": _dense, "short": _short, "english": _english}[style](roll, backdrop, rng, named)


def _things(roll: Roll, rng: np.random.Generator, language: str) -> tuple[str, str, str]:
    """The ball, what it hits, and the side it comes from."""

    def word(fact: str, value: str) -> str:
        names = captions.WORDS[fact][value][language]
        return names[0] if rng.random() < 0.4 else pick(rng, names)

    gap = " " if language == "en" else ""
    ball = gap.join([word("size", roll.ball_size), word("colour", roll.ball_colour), word("shape", "ball")])
    thing = gap.join([word("size", roll.size), word("colour", roll.colour), word("shape", roll.shape)])
    return ball, thing, roll.side if language == "en" else word("column", roll.side)


def _dense(roll: Roll, backdrop: str, rng: np.random.Generator, moment: bool) -> str:
    ball, thing, side = _things(roll, rng, "zh")
    setting = pick(rng, captions.BACKGROUNDS_ZH).format(pick(rng, WALLS[backdrop]["zh"]))
    resting = pick(rng, RESTING_ZH).format(thing=thing)
    rolling = pick(rng, ROLLING_ZH).format(ball=ball, side=side)
    when = pick(rng, MOMENTS_ZH).format(f"{roll.contact:.1f}") if moment else ""
    hitting = when + pick(rng, HITTING_ZH)
    sounds = pick(rng, SOUNDING_ZH).format(ball=pick(rng, SOUNDS_ZH["ball"]), thing=pick(rng, SOUNDS_ZH[roll.shape]))
    style, camera = pick(rng, STYLES_ZH), pick(rng, CAMERAS_ZH)
    action = f"{resting}，{rolling}，{hitting}。{sounds}。"
    return pick(
        rng,
        (
            f"{style}。{setting}。{action}{camera}。",
            f"{setting}。{action}{camera}。",
            f"{style}，{camera}。{setting}。{action}",
            f"{action}{setting}。{style}，{camera}。",
        ),
    )


def _short(roll: Roll, backdrop: str, rng: np.random.Generator, moment: bool) -> str:
    ball, thing, side = _things(roll, rng, "zh")
    place = f"从{side}" if rng.random() < 0.6 else ""
    wall = f"，{pick(rng, WALLS[backdrop]['zh'])}背景" if rng.random() < 0.4 else ""
    return f"{ball}{place}滚来{pick(rng, ('撞上', '碰到', '撞开'))}{thing}{wall}{pick(rng, ('', '。'))}"


def _english(roll: Roll, backdrop: str, rng: np.random.Generator, moment: bool) -> str:
    ball, thing, side = _things(roll, rng, "en")
    place = f" from the {side}" if rng.random() < 0.7 else ""
    wall = f" against a {pick(rng, WALLS[backdrop]['en'])} background" if rng.random() < 0.5 else ""
    when = f" at {roll.contact:.1f} s" if moment else ""
    sound = f" with {pick(rng, SOUNDS_EN['ball'])} and {pick(rng, SOUNDS_EN[roll.shape])}" if rng.random() < 0.5 else ""
    hits = pick(rng, ("hits", "rolls into", "bumps into"))
    text = f"{article(ball)} {ball} rolls in{place} and {hits} {article(thing)} {thing}{when}{sound}{wall}"
    return text[0].upper() + text[1:] + pick(rng, ("", "."))
