"""The log-mel spectrogram that the audio autoencoder reads and the vocoder turns back into sound."""

from __future__ import annotations

from functools import lru_cache

import torch

SAMPLING_RATE = 16000
HOP_LENGTH = 160
FILTER_LENGTH = 1024
MEL_BINS = 64
FLOOR = 1e-5

# The Slaney scale: linear up to 1 kHz, then 27 steps for every factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)).item() / 27.0


def _hz_to_mel(frequency: torch.Tensor) -> torch.Tensor:
    logarithmic = _BREAK_MEL + torch.log(frequency.clamp_min(_BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return torch.where(frequency < _BREAK_HZ, frequency / _LINEAR_HZ_PER_MEL, logarithmic)


def _mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    exponential = _BREAK_HZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL).clamp_min(0.0))
    return torch.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, exponential)


@lru_cache(maxsize=8)
def mel_filter_bank(sampling_rate: int, filter_length: int, mel_bins: int) -> torch.Tensor:
    """Triangular filters on the Slaney scale from 0 Hz to half the rate, each with area 1 over its band (in Hz).

    Args:
        sampling_rate: samples per second.
        filter_length: length of the Fourier transform, in samples.
        mel_bins: number of filters.

    Returns:
        float32 `(mel_bins, filter_length // 2 + 1)`; shared between callers, so not to be changed in place.
    """
    nyquist = torch.tensor(sampling_rate / 2, dtype=torch.float64)
    edges = _mel_to_hz(torch.linspace(0.0, 1.0, mel_bins + 2, dtype=torch.float64) * _hz_to_mel(nyquist))
    frequencies = torch.linspace(0.0, 1.0, filter_length // 2 + 1, dtype=torch.float64) * nyquist
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp_min(0.0)
    return (triangles * 2.0 / (upper - lower)).float()


def log_mel_spectrogram(waveform: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrogram of LTX-2's audio autoencoder (COMPONENTS.md, "Audio VAE and vocoder"). Differentiable.

    Args:
        waveform: `(..., channels, samples)` at 16 kHz, in [-1, 1].

    Returns:
        float32 `(..., channels, frames, 64)` with `frames = samples // 160 + 1`; frame t is centred on sample 160 t.

    Raises:
        ValueError: if there are too few samples to reflect half a window at the ends.
    """
    samples = waveform.shape[-1]
    if samples <= FILTER_LENGTH // 2:
        raise ValueError(
            f"A waveform of {samples} samples at 16 kHz is too short for a mel spectrogram: it needs more than "
            f"{FILTER_LENGTH // 2} samples ({1000 * FILTER_LENGTH // 2 // SAMPLING_RATE} ms). Pad it with silence."
        )
    leading = waveform.shape[:-1]
    flat = waveform.float().reshape(-1, samples)
    spectrum = torch.stft(
        flat,
        n_fft=FILTER_LENGTH,
        hop_length=HOP_LENGTH,
        window=torch.hann_window(FILTER_LENGTH, device=flat.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = mel_filter_bank(SAMPLING_RATE, FILTER_LENGTH, MEL_BINS).to(flat.device)
    mel = filters @ spectrum.abs()
    return mel.clamp_min(FLOOR).log().transpose(-1, -2).unflatten(0, leading)  # (..., channels, frames, mel)
