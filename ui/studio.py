"""The studio's page, put together: panels, and which handler answers which event."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from nava_core.engine.jobs import DATABASE, Engine, EngineStatus
from rewriter import make_rewriter
from ui import api, captions, handlers, panels, views
from ui.accounts import Accounts
from ui.catalogue import Catalogue
from ui.doors import Doors, Owns
from ui.examples import FOLDER as EXAMPLES_FOLDER
from ui.files import MAX_BYTES
from ui.panels import Page
from ui.rewriting import RewriteDesk
from ui.theme import STYLES, studio_theme
from ui.updates import Service

# Gradio would draw one at each start, and a page could not find its job again after the server's. It hides nothing
# from anybody who may read the browser's storage.
BROWSER_SECRET = "nava-studio"
# What of the form does not change how long a clip takes.
NOT_COSTLY = ("prompt", "negative_prompt", "image", "seed", "random_seed")
# Uploads and copies of clips in Gradio's own cache: looked at once an hour, deleted after a day.
CACHE_LIFE = (3600, 24 * 3600)
# The page's own events: no API, no overlay, and values as they were sent (see state.py).
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
# In the browser itself, so that it has happened by the time Generate is pressed. `input` would be the event, but
# Gradio's textbox does not send it for a paste; the seed that a run drew is known from its job.
TYPED_SEED_COUNTS = "(seed, random, job) => random && (!seed.trim() || seed === job?.seed)"
SHOW_FIRST_ERROR = """() => {
    const error = document.querySelector('.nava-message-place .nava-message[data-kind="error"]');
    if (error) error.scrollIntoView({behavior: "smooth", block: "center"});
}"""


def create_ui(engine: Engine, language: str = "en", desk: RewriteDesk | None = None) -> gr.Blocks:
    """Build the page and its API over `engine`, which may still be loading its model. Launches nothing.

    desk: rewrites prompts; None makes one with the first backend that is there when it is first needed.
    """
    service = Service(engine, desk or RewriteDesk(make_rewriter), Catalogue(language))
    text = service.text
    with gr.Blocks(title=text("app.title"), analytics_enabled=None, fill_width=True, delete_cache=CACHE_LIFE) as demo:
        page = build_page(text, EngineStatus("loading"))
        _connect_writing(service, page)
        _connect_rewriting(service, page)
        _connect_stage(demo, service, page)
        api.add_endpoints(engine, service.desk)
    return demo.queue(default_concurrency_limit=None, max_size=256)


def launch_options(output_dir: Path, accounts: Accounts | None = None, owns: Sequence[Owns] = ()) -> dict[str, Any]:
    """What `launch` needs beside an address: the look, who may come in, what may be served, how much may be sent.

    accounts: None lets everybody in. owns: say whose a file in `output_dir` is, where people log in.
    """
    database = output_dir.resolve() / DATABASE
    return {
        "theme": studio_theme(),
        "css_paths": [*STYLES],
        "allowed_paths": [str(output_dir.resolve()), str(EXAMPLES_FOLDER)],
        # The queue stands among the clips and knows everybody's; the copies of files beside it are shown in the form.
        "blocked_paths": [f"{database}{ending}" for ending in ("", "-wal", "-shm", ".lock")],
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


def build_page(text: Catalogue, status: EngineStatus) -> Page:
    header = gr.HTML(views.header(text, status), elem_id="header")
    with gr.Row(elem_id="studio"):
        writing, caption = panels.writing_panel(text)
        stage = panels.stage_panel(text)
        with gr.Column(elem_id="settings"):
            material = panels.material_panel(text)
            settings = panels.settings_panel(text)
    job = gr.BrowserState(None, storage_key="nava-studio-job", secret=BROWSER_SECRET)
    draft = gr.BrowserState(None, storage_key="nava-studio-draft", secret=BROWSER_SECRET)
    passed_on = (gr.State(None) for _ in range(3))
    return Page(header, writing, caption, material, settings, stage, job, draft, *passed_on)


def _connect_writing(service: Service, page: Page) -> None:
    writing, voices = page.writing, page.material.voices
    live = [writing.prompt, *voices]
    follow = {
        "fn": partial(handlers.write, service, page),
        "inputs": live,
        "outputs": [
            writing.speech,
            writing.tokens,
            writing.suggestion,
            writing.hint,
            writing.prompt_error,
            page.material.voices_note,
            *voices,
        ],
        "trigger_mode": "always_last",
        **QUIET,
    }
    gr.on([writing.prompt.change, *(voice.change for voice in voices)], **follow)
    writing.suggestion.click(handlers.follow_suggestion, live, writing.prompt, **QUIET)
    for index, button in enumerate(writing.examples):
        outputs = [writing.prompt, page.material.image]
        button.click(partial(handlers.show_example, service, page, index), None, outputs, **QUIET)
    seed, random_seed = page.settings.seed, page.settings.random_seed
    seed.change(None, [seed, random_seed, page.job], random_seed, js=TYPED_SEED_COUNTS, **QUIET)
    negative = page.settings.negative_prompt
    page.settings.modality.input(
        partial(handlers.choose_modality, service), [page.settings.modality, negative], negative, **QUIET
    )


def _connect_rewriting(service: Service, page: Page) -> None:
    writing, caption, prompt, draft = page.writing, page.caption, page.writing.prompt, page.draft
    outputs = _everything(page)
    rewrite = partial(captions.rewrite, service, page)
    _follow(service, page, writing.rewrite.click(rewrite, [draft, prompt], outputs, **QUIET))
    both = partial(captions.rewrite_and_generate, service, page)
    followed = _follow(service, page, writing.rewrite_and_generate.click(both, [draft, *_form(page)], outputs, **QUIET))
    _watch(service, page, followed, page.handed)
    caption.stop.click(partial(captions.stop, service, page), draft, caption.stop, **QUIET)
    places = [prompt, draft, caption.section, caption.used, caption.text, caption.use]
    caption.use.click(partial(captions.use, service, page), [draft, prompt, caption.text], places, **QUIET)
    caption.undo.click(partial(captions.undo, service, page), [draft, prompt], places, **QUIET)
    stale = partial(captions.mark_stale, service, page)
    gr.on([prompt.change, draft.change], stale, [draft, prompt], caption.stale, trigger_mode="always_last", **QUIET)


def _connect_stage(demo: gr.Blocks, service: Service, page: Page) -> None:
    writing, outputs = page.writing, _everything(page)
    start = partial(handlers.generate, service, page)
    pressed = gr.on(
        [writing.generate.click, writing.prompt.submit], start, [page.draft, *_form(page)], outputs, **QUIET
    )
    _watch(service, page, pressed, page.watched)
    again = page.stage.again.click(partial(handlers.go_on, service, page), page.job, outputs, **QUIET)
    _watch(service, page, again, page.watched)
    writing.cancel.click(partial(handlers.cancel, service, page), page.job, [writing.cancel, writing.notice], **QUIET)
    opened = demo.load(partial(handlers.open_page, service, page), [page.job, page.draft], outputs, **QUIET)
    _watch(service, page, opened, page.watched)
    _watch(service, page, _follow(service, page, opened), page.handed)
    costly = [part for name, part in page.form.items() if name not in NOT_COSTLY]
    gr.on(
        [part.change for part in (*costly, *page.material.voices)],
        partial(handlers.estimate, service, page),
        _form(page),
        writing.estimate,
        trigger_mode="always_last",
        **QUIET,
    )


def _watch(service: Service, page: Page, before: Any, job: gr.State) -> None:
    """After `before`, show the job whose id it left in `job` until it ends."""
    # Twice: a message that is there at once, and one that a running job brings.
    before.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    watched = before.then(partial(handlers.watch, service, page), job, _everything(page), **QUIET)
    watched.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    watched.then(partial(handlers.estimate, service, page), _form(page), page.writing.estimate, **QUIET)


def _follow(service: Service, page: Page, before: Any) -> Any:
    """After `before`, show the rewriting whose id it left until it is done; returns that event."""
    before.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    follow = partial(captions.follow, service, page)
    followed = before.then(follow, [page.followed, page.draft], _everything(page), **QUIET)
    followed.then(None, js=SHOW_FIRST_ERROR, **QUIET)
    return followed


def _form(page: Page) -> list[Any]:
    """The form's components in the order in which handlers take their values."""
    return [*page.form.values(), *page.material.voices]


def _everything(page: Page) -> list[Any]:
    """Every component that a running job or a newly opened page may change, each once."""
    writing, caption, settings, stage = page.writing, page.caption, page.settings, page.stage
    parts = [
        page.header,
        page.job,
        page.draft,
        page.watched,
        page.followed,
        page.handed,
        *_form(page),
        page.material.voices_note,
        *page.errors.values(),
        *writing.examples,
        writing.generate,
        writing.cancel,
        writing.rewrite,
        writing.rewrite_and_generate,
        writing.notice,
        caption.section,
        caption.status,
        caption.stale,
        caption.text,
        caption.use,
        caption.stop,
        caption.used,
        settings.guidance_section,
        settings.advanced_section,
        stage.picture,
        stage.clip,
        stage.sound,
        stage.progress,
        stage.again,
        stage.download,
        stage.recipe_section,
        stage.recipe,
        stage.recipe_json,
    ]
    return list(dict.fromkeys(parts))
