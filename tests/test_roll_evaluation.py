"""The measure and the evaluation of rolling balls, on the world's own clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfect import PerfectPipeline, recoloured
from scipy import ndimage

from training import evaluate_roll, scores_roll, shots, speaking, world
from training.evaluation import SHUFFLED
from training.measure_roll import find_contact, measure_roll, measure_roll_clip, thing_colours
from training.rolling import Roll


def worn(frames: np.ndarray) -> np.ndarray:
    """The softness and the noise of an autoencoder's decoder."""
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (0.3, 0.9, 0.9, 0))
    return np.clip(soft + np.random.default_rng(0).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)


def drawn(seed: int, **changes: Any) -> tuple[Roll, np.ndarray, np.ndarray]:
    """A roll, its frames and its sound."""
    shot = shots.sample_shot(np.random.default_rng(seed), "roll", ("train", "held_out")[seed % 2])
    assert shot.roll is not None
    shot = replace(shot, roll=replace(shot.roll, **changes))
    assert shot.roll is not None
    return shot.roll, shots.render_frames(shot), speaking.render_sound(shot, None)


@pytest.fixture(scope="module")
def outcomes() -> list[scores_roll.Outcome]:
    made = []
    for seed in range(12):
        roll, frames, sound = drawn(seed)
        made.append(scores_roll.Outcome(roll, measure_roll_clip(worn(frames), sound), 1.0))
    return made


def test_looks_side_and_place_are_read_from_worn_pictures(outcomes: list[scores_roll.Outcome]) -> None:
    for outcome in outcomes:
        roll, seen = outcome.roll, outcome.clip.picture
        assert (seen.shape, seen.colour, seen.ball_colour) == (roll.shape, roll.colour, roll.ball_colour)
        assert seen.side == roll.side and seen.x == pytest.approx(0.5 + roll.x, abs=0.02)


