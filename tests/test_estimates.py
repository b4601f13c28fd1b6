"""Estimates on runs whose true cost is known."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_core.engine.estimates import Estimate, Pace, RunTimes, Settings, predict, remaining, settings_of
from nava_core.request import GenerationRequest, ModelSpec


def machine(settings: Settings, noise: float = 0.0, dice: random.Random | None = None) -> RunTimes:
    """A run of a machine with launch costs, linear work and attention; off by up to `noise`."""

    def off() -> float:
        return 1.0 + noise * (dice or random).uniform(-1.0, 1.0) if noise else 1.0

    tokens, passes = settings.tokens, settings.passes
    step = 0.02 + passes * (2e-5 * tokens + 4e-10 * tokens**2)
    return RunTimes(settings, 0.3 * off(), step * off(), (0.5 + 1e-4 * tokens) * off())


def video(tokens: int, steps: int = 20, passes: int = 3) -> Settings:
    return Settings("audio_video", tokens, steps, passes)


def true_seconds(settings: Settings) -> float:
    run = machine(settings)
    return run.encode + settings.steps * run.step + run.decode


def test_without_history_there_is_no_estimate() -> None:
    assert predict([], video(1000)) is None
    assert remaining(None, 20, Pace(), 5.0) is None


def test_the_same_settings_again_take_as_long_as_the_last_times() -> None:
    history = [machine(video(1000)), machine(video(8000))]
    estimate = predict(history, video(1000))
    assert estimate is not None and estimate.seconds == pytest.approx(true_seconds(video(1000)))
    slower = [RunTimes(video(1000), 0.3, 9.0, 1.0)] * 5
    assert predict([*history, *slower], video(1000)).step == 9.0  # type: ignore[union-attr]


def test_one_run_is_enough_for_a_proportion() -> None:
    (run,) = history = [machine(video(1000, passes=2))]
    twice = predict(history, video(2000, passes=2))
    assert twice is not None and twice.step == pytest.approx(2 * run.step) and twice.steps == 20
    assert predict(history, video(1000, passes=4)).step == pytest.approx(2 * run.step)  # type: ignore[union-attr]


def test_the_estimate_improves_with_runs() -> None:
    dice = random.Random(3)
    sizes = [800, 30_000, 5000, 15_000, 2000, 9000, 1200, 20_000]
    wanted = [
        video(tokens, steps, passes) for tokens in (1000, 6000, 25_000) for steps in (10, 50) for passes in (2, 4)
    ]

    def error(history: list[RunTimes]) -> float:
        estimates = [predict(history, settings) for settings in wanted]
        known = [(e.seconds, true_seconds(s)) for e, s in zip(estimates, wanted, strict=True) if e is not None]
        return sum(abs(math.log(estimated / true)) for estimated, true in known) / len(known)

    history = [machine(video(tokens, passes=2 + number % 3), 0.03, dice) for number, tokens in enumerate(sizes)]
    errors = [error(history[:count]) for count in (1, 3, 8)]
    # Three runs of different sizes already come down to the noise of the measurements.
    assert errors[0] > 3 * errors[1] and max(errors[1:]) < 0.03


RUNS = st.lists(
    st.builds(
        lambda tokens, passes, steps, encode, step, decode: RunTimes(
            Settings("audio_video", tokens, steps, passes), encode, step, decode
        ),
        st.integers(50, 40_000),
        st.integers(1, 4),
        st.integers(1, 50),
        *[st.floats(1e-3, 100.0)] * 3,
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80)
@given(
    RUNS, st.lists(st.tuples(st.integers(50, 40_000), st.integers(1, 50), st.integers(1, 4)), min_size=2, max_size=2)
)
def test_more_never_takes_less_whatever_was_measured(history: list[RunTimes], two: list[tuple[int, int, int]]) -> None:
    small = Settings("audio_video", *(min(pair) for pair in zip(*two, strict=True)))
    large = Settings("audio_video", *(max(pair) for pair in zip(*two, strict=True)))
    less, more = predict(history, small), predict(history, large)
    assert less is not None and more is not None
    assert 0.0 <= less.seconds <= more.seconds * (1 + 1e-9) and math.isfinite(more.seconds)


def test_sound_alone_does_not_learn_from_pictures_where_it_can_help_it() -> None:
    sound = Settings("audio", 150, 20, 2)
    pictures = [machine(video(8000)), machine(video(1000))]
    assert predict(pictures, sound) is not None
    own = RunTimes(sound, 0.1, 0.05, 0.2)
    assert predict([own, *pictures], sound) == Estimate(0.1, 0.05, 20, 0.2)


def test_a_runs_own_pace_takes_over() -> None:
    """The history says 1 s a step; this run takes 3."""
    estimate = Estimate(encode=2.0, step=1.0, steps=20, decode=5.0)
    pace = Pace()
    assert remaining(estimate, 20, pace, 0.0) == 27.0
    assert remaining(estimate, 20, pace, 1.0) == 26.0
    left = []
    for step in range(1, 21):
        now = 2.0 + 3.0 * step
        pace = pace.at_step(step, now)
        left.append(remaining(estimate, 20, pace, now))
        true = 3.0 * (20 - step) + 15.0
        if step > 10:
            assert left[-1] == pytest.approx(true, rel=0.15)
    assert left[0] == 24.0 and pace.seconds_per_step == 3.0
    pace = pace.at_decode(62.0)
    last = remaining(estimate, 20, pace, 64.0)
    assert last == pytest.approx(15.0 * 0.93 - 2.0, abs=0.5)
    assert remaining(estimate, 20, pace, 1000.0) == 0.0


def test_without_history_the_pace_tells_of_the_steps() -> None:
    pace = Pace().at_step(1, 5.0)
    assert remaining(None, 10, pace, 5.0) is None
    pace = pace.at_step(2, 7.0).at_step(3, 9.0)
    assert remaining(None, 10, pace, 10.0) == 13.0


def test_a_run_teaches_its_parts_and_they_can_be_written_down() -> None:
    pace = Pace().at_step(1, 5.0).at_step(2, 7.0).at_step(3, 9.0).at_decode(9.5)
    times = pace.times(video(1000, 3), 12.5)
    assert times == RunTimes(video(1000, 3), 3.0, 2.0, 3.0)
    assert RunTimes.from_json(json.loads(json.dumps(times.to_json()))) == times
    assert Pace().times(video(1000), 1.0) is None
    single = Pace().at_step(1, 5.0).at_decode(5.0).times(video(1000, 1), 6.0)
    assert single == RunTimes(video(1000, 1), 0.0, 5.0, 1.0)
    assert predict([single, times], video(1000, 3)).step == 2.0  # type: ignore[union-attr, list-item]


def test_settings_count_what_is_computed() -> None:
    spec = ModelSpec("m")
    guided = settings_of(GenerationRequest("x", width=64, height=64, num_frames=13).resolve(spec), spec)
    # 2 x 2 tokens of 32 x 32 pixels in each of 4 latent frames, and 25 a second of sound.
    assert guided == Settings("audio_video", 4 * 4 + 14, 50, 3)
    sound = settings_of(GenerationRequest("x", modality="audio", seconds=2.0).resolve(spec), spec)
    assert (sound.tokens, sound.modality) == (50, "audio")
