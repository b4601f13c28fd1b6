"""The official sampling schedule on the library's UniPC scheduler (NAVA.md section 5)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

DEFAULT_SHIFT = 5.0
SIGMA_START = 0.999


def make_scheduler() -> UniPCMultistepScheduler:
    """UniPC of order 2 (bh2) on flow sigmas; the shift is in the sigmas that are given, see `flow_sigmas`."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


def shifted(sigma: Any, shift: Any) -> Any:
    """Noise levels moved towards 1, as the resolution asks; numbers or arrays."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(num_inference_steps: int, shift: float = DEFAULT_SHIFT) -> np.ndarray:
    """Noise levels of the steps, from nearly 1 down, without the closing 0. The official code shifts twice."""
    return shifted(np.linspace(shifted(SIGMA_START, shift), 0, num_inference_steps + 1)[:-1], shift)


class StreamSampler:
    """One stream's latents on their way from noise to data; float32. A clip has one for each stream it carries."""

    def __init__(self, scheduler: UniPCMultistepScheduler, latents: Tensor, sigmas: np.ndarray):
        # The scheduler remembers past steps, so streams and concurrent runs must not share one.
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
        # Else it looks its place up by the first timestep, which beyond 208 steps is not the only one of its value.
        self.scheduler.set_begin_index(0)
        self.latents = latents.float()
        self.denoised: Tensor | None = None

    @property
    def timesteps(self) -> Tensor:
        return self.scheduler.timesteps

    def step(self, index: int, velocity: Tensor) -> None:
        """Advance by one step; `denoised` is then the clean latents predicted from where it started."""
        velocity = velocity.float()
        sigma = self.scheduler.sigmas[index].to(self.latents.device)
        self.denoised = self.latents - sigma * velocity
        timestep = self.timesteps[index]
        self.latents = self.scheduler.step(velocity, timestep, self.latents, return_dict=False)[0]

    def place_first_frame(self, image_latents: Tensor | None) -> None:
        """Latent frame 0 of (channels, frames, height, width) becomes the given image."""
        if image_latents is not None:
            self.latents = torch.cat([image_latents, self.latents[:, 1:]], dim=1)
