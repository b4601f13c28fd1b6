"""A pipeline that needs no training: it answers the cases of an evaluation with the world's own clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from nava_core import Guidance
from nava_core.pipeline import NavaPipelineOutput
from training import speaking
from training.evaluation import GUIDANCE_OFF, Case, render_frames
from training.measure import last_third
from training.shots import Shot
from training.voices import VoiceBank
from training.world import COLOURS


class PerfectPipeline:
    """Without guidance its pictures stand still. calls: the options of each call.

    It refuses a first frame that is another shot's. forgets: in the last third colours are others than before.
    """

    spec = SimpleNamespace(
        name="perfect", fps=24, guidance=Guidance(), sizes=((128, 128),), max_seconds=2.0, accepts_speakers=True
    )

    def __init__(self, cases: Sequence[Case], bank: VoiceBank | None = None, forgets: bool = False) -> None:
        self.shots, self.bank, self.forgets = {case.prompt: case.shot for case in cases}, bank, forgets
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(self, **options: Any) -> NavaPipelineOutput:
        self.calls.append(options)
        shot = self.shots[options["prompt"]]
        assert options["seconds"] == shot.seconds and (options["width"], options["height"]) == (shot.width, shot.height)
        drawn = render_frames(shot, self.bank)
        if "image" in options:
            assert np.array_equal(np.asarray(options["image"]), drawn[0])
        if self.forgets:
            last_third(drawn)[:] = last_third(render_frames(recoloured(shot), self.bank))
        frames = drawn.astype(np.float32) / 255
        if options.get("guidance") == GUIDANCE_OFF:
            frames[:] = frames[-1:]
        sound = speaking.render_sound(shot, self.bank)
        return NavaPipelineOutput(frames=frames, audio=sound, sampling_rate=48_000, seed=0)


def recoloured(shot: Shot) -> Shot:
    """The shot with another colour of its falling shape, of its resting shape and of everybody's clothes."""
    other = dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1], strict=True))
    return replace(
        shot,
        scene=shot.scene and replace(shot.scene, colour=other[shot.scene.colour]),
        roll=shot.roll and replace(shot.roll, colour=other[shot.roll.colour]),
        people=tuple(replace(person, clothes=other[person.clothes]) for person in shot.people),
    )
