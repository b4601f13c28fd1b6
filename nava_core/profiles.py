"""How a model is laid out on a device of a given size: the named profiles of configs/profiles.yaml. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

PROFILE_FILE = Path(__file__).resolve().parents[1] / "configs" / "profiles.yaml"
AUTO = "auto"
Weights = Literal["stored", "fp8", "int8"]
Blocks = Literal["resident", "offloaded"]
TextEncoder = Literal["resident", "streamed"]
Vae = Literal["whole", "tiled"]
Decode = Literal["beside", "alone"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "weights": get_args(Weights),
    "blocks": get_args(Blocks),
    "text_encoder": get_args(TextEncoder),
    "vae": get_args(Vae),
    "decode": get_args(Decode),
}


@dataclass(frozen=True)
class Profile:
    """One layout; configs/profiles.yaml says what the values mean. memory_gb None: `auto` does not take it."""

    name: str
    memory_gb: float | None = None
    weights: Weights = "stored"
    blocks: Blocks = "resident"
    text_encoder: TextEncoder = "resident"
    vae: Vae = "whole"
    decode: Decode = "beside"
    ffn_chunk: int | None = 8192

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"profile {self.name}: {key} is {getattr(self, key)!r}; choose {', '.join(choices)}")
        if self.weights != "stored" and self.blocks == "offloaded":
            raise ValueError(f"profile {self.name}: {self.weights} weights and offloaded blocks do not go together")

    @property
    def is_lossless(self) -> bool:
        """Whether a clip is the one that the resident model makes, to the rounding of the same arithmetic."""
        return self.weights == "stored" and self.vae == "whole"


@cache
def read_profiles() -> dict[str, Profile]:
    """The profiles by name, those of `auto` first, from the largest device to the smallest."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(PROFILE_FILE.read_text(encoding="utf-8"))
    known = {item.name for item in fields(Profile)}
    for name, values in content.items():
        if surplus := set(values) - known:
            raise ValueError(f"{PROFILE_FILE}: profile {name} has the unknown keys {', '.join(sorted(surplus))}")
    return {name: Profile(name, **values) for name, values in content.items()}


def profile_names() -> tuple[str, ...]:
    """What may be asked for."""
    return (AUTO, *read_profiles())


def find_profile(name: str) -> Profile:
    """The profile of a name. Raises ValueError."""
    if name not in read_profiles():
        raise ValueError(f"There is no profile {name!r}. Known: {', '.join(profile_names())}.")
    return read_profiles()[name]


def sized_profiles() -> list[Profile]:
    """Those that `auto` chooses from, the largest device first."""
    return [profile for profile in read_profiles().values() if profile.memory_gb is not None]


def choose_profile(free_bytes: int | None, weight_bytes: int) -> Profile:
    """What `auto` takes.

    Args:
        free_bytes: free memory of the device; None: it is the host's own (CPU).
        weight_bytes: all weights of the model as loaded. A model that fills less than half of the device, such as
            nava-nano on any, is simply kept there.
    """
    if free_bytes is None:
        return find_profile("cpu")
    sized = sized_profiles()
    if 2 * weight_bytes <= free_bytes:
        return sized[0]
    return next((profile for profile in sized if (profile.memory_gb or 0) * 1e9 <= free_bytes), sized[-1])


def smaller_profile(name: str) -> str | None:
    """The next profile that needs less of a device than `name`; None where there is none."""
    sized = [profile.name for profile in sized_profiles()]
    if name in sized:
        return next(iter(sized[sized.index(name) + 1 :]), None)
    return {"int8": "12gb", "offload": "8gb"}.get(name)
