from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from perfect import PerfectPipeline, recoloured

from training import evaluate, evaluation, scores, world


def measured(case: evaluation.Case, frames: np.ndarray) -> scores.Outcome:
    clip = evaluation.Clip(frames, world.render_sound(case.scene), 48_000)
    return evaluate.measure(case, clip, world.FPS, 1.0)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> PerfectPipeline:
    cases = [evaluate.make_cases(6, "held_out", moment=moment) for moment in (True, False)]
    made = PerfectPipeline([*cases[0], *cases[1], *evaluate.make_cases(6, "train")])
    monkeypatch.setattr(evaluate, "load_pipeline", lambda source: made)
    return made


def test_a_perfect_model_scores_full_and_shuffled_sound_does_not(
    pipeline: PerfectPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, sheets = tmp_path / "report.json", tmp_path / "sheets"
    rows = ["held_out", "train", "image", "no_moment", "no_guidance"]
    evaluate.main(["--clips", "6", "--rows", *rows, "--out", str(report), "--sheet", str(sheets)])
    data = json.loads(report.read_text(encoding="utf-8"))
    for name in ("held_out", "train", "image", "no_moment"):
        for share in scores.SHARES:
            assert data["rows"][name][share] == 1.0, (name, share)
        assert data["rows"][name]["contact range"] > 0.3
    assert data["rows"]["shuffled"]["sync"] <= 0.25
    assert data["rows"]["no_guidance"]["sync"] == 0 and data["rows"]["no_guidance"]["colour&shape"] == 1.0
    assert sum(call.get("image") is not None for call in pipeline.calls) == 6
    assert len(data["details"]["train"]) == 6 and (sheets / "image.png").stat().st_size > 0
    table = capsys.readouterr().out
    assert all(evaluate.TABLE.titles[name] in table for name in [*rows, "shuffled"])


def test_a_first_frame_that_is_left_is_not_carried_on() -> None:
    for case in evaluate.make_cases(3, "held_out"):
        drawn = evaluation.render_frames(case.shot, None)
        recolour = evaluation.render_frames(recoloured(case.shot), None)
        reshaped = world.render_frames(replace(case.scene, shape="star" if case.scene.shape != "star" else "ball"))
        for last, carried, shape in (
            (drawn, 1, 1), (recolour, 0, 0), (np.roll(drawn, 10, axis=2), 0, 0), (0 * drawn, 0, 0), (reshaped, 1, 0)
        ):  # fmt: skip
            numbers = scores.score([measured(case, np.concatenate([drawn[:33], last[33:]]))])
            assert (numbers["place"], numbers["carried"], numbers["carried shape"]) == (1, carried, shape)


def test_a_model_that_forgets_its_first_frame_does_not_carry_it_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forgetful = PerfectPipeline(evaluate.make_cases(2, "held_out"), forgets=True)
    monkeypatch.setattr(evaluate, "load_pipeline", lambda source: forgetful)
    report = tmp_path / "report.json"
    evaluate.main(["--clips", "2", "--rows", "image", "--out", str(report)])
    values = json.loads(report.read_text(encoding="utf-8"))["rows"]["image"]
    assert values["carried"] == 0 and values["place"] == 1


def test_cases_are_fresh_held_out_and_independent_of_their_number() -> None:
    cases = evaluate.make_cases(5, "held_out")
    assert cases == evaluate.make_cases(9, "held_out")[:5]
    assert all((case.scene.colour, case.scene.shape) in world.HELD_OUT_PAIRS for case in cases)
    assert len({case.seed for case in cases}) == 5
    assert evaluate.make_cases(5, "held_out", seed=1) != cases


def test_no_clips_have_no_score(pipeline: PerfectPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        scores.score([])
    with pytest.raises(SystemExit):
        evaluate.main(["--clips", "0"])
    assert "at least one" in capsys.readouterr().err


def test_a_missing_number_is_a_dash_and_null(tmp_path: Path) -> None:
    rows = {"one": {"a": float("nan"), "b": 0.5}, "two": {"a": 1.0}}
    table = evaluation.format_table(rows, {"one": "first", "two": "second"}, ("a", "b"), ("b",))
    assert [line.split() for line in table.splitlines()] == [
        ["a", "b"],
        ["first", "-", "0.50"],
        ["second", "100%", "-"],
    ]
    evaluation.write_report(tmp_path / "report.json", {"rows": rows, "list": [(1, float("nan"))]})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "rows": {"one": {"a": None, "b": 0.5}, "two": {"a": 1.0}},
        "list": [[1, None]],
    }
