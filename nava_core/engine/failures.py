"""What went wrong in a run, in words for people, and the memory that it leaves behind."""

from __future__ import annotations

import gc

import torch

from nava_core.engine.jobs import JobError
from nava_core.ffmpeg import MediaError
from nava_core.profiles import smaller_profile
from nava_core.request import GenerationRequest, RequestError


def explain(error: BaseException, request: GenerationRequest, profile: str | None = None) -> JobError:
    """The error of a run of `request` as its job shows it. profile: how the model was laid out on the device."""
    if isinstance(error, RequestError):
        return JobError(str(error), error.field, "request")
    if is_out_of_memory(error):
        asked = f"{request.width}x{request.height} pixels, {request.num_frames} frames"
        smaller = None if profile is None else smaller_profile(profile)
        way_out = "" if smaller is None else f", or start again with --profile {smaller} (now {profile})"
        return JobError(
            f"there was not enough memory for this clip ({asked}); choose a smaller size or fewer seconds{way_out}",
            kind="out_of_memory",
        )
    if isinstance(error, MediaError):  # its message is written for people
        return JobError(str(error))
    return JobError(f"{type(error).__name__}: {error}")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's allocator on the CPU


def release_memory() -> None:
    """Give back what a run held. Call it outside its error's handlers: there the traceback still holds the tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
