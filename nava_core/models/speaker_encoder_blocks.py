"""The blocks of ReDimNet (Yakovlev et al. 2024, "Reshape Dimensions Network for Speaker Recognition").

A feature map has two shapes of the same size: 2-d (batch, channels, frequencies, frames), on which the frequency
axis shrinks while the channels grow, and 1-d (batch, frequencies * channels, frames). Attributes are named as in
the published checkpoints, so that their tensors need no renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

NORM_EPS = 1e-6
VARIANCE_FLOOR = 1e-7
ATTENTION_HEADS = 4
POSITION_KERNEL = 59
BLOCK_1D_TYPES = ("att", "conv+att", "conv", "fc")
BLOCK_2D_TYPES = ("convnext_like", "convnext_like_relu", "basic_resnet", "basic_resnet_fwse")


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over axis 1 of (batch, channels, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.movedim(1, -1)).movedim(-1, 1)


class To1d(nn.Module):
    """(batch, channels, frequencies, frames) -> (batch, frequencies * channels, frames)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rearrange(hidden_states, "b c f t -> b (f c) t")


class To2d(nn.Module):
    """(batch, frequencies * channels, frames) -> (batch, channels, frequencies, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rearrange(hidden_states, "b (f c) t -> b c f t", c=self.channels)


class WeightedSum(nn.Module):
    """A learned mean of all earlier 1-d outputs: softmax weights per output and row."""

    def __init__(self, num_inputs: int, rows: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, num_inputs, rows, 1))

    def forward(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = self.w.softmax(dim=1)
        return torch.stack([weights[:, i] * output for i, output in enumerate(outputs)]).sum(dim=0)


class ConvNextBlock(nn.Module):
    """x + 1x1(activation(norm(grouped convolutions, one for each kernel))), on 1-d or 2-d maps."""

    def __init__(
        self, channels: int, kernel_sizes: Sequence[int | tuple[int, int]], groups: int, dims: int, relu: bool = False
    ) -> None:
        super().__init__()
        conv: Any = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        wide = channels * len(kernel_sizes)
        self.dwconvs = nn.ModuleList(
            conv(channels, channels, kernel_size, padding="same", groups=groups) for kernel_size in kernel_sizes
        )
        self.norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims](wide)
        self.act = nn.ReLU() if relu else nn.GELU()
        self.pwconv1 = conv(wide, channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mixed = torch.cat([conv(hidden_states) for conv in self.dwconvs], dim=1)
        return hidden_states + self.pwconv1(self.act(self.norm(mixed)))


class FrequencySqueezeExcitation(nn.Module):
    """Scales each frequency of (batch, channels, frequencies, frames) by a gate computed from their means."""

    def __init__(self, num_frequencies: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(num_frequencies, hidden)
        self.exitation = nn.Linear(hidden, num_frequencies)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = self.exitation(F.relu(self.squeeze(hidden_states.mean(dim=(1, 3))))).sigmoid()
        return hidden_states * gate[:, None, :, None]


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a skip; grouped ones are each followed by a 1x1 convolution."""

    def __init__(self, channels: int, num_frequencies: int, group_divisor: int | None, squeeze: bool) -> None:
        super().__init__()
        groups = channels // group_divisor if group_divisor else 1

        def pointwise() -> nn.Module:
            return nn.Conv2d(channels, channels, 1) if group_divisor else nn.Identity()

        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv1pw = pointwise()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv2pw = pointwise()
        self.bn2 = nn.BatchNorm2d(channels)
        hidden = min(64, max(channels, 32))
        self.se = FrequencySqueezeExcitation(num_frequencies, hidden) if squeeze else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.bn1(F.relu(self.conv1pw(self.conv1(hidden_states))))
        inner = self.se(self.bn2(self.conv2pw(self.conv2(inner))))
        return F.relu(inner + hidden_states)


class Block2d(nn.Module):
    """One 2-d block of the configured type; raises ValueError for a type that is not in `BLOCK_2D_TYPES`."""

    def __init__(
        self,
        block_type: str,
        channels: int,
        num_frequencies: int,
        kernel_sizes: Sequence[tuple[int, int]],
        group_divisor: int | None,
    ) -> None:
        super().__init__()
        self.conv_block: nn.Module
        if block_type in ("convnext_like", "convnext_like_relu"):
            groups = channels // group_divisor if group_divisor else 1
            self.conv_block = ConvNextBlock(channels, kernel_sizes, groups, dims=2, relu=block_type.endswith("relu"))
        elif block_type in ("basic_resnet", "basic_resnet_fwse"):
            self.conv_block = ResnetBlock(channels, num_frequencies, group_divisor, squeeze=block_type.endswith("fwse"))
        else:
            raise ValueError(f"block_2d_type {block_type!r} is not one of {', '.join(BLOCK_2D_TYPES)}.")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv_block(hidden_states)


class ConvPositions(nn.Module):
    """Tells an attention layer where it is: x + norm(wide depthwise convolution of x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, POSITION_KERNEL, padding="same", groups=channels)
        self.norm = ChannelLayerNorm(channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.norm(self.conv(hidden_states))


class SelfAttention(nn.Module):
    """Full attention over frames, (batch, frames, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            rearrange(project(hidden_states), "b t (h d) -> b h t d", h=ATTENTION_HEADS)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(rearrange(attended, "b h t d -> b t (h d)"))


class FeedForward(nn.Module):
    """Two linear layers around a tanh GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(channels, hidden)
        self.output_dense = nn.Linear(hidden, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(hidden_states), approximate="tanh"))


class TransformerLayer(nn.Module):
    """A transformer encoder layer, normalised after each sum, on (batch, channels, frames)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels)
        self.layer_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.feed_forward = FeedForward(channels, hidden)
        self.final_layer_norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states.transpose(1, 2)  # (batch, frames, channels)
        hidden_states = self.layer_norm(hidden_states + self.attention(hidden_states))
        hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        return hidden_states.transpose(1, 2)  # (batch, channels, frames)


