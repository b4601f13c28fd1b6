"""How long a soak is and what goes wrong in it; and what is told of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

KEPT_BY_THE_ENGINE = 200
HARMS = {
    "kill the worker": 7,
    "stop the worker": 4,
    "kill the app": 5,
    "close the app": 2,
    "kill the worker while it loads": 2,
    "kill the launcher": 2,
    "kill the app while it pauses": 1,
    "kill the app while it loads": 1,
    "stop the app for a while": 1,
}
ALWAYS = 3  # of these kinds there is one in the shortest soak


@dataclass(frozen=True)
class Plan:
    """jobs: in all; of these `first` before the first look at the memory, and `calm` before the first harm.

    looks: how often each look is taken, after a job each; the allocator alone makes some percent of difference.
    """

    jobs: int
    first: int
    calm: int
    looks: int
    harms: dict[str, int]

    @classmethod
    def of(cls, jobs: int) -> Plan:
        if not 12 <= jobs <= KEPT_BY_THE_ENGINE:
            raise ValueError(f"jobs is {jobs}; give 12 to {KEPT_BY_THE_ENGINE}, for the engine forgets older jobs")
        counts = {harm: round(count * jobs / 200) for harm, count in HARMS.items()}
        harms = {harm: max(count, int(at < ALWAYS)) for at, (harm, count) in enumerate(counts.items())}
        long = jobs >= 100
        return cls(jobs, max(4, jobs // 10), jobs * 3 // 4 if long else jobs // 2, 4 if long else 1, harms)


@dataclass
class Report:
    """What was done and found.

    memory: MB, threads and open files of the processes by moment, the most that was seen then. gone: seconds until a
    group that was harmed had ended; for a killed app those that were left once the next one was open.
    """

    jobs: int = 0
    seed: int = 0
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    failed_of: dict[str, int] = field(default_factory=dict)
    run_again: int = 0
    twins: dict[str, int] = field(default_factory=dict)
    harms: dict[str, int] = field(default_factory=dict)
    gone: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tracebacks: int = 0
    violations: list[str] = field(default_factory=list)

    def growth(self, process: str, since: str, until: str) -> float:
        """By what share the process's memory grew."""
        before, after = (self.memory[moment][process]["megabytes"] for moment in (since, until))
        return after / before - 1.0
