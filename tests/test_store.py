"""The queue on disk: its transitions against a simple model, its files, its owner, its age."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from nava_core.engine import store as store_module
from nava_core.engine.disk import is_disk_full
from nava_core.engine.files import FileVault, files_of, pack, unpack
from nava_core.engine.jobs import DiskFullError, EngineError, JobError, JobStateError, UnknownJob
from nava_core.engine.schema import MIGRATIONS
from nava_core.engine.store import RUNS_KEPT, JobStore
from nava_core.request import GenerationRequest, Guidance, ModelSpec, RequestError, ResolvedRequest

SPEC = ModelSpec("tiny", width=96, height=64, sizes=((96, 64),), seconds=0.5)


class Queue(RuleBasedStateMachine):
    """What the store must do, as a list of ids and a dictionary of states. A crash loses nothing that was answered."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.sqlite3"
        self.store = JobStore(self.path)
        self.order: list[str] = []
        self.states: dict[str, str] = {}
        self.seeds: dict[str, int] = {}
        self.interruptions: dict[str, int] = {}
        self.cancelling: set[str] = set()
        self.paused = False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def some(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.states)))

    @rule()
    def submit(self) -> None:
        name, seed = f"job{len(self.states)}", len(self.states) + 100
        self.store.submit(name, self.store.pack(GenerationRequest("a ball", seed=seed)))
        self.order.append(name)
        self.states[name], self.seeds[name], self.interruptions[name] = "queued", seed, 0

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        original, name = self.some(data), f"job{len(self.states)}"
        self.store.duplicate(original, name)
        self.order.append(name)
        self.states[name], self.seeds[name], self.interruptions[name] = "queued", self.seeds[original], 0

    @precondition(lambda self: self.order)
    @rule()
    def claim(self) -> None:
        name = self.order.pop(0)
        assert self.store.order()[0] == name
        self.store.claim(name, Path("out") / name)
        self.states[name] = "running"

    @precondition(lambda self: "running" in self.states.values())
    @rule(data=st.data(), state=st.sampled_from(["done", "failed", "cancelled", "interrupted"]))
    def finish(self, data: st.DataObject, state: Any) -> None:
        running = sorted(name for name, state in self.states.items() if state == "running")
        name = data.draw(st.sampled_from(running))
        self.store.finish(name, state)
        self.states[name] = state
        self.cancelling.discard(name)

    @precondition(lambda self: self.states)
    @rule(data=st.data(), after=st.booleans(), alone=st.booleans())
    def move(self, data: st.DataObject, after: bool, alone: bool) -> None:
        name, neighbour = self.some(data), None if alone else self.some(data)
        if any(self.states[named] != "queued" for named in (name, neighbour) if named is not None):
            with pytest.raises(JobStateError):
                self.store.move(name, neighbour, after)
            return
        self.store.move(name, neighbour, after)
        if name != neighbour:
            self.order.remove(name)
            at = (len(self.order) if after else 0) if neighbour is None else self.order.index(neighbour) + after
            self.order.insert(at, name)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.order), unique=True))
        self.store.reorder(some)
        following = iter(some)
        self.order = [next(following) if name in some else name for name in self.order]

    @precondition(lambda self: self.states)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def edit(self, data: st.DataObject, seed: int) -> None:
        name = self.some(data)
        packed = self.store.pack(GenerationRequest("another", seed=seed))
        if self.states[name] in ("queued", "interrupted"):
            self.store.edit(name, packed)
            self.seeds[name] = seed
        else:
            with pytest.raises(JobStateError):
                self.store.edit(name, packed)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = self.some(data)
        self.store.cancel(name)
        if self.states[name] in ("queued", "interrupted"):
            self.states[name] = "cancelled"
            self.order = [other for other in self.order if other != name]
        elif self.states[name] == "running":
            self.cancelling.add(name)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        name = self.some(data)
        if self.states[name] in ("interrupted", "failed", "cancelled"):
            self.store.retry(name)
            self.states[name] = "queued"
            self.order.append(name)
        else:
            with pytest.raises(JobStateError):
                self.store.retry(name)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.store.set_paused(paused)
        self.paused = paused

    @rule(go_on=st.booleans())
    def crash(self, go_on: bool) -> None:
        """The process is gone, without a word to the database, and a new one takes over."""
        self.store.close()
        self.store = JobStore(self.path)
        self.store.recover(lambda job: None, go_on)
        running = [name for name, state in self.states.items() if state == "running"]
        for name in running:
            if name in self.cancelling:
                self.states[name] = "cancelled"
            else:
                self.states[name] = "interrupted"
                self.interruptions[name] += 1
        self.cancelling.clear()
        if go_on:
            back = [n for n, state in self.states.items() if state == "interrupted" and self.interruptions[n] <= 1]
            found = self.store.order()
            assert sorted(found[: len(back)]) == sorted(back), "interrupted jobs come first"
            self.order = found[: len(back)] + self.order
            self.states.update(dict.fromkeys(back, "queued"))

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        jobs = {job.id: job for job in self.store.jobs()}
        assert {name: job.state for name, job in jobs.items()} == self.states
        assert self.store.order() == self.order
        assert {name: job.request.seed for name, job in jobs.items()} == self.seeds
        assert self.store.paused == self.paused
        assert all(job.cancelling == (name in self.cancelling) for name, job in jobs.items())


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=25, stateful_step_count=25)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = JobStore(tmp_path / "queue" / "jobs.sqlite3")
    yield store
    store.close()


