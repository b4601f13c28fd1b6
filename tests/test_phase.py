"""Phases refined towards a mel spectrogram."""

from __future__ import annotations

import pytest
import torch

from nava_core.mel import log_mel_spectrogram
from nava_core.phase import refine_phases

RATE = 48_000


@pytest.fixture
def voice() -> torch.Tensor:
    """A second of harmonics of 110 to 150 Hz, twice as loud on the left, at 48 kHz."""
    clock = torch.arange(RATE) / RATE
    turns = torch.cumsum(110 + 40 * clock, 0) / RATE
    sound = sum((torch.sin(2 * torch.pi * number * turns) / number for number in range(1, 50)), torch.zeros(RATE))
    return 0.1 * sound * torch.tensor([[1.0], [0.5]])


def mel_of(sound: torch.Tensor) -> torch.Tensor:
    """Of what is below 8 kHz of a second."""
    low = torch.fft.irfft(torch.fft.rfft(sound)[:, : RATE // 6 + 1]) / 3
    return log_mel_spectrogram(low)


def error(sound: torch.Tensor, mel: torch.Tensor) -> float:
    return float((mel_of(sound)[:, 4:-4] - mel[:, 4:-4]).abs().mean())


def test_noise_of_the_right_loudness_comes_nearer_with_every_round(voice: torch.Tensor) -> None:
    torch.manual_seed(0)
    mel, noise = mel_of(voice), 0.1 * torch.randn(1, RATE) * torch.tensor([[1.0], [0.5]])
    errors = [error(refine_phases(noise, mel, RATE, rounds), mel) for rounds in (0, 1, 8, 32)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[1] and errors[-1] < 0.2
    left, right = refine_phases(noise, mel, RATE, 32).square().mean(dim=1).sqrt()
    assert left / right == pytest.approx(2, rel=0.05)


def test_what_is_right_already_and_what_is_above_the_mel_stay(voice: torch.Tensor) -> None:
    clock = torch.arange(RATE) / RATE
    high = 0.05 * torch.sin(2 * torch.pi * 12_000 * clock)
    mel, sound = mel_of(voice), voice + high
    refined = refine_phases(sound, mel, RATE, 8)
    assert refined.shape == sound.shape
    spectra = [torch.fft.rfft(each[0]).abs() for each in (sound, refined)]
    assert spectra[1][11_990:12_010].max() == pytest.approx(float(spectra[0][11_990:12_010].max()), rel=0.02)
    assert error(refined, mel) < 0.2


def test_nothing_stays_nothing_and_no_rounds_change_nothing(voice: torch.Tensor) -> None:
    silence = torch.zeros(2, RATE)
    assert refine_phases(silence, mel_of(silence), RATE, 4).abs().max() < 1e-3
    assert refine_phases(voice, mel_of(voice), RATE, 0) is voice
    with pytest.raises(ValueError, match="44100"):
        refine_phases(voice, mel_of(voice), 44_100, 1)
