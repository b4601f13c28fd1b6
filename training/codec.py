"""A sound through the audio autoencoder and the vocoder and back: what a perfect backbone would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

from nava_core.phase import refine_phases
from training.sounds import OUTPUT_RATE, make_clip


class Codec:
    """Both ways through the autoencoder and the vocoder, from their folders."""

    def __init__(self, audio_vae: str | Path, vocoder: str | Path, phase_rounds: int = 0) -> None:
        self.phase_rounds = phase_rounds
        self.audio_vae = AutoencoderKLLTX2Audio.from_pretrained(audio_vae, torch_dtype=torch.float32).eval()
        self.vocoder: Any = LTX2VocoderWithBWE.from_pretrained(vocoder, torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """`sound` (2, samples) at 48 kHz as the codec gives it back, of the same length."""
        mel = make_clip(sound).mel
        decoded = self.audio_vae.decode(self.audio_vae.encode(mel[None]).latent_dist.mode()).sample
        again = refine_phases(self.vocoder(decoded)[0], decoded[0], OUTPUT_RATE, self.phase_rounds)
        return again[:, : sound.shape[1]].numpy()