def request(seed: int = 1, **changes: Any) -> GenerationRequest:
    return GenerationRequest("a ball ~~你好~~", seed=seed, **changes)


def test_a_request_comes_back_as_it_was_with_its_kind(tmp_path: Path) -> None:
    vault = FileVault(tmp_path / "files")
    plain = GenerationRequest("~~x~~ half a pair \ud83d", guidance=Guidance(video=1.5), speakers=(None,))
    assert unpack(pack(plain, vault)) == plain
    resolved = plain.resolve(SPEC)
    back = unpack(pack(resolved, vault))
    assert back == resolved and isinstance(back, ResolvedRequest)
    assert back.resolve(SPEC) == resolved


def test_files_are_copied_once_keep_their_name_and_outlive_the_original(tmp_path: Path) -> None:
    vault = FileVault(tmp_path / "files")
    voice = tmp_path / "voice.wav"
    voice.write_bytes(b"sound")
    twin = tmp_path / "twin" / "voice.wav"
    twin.parent.mkdir()
    twin.write_bytes(b"sound")
    packed = pack(request(speakers=(voice, str(twin), None), image=str(tmp_path / "missing.png")), vault)
    voice.unlink()
    back = unpack(packed)
    first, second, none = back.speakers
    assert first == second and none is None and Path(first).name == "voice.wav"
    assert Path(first).read_bytes() == b"sound" and Path(first).is_relative_to(vault.folder)
    assert back.image == str(tmp_path / "missing.png"), "the run says that it is missing"
    assert pack(back, vault) == packed, "a copy is not copied again"
    assert files_of(packed) == {Path(first), tmp_path / "missing.png"}
    assert not list(vault.folder.glob(".part-*"))


def test_what_is_in_memory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    vault = FileVault(tmp_path / "files")
    wave = np.random.default_rng(0).normal(size=1600).astype(np.float32)
    embedding = np.arange(192, dtype=np.float32)
    given = request(speakers=(wave, (wave[:, None], 44100), embedding), image=np.full((4, 6, 3), 7, np.uint8))
    back = unpack(pack(given, vault))
    assert np.array_equal(back.speakers[0], wave) and back.speakers[0].dtype == np.float32
    assert np.array_equal(back.speakers[1][0], wave[:, None]) and back.speakers[1][1] == 44100
    assert np.array_equal(back.speakers[2], embedding) and np.array_equal(back.image, given.image)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "CMYK", "F"])
