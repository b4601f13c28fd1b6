"""Guidance is a table of weights: the formulas of NAVA.md section 4, and no pass that nobody needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_core.guidance import Pass, combine, plan_guidance
from nava_core.request import Guidance, RequestError

C, N, M, S = Pass.CONDITIONAL, Pass.NEGATIVE, Pass.MASKED, Pass.TEXT
scales = st.floats(0, 10, allow_nan=False)


def predictions() -> dict[Pass, torch.Tensor]:
    return {kind: torch.randn(4, generator=torch.Generator().manual_seed(i)) for i, kind in enumerate(Pass)}


@given(scales, scales, scales, scales, scales)
def test_all_axes(video: float, audio: float, video_align: float, audio_align: float, timbre: float) -> None:
    plan = plan_guidance(Guidance(video, audio, video_align, audio_align, timbre), "audio_video", True)
    p = predictions()
    expected = p[C] + video * (p[C] - p[N]) + video_align * (p[C] - p[M])
    torch.testing.assert_close(combine(plan.video, p), expected, rtol=1e-4, atol=1e-4)
    expected = p[C] + audio * (p[C] - p[N]) + audio_align * (p[C] - p[M]) + timbre * (p[C] - p[S])
    torch.testing.assert_close(combine(plan.audio, p), expected, rtol=1e-4, atol=1e-4)


@given(scales, scales, st.booleans())
def test_without_alignment(video: float, audio: float, references: bool) -> None:
    plan = plan_guidance(Guidance(video, audio, timbre=2.0, align=False), "audio_video", references)
    p = predictions()
    torch.testing.assert_close(combine(plan.video, p), p[N] + video * (p[C] - p[N]), rtol=1e-4, atol=1e-4)
    expected = p[N] + audio * (p[C] - p[N])
    if references:
        expected = p[C] + audio * (p[C] - p[N]) + 2.0 * (p[C] - p[S])
    torch.testing.assert_close(combine(plan.audio, p), expected, rtol=1e-4, atol=1e-4)


@given(scales, scales, scales, st.booleans())
def test_voices_apart(audio: float, audio_align: float, timbre: float, align: bool) -> None:
    guidance = Guidance(1.0, audio, 1.0, audio_align, timbre, align, timbre_apart=True)
    p = predictions()
    plain = audio - 1 if not align and timbre == 0 else audio  # the classical scale counts from 0
    expected = p[C] + plain * (p[S] - p[N]) + timbre * (p[C] - p[S])
    if align:
        expected = expected + audio_align * (p[S] - p[M])
    plan = plan_guidance(guidance, "audio_video", True)
    torch.testing.assert_close(combine(plan.audio, p), expected, rtol=1e-4, atol=1e-4)
    published = replace(guidance, timbre_apart=False)
    assert plan_guidance(guidance, "audio_video", False) == plan_guidance(published, "audio_video", False)


@pytest.mark.parametrize(
    ("guidance", "modality", "references", "passes"),
    [
        (Guidance(), "audio_video", False, (C, N, M)),
        (Guidance(), "audio_video", True, (C, N, M, S)),
        (Guidance(timbre=0), "audio_video", True, (C, N, M)),
        (Guidance(timbre=0, timbre_apart=True), "audio_video", True, (C, N, M, S)),
        (Guidance(timbre=0, timbre_apart=True), "audio_video", False, (C, N, M)),
        (Guidance(video=0, audio=0), "audio_video", False, (C, M)),
        (Guidance(align=False), "audio_video", False, (C, N)),
        (Guidance(video=1, audio=1, align=False), "audio_video", False, (C,)),
        (Guidance(), "audio", False, (C, N)),
        (Guidance(), "audio", True, (C, N, S)),
        (Guidance(), "video", False, (C, N)),
        (Guidance(), "video", True, (C, N, S)),
        (Guidance(0, 0, 0, 0, 0), "audio_video", True, (C,)),
    ],
)
def test_only_the_passes_that_are_needed(
    guidance: Guidance, modality: str, references: bool, passes: tuple[Pass, ...]
) -> None:
    assert plan_guidance(guidance, modality, references).passes == passes


def test_masked_pass_carries_only_the_stream_that_asks() -> None:
    plan = plan_guidance(Guidance(video_align=0.0), "audio_video", False)
    assert plan.streams(M) == (False, True)
    assert plan.streams(C) == (True, True)


@pytest.mark.parametrize("switch", ["align", "timbre_apart"])
def test_switches_are_true_or_false(switch: str) -> None:
    with pytest.raises(RequestError, match=f"guidance {switch} is 'yes'; give true or false"):
        Guidance(**{switch: "yes"})  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [-1, 31, float("nan"), "3", True])
def test_impossible_scales_are_refused(scale: object) -> None:
    with pytest.raises(RequestError, match="guidance timbre"):
        Guidance(timbre=scale)
