"""What a benchmark is made of: rows, and runs in pairs whose ratios resist a busy machine.

Two ways of doing the same are run in turn, A B A B; each A is divided by the B right after it, and the median of these
ratios counts. What is measured is processor time of one thread. On a loaded machine the same work took 266 to 945 ms by
the clock, while ratios of processor time held within 5%.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

Sense = Literal["at_least", "at_most"]


@dataclass(frozen=True)
class Row:
    """One ratio beside its limit.

    value: None where the part could not be measured. spread: lower and upper quartile of what `value` is the median of;
    equal to it where something was counted. detail: "summary", a sentence for people, and the numbers behind it.
    holds: further conditions, such as equal outputs, without which the row is not met whatever its value.
    """

    name: str
    value: float | None
    limit: float
    sense: Sense
    spread: tuple[float, float] | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    holds: bool = True

    @property
    def ok(self) -> bool:
        """Whether the limit is met."""
        if self.value is None or not self.holds:
            return False
        return self.value >= self.limit if self.sense == "at_least" else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """`{name, value, limit, at_most | at_least, ok, spread, detail}`; the fourth is the limit again."""
        return {
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            self.sense: self.limit,
            "ok": self.ok,
            "spread": None if self.spread is None else list(self.spread),
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Pairs:
    """Seconds (or any cost) of both sides, pair by pair."""

    first: list[float]
    second: list[float]

    @property
    def ratios(self) -> list[float]:
        """`first / second` of each pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        return quartiles(self.ratios)

    @property
    def medians(self) -> tuple[float, float]:
        return median(self.first), median(self.second)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile of one or more values."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return lower, upper


def processor_seconds(action: Callable[[], Any]) -> float:
    """Of this process, all its threads together."""
    started = time.process_time()
    action()
    return time.process_time() - started


def paired(
    first: Callable[[], Any],
    second: Callable[[], Any],
    budget: float,
    *,
    at_least: int = 2,
    at_most: int = 15,
    cost: Callable[[Callable[[], Any]], float] = processor_seconds,
    clock: Callable[[], float] = time.monotonic,
) -> Pairs:
    """Run both in turn until `budget` seconds by the clock would be exceeded by another pair.

    Both must have been warmed up. Even where one pair exceeds the budget, `at_least` are run: a single one has no
    spread.
    """
    pairs = Pairs([], [])
    began = clock()
    while len(pairs.first) < at_most:
        done = len(pairs.first)
        spent = clock() - began
        if done >= at_least and spent + spent / done > budget:
            break
        pairs.first.append(cost(first))
        pairs.second.append(cost(second))
    return pairs
