"""The queue as its owner sees it: views, what a tab is told anew, and what may be done by whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from queue_child import SoundRunner
from studio_server import offline_desk
from waiting import wait_for

from nava_core.engine.jobs import EngineError, EngineStatus, Job, JobError, JobStateError, UnknownJob
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Outcome, RunFailed
from nava_core.request import GenerationRequest
from ui import queue_view
from ui.catalogue import Catalogue, entries
from ui.queue import QueueDesk
from ui.queue_feed import LISTED, QueueFeed
from ui.queue_view import Row
from ui.service import Service

EVIL = "<img src=x onerror='window.bad=1'>"
TWO_LINES = "A café. She: ~~Hello~~ He: ~~Hi!~~"


class Gated(SoundRunner):
    """Each run waits until it is let go, or fails with the next of `errors`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.errors: list[RunFailed] = []

    def run(self, task: Any, report: Any, cancelled: threading.Event) -> Outcome:
        while not self.gate.acquire(timeout=0.01):
            if cancelled.is_set():
                return super().run(task, report, cancelled)
        if self.errors:
            raise self.errors.pop(0)
        return super().run(task, report, cancelled)


@pytest.fixture
def runner() -> Gated:
    return Gated()


@pytest.fixture
def engine(tmp_path: Path, runner: Gated) -> Iterator[QueueEngine]:
    engine = QueueEngine(runner, tmp_path)
    engine.wait_until_loaded()
    yield engine
    engine.close()


@pytest.fixture
def service(engine: QueueEngine) -> Service:
    return Service(engine, offline_desk(), Catalogue("en"))


@pytest.fixture
def feed(service: Service) -> QueueFeed:
    return QueueFeed(service)


@pytest.fixture
def desk(service: Service, feed: QueueFeed) -> QueueDesk:
    return QueueDesk(service, feed)


def sound(prompt: str = "a ball", **rest: Any) -> GenerationRequest:
    return GenerationRequest(prompt, modality="audio", **rest)


def order(engine: QueueEngine, owner: str | None = None) -> list[str]:
    return [job.id for job in engine.jobs() if job.state == "queued" and owner in (None, job.owner)]


# Views


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("state", ["queued", "running", "failed", "interrupted"])
def test_a_row_says_what_the_job_is_and_lets_nothing_through(language: str, state: Any) -> None:
    error = JobError(EVIL, kind="lost") if state in ("failed", "interrupted") else None
    request = sound(f"{EVIL} \ud800 ~~a~~ ~~b~~", speakers=("a.wav", None), seconds=2.0)
    parts = queue_view.row(Catalogue(language), Row(Job("j1", request, state, error=error, steps=4), 70.0, 12.0))
    html = "".join(parts.values())
    assert "<img" not in html and "&lt;img" in html and "\ud800" not in html
    assert ("2 spoken lines" if language == "en" else "2 句台词") in html
    html.encode()


def test_a_row_counts_steps_time_and_variations() -> None:
    text = Catalogue()
    job = Job("j1", GenerationRequest(TWO_LINES, width=96, height=64), "running", "denoise", step=3, steps=4)
    html = queue_view.row(text, Row(job, None, 12.0, variation=(2, 4)))["info"]
    for words in ("Step 3 of 4", "about 12 s left", "variation 2 of 4", "96×64", 'data-clock="j1"', "She: “Hello” He:"):
        assert words in html, words
    waiting = queue_view.row(text, Row(Job("j2", GenerationRequest("x"), ahead=3), 70.0))["info"]
    assert "3 before it" in waiting and "takes about 70 s" in waiting and "no spoken lines" in waiting
    assert "On hold" in queue_view.row(text, Row(Job("j2", GenerationRequest("x")), held=True))["info"]
    rewritten = GenerationRequest("a long caption", original_prompt="my words")
    assert queue_view.words(rewritten) == "my words"


@pytest.mark.parametrize("kind", ["request", "out_of_memory", "model", "internal", "disk", "lost", "interrupted"])
def test_each_failure_has_its_reason_and_a_way_out(kind: Any) -> None:
    state = "interrupted" if kind == "interrupted" else "failed"
    job = Job("j1", GenerationRequest("x"), state, error=JobError("THE REASON", kind=kind))
    parts = queue_view.row(Catalogue(), Row(job))
    assert "nava-queue-trouble" in parts["info"] and 'data-act="dismiss"' in parts["acts"]
    assert kind == "out_of_memory" or "THE REASON" in parts["info"]
    again, change = 'data-act="retry"' in parts["acts"], 'data-act="edit"' in parts["acts"]
    assert again == (kind != "request") and change == (kind in ("request", "out_of_memory", "internal"))


