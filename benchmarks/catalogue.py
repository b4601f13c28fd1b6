"""The parts of the suite by name. A part's module is loaded when the part runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from benchmarks.harness import Row, Sense


@dataclass(frozen=True)
class Part:
    """title: what its ratio compares. function: `module:name` of what measures it, given seconds to spend.

    environment: of the part's process, beside what it inherits.
    """

    title: str
    function: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Callable[[float], list[Row]]:
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"benchmarks.{module}"), name)


PARTS = {
    "pass": Part("official structure / ours, one pass", "backbone:pass_part"),
    "bare": Part("ours / bare products, attention and GELU", "backbone:bare_part"),
    "fixed": Part("time and text of a pass, official structure / ours", "backbone:fixed_part"),
    "memory": Part("peak memory above the weights, official structure / ours", "backbone:memory_part"),
    "batching": Part("sound alone, passes one by one / batched", "audio:batching_part"),
    "audio": Part("sound alone, a whole step, official structure / ours", "audio:step_part"),
    "ulysses": Part("processor time of a rank, 2 ranks / 1", "ranks:ulysses_part"),
    "vae": Part("streamed decode, peak memory of 37 latent frames / of 5", "decoding:decoding_part"),
    "load": Part("loading, peak memory / bfloat16 weights", "loading:loading_part"),
    "offload": Part(
        "block offload, bytes a step / bytes of the blocks",
        "offloading:offload_part",
        # The weights' copies lie elsewhere in memory, which MKL's sums depend on unless it is told not to.
        {"MKL_CBWR": "AUTO,STRICT"},
    ),
    "engine": Part("a job over the bare call", "jobs:engine_part"),
    "rewriter": Part("rewriter, 32 prompts one by one / at once", "rewriting:rewriter_part"),
}

TARGETS: dict[str, tuple[Sense, float]] = {
    "pass": ("at_least", 1.5),
    "bare": ("at_most", 1.08),
    "fixed": ("at_least", 10.0),
    "memory": ("at_least", 3.0),
    "batching": ("at_least", 1.2),
    "batching.choice": ("at_least", 0.97),
    "audio": ("at_least", 1.6),
    "ulysses": ("at_most", 0.56),
    "ulysses.exchanges": ("at_most", 2.0),
    "vae": ("at_most", 1.1),
    "load": ("at_most", 1.1),
    "offload": ("at_most", 1.0),
    "engine": ("at_most", 0.02),
    "engine.cancel": ("at_most", 1.0),
    "rewriter": ("at_least", 3.0),
}
"""Of each row, `part` or `part.more`."""


def row(
    name: str,
    value: float | None,
    detail: dict[str, Any],
    spread: tuple[float, float] | None = None,
    holds: bool = True,
) -> Row:
    """A row with its target. spread: quartiles; None where the value was counted and has no noise."""
    sense, limit = TARGETS[name]
    if spread is None and value is not None:
        spread = value, value
    return Row(name, value, limit, sense, spread, detail, holds)
