"""ReDimNet: a voice's waveform -> the embedding that stands for it in the backbone's context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from nava_core.models.speaker_encoder_blocks import (
    NORM_EPS,
    AttentiveStatisticsPooling,
    Block2d,
    ChannelLayerNorm,
    LogMelFrontEnd,
    MelSpectrogram,
    TimeContext,
    To1d,
    To2d,
    WeightedSum,
)
from nava_core.weights import empty_weights, load_strictly, read_torch_file

logger = logging.getLogger(__name__)

Stage = Sequence[Any]  # (stride, blocks, channel expansion, kernel sizes, reduction of the time context | None)

# The M model by its authors' defaults.
M_STAGES: tuple[Stage, ...] = (
    (1, 2, 1, ((3, 3),), 12),
    (2, 2, 1, ((3, 3),), 12),
    (1, 3, 1, ((3, 3),), 12),
    (2, 4, 1, ((3, 3),), 8),
    (1, 4, 1, ((3, 3),), 8),
    (2, 4, 1, ((3, 3),), 4),
)

OFFICIAL_CONFIG_NAMES = {
    "F": "num_mel_bins",
    "C": "channels",
    "block_1d_type": "block_1d_type",
    "block_2d_type": "block_2d_type",
    "stages_setup": "stages",
    "group_divisor": "group_divisor",
    "out_channels": "out_channels",
    "embed_dim": "embedding_dim",
    "hop_length": "hop_length",
    "global_context_att": "global_context_attention",
    "emb_bn": "embedding_batch_norm",
}
# What else a published config may say, and the values for which this code computes what it asks for.
OFFICIAL_CONFIG_CHECKS: dict[str, tuple[Any, ...]] = {
    "pooling_func": ("ASTP",),
    "feat_type": ("pt", "pt_mel"),
    "tf_optimized_arch": (False, None),
    "return_all_outputs": (False, None),
}
OFFICIAL_FRONT_END_CHECKS: dict[str, tuple[Any, ...]] = {
    "sample_rate": (MelSpectrogram.SAMPLING_RATE,),
    "n_fft": (MelSpectrogram.N_FFT,),
    "win_length": (MelSpectrogram.WINDOW,),
    "f_min": (MelSpectrogram.LOWEST_HZ,),
    "f_max": (MelSpectrogram.HIGHEST_HZ,),
    "norm_signal": (False,),
    "do_preemph": (True,),
}
# These act in training alone.
OFFICIAL_TRAINING_NAMES = {"num_classes", "class_dropout", "feat_agg_dropout", "head_activation", "spec_params"}
TRAINING_HEAD_PREFIX = "cls_head."
FRONT_END_TRAINING_NAMES = {"do_spec_aug", "freq_start_bin", "freq_mask_width", "time_mask_width"}


class ReDimNet(nn.Module):
    """The trunk: (batch, 1, mel bins, frames) -> (batch, rows, frames), rows = mel bins * channels or `out_channels`.

    Each stage reads a learned mixture of the 1-d outputs of all earlier ones.
    """

    def __init__(
        self,
        num_mel_bins: int,
        channels: int,
        block_1d_type: str,
        block_2d_type: str,
        stages: Sequence[Stage],
        group_divisor: int | None,
        out_channels: int | None,
    ) -> None:
        super().__init__()
        rows = num_mel_bins * channels
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding="same"), ChannelLayerNorm(channels), To1d())
        width, frequencies = channels, num_mel_bins
        self.stage_names = [f"stage{i}" for i in range(len(stages))]
        for i, (stride, num_blocks, expansion, kernel_sizes, reduction) in enumerate(stages):
            if frequencies % stride:
                raise ValueError(
                    f"stages[{i}] has stride {stride}, which does not divide its {frequencies} frequencies."
                )
            wide = int(stride * width * expansion)
            layers: list[nn.Module] = [
                WeightedSum(i + 1, rows if i else 1),
                To2d(width),
                nn.Conv2d(width, wide, (stride, 1), (stride, 1)),
            ]
            width, frequencies = width * stride, frequencies // stride
            kernels = [tuple(kernel_size) for kernel_size in kernel_sizes]
            layers += [Block2d(block_2d_type, wide, frequencies, kernels, group_divisor) for _ in range(num_blocks)]
            if expansion != 1:
                layers.append(_squeeze(wide, width, group_divisor))
            layers.append(To1d())
            if reduction is not None:
                layers.append(TimeContext(block_1d_type, rows, rows // reduction))
            setattr(self, self.stage_names[i], nn.Sequential(*layers))
        self.fin_wght1d = WeightedSum(len(stages) + 1, rows)
        self.mfa = (
            nn.Identity()
            if out_channels is None
            else nn.Sequential(nn.Conv1d(rows, out_channels, 1), nn.BatchNorm1d(out_channels))
        )

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        outputs = [self.stem(log_mel)]  # (batch, rows, frames) each
        for name in self.stage_names:
            outputs.append(self.get_submodule(name)(outputs))
        return self.mfa(self.fin_wght1d(outputs))


def _squeeze(wide: int, width: int, group_divisor: int | None) -> nn.Sequential:
    groups = width // group_divisor if group_divisor else 1
    return nn.Sequential(
        nn.Conv2d(wide, width, 3, padding="same", groups=groups),
        nn.BatchNorm2d(width, eps=NORM_EPS),
        nn.GELU(),
        nn.Conv2d(width, width, 1),
    )


class ReDimNetSpeakerEncoder(ModelMixin, ConfigMixin):
    """A voice's waveform, (batch, samples) at 16 kHz, to its embedding, (batch, embedding_dim), not normalised.

    The defaults are ReDimNet-M. `stages` holds for each stage (stride, number of 2-d blocks, channel expansion,
    kernel sizes of a ConvNeXt-like block, reduction of the time context or None).
    """

    @register_to_config
    def __init__(
        self,
        num_mel_bins: int = 72,
        channels: int = 16,
        block_1d_type: str = "att",
        block_2d_type: str = "convnext_like",
        stages: Sequence[Stage] = M_STAGES,
        group_divisor: int | None = 4,
        out_channels: int | None = None,
        embedding_dim: int = 192,
        hop_length: int = 160,
        global_context_attention: bool = False,
        embedding_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        pooled = out_channels or num_mel_bins * channels
        self.spec = LogMelFrontEnd(num_mel_bins, hop_length)
        self.backbone = ReDimNet(
            num_mel_bins, channels, block_1d_type, block_2d_type, stages, group_divisor, out_channels
        )
        self.pool = AttentiveStatisticsPooling(pooled, global_context_attention)
        self.bn = nn.BatchNorm1d(2 * pooled)
        self.linear = nn.Linear(2 * pooled, embedding_dim)
        self.bn2 = nn.BatchNorm1d(embedding_dim) if embedding_batch_norm else nn.Identity()

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.linear.out_features

    @property
    def sampling_rate(self) -> int:
        """Rate in Hz that waveforms must have."""
        return MelSpectrogram.SAMPLING_RATE

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> (batch, embedding_dim); raises ValueError for other shapes and under 512 samples."""
        if waveform.ndim != 2 or waveform.shape[1] < MelSpectrogram.N_FFT:
            raise ValueError(
                f"The speaker encoder takes (batch, samples) with at least {MelSpectrogram.N_FFT} samples and got "
                f"{tuple(waveform.shape)}."
            )
        log_mel = self.spec(waveform)[:, None].to(self.linear.weight.dtype)  # (batch, 1, mel bins, frames)
        pooled = self.bn(self.pool(self.backbone(log_mel)))
        return self.bn2(self.linear(pooled))

    @classmethod
    def from_official(
        cls,
        weights: str | Path | Mapping[str, Any],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Loads a release of ReDimNet: a `.pt` file, or its content `{"model_config": ..., "state_dict": ...}`.

        Raises ValueError where the file is no such release, where its config asks for what this class does not do,
        or where a tensor is missing, surplus or misshapen.
        """
        source = str(weights) if isinstance(weights, str | Path) else "the given ReDimNet weights"
        content = read_torch_file(Path(weights)) if isinstance(weights, str | Path) else weights
        if missing := [key for key in ("model_config", "state_dict") if key not in content]:
            raise ValueError(
                f"{source} is no ReDimNet release: it has no {' and no '.join(missing)}. "
                "Take one of the .pt files of the releases at github.com/IDRnD/ReDimNet."
            )
        config = config_from_official(content["model_config"], source)
        tensors = {k: v for k, v in content["state_dict"].items() if not k.startswith(TRAINING_HEAD_PREFIX)}
        with empty_weights():
            model = cls(**config)
        load_strictly(model, tensors, dtype, device, source=source)
        return model.eval()


def config_from_official(model_config: Mapping[str, Any], source: str = "model_config") -> dict[str, Any]:
    """A release's `model_config` as arguments of `ReDimNetSpeakerEncoder`.

    Raises ValueError, naming the key, where it asks for what the class does not do.
    """
    front_end = model_config.get("spec_params") or {}
    checks = [
        (model_config, OFFICIAL_CONFIG_CHECKS, {*OFFICIAL_CONFIG_NAMES, *OFFICIAL_TRAINING_NAMES}),
        (front_end, OFFICIAL_FRONT_END_CHECKS, FRONT_END_TRAINING_NAMES),
    ]
    for values, known, free in checks:
        for key, value in values.items():
            if key not in free and value not in known.get(key, ()):
                raise ValueError(
                    f"{source} asks for {key} = {value!r}, which this ReDimNet does not do"
                    + (
                        f" (it does {' and '.join(map(repr, known[key]))})."
                        if key in known
                        else " (it does not know the key)."
                    )
                )
    return {ours: model_config[theirs] for theirs, ours in OFFICIAL_CONFIG_NAMES.items() if theirs in model_config}
