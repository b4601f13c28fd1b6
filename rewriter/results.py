"""What rewriting a prompt gives, and the counts of how it went."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["as is", "repaired", "retried", "composed"]
EventKind = Literal["thinking", "text", "retry", "done"]


class RewriteError(Exception):
    """A prompt could not be rewritten; the message says why and what to do."""


class BackendUnavailable(RewriteError):
    """There is nothing that could rewrite: no server, no model. Other prompts would fail as well."""


class RewriteCancelled(RewriteError):
    """Somebody asked to stop."""


@dataclass(frozen=True)
class RewriteResult:
    """A caption and how it came about.

    backend: "vllm", "transformers" or "offline". outcome: the model's first reply was used "as is" or "repaired", a
    later one was needed ("retried"), or the caption was "composed" by rule. attempts: replies asked for, 0 for the
    offline composer. notes: what a person may want to know, in English.
    """

    prompt: str
    caption: str
    backend: str
    outcome: Outcome
    attempts: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RewriteEvent:
    """A piece of a running rewrite.

    "thinking" and "text" carry what is new; "retry" says why what was shown so far is void; "done" has the result.
    Streamed text is for showing: only the result's caption has been checked.
    """

    kind: EventKind
    text: str = ""
    result: RewriteResult | None = None


@dataclass(frozen=True)
class RewriteCounts:
    """How many prompts ended in which way, and the replies asked for."""

    as_is: int = 0
    repaired: int = 0
    retried: int = 0
    composed: int = 0
    failed: int = 0
    attempts: int = 0

    @property
    def total(self) -> int:
        """Prompts that got a caption."""
        return self.as_is + self.repaired + self.retried + self.composed

    def rate(self, outcome: Outcome) -> float:
        """Share of the prompts with a caption that ended in `outcome`, from 0 to 1."""
        number: int = getattr(self, outcome.replace(" ", "_"))
        return number / self.total if self.total else 0.0

    def __str__(self) -> str:
        shares = ", ".join(
            f"{getattr(self, outcome.replace(' ', '_'))} {outcome} ({self.rate(outcome):.0%})"
            for outcome in get_args(Outcome)
        )
        return f"{self.total} captions: {shares}; {self.attempts} replies, {self.failed} prompts failed"


class Tally:
    """Counts that several threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}

    def add(self, result: RewriteResult) -> None:
        with self._lock:
            self._increase(result.outcome.replace(" ", "_"), 1)
            self._increase("attempts", result.attempts)

    def add_failure(self) -> None:
        with self._lock:
            self._increase("failed", 1)

    @property
    def counts(self) -> RewriteCounts:
        with self._lock:
            return RewriteCounts(**self._numbers)

    def _increase(self, name: str, number: int) -> None:
        self._numbers[name] = self._numbers.get(name, 0) + number
