"""How long a run will take, learned from the runs of this machine: pure functions of a history and of settings.

Each part (encode, one denoising step, decode) is a sum of costs that cannot be negative: a constant, one that grows
with the work, and for a step one that grows with the square of the sequence (attention). They are fitted by least
squares on relative errors. Where the same settings were run before, their median counts, and between such places the
fit may not leave what they say: larger, longer or more guided clips are never said to be quicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from nava_core.guidance import step_plans
from nava_core.latents import SPATIAL_FACTOR, LatentGeometry
from nava_core.request import GenerationRequest, ModelSpec

RECENT = 5
HISTORY = 60
# After so many steps of a run, its own pace counts as much as the history.
PACE_WEIGHT = 2.0

_Place = tuple[float, ...]  # what a part's time depends on
_Costs = Callable[[_Place], tuple[float, ...]]


@dataclass(frozen=True)
class Settings:
    """What a run's time depends on. tokens: of the joint sequence. passes: forward passes of a step."""

    modality: str
    tokens: int
    steps: int
    passes: int


@dataclass(frozen=True)
class RunTimes:
    """A finished run; seconds. step: one denoising step."""

    settings: Settings
    encode: float
    step: float
    decode: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunTimes:
        return cls(**{**values, "settings": Settings(**values["settings"])})


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run's parts; step: one denoising step of `steps`."""

    encode: float
    step: float
    steps: int
    decode: float

    @property
    def seconds(self) -> float:
        return self.encode + self.steps * self.step + self.decode


def settings_of(request: GenerationRequest, spec: ModelSpec) -> Settings:
    """Of a resolved request for the model of `spec`."""
    assert request.guidance is not None and request.num_inference_steps is not None and request.seconds is not None
    assert request.width is not None and request.height is not None and request.num_frames is not None
    geometry = LatentGeometry.for_clip(
        request.modality, request.width, request.height, request.num_frames, request.seconds
    )
    passes = [len(plan.passes) for plan in step_plans(request)]
    patch = spec.spatial_multiple // SPATIAL_FACTOR  # latents along each side of a token
    picture = geometry.latent_frames * geometry.latent_height * geometry.latent_width // patch**2
    return Settings(
        request.modality,
        picture + geometry.audio_tokens,
        request.num_inference_steps,
        round(sum(passes) / len(passes)),
    )


def predict(history: Sequence[RunTimes], settings: Settings) -> Estimate | None:
    """What a run with `settings` will take, from the runs of the same model, oldest first; None without any."""
    alike = [run for run in history if run.settings.modality == settings.modality]
    recent = (alike or list(history))[-HISTORY:]
    # A run of one step cannot tell that step from the encoding; only where there is nothing better does it count.
    known = [run for run in recent if run.settings.steps > 1] or recent
    if not known:
        return None

    def part(seconds: Callable[[RunTimes], float], place: Callable[[Settings], _Place], costs: _Costs) -> float:
        seen: dict[_Place, list[float]] = {}
        for run in known:
            seen.setdefault(place(run.settings), []).append(seconds(run))
        return _curve({at: median(times[-RECENT:]) for at, times in seen.items()}, place(settings), costs)

    return Estimate(
        encode=part(lambda run: run.encode, lambda at: (1.0,), lambda at: (1.0,)),
        step=part(lambda run: run.step, lambda at: (at.tokens, at.passes), _step_costs),
        steps=settings.steps,
        decode=part(lambda run: run.decode, lambda at: (at.tokens,), lambda at: (1.0, at[0])),
    )


def _step_costs(at: _Place) -> tuple[float, ...]:
    tokens, passes = at
    return 1.0, passes * tokens, passes * tokens * tokens