def test_the_head_says_why_nothing_goes_on_and_offers_the_way_out() -> None:
    def head(status: EngineStatus, paused: bool, mine: int = 1, others: int = 0, before: int = 0) -> str:
        numbers = {"mine": mine, "others": others, "before": before}
        return queue_view.head(Catalogue(), status, paused=paused, notices=False, **numbers)

    full = head(EngineStatus("ready", f"the disk is full {EVIL}"), True)
    assert "the disk is full &lt;img" in full and 'data-act="resume"' in full and 'role="alert"' in full
    assert 'data-act="pause"' not in full and 'data-act="pause"' in head(EngineStatus("ready"), False)
    assert "no GPU" in head(EngineStatus("failed", "no GPU"), False)
    assert "2 jobs of others before yours" in head(EngineStatus("ready"), False, 1, 3, 2)
    assert "1 job of others in the queue" in head(EngineStatus("ready"), False, 0, 1)
    assert "others" not in head(EngineStatus("ready"), False, 1, 3, 0).lower()
    assert "Nothing is waiting" in head(EngineStatus("ready"), False, 0)


def test_every_kind_of_error_has_words_in_both_languages() -> None:
    for kind in ("request", "out_of_memory", "model", "internal", "disk", "lost", "interrupted"):
        assert set(entries()[f"queue.todo_{kind}"]) == {"en", "zh"}


def test_a_thumbnail_is_small() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (704, 1280, 3), dtype=np.uint8)
    assert len(queue_view.thumb(noise)) < 16_000
    assert len(queue_view.thumb(np.zeros((704, 1280, 3), np.uint8))) < 2_000


# What a tab is told


def test_a_tab_is_told_what_it_has_not_seen(engine: QueueEngine, feed: QueueFeed) -> None:
    engine.pause()
    first, second = engine.submit(sound(seed=1)), engine.submit(sound(seed=2))
    whole = feed.answer("")
    assert whole["parts"]["order"] == [first, second]
    assert {f"row:{first}", f"row:{second}", "head", "clocks"} <= set(whole["parts"])
    epoch, seen = whole["epoch"], whole["revision"]
    assert feed.answer("", epoch, seen) == {"epoch": epoch, "revision": seen, "parts": {}}
    third = engine.duplicate(first)
    news = feed.answer("", epoch, seen)
    assert set(news["parts"]) == {"order", "head", f"row:{third}"}
    assert feed.answer("")["parts"].keys() >= whole["parts"].keys()  # another tab
    for unknown in ("before the restart", None, [], 3):
        assert feed.answer("", unknown, news["revision"])["parts"]["order"] == [first, second, third]
    for odd in ("7", None, {}, -5):
        assert feed.answer("", epoch, odd)["parts"]["order"] == [first, second, third]


def test_owners_see_their_own_and_a_number_of_the_rest(engine: QueueEngine, feed: QueueFeed) -> None:
    engine.pause()
    for owner, prompt in (("bob", "SECRET one"), ("bob", "SECRET two"), ("ann", "mine"), ("bob", "SECRET three")):
        engine.submit(sound(prompt), owner)
    answer = feed.answer("ann")
    assert "SECRET" not in str(answer) and len(answer["parts"]["order"]) == 1
    assert "2 jobs of others before yours" in answer["parts"]["head"]
    assert "4 jobs of others" in feed.answer("carol")["parts"]["head"]
    engine.resume()
    wait_for(lambda: "2 before it" in str(feed.answer("ann")["parts"]))


def test_what_failed_in_this_session_is_said_until_dismissed(
    engine: QueueEngine, feed: QueueFeed, desk: QueueDesk, runner: Gated
) -> None:
    runner.errors = [RunFailed(JobError("too big", kind="out_of_memory"))] * 2
    failed, other = engine.submit(sound()), engine.submit(sound())
    runner.gate.release(2)
    wait_for(lambda: engine.job(other).state == "failed")
    parts = feed.answer("")["parts"]
    assert set(parts["order"]) == {failed, other} and 'data-act="clear"' in parts["head"]
    assert "not enough memory" in parts[f"row:{failed}"]["info"]
    desk.do("", "dismiss", failed)
    assert feed.answer("")["parts"]["order"] == [other]
    desk.do("", "retry", other)
    assert engine.job(other).state in ("queued", "running")
    assert QueueFeed(Service(engine, offline_desk(), Catalogue())).answer("")["parts"]["order"] == [other]
    runner.gate.release()
    wait_for(lambda: engine.job(other).finished)
    assert QueueFeed(Service(engine, offline_desk(), Catalogue())).answer("")["parts"]["order"] == []


def test_a_hundred_jobs_cost_little(engine: QueueEngine, feed: QueueFeed) -> None:
    engine.pause()
    jobs = [engine.submit(GenerationRequest(f"{number} {TWO_LINES} {'long ' * 60}")) for number in range(100)]
    began = time.thread_time()
    whole = feed.answer("")
    drawn = time.thread_time() - began
    seen = whole["revision"]
    began = time.thread_time()
    for _ in range(100):
        assert feed.answer("", whole["epoch"], seen)["parts"] == {}
    asked = (time.thread_time() - began) / 100
    engine.reorder([jobs[-1], *jobs[:-1]])
    moved = len(str(feed.answer("", whole["epoch"], seen)))
    print(f"draw {drawn * 1e3:.1f} ms, {len(str(whole)) / 1e3:.0f} kB; asked again {asked * 1e3:.2f} ms")
    assert drawn < 1.0 and asked < 0.01  # generous, and of this thread's own work alone
    assert len(str(whole)) < 300_000 and moved < 300_000
    seen = feed.answer("")["revision"]
    engine.cancel(jobs[-2])
    assert len(str(feed.answer("", whole["epoch"], seen))) < 5_000


