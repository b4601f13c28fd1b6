"""What every trainer needs: seeds, resumable checkpoints, averaged weights, a schedule, a metrics log."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import nn
from torch.overrides import TorchFunctionMode

from nava_core.checkpoint import cpu_computes_in_bfloat16

CHECKPOINT_NAME = "checkpoint.pt"


def load_config(path: str | Path) -> dict[str, Any]:
    """A trainer's YAML as a dictionary."""
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}; a training config is a mapping of names to values")
    return config


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Data made by index should not depend on it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _Float32Attention(TorchFunctionMode):
    """Attention in float32 under autocast: in bfloat16 its backward pass takes 2 times as long, 4 with AMX."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})


def _float32(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


@contextmanager
def mixed_precision(precision: str) -> Iterator[None]:
    """The context of a forward pass: weights stay float32, and "bfloat16" multiplies in bfloat16.

    "auto" does so where the CPU has the instructions (AMX, AVX512-BF16), which makes matrix products 2 to 15 times
    faster; emulated it is 60 times slower, so that any other CPU gets "float32".
    """
    if precision not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"precision is {precision!r}; it must be auto, bfloat16 or float32")
    enabled = precision == "bfloat16" or (precision == "auto" and cpu_computes_in_bfloat16())
    attention = _Float32Attention() if enabled else nullcontext()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), attention:
        yield


def write_atomically(path: str | Path, write: Any) -> None:
    """Call `write(temporary_path)`, then put the file in place, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: str | Path, arrays: dict[str, Any]) -> None:
    """Arrays by name as an .npz file that is never seen half-written."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a bare path would be given an ending
            np.savez(file, **arrays)

    write_atomically(path, write)


def save_checkpoint(folder: str | Path, step: int, **state: Any) -> Path:
    """Store `state` (anything with a `state_dict`, else plain values) as the folder's checkpoint."""
    plain = {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in state.items()}
    path = Path(folder) / CHECKPOINT_NAME
    write_atomically(path, lambda temporary: torch.save({"step": step, **plain}, temporary))
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The folder's checkpoint with its `step`, or None where there is none yet."""
    path = Path(folder) / CHECKPOINT_NAME
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def warmup_cosine(progress: float, warmup: float = 0.02, final: float = 0.05) -> float:
    """Learning rate factor at `progress` in [0, 1] of the run: linear warm-up, then a cosine down to `final`."""
    if warmup > 0 and progress < warmup:
        return max(progress, 1e-3 * warmup) / warmup
    done = min(max((progress - warmup) / max(1 - warmup, 1e-8), 0.0), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_hold_decay(progress: float, warmup: float = 0.02, decay: float = 0.25) -> float:
    """Learning rate factor: linear warm-up, constant, then straight down to zero over the last `decay` of the run."""
    if warmup > 0 and progress < warmup:
        return max(progress, 1e-3 * warmup) / warmup
    return min(1.0, max(1.0 - progress, 0.0) / decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


class EMA:
    """Moving average of a module's parameters, in float32.

    Early on the decay is lowered to (1 + n) / (10 + n), so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().float().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.named_parameters():
            self.shadow[name].lerp_(value.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into `module`, in its own dtype."""
        for name, value in module.named_parameters():
            value.copy_(self.shadow[name])

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing = self.shadow.keys() ^ state["shadow"].keys()
        if missing:
            raise ValueError(f"the checkpoint's averages and the model differ in {sorted(missing)[:5]}")
        self.decay, self.updates = state["decay"], state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


class MetricsLog:
    """One JSON object a line: `step`, seconds since the epoch, and the values given."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, **values: float | int | str) -> None:
        line = json.dumps({"step": step, "time": round(time.time(), 1), **values}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]


def _processor_seconds() -> float:
    return time.process_time() / torch.get_num_threads()


class RunClock:
    """How much of a run is done, in steps or in minutes of training, whichever is first; survives a resume.

    Minutes are of processor time, over the threads, so that a run that is stopped for a while or shares its processors
    trains as much as one that has them to itself.
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None, spent: float = 0.0) -> None:
        if steps is None and minutes is None:
            raise ValueError("a run needs an end: give steps, minutes or both")
        self.steps, self.minutes = steps, minutes
        self.started = _processor_seconds() - spent

    @property
    def spent(self) -> float:
        """Seconds of training, earlier parts of a resumed run included."""
        return _processor_seconds() - self.started

    def progress(self, step: int) -> float:
        """Between 0 and 1; 1 is the end."""
        shares = [step / self.steps] if self.steps else []
        if self.minutes:
            shares.append(self.spent / (60 * self.minutes))
        return min(max(shares), 1.0)


class Ranks:
    """The processes that train together; one without torchrun."""

    def __init__(self) -> None:
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group("gloo")
        together = dist.is_initialized()
        self.count, self.index = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        pieces = (flat / self.count).split([gradient.numel() for gradient in gradients])
        for parameter, gradient in zip(parameters, pieces, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def progress(self, clock: RunClock, step: int) -> float:
        """The first rank's clock counts, so that all take the same number of steps at the same learning rates."""
        value = torch.tensor(clock.progress(step))
        if self.count > 1:
            dist.broadcast(value, src=0)
        return value.item()


def count_parameters(modules: Iterable[nn.Module]) -> int:
    return sum(value.numel() for module in modules for value in module.parameters())
