"""Rewriting on the page without a browser: the desk, what the browser keeps, the handlers, and jobs that go on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from queue_child import SPEC, SoundRunner
from studio_server import TypingModel, offline_desk
from waiting import wait_for

from nava_core.engine import EngineError, EngineStatus, Job, JobError, QueueEngine
from nava_core.request import GenerationCancelled, GenerationRequest, RequestError
from nava_core.speech import parse_speech
from rewriter import BackendUnavailable, RewriteCounts, RewriteError, Rewriter, make_rewriter
from rewriter.backends.base import Chunk
from rewriter.messages import Message
from ui import captions, handlers, stage_views, views
from ui.catalogue import Catalogue
from ui.faster import DEFAULTS
from ui.panels import Page
from ui.rewriting import IN_PROCESS, ConsiderateRunner, RewriteDesk, Rewriting, UnknownRewriting
from ui.service import Service
from ui.state import Draft
from ui.studio import build_page
from ui.updates import stage_updates

TEXT = Catalogue("en")
PROMPT = "A red ball falls. She says: ~~Hello there~~"
PATIENCE = 60.0


def ended(desk: RewriteDesk, rewriting_id: str) -> Rewriting:
    wait_for(lambda: desk.rewriting(rewriting_id).finished)
    return desk.rewriting(rewriting_id)


@pytest.fixture
def model() -> TypingModel:
    return TypingModel()


@pytest.fixture
def desk(model: TypingModel) -> Iterator[RewriteDesk]:
    desk = RewriteDesk(lambda: Rewriter(model))
    yield desk
    desk.close()


# The desk


def test_a_rewriting_thinks_writes_and_is_done(desk: RewriteDesk, model: TypingModel) -> None:
    model.thought.clear()
    model.typed.clear()
    rewriting_id = desk.start(PROMPT)
    wait_for(lambda: desk.rewriting(rewriting_id).state == "thinking")
    assert desk.rewriting(rewriting_id).text == ""
    model.thought.set()
    wait_for(lambda: desk.rewriting(rewriting_id).state == "writing")
    begun = desk.rewriting(rewriting_id).text
    model.typed.set()
    done = ended(desk, rewriting_id)
    assert done.state == "done" and done.result is not None and done.result.outcome == "as is"
    assert done.text == done.result.caption and done.text.startswith(begun) and "SECRET" not in done.text
    assert [span.text for span in parse_speech(done.text).spans] == ["Hello there"]
    assert done.label == "typing model" and done.job_id is None


def test_a_rewriting_is_stopped_at_any_moment(desk: RewriteDesk, model: TypingModel) -> None:
    model.typed.clear()
    at_once, writing = desk.start(PROMPT), desk.start(PROMPT)
    desk.cancel(at_once)
    wait_for(lambda: desk.rewriting(writing).state == "writing")
    desk.cancel(writing)
    assert ended(desk, at_once).state == ended(desk, writing).state == "cancelled"
    assert model.stopped >= 1
    desk.cancel(writing)
    desk.cancel("nothing")
    with pytest.raises(UnknownRewriting, match="nothing"):
        desk.rewriting("nothing")


def test_a_server_that_is_started_later_is_found() -> None:
    there: list[Rewriter] = []

    def make() -> Rewriter:
        if not there:
            raise BackendUnavailable("no answer; start it with scripts/start_rewriter.sh")
        return there[0]

    desk = RewriteDesk(make)
    failed = ended(desk, desk.start(PROMPT))
    assert failed.state == "failed" and failed.error is not None and "start_rewriter.sh" in failed.error.message
    assert 'role="alert"' in views.rewriting(TEXT, failed) and "start_rewriter.sh" in views.rewriting(TEXT, failed)
    there.append(make_rewriter("offline"))
    assert ended(desk, desk.start(PROMPT)).state == "done"
    there[0] = Rewriter(TypingModel())
    assert ended(desk, desk.start(PROMPT)).label == "typing model", "rules are not settled for"
    desk.close()


def test_how_prompts_went_is_counted_and_shown() -> None:
    class Refusing(TypingModel):
        async def reply(self, messages: list[Message], seed: int) -> AsyncGenerator[Chunk, None]:
            if "too long" in messages[-1]["content"]:
                raise RewriteError("the prompt is too long; shorten it")
            async with aclosing(super().reply(messages, seed)) as chunks:
                async for chunk in chunks:
                    yield chunk

    made: list[Rewriter] = []

    def make() -> Rewriter:
        made.append(Rewriter(Refusing()))
        return made[-1]

    desk = RewriteDesk(make)
    assert ended(desk, desk.start(PROMPT)).state == "done"
    assert ended(desk, desk.start("too long")).state == "failed"
    done = ended(desk, desk.start(PROMPT))
    assert done.counts == RewriteCounts(as_is=2, failed=1, attempts=2)
    assert "since the start: 2. As written: 2, repaired: 0" in views.rewriting(TEXT, done)
    assert len(made) == 1, "a refused prompt unloads no model"
    desk.close()
    rules = RewriteDesk(lambda: make_rewriter("offline"))
    assert "since the start" not in views.rewriting(TEXT, ended(rules, rules.start(PROMPT)))
    rules.close()


def test_a_caption_is_handed_on_or_kept_with_the_reason(desk: RewriteDesk) -> None:
    assert ended(desk, desk.start(PROMPT, lambda result: f"job of {result.prompt}")).job_id == f"job of {PROMPT}"

    def refuse(result: Any) -> str:
        raise RequestError("seed", "the seed is wrong")

    kept = ended(desk, desk.start(PROMPT, refuse))
    assert kept.state == "failed" and kept.result is not None
    assert kept.error == JobError("the seed is wrong", "seed", "request")

    def break_down(result: Any) -> str:
        raise ZeroDivisionError("oh")

    broken = ended(desk, desk.start(PROMPT, break_down))
    assert broken.error is not None and broken.error.kind == "internal"


def test_another_takes_the_place_of_one_that_is_not_wanted_any_more(desk: RewriteDesk, model: TypingModel) -> None:
    model.typed.clear()
    first = desk.start(PROMPT)
    wait_for(lambda: desk.rewriting(first).state == "writing")
    second = desk.start(PROMPT, replaces=first)
    assert ended(desk, first).replaced and not desk.rewriting(second).replaced
    model.typed.set()
    assert ended(desk, second).state == "done"


def test_nothing_cannot_be_rewritten_and_old_ones_are_forgotten() -> None:
    desk = RewriteDesk(lambda: make_rewriter("offline"), keep=2)
    with pytest.raises(RequestError, match="empty"):
        desk.start(" \n")
    ids = []
    for _ in range(4):
        ids.append(desk.start(PROMPT))
        ended(desk, ids[-1])
    with pytest.raises(UnknownRewriting):
        desk.rewriting(ids[0])
    assert desk.rewriting(ids[-1]).state == "done"
    desk.close()
    desk.close()


def test_a_model_of_this_process_and_a_clip_take_turns() -> None:
    model = TypingModel(IN_PROCESS)
    desk = RewriteDesk(lambda: Rewriter(model))
    model.typed.clear()
    writing = desk.start(PROMPT)
    wait_for(lambda: desk.rewriting(writing).state == "writing")
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(GenerationCancelled), desk.clip_being_made(cancelled):
        pass
    begun, made = threading.Event(), threading.Event()

    def make_clip() -> None:
        with desk.clip_being_made(threading.Event()):
            begun.set()
            made.wait(PATIENCE)

    clip = threading.Thread(target=make_clip)
    clip.start()
    assert not begun.wait(0.3), "the model is still writing"
    model.typed.set()
    assert begun.wait(PATIENCE) and model.parked == 1
    waiting = desk.start(PROMPT)
    wait_for(lambda: desk.rewriting(waiting).state == "waiting")
    made.set()
    assert ended(desk, waiting).state == "done"
    clip.join()
    desk.close()


def test_a_clip_waits_for_no_server(tmp_path: Path, model: TypingModel, desk: RewriteDesk) -> None:
    model.typed.clear()
    desk.start(PROMPT)
    engine = QueueEngine(ConsiderateRunner(SoundRunner(), desk), tmp_path)
    job_id = engine.submit(GenerationRequest("雨", modality="audio"))
    assert [job.state for job in engine.events(job_id)][-1] == "done"
    engine.close()


# What the browser keeps


@pytest.mark.parametrize("stored", [None, "draft", 3, ["id"], {}, {"id": 3, "used": ["a"], "random_seed": "no"}])
def test_anything_that_a_browser_hands_over_is_a_draft(stored: Any) -> None:
    assert Draft.read(stored) == Draft()
    draft = Draft.read({"id": stored, "source": "a", "random_seed": False, "used": 3, "more": 1})
    assert (draft.source, draft.random_seed, draft.used) == ("a", False, None)
    assert Draft.read(draft.to_json()) == draft


def test_the_way_back_leads_to_a_persons_own_words() -> None:
    first = Draft().begun("1", "a ball").with_used("一个圆球", "a ball")
    assert first.original_of("一个圆球") == first.before == "a ball"
    assert first.original_of("a star") is None and first.original_of("一个圆球。") is None
    twice = first.begun("2", "一个圆球").with_used("一个大圆球", "一个圆球")
    assert twice.original_of("一个大圆球") == twice.before == "a ball"
    afresh = first.begun("3", "a star")
    assert afresh.used is None and afresh.belongs_to("a star") and not afresh.belongs_to("a ball")
    stale = afresh.with_used("一颗星星", "a cube")
    assert (stale.original_of("一颗星星"), stale.before) == ("a star", "a cube")
    assert Draft(source="a\r\nb").belongs_to("a\nb")


# The handlers


@pytest.fixture
def page() -> Page:
    with gr.Blocks():
        return build_page(TEXT, EngineStatus("loading"))


@pytest.fixture
def runner() -> SoundRunner:
    return SoundRunner()


@pytest.fixture
def engine(tmp_path: Path, runner: SoundRunner) -> Iterator[QueueEngine]:
    engine = QueueEngine(runner, tmp_path / "out", tmp_path / "queue" / "jobs.sqlite3")
    engine.wait_until_loaded()
    yield engine
    engine.close()


@pytest.fixture
def service(engine: QueueEngine, desk: RewriteDesk) -> Service:
    return Service(engine, desk, TEXT)


def values_of(page: Page, prompt: str, **changes: Any) -> list[Any]:
    values = {"prompt": prompt, "negative_prompt": "", "image": None, "modality": "audio", "size": "96x64"}
    values |= {"seconds": 0.5, "steps": 2, "seed": "5", "random_seed": False, "variations": 1}
    values |= {"align": True, "timbre_apart": False}
    values |= {"video": 1.0, "audio": 1.0, "video_align": 1.0, "audio_align": 1.0, "timbre": 1.0} | DEFAULTS | changes
    return [*(values[name] for name in page.form), None]


def run(updates: Any) -> list[dict[Any, Any]]:
    async def collect() -> list[dict[Any, Any]]:
        return [update async for update in updates]

    return asyncio.run(collect())


def follow(service: Service, page: Page, begun: dict[Any, Any]) -> dict[Any, Any]:
    shown = run(captions.follow(service, page, begun[page.followed], begun[page.draft]))
    return shown[-1]


def test_a_caption_comes_into_its_box_and_into_the_prompts_place_when_asked(
    service: Service, page: Page, model: TypingModel
) -> None:
    model.typed.clear()
    begun = captions.rewrite(service, page, None, PROMPT)
    assert begun[page.caption.section]["visible"] and not begun[page.scene.rewrite]["interactive"]
    assert page.scene.prompt not in begun and page.bar.generate not in begun
    model.typed.set()
    done = follow(service, page, begun)
    caption, draft = done[page.caption.text]["value"], begun[page.draft]
    assert "~~Hello there~~" in caption and done[page.caption.text]["interactive"]
    assert "typing model" in done[page.caption.status] and "as it was written" in done[page.caption.status]
    assert done[page.scene.rewrite]["interactive"] and page.scene.prompt not in done

    used = captions.use(service, page, draft, PROMPT, caption + "！")
    assert used[page.scene.prompt] == caption + "！"
    assert not used[page.caption.section]["visible"] and used[page.caption.used]["visible"]
    started = handlers.generate(service, page, used[page.draft], None, None, *values_of(page, caption + "！"))
    assert service.engine.job(started[page.watched]).request.original_prompt == PROMPT
    changed = handlers.generate(service, page, used[page.draft], None, None, *values_of(page, "别的"))
    assert service.engine.job(changed[page.watched]).request.original_prompt is None

    back = captions.undo(service, page, used[page.draft], caption + "！！")
    assert back[page.scene.prompt] == PROMPT and back[page.caption.text]["value"] == caption + "！！"
    assert back[page.caption.section]["visible"] and not back[page.caption.used]["visible"]
    assert captions.use(service, page, draft, PROMPT, " ").keys() == {page.caption.section}
    assert captions.undo(service, page, None, PROMPT).keys() == {page.caption.used}


def test_a_caption_of_an_earlier_prompt_says_so_and_is_not_used_unasked(service: Service, page: Page) -> None:
    draft = captions.rewrite(service, page, None, PROMPT)[page.draft]
    assert captions.mark_stale(service, page, draft, "a star")[page.caption.stale]["visible"]
    assert not captions.mark_stale(service, page, draft, PROMPT)[page.caption.stale]["visible"]
    assert not captions.mark_stale(service, page, None, PROMPT)[page.caption.stale]["visible"]
    started = handlers.generate(service, page, draft, None, None, *values_of(page, "a star"))
    assert service.engine.job(started[page.watched]).request.prompt == "a star"


def test_stopping_keeps_the_prompt_and_shows_no_half_caption(
    service: Service, page: Page, model: TypingModel, desk: RewriteDesk
) -> None:
    model.typed.clear()
    begun = captions.rewrite(service, page, None, PROMPT)
    wait_for(lambda: desk.rewriting(begun[page.followed]).state == "writing")
    assert not captions.stop(service, page, begun[page.draft])[page.caption.stop]["interactive"]
    stopped = follow(service, page, begun)
    assert stopped[page.caption.text]["value"] == "" and not stopped[page.caption.text]["visible"]
    assert "Stopped" in stopped[page.caption.status] and stopped[page.scene.rewrite]["interactive"]
    assert page.scene.prompt not in stopped


def test_rewrite_and_generate_makes_the_caption_and_leaves_the_prompt(
    service: Service, page: Page, model: TypingModel
) -> None:
    model.typed.clear()
    begun = captions.rewrite_and_generate(service, page, None, *values_of(page, PROMPT))
    assert not begun[page.bar.generate]["interactive"]
    assert not begun[page.bar.rewrite_and_generate]["interactive"]
    model.typed.set()
    done = follow(service, page, begun)
    job_id = done[page.handed]
    assert done[page.job]["id"] == job_id and page.scene.prompt not in done
    made = list(service.engine.events(job_id))[-1]
    assert made.state == "done" and made.recipe is not None
    assert (made.recipe["original_prompt"], made.recipe["prompt"]) == (PROMPT, done[page.caption.text]["value"])
    assert "~~Hello there~~" in made.recipe["prompt"]
    rows = views.recipe(TEXT, made.recipe)
    assert "Written by you" in rows and "A red ball falls" in rows


def test_a_caption_that_cannot_become_a_clip_stays_and_the_buttons_come_back(
    service: Service, page: Page, engine: QueueEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: GenerationRequest, owner: str) -> str:
        raise EngineError("the engine was closed")

    monkeypatch.setattr(engine, "submit", refuse)
    done = follow(service, page, captions.rewrite_and_generate(service, page, None, *values_of(page, PROMPT)))
    assert "~~Hello there~~" in done[page.caption.text]["value"] and done[page.handed] is None
    assert "the engine was closed" in done[page.bar.notice]["value"]
    assert done[page.bar.generate]["interactive"] and done[page.bar.rewrite_and_generate]["interactive"]


def test_a_closed_tab_neither_ends_the_writing_nor_the_clip(
    service: Service, page: Page, model: TypingModel, desk: RewriteDesk
) -> None:
    model.typed.clear()
    begun = captions.rewrite_and_generate(service, page, None, *values_of(page, PROMPT, seed="8"))
    draft = begun[page.draft]
    opened = asyncio.run(handlers.open_page(service, page, None, draft))
    assert opened[page.followed] == draft["id"] and opened[page.scene.prompt]["value"] == PROMPT
    assert opened[page.caption.section]["visible"] and not opened[page.bar.generate]["interactive"]
    model.typed.set()
    job_id = ended(desk, draft["id"]).job_id
    assert job_id is not None
    list(service.engine.events(job_id))
    opened = asyncio.run(handlers.open_page(service, page, None, draft))
    assert opened[page.watched] == opened[page.job]["id"] == job_id and opened[page.bar.seed]["value"] == "8"
    assert opened[page.scene.prompt]["value"] == PROMPT and opened[page.followed] is None
    assert "~~Hello there~~" in opened[page.caption.text]["value"] and opened[page.stage.sound]["visible"]

    after_a_restart = Service(service.engine, offline_desk(), TEXT)
    opened = asyncio.run(handlers.open_page(after_a_restart, page, opened[page.job], draft))
    assert opened[page.scene.prompt]["value"] == PROMPT and opened[page.watched] == job_id
    assert page.caption.section not in opened
    after_a_restart.desk.close()


def test_a_reloaded_page_finds_the_caption_in_the_prompts_place(service: Service, page: Page) -> None:
    begun = captions.rewrite(service, page, None, PROMPT)
    caption = follow(service, page, begun)[page.caption.text]["value"]
    draft = captions.use(service, page, begun[page.draft], PROMPT, caption)[page.draft]
    started = handlers.generate(service, page, draft, None, None, *values_of(page, caption))
    for job in (None, started[page.job]):
        opened = asyncio.run(handlers.open_page(service, page, job, draft))
        assert opened[page.scene.prompt]["value"] == caption
        assert opened[page.caption.used]["visible"] and not opened[page.caption.section]["visible"]


# What the durable queue can say


def test_an_interrupted_job_can_be_gone_on_with(tmp_path: Path, page: Page, desk: RewriteDesk) -> None:
    place = tmp_path / "queue" / "jobs.sqlite3"
    first = QueueEngine(SoundRunner(step_seconds=0.2), tmp_path, place)
    job_id = first.submit(GenerationRequest("雨", modality="audio", num_inference_steps=400))
    wait_for(lambda: first.job(job_id).step)
    first.close()

    engine = QueueEngine(SoundRunner(), tmp_path, place, go_on=False)
    service = Service(engine, desk, TEXT)
    stored = {"id": job_id, "random_seed": True}
    opened = asyncio.run(handlers.open_page(service, page, stored, None))
    assert opened[page.stage.again]["visible"] and opened[page.stage.again]["value"] == "Go on"
    assert "Interrupted" in opened[page.stage.picture]["value"] and opened[page.bar.notice]["visible"]
    gone_on = handlers.go_on(service, page, stored)
    assert gone_on[page.watched] == job_id and not gone_on[page.stage.again]["visible"]
    assert not gone_on[page.bar.notice]["visible"] or "interrupted" in gone_on[page.stage.progress]["value"]
    last = run(handlers.watch(service, page, job_id))[-1]
    assert last[page.stage.sound]["visible"]
    again = handlers.go_on(service, page, stored)
    assert "is done" in again[page.bar.notice]["value"]
    assert handlers.go_on(service, page, None)[page.watched] is None
    engine.close()


def test_a_job_that_goes_on_by_itself_says_so() -> None:
    job = Job("1", GenerationRequest("雨"), state="queued", attempts=1)
    assert "interrupted before" in stage_views.progress(TEXT, job)
    assert "interrupted before" in stage_views.progress(TEXT, replace(job, state="running", attempts=2))
    assert "interrupted before" not in stage_views.progress(TEXT, replace(job, state="running", attempts=1))


def test_a_paused_queue_says_why_and_can_be_taken_up(service: Service, page: Page, engine: QueueEngine) -> None:
    engine.pause()
    started = handlers.generate(service, page, None, None, None, *values_of(page, "雨"))
    assert "The queue is paused" in started[page.stage.progress]["value"]
    assert started[page.stage.again]["value"] == "Resume the queue" and started[page.stage.again]["visible"]
    assert handlers.go_on(service, page, started[page.job])[page.watched] is None
    assert run(handlers.watch(service, page, started[page.watched]))[-1][page.stage.sound]["visible"]
    why = stage_views.progress(TEXT, Job("1", GenerationRequest("雨")), None, "the disk is <full>")
    assert "the disk is &lt;full&gt;" in why


def test_estimates_stand_beside_generate_and_in_the_progress(service: Service, page: Page, tmp_path: Path) -> None:
    values = values_of(page, "雨")
    assert not handlers.estimate(service, page, *values)[page.bar.estimate]["visible"]
    started = handlers.generate(service, page, None, None, None, *values)
    list(service.engine.events(started[page.watched]))
    wait_for(lambda: handlers.estimate(service, page, *values)[page.bar.estimate]["visible"])
    for prompt in ("雨", " "):
        shown = handlers.estimate(service, page, *values_of(page, prompt))[page.bar.estimate]["value"]
        assert re.search(r"About \d+ s\b", shown)
    unreadable = values_of(page, "雨", random_seed=False, seed="two")
    assert not handlers.estimate(service, page, *unreadable)[page.bar.estimate]["visible"]
    running = Job("1", GenerationRequest("雨"), state="running", phase="denoise", step=1, steps=4, seconds=3)
    assert "3 s · about 12 s left" in stage_views.progress(TEXT, running, 12.2)
    waiting = Job("1", GenerationRequest("雨"), ahead=2)
    assert "about 5 min until it is done" in stage_views.progress(TEXT, waiting, 299)
    assert "2 before this one" in stage_views.progress(TEXT, waiting, 299)


@pytest.mark.parametrize("kind", ["lost", "disk", "out_of_memory", "request"])
def test_a_failure_that_may_pass_can_be_tried_again(service: Service, page: Page, kind: Any) -> None:
    job_id = service.engine.submit(GenerationRequest("雨", modality="audio"))
    failed = replace(service.engine.job(job_id), state="failed", error=JobError("no", kind=kind))
    shown = stage_updates(service, page, failed)
    assert shown[page.stage.again]["visible"] == (kind in ("lost", "disk"))


def test_a_request_that_does_not_suit_todays_model_leaves_its_words(service: Service, page: Page) -> None:
    assert SPEC.max_seconds < 60
    values = handlers._form_of(service, page, GenerationRequest("雨", seconds=60), {"random_seed": True})
    assert values == {page.scene.prompt: "雨"}
