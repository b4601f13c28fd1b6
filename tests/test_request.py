"""What may be asked, what is filled in, and the one place that turns seconds and pixels into latents and tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_core.latents import LatentGeometry, audio_tokens, draw_noise, latent_frames, pixel_frames
from nava_core.request import GenerationRequest, Guidance, ModelSpec, RequestError

SPEC = ModelSpec("NAVA")


@pytest.mark.parametrize(
    ("frames", "tokens", "latents"), [(145, 152, 37), (241, 252, 61), (49, 52, 13), (5, 6, 2), (1, 2, 1)]
)
def test_published_lengths(frames: int, tokens: int, latents: int) -> None:
    resolved = GenerationRequest(prompt="雨", num_frames=frames).resolve(SPEC)
    geometry = LatentGeometry.for_clip("audio_video", 1280, 704, resolved.num_frames, resolved.seconds)
    assert (geometry.latent_frames, geometry.audio_tokens) == (latents, tokens)
    assert (geometry.latent_height, geometry.latent_width) == (44, 80)


def test_sound_alone_has_its_own_length() -> None:
    resolved = GenerationRequest(prompt="雨", seconds=10, modality="audio").resolve(SPEC)
    assert audio_tokens(resolved.seconds) == 250
    assert audio_tokens(resolved.resolve(SPEC).seconds) == 250


@given(st.integers(1, 61))
def test_latent_frames_and_pixel_frames_are_inverse(frames: int) -> None:
    assert latent_frames(pixel_frames(frames)) == frames


def test_noise_belongs_to_the_seed_and_comes_video_first() -> None:
    geometry = LatentGeometry(2, 4, 6, 6)
    video, audio = draw_noise(geometry, 48, 128, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(video, torch.randn(48, 2, 4, 6, generator=generator))
    assert torch.equal(audio, torch.randn(6, 128, generator=generator))


def test_blanks_are_filled_from_the_model_and_stay() -> None:
    resolved = GenerationRequest(prompt="雨").resolve(SPEC)
    assert (resolved.width, resolved.height, resolved.num_frames) == (1280, 704, 145)
    assert resolved.guidance == SPEC.guidance
    assert 0 <= resolved.seed < 2**32
    assert resolved.resolve(SPEC) == resolved


@pytest.mark.parametrize(
    ("field", "arguments", "named"),
    [
        ("prompt", {"prompt": "  "}, "empty"),
        ("width", {"width": 100}, "32"),
        ("height", {"height": 0}, "32"),
        ("num_frames", {"num_frames": 6}, "5 or 9"),
        ("num_frames", {"num_frames": 49, "seconds": 5.0}, "5 seconds at 24 fps are 121 frames"),
        ("seconds", {"seconds": 11}, "10"),
        ("seconds", {"seconds": float("nan")}, "nan"),
        ("fps", {"fps": 0}, "1 to 120"),
        ("num_inference_steps", {"num_inference_steps": 0}, "1 to 500"),
        ("seed", {"seed": -1}, "-1"),
        ("modality", {"modality": "smell"}, "audio_video"),
        ("image", {"image": "a.png", "modality": "audio"}, "sound alone"),
        ("speakers", {"speakers": ("a.wav",)}, "1 voice reference for 0 speech spans"),
    ],
)
def test_bad_input_names_the_field_the_value_and_the_way_out(field: str, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        GenerationRequest(**({"prompt": "雨"} | arguments)).resolve(SPEC)
    assert caught.value.field == field


def test_references_need_a_speaker_encoder() -> None:
    small = ModelSpec("small", accepts_speakers=False)
    with pytest.raises(RequestError, match="ReDimNet"):
        GenerationRequest(prompt="~~hi~~", speakers=("a.wav",)).resolve(small)
    GenerationRequest(prompt="~~hi~~", speakers=(None,)).resolve(small)


@given(prompt=st.text(min_size=1).filter(str.strip), seed=st.integers(0, 2**63 - 1), align=st.booleans())
def test_a_recipe_brings_the_request_back(prompt: str, seed: int, align: bool) -> None:
    request = GenerationRequest(
        prompt=prompt, seed=seed, guidance=Guidance(align=align), width=64, height=32, seconds=1.0
    ).resolve(SPEC)
    written = json.loads(json.dumps(request.to_recipe() | {"model": "NAVA", "versions": {}}))
    assert GenerationRequest.from_recipe(written).resolve(SPEC) == request


def test_a_recipe_keeps_what_was_written_before_it_was_rewritten() -> None:
    assert "original_prompt" not in GenerationRequest("雨").resolve(SPEC).to_recipe()
    request = GenerationRequest("一场大雨", original_prompt="rain").resolve(SPEC)
    assert request.to_recipe()["original_prompt"] == "rain"
    assert GenerationRequest.from_recipe(request.to_recipe()).resolve(SPEC) == request
    with pytest.raises(RequestError, match="original_prompt is 5"):
        GenerationRequest("雨", original_prompt=5).resolve(SPEC)  # type: ignore[arg-type]


def test_a_blank_reference_is_none_at_all() -> None:
    request = GenerationRequest(prompt="~~hi~~", speakers=["", " "])
    assert not request.has_references
    request.resolve(ModelSpec("small", accepts_speakers=False))
    assert GenerationRequest(prompt="~~a~~ ~~b~~", speakers=("", "b.wav")).speakers == (None, "b.wav")


@pytest.mark.parametrize("broken", [{"guidance": {"loudness": 3}}, {"speakers": 5}])
def test_a_recipe_that_cannot_be_read_says_so(broken: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="this recipe cannot be read"):
        GenerationRequest.from_recipe({"prompt": "雨"} | broken)
