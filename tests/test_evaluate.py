from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nava_core import Guidance
from nava_core.pipeline import NavaPipelineOutput
from training import evaluate, scores, world


class PerfectPipeline:
    """Answers every prompt of the cases with the world's own render; without guidance, with a hanging shape."""

    spec = SimpleNamespace(name="perfect", fps=24, width=96, height=96, guidance=Guidance())

    def __init__(self, cases: list[evaluate.Case]) -> None:
        self.scenes = {case.prompt: case.scene for case in cases}
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(self, **options: Any) -> NavaPipelineOutput:
        self.calls.append(options)
        scene = self.scenes[options["prompt"]]
        frames = world.render_frames(scene, 96, 96).astype(np.float32) / 255
        if options.get("guidance") == evaluate.GUIDANCE_OFF:
            frames[:] = frames[:1]
        return NavaPipelineOutput(frames=frames, audio=world.render_sound(scene), sampling_rate=48_000, seed=0)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> PerfectPipeline:
    cases = [evaluate.make_cases(6, "held_out", moment=moment) for moment in (True, False)]
    made = PerfectPipeline([*cases[0], *cases[1], *evaluate.make_cases(6, "train")])
    monkeypatch.setattr(evaluate, "load_pipeline", lambda source: made)
    return made


def test_a_perfect_model_scores_full_and_shuffled_sound_does_not(
    pipeline: PerfectPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    rows = ["held_out", "train", "image", "no_moment", "no_guidance", "shuffled"]
    evaluate.main(["--clips", "6", "--rows", *rows, "--out", str(report), "--sheet", str(sheet)])
    data = json.loads(report.read_text(encoding="utf-8"))
    for name in ("held_out", "train", "image", "no_moment"):
        for share in scores.SHARES:
            assert data["rows"][name][share] == 1.0, (name, share)
        assert data["rows"][name]["contact range"] > 0.3
    assert data["rows"]["shuffled"]["sync"] <= 0.25
    assert data["rows"]["no_guidance"]["sync"] == 0 and data["rows"]["no_guidance"]["colour&shape"] == 1.0
    assert sum(call.get("image") is not None for call in pipeline.calls) == 6
    assert len(data["details"]["train"]) == 6 and sheet.stat().st_size > 0
    table = capsys.readouterr().out
    assert all((evaluate.ROWS | evaluate.FLOORS)[name] in table for name in rows)


def test_cases_are_fresh_held_out_and_independent_of_their_number() -> None:
    cases = evaluate.make_cases(5, "held_out")
    assert cases == evaluate.make_cases(9, "held_out")[:5]
    assert all((case.scene.colour, case.scene.shape) in world.HELD_OUT_PAIRS for case in cases)
    assert len({case.seed for case in cases}) == 5
    assert evaluate.make_cases(5, "held_out", seed=1) != cases


def test_shuffled_needs_the_clips_it_shuffles(pipeline: PerfectPipeline) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--rows", "shuffled"])
    with pytest.raises(ValueError, match="at least one"):
        scores.score([])


def test_a_missing_number_is_a_dash_and_null(tmp_path: Path) -> None:
    rows = {"one": {"a": float("nan"), "b": 0.5}, "two": {"a": 1.0}}
    table = evaluate.format_table(rows, {"one": "first", "two": "second"}, ("a", "b"), ("b",))
    assert [line.split() for line in table.splitlines()] == [
        ["a", "b"],
        ["first", "-", "0.50"],
        ["second", "100%", "-"],
    ]
    evaluate.write_report(tmp_path / "report.json", {"rows": rows, "list": [(1, float("nan"))]})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "rows": {"one": {"a": None, "b": 0.5}, "two": {"a": 1.0}},
        "list": [[1, None]],
    }
