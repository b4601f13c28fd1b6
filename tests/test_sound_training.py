from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.audio_vae import build_model, reconstruction_loss, tokens_of, without_noise_floor
from training.common import load_config
from training.sounds import CLIP_SAMPLES, crossing_frame, sound_clips, wide_sound
from training.vocoder import build_model as build_vocoder
from training.vocoder import level_loss, spectral_loss, tie_sides

CONFIGS = Path(__file__).parent.parent / "training" / "configs"
TINY = {"base_channels": 32, "latent_channels": 2, "ch_mult": (1, 1, 1), "num_res_blocks": 0, "mel_bins": 64}


def test_tokens_are_channel_major() -> None:
    model = build_model(TINY)
    mel = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(0)) - 8
    with torch.no_grad():
        latents = model.encode(mel).latent_dist.mode()
        tokens = tokens_of(model, mel)
    assert tokens.shape == (1, 3, 32)
    assert tokens[0, 2, 16 * 1 + 5] == latents[0, 1, 2, 5]


def test_a_fresh_model_is_silent() -> None:
    model = build_model(TINY)
    with torch.no_grad():
        result = model.decode(torch.zeros(1, 2, 3, 16)).sample
    assert result.shape == (1, 2, 9, 64)
    assert result.mean() < -8


def test_noise_floor_costs_nothing_and_sound_does() -> None:
    silence = torch.full((1, 2, 8, 64), -9.1)
    noisy = silence + 0.3 * torch.randn(silence.shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    assert reconstruction_loss(silence, without_noise_floor(noisy), 0.5, 1.0)[0] == 0
    loud = silence.clone()
    loud[:, :, 4] = 0
    assert reconstruction_loss(silence, without_noise_floor(loud), 0.5, 1.0)[0] > 1


def test_clips_are_the_same_for_a_seed() -> None:
    first, second = (sound_clips(3, {"world": 0.5, "wide": 0.5}, 7) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.high.shape == (2, CLIP_SAMPLES)
        assert one.low.shape == (2, CLIP_SAMPLES // 3)
        assert one.mel.shape == (2, CLIP_SAMPLES // 480 + 1, 64)
        assert torch.equal(one.high, other.high)


def test_unknown_share_is_named() -> None:
    with pytest.raises(ValueError, match="speech"):
        sound_clips(1, {"speech": 1.0}, 0)


@pytest.mark.parametrize("seed", range(8))
def test_wide_sounds_are_finite_and_unclipped(seed: int) -> None:
    sound = wide_sound(np.random.default_rng(seed))
    assert np.isfinite(sound).all()
    assert 0.001 < np.abs(sound).max() < 1


def test_crossing_between_frames() -> None:
    envelope = torch.full((40,), -5.0)
    envelope[20] = -1.0
    envelope[21] = 0.0
    assert crossing_frame(envelope, 20, 6) == pytest.approx(19 + 2.5 / 4)
    assert crossing_frame(torch.zeros(40), 20, 6) is None


def test_spectral_loss_is_zero_for_equals_and_grows() -> None:
    bands = {64: 6, 256: 20}
    time = torch.arange(4000) / 16000
    sound = 0.3 * torch.sin(2 * math.pi * 440 * time).expand(1, 2, -1)
    assert spectral_loss(sound, sound, 16000, bands) == 0
    near, far = (spectral_loss(gain * sound, sound, 16000, bands) for gain in (0.9, 0.2))
    assert 0 < near < far


def test_level_loss_sees_the_pan() -> None:
    left = torch.zeros(1, 2, 1600)
    left[:, 0] = 0.1
    middle = torch.full((1, 2, 1600), 0.1 / 2**0.5)
    assert level_loss(left, left, 320) == 0
    assert level_loss(middle, left, 320) > 2


def test_vocoder_is_small_and_treats_both_sides_alike() -> None:
    torch.manual_seed(0)
    model = build_vocoder(load_config(CONFIGS / "vocoder.yaml")["model"])
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 1_000_000
    mel = torch.randn(1, 2, 12, 64) - 6
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
            tie_sides(value, apart=False)
        sound, swapped = model(mel), model(mel.flip(1))
        other = model(mel + torch.tensor([0.0, 1.0])[:, None, None])
    assert sound.shape == (1, 2, 12 * 480)
    torch.testing.assert_close(swapped, sound.flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other[:, 0], sound[:, 0], atol=1e-6)


def test_sides_apart_do_not_hear_each_other() -> None:
    torch.manual_seed(0)
    model = build_vocoder(load_config(CONFIGS / "vocoder.yaml")["model"])
    mel = torch.randn(1, 2, 12, 64) - 6
    with torch.no_grad():
        other = model(mel + torch.tensor([0.0, 1.0])[:, None, None])
        torch.testing.assert_close(other[:, 0], model(mel)[:, 0])
