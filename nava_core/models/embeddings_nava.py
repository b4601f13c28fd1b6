"""How latents, times, positions and speakers enter the NAVA transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILENT_SPEAKER = 1e-6
"""An embedding whose sum of squares is at most this stands for "no reference"."""


def sinusoidal_embedding(times: Tensor, dim: int) -> Tensor:
    """[cos, sin] of times * 10000^(-i / half): (...) -> (..., dim), float64, since angles reach 1000 radians."""
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=times.device) / half)
    angles = times[..., None].to(torch.float64) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class NavaRotaryPosEmbed(nn.Module):
    """Rotary turns of `[video tokens; audio tokens]` as unit complex numbers, (tokens, head_dim / 2).

    Video heads spend their channels on (time, height, width); audio turns only the time channels, at `audio_scale` of a
    latent frame for each token, so that both streams share one clock. The last table is kept: all steps, passes and
    layers of a clip use the same.

    time_frequencies: radians a latent frame, for each pair of time channels; None: powers of theta, as for the others.
    """

    def __init__(
        self,
        head_dim: int,
        audio_scale: float,
        theta: float = 10000.0,
        time_frequencies: Sequence[float] | None = None,
    ):
        super().__init__()
        space = 2 * (head_dim // 6)
        self.axis_channels = (head_dim - 2 * space, space, space)
        self.audio_scale = audio_scale
        self.theta = theta
        pairs = self.axis_channels[0] // 2
        if time_frequencies is not None and len(time_frequencies) != pairs:
            raise ValueError(
                f"there are {len(time_frequencies)} rotary time frequencies; heads of {head_dim} channels have {pairs} "
                "pairs of time channels: give one for each, or None"
            )
        self.time_frequencies = time_frequencies
        self._last: tuple[tuple, Tensor] | None = None

    def forward(self, grid: Sequence[int], audio_tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (tuple(grid), audio_tokens, device, dtype)
        if self._last is None or self._last[0] != key:
            table = torch.cat([self._video_angles(grid), self._audio_angles(audio_tokens)])
            turns = torch.polar(torch.ones_like(table), table)
            complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
            self._last = (key, turns.to(device=device, dtype=complex_dtype))
        return self._last[1]

    def _angles(self, positions: Tensor, axis: int) -> Tensor:
        channels = self.axis_channels[axis]
        frequencies = self.theta ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        if axis == 0 and self.time_frequencies is not None:
            frequencies = torch.tensor(self.time_frequencies, dtype=torch.float64)
        return torch.outer(positions.double(), frequencies)

    def _video_angles(self, grid: Sequence[int]) -> Tensor:
        axes = [self._angles(torch.arange(n), axis) for axis, n in enumerate(grid)]
        frames, height, width = grid
        time = axes[0][:, None, None].expand(frames, height, width, -1)
        rows = axes[1][None, :, None].expand(frames, height, width, -1)
        columns = axes[2][None, None, :].expand(frames, height, width, -1)
        return torch.cat([time, rows, columns], dim=-1).flatten(0, 2)  # (f, h, w, head_dim/2) -> (f*h*w, head_dim/2)

    def _audio_angles(self, tokens: int) -> Tensor:
        time = self._angles(torch.arange(tokens) * self.audio_scale, 0)
        return F.pad(time, (0, sum(self.axis_channels[1:]) // 2))


class GatedConv1d(nn.Module):
    """w2(silu(w1 x) * w3 x) with convolutions over time."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        hidden = 256 * -(-int(8 * dim / 3) // 256)
        self.w1 = nn.Conv1d(dim, hidden, kernel_size, padding=kernel_size // 2, bias=False)
        self.w2 = nn.Conv1d(hidden, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.w3 = nn.Conv1d(dim, hidden, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(hidden_states)) * self.w3(hidden_states))


class NavaAudioPatchEmbed(nn.Module):
    """Audio latents (batch, tokens, channels) -> (batch, tokens, dim), each token seeing its neighbours.

    No `nn.Sequential`, which the library's group offloading would take apart.
    """

    def __init__(self, in_channels: int, dim: int, kernel_size: int = 7):
        super().__init__()
        self.add_module("0", nn.Conv1d(in_channels, dim, kernel_size, padding=kernel_size // 2))
        self.add_module("2", GatedConv1d(dim, kernel_size))

    def forward(self, audio: Tensor) -> Tensor:
        hidden_states = F.silu(self.get_submodule("0")(audio.transpose(1, 2)))
        return self.get_submodule("2")(hidden_states).transpose(1, 2)


class NavaSpeakerEmbedding(nn.Module):
    """Speaker embeddings (speakers, speaker_dim) -> context rows (speakers, dim); silent ones become the null token."""

    def __init__(self, speaker_dim: int, dim: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(speaker_dim), nn.Linear(speaker_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.out_norm = nn.LayerNorm(dim)
        self.null_token = nn.Parameter(torch.zeros(1, dim))

    def forward(self, speaker_embeds: Tensor) -> Tensor:
        rows = self.out_norm(self.net(speaker_embeds.to(self.null_token.dtype)))
        silent = speaker_embeds.float().square().sum(-1, keepdim=True) <= SILENT_SPEAKER
        return torch.where(silent, self.null_token, rows)
