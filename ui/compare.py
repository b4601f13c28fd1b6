"""Variations of one clip beside one another: played together, heard one at a time, and one of them taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Job
from ui import stage_views, views
from ui.catalogue import Catalogue
from ui.owners import owner_of
from ui.service import QUIET, Service, Updates

SCRIPT = Path(__file__).with_name("scripts") / f"{Path(__file__).stem}.js"
FEWEST, MOST = 2, 4


@dataclass(frozen=True)
class ComparePanel:
    """Clips to choose from.

    group: the ids of the jobs to compare; whoever sets it opens the panel, and an empty list closes it. taken: the id
    of the job that somebody chose; its `change` tells the page.
    """

    section: gr.Column
    grid: gr.HTML
    close: gr.Button
    group: gr.State
    taken: gr.State


def build_compare(text: Catalogue) -> ComparePanel:
    with gr.Column(elem_id="compare", elem_classes="nava-card", visible=False) as section:
        with gr.Row(elem_id="compare-head"):
            words = f"<h2>{escape(text('compare.title'))}</h2>{views.quiet(text('compare.hint'))}"
            gr.HTML(words, elem_id="compare-title")
            close = gr.Button(text("compare.close"), size="sm", elem_id="compare-close", min_width=80, scale=0)
        grid = gr.HTML(elem_id="compare-grid", js_on_load=SCRIPT.read_text(encoding="utf-8"))
    return ComparePanel(section, grid, close, gr.State([]), gr.State(None))


def connect_compare(service: Service, panel: ComparePanel, find: Callable[[Sequence[str], str], list[Job]]) -> None:
    """Attach what the panel does by itself: it follows `group`, and leaves the chosen job's id in `taken`.

    find: of ids, those that the person whose name is given may see, with their clips.
    """

    def follow(group: list[str] | None, request: gr.Request) -> Updates:
        return show_group(service.text, panel, find(group, owner_of(request)) if group else None)

    panel.group.change(follow, panel.group, [panel.section, panel.grid], **QUIET)
    panel.close.click(list, None, panel.group, **QUIET)

    # No partial: Gradio would not see that the event's data is asked for.
    def take_one(group: list[str] | None, event: gr.EventData) -> Updates:
        return take(panel, group, event._data)

    panel.grid.select(take_one, panel.group, [panel.taken, panel.group], **QUIET)


def show_group(text: Catalogue, panel: ComparePanel, jobs: Sequence[Job] | None) -> Updates:
    """The panel for these jobs; hidden where none were asked for."""
    return hidden(panel) if jobs is None else compare_updates(text, panel, jobs[:MOST])


def hidden(panel: ComparePanel) -> Updates:
    return {panel.section: gr.update(visible=False), panel.grid: gr.update(value="")}


def compare_updates(text: Catalogue, panel: ComparePanel, jobs: Sequence[Job]) -> Updates:
    shown = grid(text, jobs) if len(jobs) >= FEWEST else views.message(text("compare.none"), "hint")
    return {panel.section: gr.update(visible=True), panel.grid: gr.update(value=shown)}


def take(panel: ComparePanel, group: Sequence[str] | None, sent: Any) -> Updates:
    """Hand on the chosen job; one that is not of the group is none of ours. sent: what the browser says."""
    chosen = sent.get("id") if isinstance(sent, dict) else None
    if chosen not in (group or ()):
        return {panel.taken: gr.skip(), panel.group: gr.skip()}
    return {panel.taken: chosen, panel.group: []}


def grid(text: Catalogue, jobs: Sequence[Job]) -> str:
    """The clips, each with its number, its seed and its buttons, over one transport that serves all of them."""
    clips = "".join(_clip(text, number, job) for number, job in enumerate(jobs, start=1))
    words = escape(text("compare.play")), escape(text("compare.pause"))
    transport = (
        f'<div class="nava-transport"><button type="button" class="nava-tool" data-play data-words-play="{words[0]}" '
        f'data-words-pause="{words[1]}">{words[0]}</button><input type="range" min="0" max="1" step="0.001" value="0" '
        f'aria-label="{escape(text("compare.position"))}"><output class="nava-clock" aria-hidden="true"></output></div>'
    )
    fps = jobs[0].request.fps or 24
    return f'<div class="nava-compare" data-count="{len(jobs)}" data-fps="{fps:g}">{clips}</div>{transport}'


def _clip(text: Catalogue, number: int, job: Job) -> str:
    assert job.result is not None
    seed, size = str(job.request.seed), stage_views.size_of(job)
    label = escape(text("compare.clip", number=number, seed=seed))
    kind = "video" if size else "audio"
    player = (
        f'<{kind} src="{stage_views.film_address(job.result)}" aria-label="{label}" preload="auto" playsinline muted>'
        f"</{kind}>"
    )
    number_shown = f'<b class="nava-number">{number}</b>'
    listen = (
        f'<button type="button" class="nava-listen" aria-pressed="false" aria-keyshortcuts="{number}" '
        f'aria-label="{escape(text("compare.listen", number=number))}">{number_shown}</button>'
    )
    take_label = escape(text("compare.take_number", number=number))
    take = (
        f'<button type="button" class="nava-tool" data-take aria-label="{take_label}">'
        f"{escape(text('compare.take'))}</button>"
    )
    return (
        f'<figure data-id="{escape(job.id)}">{stage_views.screen(player + listen, size, "film")}'
        f"<figcaption><span>{escape(text('compare.seed', seed=seed))}</span>{take}</figcaption></figure>"
    )
