"""Pixels and seconds <-> latents and tokens; noise. The only place that knows the factors between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUDIO_TOKENS_PER_SECOND = 25
SPATIAL_FACTOR = 16
TEMPORAL_FACTOR = 4


@dataclass(frozen=True)
class LatentGeometry:
    """Sizes of a clip in latents. latent_frames 0: no picture; audio_tokens 0: no sound."""

    latent_frames: int
    latent_height: int
    latent_width: int
    audio_tokens: int

    @classmethod
    def for_clip(cls, modality: str, width: int, height: int, num_frames: int, seconds: float) -> LatentGeometry:
        """Sizes for a clip in pixels and pixel frames; sound covers `seconds`."""
        with_video, with_audio = modality != "audio", modality != "video"
        return cls(
            latent_frames=latent_frames(num_frames) if with_video else 0,
            latent_height=height // SPATIAL_FACTOR if with_video else 0,
            latent_width=width // SPATIAL_FACTOR if with_video else 0,
            audio_tokens=audio_tokens(seconds) if with_audio else 0,
        )

    def video_shape(self, channels: int) -> tuple[int, int, int, int]:
        return channels, self.latent_frames, self.latent_height, self.latent_width

    def audio_shape(self, channels: int) -> tuple[int, int]:
        return self.audio_tokens, channels


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip of 4n+1 pixel frames: the first alone, then groups of four."""
    return (num_frames - 1) // TEMPORAL_FACTOR + 1


def pixel_frames(latent_frames: int) -> int:
    return (latent_frames - 1) * TEMPORAL_FACTOR + 1


def pixel_size(latent_width: int, latent_height: int) -> tuple[int, int]:
    return latent_width * SPATIAL_FACTOR, latent_height * SPATIAL_FACTOR


def token_seconds(tokens: int) -> float:
    return tokens / AUDIO_TOKENS_PER_SECOND


def audio_tokens(seconds: float) -> int:
    """Audio tokens that cover `seconds`; a rounding error of the division by fps must not add one."""
    return math.ceil(seconds * AUDIO_TOKENS_PER_SECOND - 1e-6)


def draw_noise(
    geometry: LatentGeometry, video_channels: int, audio_channels: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Video noise (channels, frames, height, width), then audio noise (tokens, channels), float32 on the CPU.

    Always the CPU's generator, so that a seed means the same on every device.
    """
    import torch  # late: whoever only counts tokens, such as a page's estimates, needs none

    shapes = (
        geometry.video_shape(video_channels) if geometry.latent_frames else None,
        geometry.audio_shape(audio_channels) if geometry.audio_tokens else None,
    )
    video, audio = (
        None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes
    )
    return video, audio
