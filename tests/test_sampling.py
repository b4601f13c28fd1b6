"""Whole guided runs against the golden latents, and what holds for every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_transformer import golden, relative_error
from torch import Tensor

from nava_core import passes
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.pipeline import NavaPipeline
from nava_core.request import GenerationCancelled, Guidance, RequestError
from nava_core.sampling import StreamSampler, flow_sigmas, make_scheduler

WITH_SPEAKERS = {"timbre", "no_align_timbre", "i2av", "t2a", "t2v_timbre"}
RUNS = ("t2av", "timbre", "no_align", "no_align_timbre", "i2av", "t2a", "t2a_plain", "t2v", "t2v_timbre")


def run_golden(name: str, run: str) -> tuple[Any, dict[str, Tensor]]:
    settings, weights, io = golden(name)
    pipeline = NavaPipeline(NavaTransformer3DModel.from_official(weights, settings["config"]))
    pipeline.set_progress_bar_config(disable=True)
    modality = (
        "audio" if run.startswith("t2a") and run != "t2av" else "video" if run.startswith("t2v") else "audio_video"
    )
    with_speakers = run in WITH_SPEAKERS
    output = pipeline(
        prompt_embeds=io["text"],
        negative_prompt_embeds=io["negative_text"],
        speakers=list(io["speakers"]) if with_speakers else (),
        speaker_positions=settings["speaker_positions"] if with_speakers else None,
        latents=None if modality == "audio" else io["video"],
        audio_latents=None if modality == "video" else io["audio"],
        image_latents=io["first_frame"] if run == "i2av" else None,
        num_inference_steps=settings["steps"],
        guidance=Guidance(**settings["scales"], align=not run.startswith("no_align")),
        modality=modality,
        output_type="latent",
    )
    return output, io


@pytest.mark.parametrize("name", ["tiny", "tiny_split"])
@pytest.mark.parametrize("run", RUNS)
def test_guided_runs_reproduce_the_golden_latents(name: str, run: str) -> None:
    expected = load_file_keys(name, run)
    if not expected:
        pytest.skip(f"{name} has no golden run {run}")
    output, _ = run_golden(name, run)
    actual = {"video": output.latents, "audio": output.audio_latents}
    assert {stream for stream, latents in actual.items() if latents is not None} == set(expected)
    for stream, tensor in expected.items():
        error = relative_error(actual[stream], tensor)
        print(f"{name} {run} {stream} {error:.1e}")
        assert error < 1e-4


def load_file_keys(name: str, run: str) -> dict[str, Tensor]:
    _, _, io = golden(name)
    return {stream: io[f"sample.{run}.{stream}"] for stream in ("video", "audio") if f"sample.{run}.{stream}" in io}


@pytest.mark.parametrize("name", ["tiny", "tiny_split"])
def test_schedule_is_the_official_one(name: str) -> None:
    settings, _, _ = golden(name)
    scheduler = make_scheduler()
    scheduler.set_timesteps(sigmas=flow_sigmas(settings["steps"]))
    assert scheduler.timesteps.tolist() == settings["timesteps"]
    np.testing.assert_allclose(scheduler.sigmas.numpy(), settings["sigmas"], atol=1e-7)


def test_same_request_same_latents_and_another_seed_others() -> None:
    settings, weights, io = golden("tiny")
    pipeline = NavaPipeline(NavaTransformer3DModel.from_official(weights, settings["config"]))
    pipeline.set_progress_bar_config(disable=True)

    def latents(seed: int) -> Tensor:
        return pipeline(
            prompt_embeds=io["text"],
            negative_prompt_embeds=io["negative_text"],
            width=64,
            height=32,
            num_frames=5,
            num_inference_steps=2,
            seed=seed,
            output_type="latent",
        ).latents

    first = latents(7)
    assert torch.equal(first, latents(7))
    assert not torch.allclose(first, latents(8))


@pytest.mark.parametrize("tokens_batched", [0, 10**6])
def test_batched_passes_equal_passes_one_by_one(monkeypatch: pytest.MonkeyPatch, tokens_batched: int) -> None:
    monkeypatch.setattr(passes, "BATCH_BELOW_TOKENS", tokens_batched)
    output, io = run_golden("tiny", "timbre")
    assert relative_error(output.latents, io["sample.timbre.video"]) < 1e-4
    assert relative_error(output.audio_latents, io["sample.timbre.audio"]) < 1e-4


def test_callback_sees_every_step_and_can_end_the_run() -> None:
    settings, weights, io = golden("tiny")
    pipeline = NavaPipeline(NavaTransformer3DModel.from_official(weights, settings["config"]))
    pipeline.set_progress_bar_config(disable=True)
    seen = []

    def watch(_: NavaPipeline, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        seen.append((index, int(timestep)))
        assert tensors["denoised"].shape == io["video"].shape
        if index == 1:
            raise GenerationCancelled

    with pytest.raises(GenerationCancelled):
        pipeline(
            prompt_embeds=io["text"],
            latents=io["video"],
            audio_latents=io["audio"],
            num_inference_steps=4,
            guidance=Guidance(video=0, audio=0, video_align=0, audio_align=0),
            callback_on_step_end=watch,
            output_type="latent",
        )
    assert seen == [(0, 999), (1, 937)]


@pytest.mark.parametrize("steps", [1, 209, 500])
def test_any_number_of_steps_walks_the_whole_schedule(steps: int) -> None:
    """From 209 steps on the integer timesteps repeat, so that none of them can say where a run stands."""
    sampler = StreamSampler(make_scheduler(), torch.randn(4, 3), flow_sigmas(steps))
    target = torch.full((4, 3), 0.5)
    for index in range(steps):
        sampler.step(index, (sampler.latents - target) / sampler.scheduler.sigmas[index])
    assert (sampler.latents - target).abs().max() < 1e-4


def encoded_call(**changes: Any) -> Any:
    """A short run on the golden text states and noise."""
    settings, weights, io = golden("tiny")
    pipeline = NavaPipeline(NavaTransformer3DModel.from_official(weights, settings["config"]))
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        "prompt_embeds": io["text"],
        "negative_prompt_embeds": io["negative_text"],
        "latents": io["video"],
        "audio_latents": io["audio"],
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    return pipeline(**arguments | changes)


def test_a_speaker_position_without_reference_has_the_null_token() -> None:
    settings, _, io = golden("tiny")
    positions = settings["speaker_positions"]
    voice, silence = io["speakers"][0], torch.zeros_like(io["speakers"][0])
    short = encoded_call(speakers=[voice], speaker_positions=positions)
    explicit = encoded_call(speakers=[voice, silence], speaker_positions=positions)
    assert torch.equal(short.audio_latents, explicit.audio_latents)
    one_position = encoded_call(speakers=[voice], speaker_positions=positions[:1])
    assert relative_error(short.audio_latents, one_position.audio_latents) > 1e-3
    with pytest.raises(RequestError, match="references for 2 speakers, but 1 speaker positions"):
        encoded_call(speakers=[voice, voice], speaker_positions=positions[:1])
    with pytest.raises(RequestError, match="give speaker_positions"):
        encoded_call(speakers=[voice])


def test_given_noise_fixes_the_sizes() -> None:
    _, _, io = golden("tiny")
    sound = torch.randn(52, 6)  # 2 s, 49 frames
    output = encoded_call(latents=None, audio_latents=sound, width=64, height=32, num_inference_steps=1)
    assert (output.latents.shape, output.audio_latents.shape) == ((8, 13, 2, 4), sound.shape)
    output = encoded_call(width=1280, num_frames=145)
    assert (output.latents.shape, output.audio_latents.shape) == (io["video"].shape, io["audio"].shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"latents": torch.zeros(1, 8, 2, 4, 4)},
            r"latents have the shape \(1, 8, 2, 4, 4\); give \(8, frames, height",
        ),
        ({"latents": torch.zeros(9, 2, 4, 4)}, r"give \(8, frames"),
        ({"audio_latents": torch.zeros(6, 7)}, r"give \(tokens, 6\)"),
        ({"image_latents": torch.zeros(8, 2, 4, 4)}, r"give \(8, 1, height"),
        ({"image_latents": torch.zeros(8, 1, 64, 64)}, r"image_latents are of a picture of 1024x1024"),
        ({"prompt_embeds": torch.zeros(1, 5, 20)}, r"give \(rows, 20\)"),
        ({"modality": "audio"}, r"latents were given, but a clip of modality 'audio' has no video"),
        ({"modality": "video"}, r"audio_latents were given, but a clip of modality 'video' has no audio"),
        ({"seed": 1, "generator": torch.Generator().manual_seed(2)}, r"seed is 1, but the generator's is 2"),
    ],
)
def test_given_tensors_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encoded_call(**changes)