class TimeContext(nn.Module):
    """Context along time at reduced width: x + expand(layers(norm(reduce(x)))), (batch, rows, frames).

    Raises ValueError for a type that is not in `BLOCK_1D_TYPES`.
    """

    def __init__(self, block_type: str, rows: int, channels: int) -> None:
        super().__init__()
        self.red_dim_conv = nn.Sequential(nn.Conv1d(rows, channels, 1), ChannelLayerNorm(channels))
        self.tcm = nn.Sequential(*_time_layers(block_type, channels))
        self.exp_dim_conv = nn.Conv1d(channels, rows, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.exp_dim_conv(self.tcm(self.red_dim_conv(hidden_states)))


def _time_layers(block_type: str, channels: int) -> list[nn.Module]:
    def convnext(*kernel_sizes: int) -> ConvNextBlock:
        return ConvNextBlock(channels, kernel_sizes, groups=channels, dims=1)

    if block_type == "att":
        return [ConvPositions(channels), TransformerLayer(channels, 2 * channels)]
    if block_type == "conv+att":
        return [*(convnext(kernel_size) for kernel_size in (7, 19, 31, 59)), TransformerLayer(channels, channels)]
    if block_type == "conv":
        return [convnext(7, 15, 31) for _ in range(4)]
    if block_type == "fc":
        hidden = 2 * channels
        return [nn.Conv1d(channels, hidden, 1), ChannelLayerNorm(hidden), nn.GELU(), nn.Conv1d(hidden, channels, 1)]
    raise ValueError(f"block_1d_type {block_type!r} is not one of {', '.join(BLOCK_1D_TYPES)}.")


class PreEmphasis(nn.Module):
    """y[n] = x[n] - 0.97 x[n-1], with one reflected sample before the first; (batch, samples)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flipped_filter", torch.tensor([[[-0.97, 1.0]]]))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        padded = F.pad(waveform[:, None], (1, 0), mode="reflect")
        return F.conv1d(padded, self.get_buffer("flipped_filter").float())[:, 0]


class MelSpectrogram(nn.Module):
    """Power mel spectrogram, (batch, samples) at 16 kHz -> (batch, mel bins, frames)."""

    N_FFT, WINDOW, SAMPLING_RATE, LOWEST_HZ, HIGHEST_HZ = 512, 400, 16000, 20.0, 7600.0

    def __init__(self, num_mel_bins: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        filters = mel_filter_bank(
            num_frequency_bins=self.N_FFT // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=self.LOWEST_HZ,
            max_frequency=self.HIGHEST_HZ,
            sampling_rate=self.SAMPLING_RATE,
            mel_scale="htk",
        )
        # The published files hold both tables under these names.
        self.spectrogram, self.mel_scale = nn.Module(), nn.Module()
        self.spectrogram.register_buffer("window", torch.hamming_window(self.WINDOW))
        self.mel_scale.register_buffer("fb", torch.from_numpy(filters).float())

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        window, filters = self.spectrogram.get_buffer("window"), self.mel_scale.get_buffer("fb")
        spectrum = torch.stft(
            waveform, self.N_FFT, self.hop_length, self.WINDOW, window.float(), pad_mode="reflect", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (batch, frequencies, frames)
        return filters.float().T @ power  # (batch, mel bins, frames)


class LogMelFrontEnd(nn.Module):
    """(batch, samples) at 16 kHz -> (batch, mel bins, frames), log power less each bin's mean over time, in float32."""

    def __init__(self, num_mel_bins: int, hop_length: int) -> None:
        super().__init__()
        self.torchfbank = nn.Sequential(nn.Identity(), PreEmphasis(), MelSpectrogram(num_mel_bins, hop_length))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        log_mel = (self.torchfbank(waveform.float()) + 1e-6).log()
        return log_mel - log_mel.mean(dim=-1, keepdim=True)


class AttentiveStatisticsPooling(nn.Module):
    """(batch, rows, frames) -> (batch, 2 * rows): means and deviations over time, frames weighted by attention."""

    def __init__(self, rows: int, global_context: bool, bottleneck: int = 128) -> None:
        super().__init__()
        self.global_context = global_context
        self.linear1 = nn.Conv1d(3 * rows if global_context else rows, bottleneck, 1)
        self.linear2 = nn.Conv1d(bottleneck, rows, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        seen = hidden_states
        if self.global_context:
            variance, mean = torch.var_mean(hidden_states, dim=-1, keepdim=True)
            deviation = (variance + VARIANCE_FLOOR).sqrt()
            seen = torch.cat([seen, mean.expand_as(seen), deviation.expand_as(seen)], dim=1)
        attention = self.linear2(self.linear1(seen).tanh()).softmax(dim=-1)
        mean = (attention * hidden_states).sum(dim=-1)
        variance = (attention * hidden_states.square()).sum(dim=-1) - mean.square()
        return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=1)
