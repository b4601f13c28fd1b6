"""The studio's page, put together: panels, and which handler answers which event."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from nava_core.engine.jobs import DATABASE, Engine, EngineStatus
from rewriter import make_rewriter
from ui import api, captions, handlers, handover, views
from ui.accounts import Accounts
from ui.cast import build_cast, connect_cast
from ui.catalogue import LANGUAGES, Catalogue
from ui.compare import build_compare, connect_compare
from ui.doors import Doors, Owns
from ui.examples import FOLDER as EXAMPLES_FOLDER
from ui.faster import NO_LORAS, LoraFolder
from ui.files import MAX_BYTES
from ui.footer import build_footer
from ui.gallery import build_gallery, connect_gallery
from ui.library.gallery import GALLERY_DATABASE, Gallery, private_paths
from ui.library.voices import VOICES, VoiceLibrary
from ui.mixer import build_mixer, connect_mixer
from ui.owners import owner_of
from ui.panels import Page, build_advanced
from ui.queue import build_queue, connect_queue
from ui.rewriting import RewriteDesk
from ui.scene import build_scene, message_place
from ui.script import build_script, connect_script
from ui.service import BROWSER_SECRET, QUIET, Service
from ui.stage import build_stage, connect_stage
from ui.theme import SCRIPTS, STYLES, studio_theme

# What of the form does not change how long a clip takes.
NOT_COSTLY = ("prompt", "negative_prompt", "image", "seed", "random_seed")
# Uploads and copies of clips in Gradio's own cache: looked at once an hour, deleted after a day.
CACHE_LIFE = (3600, 24 * 3600)
# In the browser itself, so that it has happened by the time Generate is pressed. `input` would be the event, but
# Gradio's textbox does not send it for a paste; the seed that a run drew is known from its job.
TYPED_SEED_COUNTS = "(seed, random, job) => random && (!seed.trim() || seed === job?.seed)"
# What these do is in scripts/page.js.
SHOW_FIRST_ERROR, FORM_IS_SHOWN = "() => nava.showFirstError()", "() => nava.formIsShown()"
TO_THE_STAGE, TO_THE_FORM = "() => nava.toTheStage()", "() => nava.toTheForm()"
# Of all open tabs together; Gradio's own limit would let forty of them stop every other.
MOST_EVENTS = 1000


def create_ui(
    engine: Engine,
    language: str = "en",
    desk: RewriteDesk | None = None,
    voices: VoiceLibrary | None = None,
    gallery: Gallery | None = None,
    loras: LoraFolder = NO_LORAS,
) -> gr.Blocks:
    """Build the page and its API over `engine`, which may still be loading its model. Launches nothing.

    language: of the page at "/"; the others are beside it, each at its own name. desk: rewrites prompts; None makes one
    with the first backend that is there when it is first needed. voices, gallery: what people keep; without one its
    panel stays empty. loras: those that people may choose from.
    """
    desk = desk or RewriteDesk(make_rewriter)
    service = Service(engine, desk, Catalogue(language), voices, gallery, loras=loras)
    others = [other for other in LANGUAGES if other != language]
    title = service.text("app.title")
    with gr.Blocks(title=title, analytics_enabled=None, fill_width=True, delete_cache=CACHE_LIFE) as demo:
        _add_page(demo, service, {other: f"./{other}" for other in others})
        api.add_endpoints(engine, desk, loras)
    for other in others:
        with demo.route(LANGUAGES[other], f"/{other}", show_in_navbar=False):
            links = {to: "./" if to == language else f"./{to}" for to in LANGUAGES if to != other}
            _add_page(demo, replace(service, text=Catalogue(other)), links)
    return demo.queue(default_concurrency_limit=None, max_size=256)


def _add_page(demo: gr.Blocks, service: Service, links: dict[str, str]) -> None:
    page = build_page(service.text, EngineStatus("loading"), links, service.gallery)
    _connect_form(service, page)
    _connect_writing(service, page)
    _connect_rewriting(service, page)
    _connect_stage(demo, service, page)
    _connect_library(service, page)


def launch_options(output_dir: Path, accounts: Accounts | None = None, owns: Sequence[Owns] = ()) -> dict[str, Any]:
    """What `launch` needs beside an address: the look, who may come in, what may be served, how much may be sent.

    accounts: None lets everybody in. owns: say whose a file in `output_dir` is, where people log in.
    """
    database = output_dir.resolve() / DATABASE
    return {
        "theme": studio_theme(),
        "css_paths": [*STYLES],
        "head": "".join(f"<script>{path.read_text(encoding='utf-8')}</script>" for path in SCRIPTS),
        "allowed_paths": [str(output_dir.resolve()), str(EXAMPLES_FOLDER)],
        # The queue stands among the clips and knows everybody's; the copies of files beside it are shown in the form.
        "blocked_paths": [
            *(f"{database}{ending}" for ending in ("", "-wal", "-shm", ".lock")),
            *private_paths(output_dir / GALLERY_DATABASE, output_dir),
            str(output_dir.resolve() / VOICES),
        ],
        # A tab that follows its clip holds one of these, though no thread, for as long as that takes.
        "max_threads": MOST_EVENTS,
        "max_file_size": MAX_BYTES,
        "auth": None if accounts is None else accounts.login,
        "app_kwargs": {
            "middleware": [Middleware(Doors, output_dir=output_dir, accounts=accounts, owns=[*owns])],
        },
        "footer_links": ["api"],
        "mcp_server": True,
        # Gradio would ask for its own page and, on a machine too busy to answer within 3 seconds, not start at all.
        "_frontend": False,
    }


def build_page(
    text: Catalogue, status: EngineStatus, links: dict[str, str] | None = None, kept_clips: Gallery | None = None
) -> Page:
    links = links or {}
    header = gr.HTML(views.header(text, status, links=links), elem_id="header")
    with gr.Row(elem_id="studio"):
        with gr.Column(elem_id="authoring"):
            scene, caption = build_scene(text)
            script = build_script(text)
            speakers_error = message_place("speakers-error")
            cast = build_cast(text)
            mixer = build_mixer(text)
            advanced = build_advanced(text)
        with gr.Column(elem_id="viewing"):
            stage = build_stage(text)
            compare = build_compare(text)
            examples = gr.HTML(
                elem_id="examples",
                visible=False,
                js_on_load="nava.examples(element, trigger)",
            )
    with gr.Row(elem_id="library"):
        queue = build_queue(text)
        gallery = build_gallery(text, kept_clips)
    bar = build_footer(text)
    kept = (
        gr.BrowserState(None, storage_key=f"nava-studio-{name}", secret=BROWSER_SECRET)
        for name in ("job", "draft", "form")
    )
    passed_on = (gr.State(None) for _ in range(4))
    return Page(
        links,
        header,
        scene,
        caption,
        script,
        speakers_error,
        cast,
        mixer,
        advanced,
        stage,
        compare,
        examples,
        queue,
        gallery,
        bar,
        *kept,
        *passed_on,
    )


def _owned(function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
    """A handler that is told who asks; and in which tab, where it wants to know."""
    wanted = inspect.signature(function).parameters

    def who(request: gr.Request) -> dict[str, str]:
        known = {"owner": owner_of(request), "session": request.session_hash or ""}
        return {name: value for name, value in known.items() if name in wanted}

    # Functions of their own, for Gradio reads from their annotations what it hands over.

    def handler(request: gr.Request, *values: Any) -> Any:
        return function(*fixed, *values, **who(request))

    async def waiting(request: gr.Request, *values: Any) -> Any:
        return await function(*fixed, *values, **who(request))

    async def streaming(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        async for updates in function(*fixed, *values, **who(request)):
            yield updates

    if inspect.isasyncgenfunction(function):
        return streaming
    return waiting if inspect.iscoroutinefunction(function) else handler


def _connect_form(service: Service, page: Page) -> None:
    """The form is kept in the browser with every change, and its parts follow one another."""
    names = json.dumps(list(page.form))
    gr.on(
        [part.change for part in page.form.values()],
        None,
        [page.saved, *page.form.values()],
        page.saved,
        js=f"(kept, ...values) => nava.keptForm({names}, kept, values)",
        **QUIET,
    )
    bar, advanced = page.bar, page.advanced
    bar.seed.change(None, [bar.seed, bar.random_seed, page.job], bar.random_seed, js=TYPED_SEED_COUNTS, **QUIET)
    bar.quality.input(partial(handlers.choose_quality, service), bar.quality, advanced.steps, **QUIET)
    advanced.steps.change(
        partial(handlers.follow_steps, service), advanced.steps, bar.quality, trigger_mode="always_last", **QUIET
    )
    negative = advanced.negative_prompt
    choose_modality = partial(handlers.choose_modality, service)
    advanced.modality.input(choose_modality, [advanced.modality, negative], negative, **QUIET)
    connect_mixer(lambda: service.spec, service.text, page.mixer, advanced.modality, page.script.assignments, **QUIET)


def _connect_writing(service: Service, page: Page) -> None:
    scene, assignments = page.scene, page.script.assignments
    connect_cast(service, page.cast)
    connect_script(service, page.script, scene.prompt, page.bar.seconds, page.cast)
    gr.on(
        [scene.prompt.change, assignments.change, page.cast.changed.change],
        _owned(handlers.write, service, page),
        [scene.prompt, assignments],
        [scene.speech, scene.tokens, scene.suggestion, scene.hint, scene.prompt_error],
        trigger_mode="always_last",
        **QUIET,
    )
    follow_suggestion = _owned(handlers.follow_suggestion, service)
    scene.suggestion.click(follow_suggestion, scene.prompt, scene.prompt, **QUIET)

    def choose(event: gr.EventData, stored: Any) -> Any:
        return handlers.show_example(service, page, stored, getattr(event, "index", None))

    chosen = page.examples.select(choose, page.job, _everything(page), **QUIET)
    chosen.then(None, js=TO_THE_STAGE, **QUIET)


def _connect_rewriting(service: Service, page: Page) -> None:
    scene, bar, caption, prompt, draft = page.scene, page.bar, page.caption, page.scene.prompt, page.draft
    outputs = _everything(page)
    rewrite = _owned(captions.rewrite, service, page)
    _follow(service, page, scene.rewrite.click(rewrite, [draft, prompt], outputs, **QUIET))
    both = _owned(captions.review_or_generate, service, page)
    pressed = bar.rewrite_and_generate.click(both, [draft, bar.review, *_form(page)], outputs, **QUIET)
    _watch(service, page, _follow(service, page, pressed), page.handed)
    make = _owned(handlers.make_caption, service, page)
    _watch(
        service,
        page,
        caption.make.click(make, [draft, caption.text, page.job, page.editing, *_form(page)], outputs, **QUIET),
        page.watched,
    )
    caption.stop.click(_owned(captions.stop, service, page), draft, caption.stop, **QUIET)
    places = [prompt, draft, caption.section, caption.used, caption.text, caption.use, caption.make]
    caption.use.click(partial(captions.use, service, page), [draft, prompt, caption.text], places, **QUIET)
    caption.undo.click(partial(captions.undo, service, page), [draft, prompt], places, **QUIET)
    stale = partial(captions.mark_stale, service, page)
    gr.on([prompt.change, draft.change], stale, [draft, prompt], caption.stale, trigger_mode="always_last", **QUIET)


def _connect_stage(demo: gr.Blocks, service: Service, page: Page) -> None:
    scene, bar, outputs = page.scene, page.bar, _everything(page)
    connect_stage(
        service,
        page.stage,
        leave_out_recipe=page.gallery.private,
        without_recipe=None if service.gallery is None else service.gallery.anonymous_copy,
        colours=partial(handover.line_colours, service),
    )
    start = _owned(handlers.generate, service, page)
    pressed = gr.on(
        [bar.generate.click, scene.prompt.submit],
        start,
        [page.draft, page.job, page.editing, *_form(page)],
        outputs,
        **QUIET,
    )
    pressed.then(None, js=TO_THE_STAGE, **QUIET)
    _watch(service, page, pressed, page.watched)
    again = page.stage.again.click(_owned(handlers.go_on, service, page), page.job, outputs, **QUIET)
    _watch(service, page, again, page.watched)
    bar.cancel.click(_owned(handlers.cancel, service, page), page.job, [bar.cancel, bar.notice], **QUIET)
    words = [page.form[name] for name in ("prompt", "image", "seed", "random_seed", "variations")]
    shown = demo.load(partial(handlers.restore_words, page), page.saved, words, **QUIET)
    shown.then(None, js=FORM_IS_SHOWN, **QUIET)
    kept = [page.job, page.draft, page.saved]
    opened = demo.load(_owned(handlers.open_page, service, page), kept, outputs, **QUIET)
    opened.then(None, js="() => nava.modelIsKnown()", **QUIET)
    _watch(service, page, opened, page.watched)
    _watch(service, page, _follow(service, page, opened), page.handed)
    costly = [part for name, part in page.form.items() if name not in NOT_COSTLY]
    gr.on(
        [part.change for part in (*costly, page.script.assignments)],
        _owned(handlers.estimate, service, page),
        _form(page),
        bar.estimate,
        trigger_mode="always_last",
        **QUIET,
    )


def _connect_library(service: Service, page: Page) -> None:
    """What the queue, the gallery and the stage ask of the page."""
    queue, gallery, stage, outputs = page.queue, page.gallery, page.stage, _everything(page)
    connect_queue(service, queue)
    connect_gallery(service, gallery)
    connect_compare(service, page.compare, partial(handover.comparable_clips, service))
    show_job, show_clip = _owned(handover.show_job, service, page), _owned(handover.show_clip, service, page)
    for wish, show in ((queue.watched_job, show_job), (gallery.opened, show_clip), (page.compare.taken, show_clip)):
        shown = wish.change(show, wish, outputs, **QUIET)
        shown.then(None, js=TO_THE_STAGE, **QUIET)
        _watch(service, page, shown, page.watched)
    for wish in (gallery.reuse, stage.reuse):
        reused = wish.change(_owned(handover.reuse, service, page), [wish, *_form(page)], outputs, **QUIET)
        reused.then(None, js=TO_THE_FORM, **QUIET)
    edited = queue.edited.change(
        _owned(handover.edit_job, service, page), [queue.edited, *_form(page)], outputs, **QUIET
    )
    edited.then(None, js=TO_THE_FORM, **QUIET)
    page.bar.stop_editing.click(partial(handover.stop_editing, page), None, outputs, **QUIET)
    go_on = _owned(handover.continue_from, service, page)
    for wish in (gallery.continued, stage.continue_from):
        wish.change(go_on, wish, outputs, **QUIET).then(None, js=TO_THE_FORM, **QUIET)
    compared = gallery.compare.change(
        lambda asked: (asked or {}).get("ids") or [], gallery.compare, page.compare.group, **QUIET
    )
    compared.then(None, js=TO_THE_STAGE, **QUIET)


def _watch(service: Service, page: Page, before: Any, job: gr.State) -> None:
    """After `before`, show the job whose id it left in `job` until it ends."""
    # Twice: a message that is there at once, and one that a running job brings.
    before.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    watched = before.then(_owned(handlers.watch, service, page), job, _everything(page), **QUIET)
    watched.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    watched.then(_owned(handlers.estimate, service, page), _form(page), page.bar.estimate, **QUIET)


def _follow(service: Service, page: Page, before: Any) -> Any:
    """After `before`, show the rewriting whose id it left until it is done; returns that event."""
    before.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    follow = _owned(captions.follow, service, page)
    followed = before.then(follow, [page.followed, page.draft], _everything(page), **QUIET)
    followed.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    return followed


def _form(page: Page) -> list[Any]:
    """The form's components in the order in which handlers take their values."""
    return [*page.form.values(), page.script.assignments]


def _everything(page: Page) -> list[Any]:
    """Every component that a running job or a newly opened page may change, each once."""
    scene, bar, caption, stage = page.scene, page.bar, page.caption, page.stage
    parts = [
        page.header,
        page.job,
        page.draft,
        page.watched,
        page.followed,
        page.handed,
        *_form(page),
        page.editing,
        bar.editing,
        page.compare.group,
        *page.errors.values(),
        page.examples,
        bar.generate,
        bar.cancel,
        bar.rewrite_and_generate,
        bar.notice,
        scene.rewrite,
        caption.section,
        caption.status,
        caption.stale,
        caption.changes,
        caption.text,
        caption.use,
        caption.make,
        caption.stop,
        caption.used,
        page.mixer.section,
        page.advanced.section,
        *stage.outputs,
    ]
    return list(dict.fromkeys(parts))