def test_no_more_rows_than_a_page_can_bear(engine: QueueEngine, feed: QueueFeed) -> None:
    engine.pause()
    for _ in range(LISTED + 5):
        engine.submit(sound())
    parts = feed.answer("")["parts"]
    assert len(parts["order"]) == LISTED and "5 more" in parts["foot"] and f"{LISTED + 5} to be made" in parts["head"]


def test_variations_and_estimates_come_with_experience(engine: QueueEngine, feed: QueueFeed, runner: Gated) -> None:
    runner.gate.release()
    done = engine.submit(sound())
    wait_for(lambda: engine.job(done).state == "done")
    running = engine.submit(sound())
    wait_for(lambda: engine.job(running).state == "running")
    group = [engine.submit(sound(), variations="g") for _ in range(2)]
    parts = feed.answer("")["parts"]
    assert "variation 2 of 2" in parts[f"row:{group[1]}"]["info"] and "takes about" in parts[f"row:{group[1]}"]["info"]
    assert parts["clocks"][group[0]] % 60 == 0 and parts["clocks"]["all"] == parts["clocks"][group[1]]
    assert abs(parts["clocks"][group[0]] - time.time()) < 120
    engine.pause()
    assert feed.answer("")["parts"]["clocks"] == {} and "On hold" in feed.answer("")["parts"][f"row:{group[0]}"]["info"]


# What may be done, and by whom


def test_others_jobs_are_unknown_to_every_action(engine: QueueEngine, desk: QueueDesk) -> None:
    engine.pause()
    bobs = engine.submit(sound(), "bob")
    before = (engine.jobs(), engine.version)
    acts = ("cancel", "duplicate", "retry", "dismiss", "first", "up", "down", "last", "place")
    for owner in ("ann", ""):
        for act in acts:
            with pytest.raises(UnknownJob):
                desk.do(owner, act, bobs)
        with pytest.raises(UnknownJob):
            desk.edited(owner, bobs)
        with pytest.raises(UnknownJob):
            desk.own(owner, bobs)
        desk.do(owner, "clear")
    assert (engine.jobs(), engine.version) == before
    mine = engine.submit(sound(), "ann")
    desk.do("ann", "place", mine, before=bobs)
    assert order(engine) == [bobs, mine]
    for act in ("close", "__class__", "", "submit"):
        with pytest.raises(ValueError, match="cannot do this"):
            desk.do("bob", act, bobs)


def test_moving_changes_places_among_the_own(engine: QueueEngine, desk: QueueDesk) -> None:
    engine.pause()
    a, x, b, c = (engine.submit(sound(), owner) for owner in ("ann", "bob", "ann", "ann"))
    for act, job, expected in (
        ("first", c, [c, x, a, b]),
        ("up", c, [c, x, a, b]),
        ("down", c, [a, x, c, b]),
        ("last", a, [c, x, b, a]),
        ("down", a, [c, x, b, a]),
        ("up", a, [c, x, a, b]),
    ):
        desk.do("ann", act, job)
        assert order(engine) == expected, act
    desk.do("ann", "place", b, before=c)
    assert order(engine) == [b, x, c, a]
    desk.do("ann", "place", b, before="")
    assert order(engine) == [c, x, a, b]
    engine.cancel(a)
    with pytest.raises(JobStateError, match="cancelled"):
        desk.do("ann", "first", a)
    desk.do("ann", "place", b, before=a)
    assert order(engine) == [c, x, b]


def test_pausing_is_for_who_waits_alone_and_resuming_for_all(engine: QueueEngine, desk: QueueDesk) -> None:
    desk.do("ann", "pause")
    assert engine.paused
    waits = engine.submit(sound(), "bob")
    with pytest.raises(ValueError, match="Clips of others"):
        desk.do("ann", "pause")
    desk.do("carol", "resume")
    assert not engine.paused and not engine.job(waits).finished


def test_editing_hands_over_the_recipe(engine: QueueEngine, desk: QueueDesk) -> None:
    engine.pause()
    job = engine.submit(sound(TWO_LINES, seed=7))
    edited = desk.edited("", job)
    assert edited["job"] == job and GenerationRequest.from_recipe(edited["recipe"]).seed == 7
    engine.cancel(job)
    assert desk.edited("", job)["job"] is None
    desk.do("", "duplicate", job)
    assert engine.job(order(engine)[0]).request == engine.job(job).request
    engine.close()
    with pytest.raises(EngineError):
        desk.do("", "duplicate", job)