def test_a_picture_in_memory_becomes_a_file_without_loss(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (6, 4), 3 if len(mode) == 1 or mode == "I;16" else (1, 2, 3, 4)[: len(mode)])
    path = unpack(pack(request(image=picture), FileVault(tmp_path))).image
    with Image.open(path) as kept:
        assert kept.mode == mode and np.array_equal(np.asarray(kept), np.asarray(picture))


def test_what_cannot_be_kept_is_refused_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="object") as caught:
        pack(request(speakers=(object(),)), FileVault(tmp_path))
    assert caught.value.field == "speakers"


def test_copies_that_no_job_names_are_deleted_but_not_the_young(store: JobStore, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    paths = []
    for number in range(3):
        voice.write_bytes(b"sound %d" % number)
        packed = store.pack(request(speakers=(voice,)))
        paths.append(Path(unpack(packed).speakers[0]))
        if number < 2:
            store.submit(f"j{number}", packed)
    store.cancel("j0")
    for path in paths[:2]:
        os.utime(path, (1, 1))
        os.utime(path.parent, (1, 1))
    assert store.forget(keep=0) == ["j0"]
    assert [path.exists() for path in paths] == [False, True, True], "the last is perhaps just being submitted"
    store.recover(lambda job: None, go_on=False)
    assert [path.exists() for path in paths] == [False, True, False], "at the start nobody is"


def test_every_transition_is_refused_from_a_wrong_state(store: JobStore) -> None:
    store.submit("a", store.pack(request()))
    for wrong in (lambda: store.finish("a", "done"), lambda: store.again("a"), lambda: store.resolved("a", "{}")):
        with pytest.raises(JobStateError, match="a is queued"):
            wrong()
    store.claim("a", Path("x"))
    with pytest.raises(JobStateError, match="a is running"):
        store.claim("a", Path("x"))
    store.finish("a", "done", result=Path("x.wav"), recipe={"seed": 1}, seconds=2.5)
    done = store.job("a")
    assert (done.state, done.result, done.recipe, done.seconds) == ("done", Path("x.wav"), {"seed": 1}, 2.5)
    for wrong in (lambda: store.retry("a"), lambda: store.edit("a", "{}"), lambda: store.move("a", None)):
        with pytest.raises(JobStateError, match="a is done"):
            wrong()
    assert store.cancel("a").state == "done"
    for unknown in (store.job, store.retry, store.cancel, lambda name: store.duplicate(name, "c")):
        with pytest.raises(UnknownJob, match="'b'"):
            unknown("b")


def test_a_job_keeps_its_output_until_it_is_edited(store: JobStore) -> None:
    store.submit("a", store.pack(request()))
    store.claim("a", Path("first"))
    store.finish("a", "interrupted", error=JobError("x", kind="interrupted"))
    store.retry("a")
    again = store.claim("a", Path("second"))
    assert (again.output, again.attempts, again.error) == (Path("first"), 2, None)
    store.finish("a", "interrupted")
    edited = store.edit("a", store.pack(request(seed=9)))
    assert (edited.output, edited.attempts, edited.state, edited.request.seed) == (None, 0, "interrupted", 9)


def test_a_clip_that_was_complete_counts_after_a_crash(store: JobStore) -> None:
    for name in "abc":
        store.submit(name, store.pack(request()))
        store.claim(name, Path(name))
    store.finish("c", "interrupted")
    clips = {"a": (Path("a.wav"), {"job": "a"}), "c": (Path("c.wav"), {"job": "c"})}
    store.recover(lambda job: clips.get(job.id), go_on=False)
    assert [store.job(name).state for name in "abc"] == ["done", "interrupted", "done"]
    assert store.job("a").result == Path("a.wav") and store.job("a").recipe == {"job": "a"}
    error = store.job("b").error
    assert error is not None and error.kind == "interrupted" and "same seed" in error.message


def test_what_is_forgotten_is_the_oldest_and_never_what_can_go_on(store: JobStore) -> None:
    for name in "abcd":
        store.submit(name, store.pack(request()))
        store.claim(name, Path(name))
        store.finish(name, "interrupted" if name == "a" else "failed")
    store.submit("e", store.pack(request()))
    assert store.forget(keep=1) == ["c", "b"]
    assert [job.id for job in store.jobs()] == ["a", "d", "e"]


def test_runs_are_kept_for_each_model_the_newest(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RUNS_KEPT", 3)
    for number in range(5):
        store.add_run("m", {"number": number})
    store.add_run("other", {"number": 9})
    assert [run["number"] for run in store.runs("m")] == [2, 3, 4] and len(store.runs("other")) == 1
    assert RUNS_KEPT > 100


def test_a_job_keeps_whose_it_is_and_its_copy_has_the_same_owner(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    store.submit("a", store.pack(request(seed=5)), owner="ann", variations="group")
    store.duplicate("a", "b")
    assert (store.job("a").owner, store.job("a").variations) == ("ann", "group")
    assert (store.job("b").owner, store.job("b").variations) == ("ann", None)
    store.close()


def test_a_database_of_the_first_version_is_taken_along(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    old = sqlite3.connect(path)
    for statement in MIGRATIONS[0]:
        old.execute(statement)
    packed = pack(request(seed=5), FileVault(tmp_path / "files"))
    old.execute("INSERT INTO jobs (id, state, place, request, created) VALUES ('a', 'queued', 0, ?, 1.0)", (packed,))
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    store = JobStore(path)
    assert store.order() == ["a"] and store.job("a").request.seed == 5
    assert store.job("a").owner == "" and store.job("a").variations is None
    store.add_run("m", {})
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)


def test_what_is_no_queue_or_too_new_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"these are no jobs, " * 100)
    with pytest.raises(EngineError, match="move it away"):
        JobStore(path)
    assert path.read_bytes().startswith(b"these are no jobs")
    path.unlink()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(EngineError, match="newer NAVA Studio"):
        JobStore(path)
    with pytest.raises(EngineError, match="rights"):
        JobStore(path / "below" / "jobs.sqlite3")


def test_a_second_owner_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    script = (
        "import sys, time; from pathlib import Path; from nava_core.engine.store import JobStore\n"
        "store = JobStore(Path(sys.argv[1])); print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
            with pytest.raises(EngineError, match=f"process {owner.pid}"):
                JobStore(path)
        finally:
            owner.kill()
    store = JobStore(path)
    with pytest.raises(EngineError, match=f"process {os.getpid()}"):
        JobStore(path)
    store.close()
    JobStore(path).close()


def test_a_full_disk_changes_nothing_and_is_said(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.submit("a", store.pack(request()))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be full
    with pytest.raises(DiskFullError, match="full"):
        store.submit("b", json.dumps({"resolved": False, "prompt": "x" * 100_000, "image": None, "speakers": []}))
    assert store.order() == ["a"]
    store._connection.execute("PRAGMA max_page_count = 1000000")
    voice = tmp_path / "voice.wav"
    voice.write_bytes(b"sound")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="voice"):
        store.pack(request(speakers=(voice,)))
    assert not [path for path in store.vault.folder.rglob("*") if path.is_file()]
    store.submit("b", store.pack(request()))
    assert store.order() == ["a", "b"]


def test_a_full_disk_is_told_from_other_errors() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("the clip could not be written") from error
    except RuntimeError as error:
        assert is_disk_full(error)
    assert is_disk_full(RuntimeError("ffmpeg failed: av_interleaved_write_frame(): No space left on device"))
    assert not is_disk_full(OSError(13, "Permission denied")) and not is_disk_full(ValueError("full"))


def test_in_memory_nothing_stays(tmp_path: Path) -> None:
    store = JobStore()
    voice = tmp_path / "voice.wav"
    voice.write_bytes(b"sound")
    store.submit("a", store.pack(request(speakers=(voice,))))
    kept = Path(store.job("a").request.speakers[0])
    assert kept.exists()
    store.close()
    assert not kept.exists()
