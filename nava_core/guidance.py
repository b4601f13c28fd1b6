"""Guidance on all axes: which passes a step needs, and how their predictions combine (NAVA.md section 4). Pure.

Every formula is a weighted sum of passes, so guidance is a table of weights; a pass without weight is not run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from nava_core.request import GenerationRequest, Guidance, Modality, Shortcuts

if TYPE_CHECKING:
    from torch import Tensor


class Pass(Enum):
    """The four predictions of a step. Values are what logs and previews call them."""

    CONDITIONAL = "conditional"  # text and speakers
    NEGATIVE = "negative"  # negative prompt, no speakers
    MASKED = "masked"  # text without speakers, video and audio apart
    TEXT = "text"  # text without speakers


Weights = Mapping[Pass, float]


@dataclass(frozen=True)
class GuidancePlan:
    """Weights of the passes for each stream; an absent stream has none."""

    video: Weights
    audio: Weights

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What has to be run, conditional first."""
        return tuple(kind for kind in Pass if kind in self.video or kind in self.audio)

    def streams(self, kind: Pass) -> tuple[bool, bool]:
        """Whether a pass must carry video and audio.

        The masked pass keeps the streams apart, so one that nobody asks for is left out of it. In the other passes each
        stream sees the other, whatever is asked for.
        """
        present = (bool(self.video), bool(self.audio))
        if kind is not Pass.MASKED:
            return present
        return present[0] and kind in self.video, present[1] and kind in self.audio


def plan_guidance(
    guidance: Guidance, modality: Modality, has_references: bool, resting: Collection[Pass] = ()
) -> GuidancePlan:
    """The weights of each pass for one request.

    has_references: some speech span has a voice reference. Without any, the speakers' rows are the text's own, so that
    the conditional and the text pass are the same. resting: passes whose axis is off, see `step_plans`.
    """
    video = _video_weights(guidance) if modality != "audio" else {}
    audio = _audio_weights(guidance, has_references) if modality != "video" else {}
    for kind in resting:  # the weights of each stream sum to 1, and an axis that is off leaves the conditional pass
        video, audio = _merged(video, kind, Pass.CONDITIONAL), _merged(audio, kind, Pass.CONDITIONAL)
    if modality != "audio_video":
        # One stream alone: the masked pass is the ordinary pass without speakers.
        video, audio = _merged(video, Pass.MASKED, Pass.TEXT), _merged(audio, Pass.MASKED, Pass.TEXT)
    if not has_references:
        video, audio = _merged(video, Pass.TEXT, Pass.CONDITIONAL), _merged(audio, Pass.TEXT, Pass.CONDITIONAL)
    return GuidancePlan(video=_nonzero(video), audio=_nonzero(audio))


def step_plans(request: GenerationRequest) -> list[GuidancePlan]:
    """The plan of each step of a resolved request. Steps with the same passes share one; without intervals all do."""
    steps, guidance = request.num_inference_steps, request.guidance
    assert steps is not None and guidance is not None, "a request is resolved before it is planned"
    plans: dict[tuple[Pass, ...], GuidancePlan] = {}
    planned = []
    for index in range(steps):
        resting = tuple(
            kind for kind, (start, stop) in _intervals(request.shortcuts).items() if not start <= index / steps < stop
        )
        if resting not in plans:
            plans[resting] = plan_guidance(guidance, request.modality, request.has_references, resting)
        planned.append(plans[resting])
    return planned


def _intervals(shortcuts: Shortcuts) -> dict[Pass, tuple[float, float]]:
    return {Pass.NEGATIVE: shortcuts.negative, Pass.MASKED: shortcuts.align, Pass.TEXT: shortcuts.timbre}


def combine(weights: Weights, predictions: Mapping[Pass, Tensor | None]) -> Tensor:
    """Weighted sum of one stream's predictions, float32."""
    import torch  # late: whoever only counts passes, such as a page's estimates, needs none

    terms = []
    for kind, weight in weights.items():
        prediction = predictions[kind]
        assert prediction is not None, f"{kind} was not predicted"
        terms.append(prediction.float() * weight)
    return torch.stack(terms).sum(0)


def _video_weights(guidance: Guidance) -> dict[Pass, float]:
    if not guidance.align:
        return {Pass.CONDITIONAL: guidance.video, Pass.NEGATIVE: 1.0 - guidance.video}
    return {
        Pass.CONDITIONAL: 1.0 + guidance.video + guidance.video_align,
        Pass.NEGATIVE: -guidance.video,
        Pass.MASKED: -guidance.video_align,
    }


def _audio_weights(guidance: Guidance, has_references: bool) -> dict[Pass, float]:
    weights = _published_audio_weights(guidance, guidance.timbre if has_references else 0.0)
    if guidance.timbre_apart and has_references:
        own = 1.0 + guidance.timbre
        beyond = weights[Pass.CONDITIONAL] - own
        weights |= {Pass.CONDITIONAL: own, Pass.TEXT: weights.get(Pass.TEXT, 0.0) + beyond}
    return weights


def _published_audio_weights(guidance: Guidance, timbre: float) -> dict[Pass, float]:
    if not guidance.align and timbre == 0.0:
        return {Pass.CONDITIONAL: guidance.audio, Pass.NEGATIVE: 1.0 - guidance.audio}
    align = guidance.audio_align if guidance.align else 0.0
    return {
        Pass.CONDITIONAL: 1.0 + guidance.audio + align + timbre,
        Pass.NEGATIVE: -guidance.audio,
        Pass.MASKED: -align,
        Pass.TEXT: -timbre,
    }


def _merged(weights: dict[Pass, float], source: Pass, target: Pass) -> dict[Pass, float]:
    """`weights` where the pass `source` is known to equal `target`."""
    merged = dict(weights)
    if source in merged:
        merged[target] = merged.get(target, 0.0) + merged.pop(source)
    return merged


def _nonzero(weights: dict[Pass, float]) -> dict[Pass, float]:
    # Sums such as 1 + 0.1 - 0.1 leave rounding dust, which is not worth a pass.
    return {kind: weight for kind, weight in weights.items() if abs(weight) > 1e-9}
