"""Better phases for what a small vocoder makes: it may keep how loud each band is and lose the harmonics of a voice.

Griffin and Lim's algorithm in its fast form (Perraudin, Balazs and Søndergaard 2013), from the vocoder's own phases,
towards the magnitudes that the mel spectrogram asks for. What lies above the mel's 8 kHz stays the vocoder's.
"""

from __future__ import annotations

import torch

from nava_core.mel import FILTER_LENGTH, HOP_LENGTH, SAMPLING_RATE, mel_filter_bank

MOMENTUM = 0.9
FITS = 12
LEAST = 1e-8


def refine_phases(waveform: torch.Tensor, mel: torch.Tensor, rate: int, rounds: int) -> torch.Tensor:
    """`waveform` after `rounds` rounds, each of which makes its spectrogram more consistent with `mel`.

    Args:
        waveform: float32 `(channels, samples)` at `rate`, a multiple of 16 kHz.
        mel: log-mel `(channels, frames, 64)` of the same sound, as `decode_mel` gives it.
        rounds: 0 returns the waveform as it is; more than about 32 change little.

    Raises:
        ValueError: if `rate` is no multiple of 16 kHz.
    """
    if rounds == 0:
        return waveform
    if rate % SAMPLING_RATE:
        raise ValueError(f"the rate is {rate}; phases are refined at multiples of {SAMPLING_RATE} Hz")
    ratio = rate // SAMPLING_RATE
    length, hop = FILTER_LENGTH * ratio, HOP_LENGTH * ratio
    window = torch.hann_window(length, device=waveform.device)
    # At a multiple of the rate, a window of as many seconds has the same bins, and more above them.
    bins = FILTER_LENGTH // 2 + 1

    def analyse(sound: torch.Tensor) -> torch.Tensor:
        return torch.stft(sound, length, hop, length, window, return_complex=True, pad_mode="reflect")

    def synthesise(spectrum: torch.Tensor) -> torch.Tensor:
        return torch.istft(spectrum, length, hop, length, window, length=waveform.shape[-1])

    spectrum = analyse(waveform)
    frames = min(spectrum.shape[-1], mel.shape[-2])
    magnitudes = spectrum.abs()
    magnitudes[:, :bins, :frames] = ratio * _magnitudes(mel.to(waveform)[:, :frames])
    previous = torch.zeros_like(spectrum)
    for _ in range(rounds):
        consistent = analyse(synthesise(torch.polar(magnitudes, spectrum.angle())))
        spectrum = consistent + MOMENTUM * (consistent - previous)
        previous = consistent
    return synthesise(torch.polar(magnitudes, spectrum.angle()))


def _magnitudes(mel: torch.Tensor) -> torch.Tensor:
    """The magnitudes `(channels, bins, frames)`, none negative, whose mel bands are those of a log-mel."""
    filters = mel_filter_bank(SAMPLING_RATE, FILTER_LENGTH, mel.shape[-1]).to(mel)
    bands = mel.exp().transpose(1, 2)
    magnitudes = (torch.linalg.pinv(filters) @ bands).clamp_min(LEAST)
    shares = filters.sum(dim=0)[:, None].clamp_min(LEAST)
    for _ in range(FITS):
        missing = bands / (filters @ magnitudes).clamp_min(LEAST)
        magnitudes = magnitudes * (filters.T @ missing) / shares
    return magnitudes
