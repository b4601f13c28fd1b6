"""Pictures of a clip in the making, for whoever runs one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from nava_core.pipeline import NavaPipeline

PREVIEW_INTERVAL = 0.7
# A preview may cost this share of the time between two of them. With the first, and all else that a job costs, a run is
# to take at most 2% longer than it would alone.
PREVIEW_SHARE = 0.0075


class Preview:
    """Pictures of one clip, at most every PREVIEW_INTERVAL seconds and never a burden."""

    def __init__(self) -> None:
        self._next = 0.0

    def picture(self, pipeline: NavaPipeline, denoised: torch.Tensor | None) -> np.ndarray | None:
        """A new picture `(height, width, 3)` uint8, or None where it is too early or there is nothing to see.

        denoised: the predicted clean video latents `(channels, latent_frames, latent_height, latent_width)`.
        """
        if denoised is None or pipeline.vae is None or time.monotonic() < self._next:
            return None
        from nava_core.export import preview_image

        started = time.monotonic()
        picture = preview_image(pipeline.vae, denoised)
        cost = time.monotonic() - started
        self._next = time.monotonic() + max(PREVIEW_INTERVAL, cost / PREVIEW_SHARE)
        return picture
