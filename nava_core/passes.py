"""Running the passes of a step: which share a forward call, and which share the projected text."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from nava_core.guidance import GuidancePlan, Pass
from nava_core.models.attention_nava import NavaTextContext
from nava_core.models.transformer_nava import NavaTransformer3DModel

BATCH_BELOW_TOKENS = 1000
"""Passes of shorter sequences share one forward call: there the time goes into launches and weight reads."""


@dataclass(frozen=True)
class PromptEncodings:
    """Text states (rows, text_dim) of both prompts; speakers (speakers, speaker_dim) and the rows they replace.

    negative None: no pass asks for it. speakers None: no speech span has a reference.
    """

    positive: Tensor
    negative: Tensor | None = None
    speakers: Tensor | None = None
    speaker_positions: tuple[int, ...] = ()

    def text(self, kind: Pass) -> Tensor:
        states = self.negative if kind is Pass.NEGATIVE else self.positive
        assert states is not None, f"{kind} has no text"
        return states


@dataclass(frozen=True)
class _Call:
    """Passes that one forward call carries, as a batch."""

    passes: tuple[Pass, ...]
    with_video: bool
    with_audio: bool
    context: NavaTextContext


class PassRunner:
    """Predicts the velocities of every pass of a plan; made once for a clip, called once for a step.

    only: run these of the plan's passes and leave the others to other ranks.
    """

    def __init__(
        self,
        transformer: NavaTransformer3DModel,
        plan: GuidancePlan,
        encodings: PromptEncodings,
        tokens: int,
        first_frame_is_clean: bool,
        only: Collection[Pass] | None = None,
    ):
        self.transformer = transformer
        self.encodings = encodings
        self.first_frame_is_clean = first_frame_is_clean
        self._contexts: dict[tuple[bool, bool], NavaTextContext] = {}
        self.calls = list(
            self._plan_calls(plan, plan.passes if only is None else only, batched=tokens < BATCH_BELOW_TOKENS)
        )

    def __call__(
        self, video: Tensor | None, audio: Tensor | None, timestep: Tensor
    ) -> tuple[dict[Pass, Tensor | None], dict[Pass, Tensor | None]]:
        """Velocities of video (channels, frames, height, width) and audio (tokens, channels) for each pass."""
        video_velocities: dict[Pass, Tensor | None] = {}
        audio_velocities: dict[Pass, Tensor | None] = {}
        for call in self.calls:
            batch = len(call.passes)
            output = self.transformer(
                _repeated(video, batch) if call.with_video else None,
                _repeated(audio, batch) if call.with_audio else None,
                timestep.reshape(1),
                call.context,
                isolate_modalities=[kind is Pass.MASKED for kind in call.passes],
                first_frame_is_clean=self.first_frame_is_clean and call.with_video,
            )
            for index, kind in enumerate(call.passes):
                video_velocities[kind] = None if output.sample is None else output.sample[index]
                audio_velocities[kind] = None if output.audio_sample is None else output.audio_sample[index]
        return video_velocities, audio_velocities

    def _plan_calls(self, plan: GuidancePlan, kinds: Collection[Pass], batched: bool) -> Iterator[_Call]:
        for streams, group in groupby(sorted(kinds, key=plan.streams, reverse=True), key=plan.streams):
            passes = tuple(group)
            if batched and len(passes) > 1:
                yield _Call(passes, *streams, self._batch_context(passes))
                continue
            for kind in passes:
                yield _Call((kind,), *streams, self._shared_context(kind))

    def _batch_context(self, passes: tuple[Pass, ...]) -> NavaTextContext:
        states = [self.encodings.text(kind) for kind in passes]
        longest = max(len(rows) for rows in states)
        padded = torch.stack([F.pad(rows, (0, 0, 0, longest - len(rows))) for rows in states])
        speakers = self.encodings.speakers
        if speakers is None:
            return self.transformer.encode_context(padded)
        positions = [self.encodings.speaker_positions if kind is Pass.CONDITIONAL else () for kind in passes]
        return self.transformer.encode_context(padded, speakers.expand(len(passes), -1, -1), positions)

    def _shared_context(self, kind: Pass) -> NavaTextContext:
        """Passes with the same text and speakers project it once, through all steps."""
        speakers = self.encodings.speakers if kind is Pass.CONDITIONAL else None
        key = (kind is Pass.NEGATIVE, speakers is not None)
        if key not in self._contexts:
            text = self.encodings.text(kind)[None]
            if speakers is None:
                self._contexts[key] = self.transformer.encode_context(text)
            else:
                positions = [self.encodings.speaker_positions]
                self._contexts[key] = self.transformer.encode_context(text, speakers[None], positions)
        return self._contexts[key]


def _repeated(latents: Tensor | None, batch: int) -> Tensor | None:
    return None if latents is None else latents.expand(batch, *latents.shape)
