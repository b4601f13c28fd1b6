"""A pipeline that needs no training: it answers the cases of an evaluation with the world's own clips."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from nava_core import Guidance
from nava_core.pipeline import NavaPipelineOutput
from training import speaking
from training.evaluation import GUIDANCE_OFF, Case, render_frames
from training.voices import VoiceBank


class PerfectPipeline:
    """Without guidance its pictures stand still. calls: the options of each call."""

    spec = SimpleNamespace(name="perfect", fps=24, guidance=Guidance(), sizes=((128, 128),), accepts_speakers=True)

    def __init__(self, cases: Sequence[Case], bank: VoiceBank | None = None) -> None:
        self.shots, self.bank = {case.prompt: case.shot for case in cases}, bank
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(self, **options: Any) -> NavaPipelineOutput:
        self.calls.append(options)
        shot = self.shots[options["prompt"]]
        frames = render_frames(shot, self.bank).astype(np.float32) / 255
        if options.get("guidance") == GUIDANCE_OFF:
            frames[:] = frames[-1:]
        sound = speaking.render_sound(shot, self.bank)
        return NavaPipelineOutput(frames=frames, audio=sound, sampling_rate=48_000, seed=0)