def test_contacts_are_seen_and_heard_within_20_ms(outcomes: list[scores_roll.Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.clip.picture.contact == pytest.approx(outcome.roll.contact, abs=0.02)
        assert outcome.clip.sound.onsets == pytest.approx([outcome.roll.contact], abs=0.02)


def test_own_sound_scores_full_and_anothers_does_not(outcomes: list[scores_roll.Outcome]) -> None:
    own = scores_roll.score(outcomes)
    for name in scores_roll.SHARES:
        assert own[name] == 1.0, name
    assert own["contact"] == 1.0 and own["moment error"] < 0.01 and own["sync error"] < 0.02
    others = scores_roll.score(scores_roll.shuffled(outcomes))
    assert others["sync 60ms"] < 0.3 and others["pan sign"] < 0.9
    assert others["colour&shape"] == 1.0
    with pytest.raises(ValueError, match="two or more"):
        scores_roll.shuffled(outcomes[:1])


def carried(roll: Roll, frames: np.ndarray) -> float:
    clip = measure_roll_clip(worn(frames), np.zeros((2, 4800)))
    return scores_roll.score([scores_roll.Outcome(roll, clip, 1.0)])["carried"]


def test_colours_that_change_in_the_last_third_are_not_carried_on() -> None:
    for seed in (1, 2):
        roll, frames, _ = drawn(seed, colour="red", ball_colour="blue")
        others = ({"colour": "green"}, {"ball_colour": "white"}, {"colour": "blue", "ball_colour": "red"})
        for changes in others:
            changed = drawn(seed, **({"colour": "red", "ball_colour": "blue"} | changes))[1]
            assert carried(roll, np.concatenate([frames[:33], changed[33:]])) == 0
        assert carried(roll, np.concatenate([frames[:33], np.full_like(frames[33:], 90)])) == 0
        assert carried(roll, frames) == 1


def test_what_was_hit_may_roll_out_of_the_picture() -> None:
    gone, frames, _ = drawn(1, side="left", shape="ball", x=0.2, speed=1.1, contact=0.41, ball_colour="blue")
    assert thing_colours(worn(frames[40:])) == ("blue",)
    alone = np.concatenate([frames[:33], np.repeat(frames[40:41], 16, axis=0)])
    assert carried(gone, alone) == 1 and carried(replace(gone, ball_colour="red"), alone) == 0
    assert carried(replace(gone, speed=0.45), alone) == 0


@pytest.mark.parametrize(("shape", "radius"), [("cube", 0.137), ("triangle", 0.159), ("cube", 0.159)])
def test_large_things_that_fill_half_of_a_row_are_found(shape: str, radius: float) -> None:
    """A triangle's base and the ball fill more than half of the rows just above the floor, once both stay in view."""
    large = {"size": "large", "radius": radius, "ball_size": "large", "ball_radius": radius}
    for seed in range(3):
        roll, frames, _ = drawn(seed, shape=shape, **large)
        seen = measure_roll(worn(frames))
        assert (seen.shape, seen.colour, seen.ball_colour) == (shape, roll.colour, roll.ball_colour)
        assert seen.contact == pytest.approx(roll.contact, abs=0.02)


def test_frames_in_which_a_blur_takes_a_part_of_the_shape_are_left_out() -> None:
    roll, frames, _ = drawn(0, side="left", shape="cube", x=0.0, contact=0.8, radius=0.14, ball_radius=0.1, speed=0.8)
    size, contact = frames.shape[1], round(0.8 * world.FPS)
    left, floor = round(size * (0.5 - roll.radius)), round(size * world.FLOOR)
    for frame in frames[contact - 3 : contact + 1]:
        frame[:floor, left : left + round(1.2 * roll.radius * size)] = frame[:floor, 4:5]
    assert measure_roll(worn(frames)).contact == pytest.approx(roll.contact, abs=0.02)


def test_things_of_one_colour_are_told_apart_by_their_motion() -> None:
    roll, frames, _ = drawn(2, colour="green", ball_colour="green")
    seen = measure_roll(worn(frames))
    assert (seen.shape, seen.colour, seen.ball_colour, seen.side) == (roll.shape, "green", "green", roll.side)
    assert seen.contact == pytest.approx(roll.contact, abs=0.02)


def test_mirrored_pictures_come_from_the_other_side() -> None:
    roll, frames, _ = drawn(3)
    seen = measure_roll(frames[:, :, ::-1])
    assert seen.side != roll.side and seen.x == pytest.approx(0.5 - roll.x, abs=0.02)
    assert seen.contact == pytest.approx(roll.contact, abs=0.02)


def test_nothing_is_found_where_nothing_rolls() -> None:
    _, frames, _ = drawn(4)
    still = measure_roll(np.repeat(frames[-1:], len(frames), axis=0))
    assert still.side is None and still.contacts == ()
    scene = world.sample_scene(np.random.default_rng(0))
    assert measure_roll(world.render_frames(scene)).contacts == ()
    noise = np.random.default_rng(0).normal(100, 5, (49, 64, 64, 3))
    assert measure_roll(np.clip(noise, 0, 255).astype(np.uint8)).shape is None
    silent = scores_roll.Outcome(drawn(4)[0], measure_roll_clip(frames[:1], np.zeros((2, 4800))), 1.0)
    values = scores_roll.score([silent])
    assert all(values[name] == 0 for name in scores_roll.SHARES)


def test_a_shape_that_moves_with_no_ball_near_it_is_not_hit() -> None:
    frames = np.arange(24)
    after = np.maximum(frames - 10.5, 0) * 0.02
    ball, shape = -0.5 + np.minimum(frames - 10.5, 0) * 0.02, after
    gap = shape - ball
    assert find_contact(frames, ball, shape, gap, 24) is None
    assert find_contact(frames, ball, shape, gap - gap.min(), 24) == pytest.approx(10.5 / 24, abs=0.005)
    assert find_contact(frames, ball, 0 * shape, gap - gap.min(), 24) is None


def test_a_perfect_model_scores_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["held_out", "train", "image", "no_moment", "no_align", "no_guidance"]
    table = evaluate_roll.ROWS | evaluate_roll.FLOORS
    cases = [
        case for name in names for case in evaluate_roll.make_cases(3, table[name].split, moment=table[name].moment)
    ]
    pipeline = PerfectPipeline(cases)
    monkeypatch.setattr(evaluate_roll, "load_pipeline", lambda source: pipeline)
    report, sheets = tmp_path / "report.json", tmp_path / "sheets"
    evaluate_roll.main(["--clips", "3", "--rows", *names, "--out", str(report), "--sheet", str(sheets)])
    data = json.loads(report.read_text(encoding="utf-8"))
    for name in names[:-1]:
        for share in scores_roll.SHARES:
            assert data["rows"][name][share] == 1.0, (name, share)
    assert data["rows"]["no_guidance"]["sync 60ms"] == 0 == data["rows"]["no_guidance"]["side"]
    assert set(data["rows"]) == {*names, "shuffled"} and len(data["details"]["image"]) == 3
    assert sum(call.get("image") is not None for call in pipeline.calls) == 3
    assert (sheets / "train.png").stat().st_size > 0 and SHUFFLED in capsys.readouterr().out


def test_a_model_that_forgets_the_colours_does_not_carry_them_on() -> None:
    (case,) = evaluate_roll.make_cases(1, "held_out")
    assert recoloured(case.shot).roll != case.roll
    forgetful = PerfectPipeline([case], forgets=True)
    (result,) = evaluate_roll.evaluate(forgetful, ["image"], 1)
    assert result.rows["image"]["carried"] == 0 and result.rows["image"]["ball colour"] == 1


def test_cases_are_fresh_held_out_and_say_the_moment_only_where_asked() -> None:
    cases = evaluate_roll.make_cases(4, "held_out")
    assert cases == evaluate_roll.make_cases(6, "held_out")[:4]
    for case in cases:
        assert (case.roll.colour, case.roll.shape) in world.HELD_OUT_PAIRS
        assert f"{case.roll.contact:.1f}秒" in case.prompt
    assert not any("秒" in case.prompt for case in evaluate_roll.make_cases(4, "held_out", moment=False))
