"""The soak in its short form; in full with `pytest --soak tests/test_soak.py`. That its checks see what is wrong."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soak_checks as checks
from soak import Soak, soak
from soak_ledger import Command
from soak_plan import Plan

from nava_core.engine import DATABASE
from nava_core.ffmpeg import run as ffmpeg

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # two minutes on two idle cores; it waits on processes that a busy machine starves
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the soak reads Linux's list of processes"),
]
SHORT = 16
GROWTH = 0.05


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    # The promised seconds are for the long form: an app that stood still itself counts its workers' silence anew.
    return soak(Plan.of(SHORT), tmp_path_factory.mktemp("soak") / "short", gone_within=30.0)


def test_a_short_soak_loses_nothing(short: Soak) -> None:
    report = short.report
    assert report.violations == []
    assert sum(report.states.values()) == SHORT and report.states["done"] >= SHORT // 2
    assert set(report.harms) >= {"kill the worker", "stop the worker", "kill the app"}
    assert report.twins["groups"] >= 2 and report.run_again >= 1 and report.failed_of


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_full_soak_loses_nothing_and_does_not_grow(tmp_path: Path) -> None:
    report = soak(Plan.of(200), tmp_path / "full").report
    assert report.violations == []
    for process in ("app", "worker"):
        assert report.growth(process, "first", "calm") <= GROWTH, (process, report.memory)


# A test must be able to fail: one thing is broken after a soak that went well.


@pytest.fixture
def spoilt(short: Soak, tmp_path: Path) -> Iterator[Soak]:
    """The short soak, to be spoilt; its files are put back afterwards."""
    soaked = copy.copy(short)
    soaked.ledger = copy.deepcopy(short.ledger)
    kept = tmp_path / "kept"
    shutil.copytree(short.folder, kept, symlinks=True)
    yield soaked
    shutil.rmtree(short.folder)
    shutil.copytree(kept, short.folder, symlinks=True)


def done(soaked: Soak) -> list[Path]:
    return [Path(row["result"]) for row in soaked.rows() if row["state"] == "done"]


def change_store(soaked: Soak, statement: str, *values: str) -> None:
    connection = sqlite3.connect(soaked.output / DATABASE)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def lose_a_clip(soaked: Soak) -> None:
    done(soaked)[0].unlink()


def damage_a_clip(soaked: Soak) -> None:
    clip = done(soaked)[0]
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])


def exchange_clips(soaked: Soak) -> None:
    first, second = done(soaked)[:2]
    first.rename(first.with_suffix(".tmp"))
    second.rename(first)
    first.with_suffix(".tmp").rename(second)


def make_a_twin_differ(soaked: Soak) -> None:
    """A clip with the right recipe and another clip's content."""
    rows = {row["id"]: row for row in soaked.rows()}
    twins = next(group for group in checks.groups_of_twins(list(rows.values())))
    twin = Path(rows[twins[0]]["result"])
    contents = {path: checks.content(path) for path in done(soaked) if path.suffix == twin.suffix}
    other = next(path for path, content in contents.items() if content != contents[twin])
    both = ["-i", str(other), "-i", str(twin), "-map", "0", "-map_metadata", "1", "-c", "copy"]
    spoilt = twin.with_name(f"spoilt{twin.suffix}")
    ffmpeg([*both, str(spoilt)])
    spoilt.replace(twin)


def keep_a_clip_too_many(soaked: Soak) -> None:
    clip = done(soaked)[0]
    shutil.copy(clip, clip.with_stem(f"{clip.stem}-2"))


def leave_a_workshop(soaked: Soak) -> None:
    (soaked.output / ".nava-1-clip-x").mkdir()


def leave_a_temporary_file(soaked: Soak) -> None:
    (soaked.temporary / "tmp123").write_bytes(b"half")


def leave_a_write_ahead_log(soaked: Soak) -> None:
    (soaked.output / f"{DATABASE}-wal").touch()


def lose_a_job(soaked: Soak) -> None:
    change_store(soaked, "DELETE FROM jobs WHERE number = (SELECT MAX(number) FROM jobs WHERE state = 'failed')")


def leave_a_job_running(soaked: Soak) -> None:
    change_store(soaked, "UPDATE jobs SET state = 'running', result = NULL WHERE number = 2")


def blame_nobody(soaked: Soak) -> None:
    error = {"message": "KeyError", "field": None, "kind": "internal"}
    change_store(soaked, "UPDATE jobs SET error = ? WHERE state = 'failed'", json.dumps(error))


def change_a_request(soaked: Soak) -> None:
    change_store(soaked, "UPDATE jobs SET request = json_set(request, '$.prompt', 'another') WHERE number = 2")


def make_another_seed(soaked: Soak) -> None:
    for promise in soaked.ledger.promises.values():
        promise.seed = -1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose_a_clip, "is done without a clip"),
        (damage_a_clip, "clip"),  # not whole, or not one at all
        (exchange_clips, "has a clip with another recipe"),
        (make_a_twin_differ, "gave different clips"),
        (keep_a_clip_too_many, "is no job's result"),
    ],
)
def test_wrong_clips_are_seen(spoilt: Soak, spoil: Callable[[Soak], None], words: str) -> None:
    spoil(spoilt)
    found = spoilt.wrong_clips(spoilt.rows())
    assert any(words in violation for violation in found)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose_a_job, "was accepted and is lost"),
        (leave_a_job_running, "is running and not"),
        (change_a_request, "holds a request that is not the one"),
        (blame_nobody, "should have failed of"),
        (make_another_seed, "was accepted with seed"),
    ],
)
def test_wrong_jobs_are_seen(spoilt: Soak, spoil: Callable[[Soak], None], words: str) -> None:
    spoil(spoilt)
    found = spoilt.ledger.violations(spoilt.rows())
    assert found and all(words in violation for violation in found)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (leave_a_workshop, "left in the output folder"),
        (leave_a_temporary_file, "left in the temporary folder"),
        (leave_a_write_ahead_log, "left beside the queue"),
    ],
)
def test_files_that_stay_are_seen(spoilt: Soak, spoil: Callable[[Soak], None], words: str) -> None:
    spoil(spoilt)
    (violation,) = spoilt.leftovers()
    assert words in violation


def test_a_process_that_stays_is_seen(short: Soak) -> None:
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, checks.MARK: short.mark})
    try:
        assert short.leftovers() == [f"process {left.pid} was left behind: sleep 60"]
    finally:
        left.kill()
        left.wait()
    assert short.leftovers() == []


def test_shared_memory_that_stays_is_seen(short: Soak) -> None:
    name = short.shared_memory / f"nava-soak-{os.getpid()}"
    name.touch()
    try:
        assert short.leftovers() == [f"{name.name} was left in shared memory"]
    finally:
        name.unlink()


def test_the_ledger_sees_wrong_answers(short: Soak) -> None:
    ledger = type(short.ledger)()
    bad = Command("submit", wish=short._mix.bad("steps"))
    ledger.answered(bad, {"error": "RequestError", "field": "num_inference_steps", "message": "steps is 0"})
    assert not ledger.faults
    ledger.answered(bad, {"error": "RequestError", "field": "width", "message": "width is 0"})
    ledger.answered(Command("submit", wish=short._mix.good()), {"error": "unexpected", "message": "KeyError"})
    assert len(ledger.faults) == 2