def _curve(seen: dict[_Place, float], at: _Place, costs: _Costs) -> float:
    """The time at a place from the times of others: the fit, kept between the nearest smaller and larger ones."""
    places = list(seen)
    fitted = float(_fit([costs(place) for place in places], [seen[place] for place in places]) @ np.array(costs(at)))
    floor = max((seen[place] for place in places if _dominates(at, place)), default=0.0)
    ceiling = min((seen[place] for place in places if _dominates(place, at)), default=math.inf)
    return max(floor, min(fitted, ceiling))


def _dominates(larger: Iterable[float], smaller: Iterable[float]) -> bool:
    return all(a >= b for a, b in zip(larger, smaller, strict=True))


def _fit(rows: Sequence[Sequence[float]], times: Sequence[float]) -> np.ndarray:
    """Least squares of relative errors with no negative coefficient: the best of the few sets of costs that may count.

    A set with more costs than there are rows is not tried, and a larger one must be better, not just as good.
    """
    matrix, target = np.array(rows, dtype=float), np.maximum(np.array(times, dtype=float), 1e-6)
    scaled = matrix / target[:, None]
    columns = matrix.shape[1]
    linear = 1 if columns > 1 else 0
    best, best_error = np.zeros(columns), math.inf
    sets = [chosen for size in range(1, columns + 1) for chosen in combinations(range(columns), size)]
    # Work in proportion comes first, so that with one place to go by, twice the work is twice the time.
    for chosen in sorted(sets, key=lambda chosen: (len(chosen), linear not in chosen)):
        if len(chosen) > len(rows):
            break
        solution = np.linalg.lstsq(scaled[:, chosen], np.ones(len(rows)), rcond=None)[0]
        error = float(np.square(scaled[:, chosen] @ solution - 1.0).sum())
        if (solution >= 0).all() and error < best_error * 0.98 - 1e-9:
            best, best_error = np.zeros(columns), error
            best[list(chosen)] = solution
    return best


@dataclass(frozen=True)
class Pace:
    """How far a run is; seconds since it began. first, last: when the first and the newest step were finished."""

    step: int = 0
    first: float | None = None
    last: float | None = None
    decoding: float | None = None

    def at_step(self, step: int, now: float) -> Pace:
        return replace(self, step=step, first=now if self.first is None else self.first, last=now)

    def at_decode(self, now: float) -> Pace:
        return self if self.decoding is not None else replace(self, decoding=now)

    @property
    def seconds_per_step(self) -> float | None:
        """Measured between the first step and the newest; None before the second."""
        if self.step < 2 or self.first is None or self.last is None:
            return None
        return (self.last - self.first) / (self.step - 1)

    def times(self, settings: Settings, ended: float) -> RunTimes | None:
        """What a run that is done has taught; None if nothing."""
        if self.first is None or self.last is None or self.decoding is None:
            return None
        step = self.seconds_per_step
        if step is None:
            return RunTimes(settings, 0.0, self.first, ended - self.decoding)
        return RunTimes(settings, max(self.first - step, 0.0), step, ended - self.decoding)


def remaining(estimate: Estimate | None, steps: int, pace: Pace, now: float) -> float | None:
    """Seconds left of a run that began `now` seconds ago: the estimate, corrected by the run's own pace.

    Without an estimate, the steps that are left (decoding is unknown then); None before there is a pace.
    """
    measured = pace.seconds_per_step
    if estimate is None:
        if measured is None or pace.last is None or pace.decoding is not None:
            return None
        return max((steps - pace.step) * measured - min(now - pace.last, measured), 0.0)
    step, share = estimate.step, 0.0
    if measured is not None:
        share = (pace.step - 1) / (pace.step - 1 + PACE_WEIGHT)
        step = (1 - share) * estimate.step + share * measured
    slower = step / estimate.step if estimate.step else 1.0
    if pace.decoding is not None:
        return max(estimate.decode * slower - (now - pace.decoding), 0.0)
    if pace.last is None:
        begun = min(now, estimate.encode + estimate.step)
        return estimate.seconds - begun
    return (
        (steps - pace.step) * step - min(now - pace.last, step if pace.step < steps else 0.0) + estimate.decode * slower
    )
