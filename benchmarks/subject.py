"""What is measured: a model of the true width with one block of each kind, and inputs for it.

The patch embedding of audio is replaced by a plain projection on both sides of every comparison. The real one has 528
million weights: about 9% of a pass of sound alone in the whole model, but more than half of one beside two blocks,
where it would hide what the blocks cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import compute_dtype
from nava_core.models.transformer_nava import NavaTransformer3DModel, NavaTransformerOutput

TEXT_ROWS = 200  # of a dense caption; the model pads them to its 512
WHOLE_MODEL = (10, 20)  # alignment and fusion layers of the 6.3B model
POOL = 1_000_003  # a prime, so that rows of the repeated numbers differ


class AudioProjection(nn.Linear):
    """Audio latents (batch, tokens, channels) -> (batch, tokens, dim)."""


def make_model(dtype: torch.dtype | None = None, device: str = "cpu", **config: Any) -> NavaTransformer3DModel:
    """One alignment and one fusion layer at the width of the 6.3B model; `config` changes that.

    On the device "meta" it has shapes alone. The numbers
    repeat, which no kernel notices and which takes a second instead of half a minute.
    """
    settings = {"num_layers": 1, "num_single_layers": 1} | config
    with torch.device("meta"):
        model = NavaTransformer3DModel(**settings)
        dim = model.config.num_attention_heads * model.config.attention_head_dim
        model.patch_embedding_audio = AudioProjection(model.config.audio_in_channels, dim)
    nn.Module.to(
        model, dtype or compute_dtype()
    )  # the library's own warns of layers to be kept, of which there are none
    model.requires_grad_(False).eval()
    if device == "meta":
        return model
    model.to_empty(device=device)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        _fill(name, parameter, pool)
    return model


@torch.no_grad()
def _fill(name: str, parameter: Tensor, pool: Tensor) -> None:
    flat = parameter.view(-1)
    scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
    offset = sum(name.encode()) * 7919 % POOL
    scaled = (torch.cat([pool[offset:], pool[:offset]])[: flat.numel()] * scale).to(parameter.dtype)
    for start in range(0, flat.numel(), POOL):
        flat[start : start + POOL] = scaled[: flat.numel() - start]
    if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
        flat += 1


@dataclass(frozen=True)
class Inputs:
    """One pass. video (batch, channels, frames, height, width) or None; audio (batch, tokens, channels) or None;
    timestep (1,); text (batch, rows, text_dim).
    """

    video: Tensor | None
    audio: Tensor | None
    timestep: Tensor
    text: Tensor

    def ours(self, model: NavaTransformer3DModel, context: object = None, isolated: bool = False) -> Streams:
        """Our pass; with `context`, the text's projections of earlier passes."""
        output: NavaTransformerOutput = model(
            self.video,
            self.audio,
            self.timestep,
            self.text if context is None else context,
            isolate_modalities=isolated,
        )
        return output.sample, output.audio_sample


Streams = tuple[Tensor | None, Tensor | None]


def make_inputs(
    model: NavaTransformer3DModel, video: tuple[int, int, int] | None = (7, 24, 24), audio: int = 25
) -> Inputs:
    """Latents of `video` (frames, height, width; None: no picture) and `audio` tokens (0: no sound).

    By default a second of 384x384 pixels with its sound: 1,008 + 25 tokens.
    """
    config, draw = model.config, torch.Generator().manual_seed(1)
    return Inputs(
        None if video is None else torch.randn(1, config.in_channels, *video, generator=draw),
        torch.randn(1, audio, config.audio_in_channels, generator=draw) if audio else None,
        torch.tensor([637.0]),
        torch.randn(1, min(TEXT_ROWS, config.text_len), config.text_dim, generator=draw),
    )


SMALL = ((2, 4, 4), 4)
"""Sizes of a pass that warms everything up: it reads all weights and takes a second."""


def largest_error(actual: Streams, expected: Streams) -> float:
    """Of the largest expected value, over both streams."""
    errors = []
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            errors.append(((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item())
    return max(errors)


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Within which the official structure must agree with ours: rounding in another order, nothing else."""
