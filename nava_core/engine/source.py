"""Which pipeline an engine runs, in words that a command line, a worker process or a file can carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline

PRECISIONS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class PipelineSource:
    """The arguments of `load_pipeline` as text; None is that function's default."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    profile: str | None = None

    def load(self) -> NavaPipeline:
        """Load it. Raises ValueError as `load_pipeline` does."""
        import torch

        from nava_core.checkpoint import load_pipeline

        if self.dtype is not None and self.dtype not in PRECISIONS:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(PRECISIONS)}")
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return load_pipeline(self.model, device=self.device, dtype=dtype, profile=self.profile)
