"""Running the passes of a step: which share a forward call, and which share the projected text."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from nava_core.execution import Execution
from nava_core.guidance import GuidancePlan, Pass
from nava_core.models.attention_nava import NavaTextContext
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.step_cache import step_cache

EXECUTION = Execution()
"""Every choice by rule."""
BATCH_BELOW_TOKENS = 1000
"""Passes of shorter sequences share one forward call: there the time goes into launches and weight reads."""
KEEP_TEXT_BELOW_TOKENS = 6600
"""For shorter sequences the keys and values of the text are kept: there projecting them is 1% of a pass or more."""


def should_batch(transformer: NavaTransformer3DModel, tokens: int) -> bool:
    """Whether the passes of a step are run as one batch, by rule.

    Measured on one CPU core as the time of single passes over that of a batch: nano 1.51 at 102 tokens, 1.24 at 260,
    1.07 at 468, 1.04 at 884, 1.00 at 1508. On a GPU a batch beyond that gains nothing and takes more memory. A step
    cache looks at each pass for itself.
    """
    return tokens < BATCH_BELOW_TOKENS and not transformer.is_cache_enabled


def should_keep_text(tokens: int) -> bool:
    """Whether the keys and values of the text are worth their memory (252 MB a prompt at 6.3B).

    Projecting 512 rows of text is 4 * 512 products of dim x dim in a layer; a token takes about 31 in all.
    """
    return tokens < KEEP_TEXT_BELOW_TOKENS


Velocities = tuple[dict[Pass, Tensor | None], dict[Pass, Tensor | None]]


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


class TextContexts:
    """The text of each pass, embedded once for a clip; passes with the same text and speakers share one."""

    def __init__(self, transformer: NavaTransformer3DModel, encodings: PromptEncodings, keep: bool):
        self.transformer = transformer
        self.encodings = encodings
        self.keep = keep
        self._made: dict[tuple[bool, bool], NavaTextContext] = {}

    def of(self, kind: Pass) -> NavaTextContext:
        """The context of one pass."""
        speakers = self.encodings.speakers if kind is Pass.CONDITIONAL else None
        key = (kind is Pass.NEGATIVE, speakers is not None)
        if key not in self._made:
            text = self.encodings.text(kind)[None]
            embeds, positions = None, None
            if speakers is not None:
                embeds, positions = speakers[None], [self.encodings.speaker_positions]
            self._made[key] = self.transformer.encode_context(text, embeds, positions, keep=self.keep)
        return self._made[key]


@dataclass(frozen=True)
class _Call:
    """Passes that one forward call carries, as a batch."""

    passes: tuple[Pass, ...]
    with_video: bool
    with_audio: bool
    context: NavaTextContext

    @property
    def name(self) -> str:
        """What a cache keeps its state under."""
        return "+".join(kind.value for kind in self.passes)


class PassRunner:
    """Predicts the velocities of every pass of a plan; made once for a clip, called once for a step.

    only: run these of the plan's passes and leave the others to other ranks. contexts: those of another runner.
    """

    def __init__(
        self,
        transformer: NavaTransformer3DModel,
        plan: GuidancePlan,
        encodings: PromptEncodings,
        tokens: int,
        first_frame_is_clean: bool,
        only: Collection[Pass] | None = None,
        execution: Execution = EXECUTION,
        contexts: TextContexts | None = None,
    ):
        self.transformer = transformer
        self.plan = plan
        self.first_frame_is_clean = first_frame_is_clean
        self._only = only
        keep = should_keep_text(tokens) if execution.keep_text is None else execution.keep_text
        batched = should_batch(transformer, tokens) if execution.batch_passes is None else execution.batch_passes
        self._batched = batched or execution.in_turn
        self.contexts = TextContexts(transformer, encodings, keep) if contexts is None else contexts
        self._calls: dict[tuple[tuple[Pass, tuple[bool, bool]], ...], list[_Call]] = {}

    def __call__(
        self, video: Tensor | None, audio: Tensor | None, timestep: Tensor, plan: GuidancePlan | None = None
    ) -> Velocities:
        """Velocities of video (channels, frames, height, width) and audio (tokens, channels) for each pass.

        plan: that of this step, where it is not the one of all steps.
        """
        video_velocities: dict[Pass, Tensor | None] = {}
        audio_velocities: dict[Pass, Tensor | None] = {}
        plan = self.plan if plan is None else plan
        calls, cache = self.calls(plan), step_cache(self.transformer)
        if cache is not None:
            cache.start_step(plan, leads=bool(calls) and calls[0].passes[0] is _in_order(plan, plan.passes)[0])
        for call in calls:
            is_cached = self.transformer.is_cache_enabled
            with self.transformer.cache_context(call.name) if is_cached else nullcontext():
                output = self.transformer(
                    video[None] if call.with_video and video is not None else None,
                    audio[None] if call.with_audio and audio is not None else None,
                    timestep.reshape(1),
                    call.context,
                    isolate_modalities=[kind is Pass.MASKED for kind in call.passes],
                    first_frame_is_clean=self.first_frame_is_clean and call.with_video,
                )
            for index, kind in enumerate(call.passes):
                video_velocities[kind] = None if output.sample is None else output.sample[index]
                audio_velocities[kind] = None if output.audio_sample is None else output.audio_sample[index]
        return video_velocities, audio_velocities

    def calls(self, plan: GuidancePlan) -> list[_Call]:
        """The forward calls of a step."""
        key = tuple((kind, plan.streams(kind)) for kind in plan.passes)
        if key not in self._calls:
            kinds = [kind for kind in plan.passes if self._only is None or kind in self._only]
            self._calls[key] = list(self._plan_calls(plan, kinds))
        return self._calls[key]

    def _plan_calls(self, plan: GuidancePlan, kinds: Collection[Pass]) -> Iterator[_Call]:
        for streams, group in groupby(_in_order(plan, kinds), key=plan.streams):
            passes = tuple(group)
            for members in [passes] if self._batched else [(kind,) for kind in passes]:
                contexts = [self.contexts.of(kind) for kind in members]
                yield _Call(members, *streams, contexts[0] if len(contexts) == 1 else NavaTextContext.batch(contexts))


def _in_order(plan: GuidancePlan, kinds: Collection[Pass]) -> list[Pass]:
    """Passes with the same streams together, isolated ones last, so that of a batch each kind is one slice."""
    return sorted(kinds, key=lambda kind: (plan.streams(kind), kind is not Pass.MASKED), reverse=True)
