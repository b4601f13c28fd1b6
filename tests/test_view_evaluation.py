"""The measure and the evaluation of places, on the world's own clips."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from perfect import PerfectPipeline
from scipy import ndimage

from training import evaluate_view, shots, speaking
from training.evaluation import SHUFFLED
from training.measure_place import heard_place, shown_place


@pytest.mark.parametrize("seed", range(12))
def test_places_are_told_apart_when_worn_and_at_any_loudness(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = list(shots.SIZES)[seed % 3]
    shot = shots.sample_shot(rng, "view", size=size, seconds=shots.LENGTHS[seed % 2])
    frames, sound = shots.render_frames(shot), speaking.render_sound(shot, None)
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (0.3, 0.9, 0.9, 0))
    worn = np.clip(soft + rng.normal(0, 4, frames.shape), 0, 255).astype(np.uint8)
    assert shown_place(worn) == shot.backdrop
    assert heard_place(sound, 48_000) == heard_place(0.1 * sound, 48_000) == shot.backdrop


def test_the_worlds_own_views_score_full_and_shuffled_sounds_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = PerfectPipeline([])
    able = {"sizes": ((128, 128), (224, 128)), "max_seconds": 3.0}
    monkeypatch.setattr(pipeline, "spec", SimpleNamespace(**{**vars(pipeline.spec), **able}))
    cases = evaluate_view.make_cases(pipeline, 8)  # type: ignore[arg-type]
    assert {case.shot.width for case in cases} == {128, 224} and {case.shot.seconds for case in cases} == {2.0, 3.0}
    pipeline.shots = {case.prompt: case.shot for case in cases}
    monkeypatch.setattr(evaluate_view, "load_pipeline", lambda source: pipeline)
    evaluate_view.main(["--clips", "8", "--out", str(tmp_path / "report.json"), "--sheet", str(tmp_path)])
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]
    assert rows["view"]["place&sound"] == rows["view"]["camera still"] == rows["view"]["camera moves"] == 1.0
    assert rows["shuffled"]["place"] == 1.0 and rows["shuffled"]["sound"] < 0.6
    assert SHUFFLED in capsys.readouterr().out and (tmp_path / "view.png").exists()
