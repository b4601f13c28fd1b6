from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nava_core.mel import log_mel_spectrogram, mel_filter_bank

GOLDEN = Path(__file__).parent / "golden"


def test_golden_log_mel() -> None:
    expected = load_file(GOLDEN / "official_tiny" / "expected.safetensors")
    mel = log_mel_spectrogram(expected["audio.waveform"])
    assert mel.shape == expected["audio.mel"].shape
    assert (mel - expected["audio.mel"]).abs().max() < 1e-5 * expected["audio.mel"].abs().max()


def test_batch_dimensions_and_frames() -> None:
    waveform = torch.randn(3, 2, 4001, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = log_mel_spectrogram(waveform)
    assert mel.shape == (3, 2, 4001 // 160 + 1, 64)
    torch.testing.assert_close(mel[1], log_mel_spectrogram(waveform[1]))


def test_gradient_is_finite_even_in_silence() -> None:
    waveform = torch.zeros(1, 1600)
    waveform[0, 800:] = 0.1
    waveform.requires_grad_()
    log_mel_spectrogram(waveform).sum().backward()
    assert waveform.grad is not None
    assert torch.isfinite(waveform.grad).all()
    assert waveform.grad.abs().sum() > 0


def test_filters_cover_every_band() -> None:
    filters = mel_filter_bank(16000, 1024, 64)
    assert filters.shape == (64, 513)
    assert (filters.sum(dim=1) > 0).all()


def test_too_short_names_the_limit() -> None:
    with pytest.raises(ValueError, match=r"512 samples.*Pad"):
        log_mel_spectrogram(torch.zeros(2, 512))
