"""Rows 5 and 6: steps of sound alone, 250 tokens (10 s), where weights and text weigh more than tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.backbone import where
from benchmarks.catalogue import row
from benchmarks.harness import Pairs, Row, paired
from benchmarks.official import OfficialPass
from benchmarks.subject import TOLERANCE, Inputs, largest_error, make_inputs, make_model
from nava_core.execution import Execution
from nava_core.guidance import GuidancePlan, Pass, plan_guidance
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.passes import PassRunner, PromptEncodings, should_batch
from nava_core.request import Guidance

TOKENS = 250
CHOICE_AT = (TOKENS, 50)
"""Token counts at which the automatic choice is held to the better of both ways; the first is row 5's own."""


@dataclass
class Step:
    """One step of sound with a voice reference: three passes (conditional, negative, text), the same on all sides."""

    model: NavaTransformer3DModel
    inputs: Inputs
    plan: GuidancePlan
    encodings: PromptEncodings

    @classmethod
    def of(cls, model: NavaTransformer3DModel, tokens: int = TOKENS) -> Step:
        inputs = make_inputs(model, None, tokens)
        plan = plan_guidance(Guidance(audio=2.0, audio_align=2.0, timbre=3.0), "audio", has_references=True)
        draw = torch.Generator().manual_seed(2)
        negative = torch.randn(inputs.text[0].shape, generator=draw)
        speakers = torch.randn(1, model.config.speaker_dim, generator=draw)
        return cls(model, inputs, plan, PromptEncodings(inputs.text[0], negative, speakers, (3,)))

    def ours(self, batched: bool | None = None) -> Callable[[], dict[Pass, Tensor | None]]:
        """A function that runs the step; None: the automatic choice. The text is projected here, as before a clip."""
        assert self.inputs.audio is not None
        audio = self.inputs.audio[0]
        runner = PassRunner(
            self.model,
            self.plan,
            self.encodings,
            len(audio),
            first_frame_is_clean=False,
            execution=Execution(batch_passes=batched),
        )
        runner(None, audio[:4], self.inputs.timestep)
        return lambda: runner(None, audio, self.inputs.timestep)[1]

    def official(self, official: OfficialPass) -> dict[Pass, Tensor | None]:
        """The same passes one after another in the official structure."""
        speakers = self.encodings.speakers
        assert speakers is not None
        velocities: dict[Pass, Tensor | None] = {}
        for kind in self.plan.passes:
            inputs = Inputs(None, self.inputs.audio, self.inputs.timestep, self.encodings.text(kind)[None])
            voices = (speakers, self.encodings.speaker_positions) if kind is Pass.CONDITIONAL else None
            velocities[kind] = official(inputs, speakers=voices)[1]
        return velocities


@torch.no_grad()
def batching_part(budget: float) -> list[Row]:
    """Row 5: passes one by one / batched, and what the automatic choice makes of it."""
    model = make_model()
    measured: dict[int, Pairs] = {}
    for tokens, share in zip(CHOICE_AT, (0.8, 0.2), strict=True):
        step = Step.of(model, tokens)
        measured[tokens] = paired(step.ours(batched=False), step.ours(batched=True), share * budget)
    # The median of the better way over that of the chosen one.
    choices = {
        tokens: min(pairs.medians) / pairs.medians[should_batch(model, tokens)] for tokens, pairs in measured.items()
    }
    pairs = measured[TOKENS]
    one_by_one, batched = pairs.medians
    detail = {
        "summary": f"a step of 3 passes of {TOKENS} tokens, {one_by_one:.2f} s one by one, {batched:.2f} s batched "
        f"({where()}); {_calculated(model, TOKENS):.2f} at 1 TFLOP/s and 10 GB/s (calculated): where a product of "
        f"{TOKENS} rows is bound by computing, reading its weights once for 3 passes spares nothing",
        "one_by_one_seconds": one_by_one,
        "batched_seconds": batched,
        "pairs": len(pairs.first),
        "tokens": TOKENS,
    }
    worst = min(choices, key=choices.__getitem__)
    choice_detail = {
        "summary": "the better way's time over the chosen way's: "
        + ", ".join(
            f"{ratio:.2f} at {tokens} tokens ({'batched' if should_batch(model, tokens) else 'one by one'})"
            for tokens, ratio in choices.items()
        ),
        "ratios": {str(tokens): ratio for tokens, ratio in choices.items()},
    }
    return [
        row("batching", pairs.ratio, detail, pairs.spread),
        row("batching.choice", choices[worst], choice_detail),
    ]


def _calculated(model: NavaTransformer3DModel, tokens: int, passes: int = 3) -> float:
    """One by one / batched, if products ran at 1 TFLOP/s, and weights (of 2 bytes) came at 10 GB/s before them."""
    weights = sum(parameter.numel() for block in model.transformer_blocks for parameter in block.parameters())
    used = weights * 0.8  # without the picture's own parameters and the text's projections
    compute, read = 2 * used * tokens / 1e12, 2 * used / 10e9
    return passes * (compute + read) / (passes * compute + read)


@torch.no_grad()
def step_part(budget: float) -> list[Row]:
    """Row 6: a whole step, official structure / ours."""
    model = make_model()
    step, official, ours = Step.of(model), OfficialPass(model), None
    Step.of(model, 4).official(official)
    ours = step.ours()
    outputs: dict[str, dict[Pass, Tensor | None]] = {}
    pairs = paired(
        lambda: outputs.update(official=step.official(official)), lambda: outputs.update(ours=ours()), budget
    )
    kinds = step.plan.passes
    error = max(largest_error((outputs["official"][kind],) * 2, (outputs["ours"][kind],) * 2) for kind in kinds)
    slow, fast = pairs.medians
    detail = {
        "summary": f"{slow:.2f} s against {fast:.2f} s a step of {len(kinds)} passes of {TOKENS} tokens ({where()})",
        "official_seconds": slow,
        "our_seconds": fast,
        "pairs": len(pairs.first),
        "largest_difference": error,
        "tolerance": TOLERANCE[model.dtype],
        "tokens": TOKENS,
    }
    return [row("audio", pairs.ratio, detail, pairs.spread, holds=error < TOLERANCE[model.dtype])]
