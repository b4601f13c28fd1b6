"""What the soak asks for: good requests that come again and again, new ones, and bad ones with the field to blame."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

SHAPES = ({"width": 64, "height": 64}, {"width": 96, "height": 64}, {"width": 128, "height": 128})
FRAMES = (5, 9, 13)
STEPS = (2, 3, 4)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
THINGS = ("ball", "cube", "triangle", "star")
BAD = ("missing voice", "silent voice", "no image", "cut speech", "steps", "width", "seconds", "num_frames", "empty")


@dataclass(frozen=True)
class Wish:
    """A request. blamed: the field that its refusal or failure must name; None where a clip must come of it."""

    request: dict[str, Any]
    blamed: str | None = None

    def fits(self, stored: dict[str, Any]) -> bool:
        """Whether a stored request is this one. Its files are copies by then; so they are left out."""
        compared = (name for name in self.request if name not in ("speakers", "image"))
        return all(stored.get(name) == self.request[name] for name in compared)


@dataclass
class Mix:
    """Draws wishes. folder: holds the files that they name, see `prepare`."""

    folder: Path
    dice: random.Random
    drawn: int = 0
    _recurring: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        voice, picture = str(self.folder / "voice.wav"), str(self.folder / "picture.png")
        common = {"num_frames": 9, "num_inference_steps": 3, **SHAPES[0]}
        self._recurring = [
            {**common, "prompt": "a red ball falls", "seed": 1},
            {**common, "prompt": "a blue star ~~hello~~", "seed": 2, "speakers": [voice]},
            {**common, "prompt": "a cube from a picture", "seed": 3, "image": picture},
            {"prompt": "a white ball falls", "seed": 4, "modality": "audio", "seconds": 0.5, "num_inference_steps": 3},
            {**common, "prompt": "a green star, unheard", "seed": 5, "modality": "video"},
        ]

    def prey(self) -> Wish:
        """A longer job, always the same, for the others to be harmed in."""
        return self._tagged({**self._recurring[0], "num_inference_steps": 30})

    def ruler(self) -> Wish:
        """The largest of all clips, always the same: memory is measured after it."""
        largest = {"prompt": "a ball ~~hello~~ and a star ~~goodbye~~", "num_frames": 13, "num_inference_steps": 2}
        voice = str(self.folder / "voice.wav")
        return self._tagged({**largest, **SHAPES[-1], "speakers": [voice, voice], "seed": 6})

    def good(self) -> Wish:
        if self.dice.random() < 0.5:
            return self._tagged(self.dice.choice(self._recurring))
        dice = self.dice
        request: dict[str, Any] = {
            "prompt": f"a {dice.choice(COLOURS)} {dice.choice(THINGS)} falls {' and bounces' * dice.randrange(4)}",
            "num_inference_steps": dice.choice(STEPS),
            "modality": dice.choice(("audio_video", "audio_video", "audio", "video")),
        }
        if request["modality"] == "audio":
            return self._tagged({**request, "seconds": dice.choice((0.25, 0.5, 1.0))})
        request |= {"num_frames": dice.choice(FRAMES), **dice.choice(SHAPES)}
        if dice.random() < 0.3:
            request["image"] = str(self.folder / "picture.png")
        if dice.random() < 0.5:
            request["seed"] = dice.randrange(2**32)
        return self._tagged(request)

    def bad(self, kind: str | None = None) -> Wish:
        wrong, blamed = {
            "missing voice": ({"prompt": "~~hello~~", "speakers": [str(self.folder / "nobody.wav")]}, "speakers"),
            "silent voice": ({"prompt": "~~hello~~", "speakers": [str(self.folder / "silence.wav")]}, "speakers"),
            "no image": ({"image": str(self.folder / "text.png")}, "image"),
            "cut speech": ({"prompt": "many words " * 200 + "~~never read~~"}, "prompt"),
            "steps": ({"num_inference_steps": 0}, "num_inference_steps"),
            "width": ({"width": 100}, "width"),
            "seconds": ({"seconds": 99.0, "num_frames": None}, "seconds"),
            "num_frames": ({"num_frames": 6}, "num_frames"),
            "empty": ({"prompt": "  "}, "prompt"),
        }[kind or self.dice.choice(BAD)]
        return replace(self._tagged({**self._recurring[0], **wrong}), blamed=blamed)

    def _tagged(self, request: dict[str, Any]) -> Wish:
        """Told apart from all others by what changes nothing in the clip."""
        self.drawn += 1
        given = {name: value for name, value in request.items() if value is not None}
        return Wish({**given, "original_prompt": f"wish {self.drawn}"})


def prepare(folder: Path) -> None:
    """Write the files that the wishes name."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000).astype(np.float32)
    soundfile.write(folder / "voice.wav", noise, 16_000)
    soundfile.write(folder / "silence.wav", np.zeros_like(noise), 16_000)
    gradient = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "picture.png")
    (folder / "text.png").write_text("no picture")
