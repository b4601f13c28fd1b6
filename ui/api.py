"""The named endpoints for gradio_client and MCP: the engine's jobs, with the pipeline's own argument names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar
from urllib.parse import unquote

import gradio as gr
import httpx
from gradio.data_classes import FileData, GradioRootModel
from gradio.processing_utils import save_base64_to_cache, ssrf_protected_download
from gradio.utils import get_upload_folder
from pydantic import model_validator

from nava_core.engine.jobs import Engine, EngineError, Job, UnknownJob
from nava_core.request import (
    GUIDANCE_AXES,
    GUIDANCE_SWITCHES,
    GenerationRequest,
    Guidance,
    Modality,
    RequestError,
    Shortcuts,
)
from ui.faster import NO_LORAS, LoraFolder, shortcuts_of
from ui.files import uploaded_path
from ui.owners import owner_of
from ui.rewriting import RewriteDesk, Rewriting
from ui.service import SILENT

WATCH_INTERVAL = 0.1
SHOWN_LETTERS = 80
FILE_MARK = {"_type": "gradio.FileData"}
UPLOADED = re.compile(r"/gradio_api/file=(/.*)\Z")
ARGUMENTS = """

Args:
    prompt: the scene, in English or Chinese; each spoken line between ~~ marks, as in: She says: ~~Hello there~~.
    negative_prompt: what to stay away from; left out, it is the model's own.
    image: the clip's first frame: a PNG, JPEG or WebP.
    speakers: a recording of a voice for each spoken line, in order (WAV, FLAC, OGG, MP3); null leaves a line without.
    width: in pixels, a multiple of 32.
    height: in pixels, a multiple of 32.
    num_frames: pixel frames, 4n+1; the other way to say seconds.
    seconds: the clip's length.
    fps: frames per second.
    num_inference_steps: denoising steps; fewer are quicker and rougher.
    guidance: any of video, audio, video_align, audio_align, timbre (numbers from 0 to 30), align and
        timbre_apart (true or false).
    seed: a whole number; left out, a random one is drawn, and the recipe says which. The same seed makes the same clip.
    modality: audio_video, audio or video.
    shortcuts: faster, but another clip: step_cache (a share, such as 0.1), and negative, align, timbre: the part of the
        steps in which they count, as [start, stop] from 0 to 1.
    loras: LoRAs of the studio's folder: names and their scales, such as {"pencil": 0.8}.
"""
GUIDANCE_SCHEMA = {
    "type": "object",
    "properties": {
        **{key: {"type": "number", "minimum": 0, "maximum": 30} for key in GUIDANCE_AXES},
        **{key: {"type": "boolean"} for key in GUIDANCE_SWITCHES},
    },
}
_PART = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 2, "maxItems": 2}
SHORTCUTS_SCHEMA = {
    "type": "object",
    "properties": {
        item.name: {"type": "number", "minimum": 0, "maximum": 1} if item.name == "step_cache" else _PART
        for item in fields(Shortcuts)
    },
}
LORAS_SCHEMA = {"type": "object", "additionalProperties": {"type": "number"}}
GENERATE = (
    "Make a clip whose picture and sound come from one prompt, and wait for it, which takes seconds to minutes; its "
    "steps are sent as progress. Returns the file (mp4, or wav for sound alone) and its recipe: everything that is "
    "needed to make it again."
)
SUBMIT = "Queue a clip like generate does, without waiting for it. Returns the job's id, for job and cancel."
REWRITE_AND_GENERATE = (
    "Rewrite a prompt as rewrite does, make a clip of the caption and wait for it, with progress. Returns the file, "
    "its recipe and the caption."
)

Result = TypeVar("Result")


def add_endpoints(engine: Engine, desk: RewriteDesk, loras: LoraFolder = NO_LORAS) -> None:
    """Add /generate, /submit, /job, /cancel, /rewrite, /rewrite_and_generate and /speaker_embedding to the page."""
    # Real components, never shown: through them Gradio uploads, checks and serves the files.
    with gr.Column(visible=False):
        arguments = _arguments()
        clip, recipe = gr.File(label="clip"), gr.JSON(label="recipe")
        which, found = gr.Textbox(label="job_id"), gr.JSON(label="job")
        prompt, caption, account = gr.Textbox(label="prompt"), gr.Textbox(label="caption"), gr.JSON(label="rewriting")
        reference, numbers = gr.File(label="reference"), gr.JSON(label="embedding")
        trigger = gr.Button()

    def add(function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
        settings = SILENT | {"concurrency_limit": None, "preprocess": False}
        trigger.click(function, inputs, outputs, api_name=function.__name__, **settings)

    async def submit(request: GenerationRequest, owner: str) -> str:
        return await asyncio.to_thread(engine.submit, request, owner)

    async def generate(request: GenerationRequest, owner: str) -> tuple[str, dict[str, Any] | None]:
        finished = await _wait(engine, await submit(request, owner))
        return str(finished.result), finished.recipe

    async def rewrite(prompt: str, request: gr.Request | None = None) -> tuple[str, dict[str, Any]]:
        """Rewrite a prompt into the dense Chinese caption that the model was trained on, its spoken lines kept letter
        for letter; returns the caption, and who wrote it and how that went. Makes no clip.

        Args:
            prompt: the scene; each spoken line between ~~ marks.
        """
        with errors_for_clients():
            return _account(await _wait_for_caption(desk, prompt, owner_of(request)))

    async def speaker_embedding(reference: dict[str, Any]) -> list[float]:
        """What the model hears in a recording of one person's voice, as 192 numbers: two recordings of one voice lie
        close together (cosine). Works beside a running clip, whatever waits in the queue.

        Args:
            reference: a recording of 1 to 30 seconds: WAV, FLAC, OGG or MP3.
        """
        with errors_for_clients():
            path = await asyncio.to_thread(uploaded_path, "speakers", _fetched("speakers", reference))
            if path is None:
                raise RequestError("speakers", "there is no recording; upload one first (gradio_client: handle_file)")
            return (await asyncio.to_thread(engine.speaker_embedding, path)).tolist()

    async def rewrite_and_generate(request: GenerationRequest, owner: str) -> tuple[str, dict[str, Any] | None, str]:
        if engine.status.state == "ready":
            request.resolve(engine.spec)  # what is wrong is better said now than after the writing
        written, _ = _account(await _wait_for_caption(desk, request.prompt, owner))
        clip, recipe = await generate(replace(request, prompt=written, original_prompt=request.prompt), owner)
        return clip, recipe, written

    def job(job_id: str, request: gr.Request | None = None) -> tuple[dict[str, Any], str | None]:
        """How a job of yours is getting on: its state, its step, why it failed; and its clip when it is done.

        Args:
            job_id: what submit returned.
        """
        with errors_for_clients():
            now = _own(engine, job_id, owner_of(request))
        return describe(now), None if now.result is None else str(now.result)

    def cancel(job_id: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Ask a job of yours to end: at once if it waits, at its next step if it runs. Returns how it stands.

        Args:
            job_id: what submit returned.
        """
        with errors_for_clients():
            _own(engine, job_id, owner_of(request))
            engine.cancel(job_id)
            return describe(engine.job(job_id))

    add(_taking_a_request(engine, loras, generate, GENERATE), arguments, [clip, recipe])
    add(_taking_a_request(engine, loras, submit, SUBMIT), arguments, which)
    add(
        _taking_a_request(engine, loras, rewrite_and_generate, REWRITE_AND_GENERATE), arguments, [clip, recipe, caption]
    )
    add(rewrite, prompt, [caption, account])
    add(speaker_embedding, reference, numbers)
    add(job, which, [found, clip])
    add(cancel, which, found)


def _own(engine: Engine, job_id: str, owner: str) -> Job:
    """The owner's job. Raises UnknownJob, for somebody else's in the same words as for one that never was."""
    job = engine.job(job_id)
    if job.owner != owner:
        raise UnknownJob(job_id)
    return job


def describe(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    return {
        "id": job.id,
        "state": job.state,
        "phase": job.phase,
        "ahead": job.ahead,
        "step": job.step,
        "steps": job.steps,
        "seconds": round(job.seconds, 2),
        "attempts": job.attempts,
        "seed": job.request.seed,
        "error": None if job.error is None else asdict(job.error),
        "recipe": job.recipe,
    }


@contextmanager
def errors_for_clients() -> Iterator[None]:
    """The one boundary between the engine's errors and a client's."""
    try:
        yield
    except RequestError as error:
        raise gr.Error(f"{error.field}: {error}", print_exception=False) from error
    except (EngineError, UnknownJob) as error:
        raise gr.Error(str(error), print_exception=False) from error


class Slots(GradioRootModel):
    """Uploaded files in order, where a place may be empty.

    Gradio's MCP server makes files of addresses, but not inside a list: there they arrive as they were written.
    """

    root: list[FileData | None]

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        return [{"path": item, "meta": FILE_MARK} if isinstance(item, str) else item for item in given]


def _fetched(field: str, payload: Any) -> Any:
    """An upload whose path is an address: of an earlier upload here, of a public file, or `data:` with the file in it.

    What comes of it is judged like any other upload.
    """
    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(path, str) or not path.startswith(("http://", "https://", "data:")):
        return payload
    if uploaded := UPLOADED.search(path):
        return payload | {"path": unquote(uploaded[1])}
    keep = save_base64_to_cache if path.startswith("data:") else ssrf_protected_download
    try:
        return payload | {"path": keep(path, get_upload_folder())}
    except (httpx.HTTPError, ValueError, OSError, gr.Error) as error:
        words = f"{path[:SHOWN_LETTERS]} could not be fetched ({error}); give a public address, or upload the file"
        raise RequestError(field, words) from error


def _arguments() -> list[Any]:
    speakers = gr.File(label="speakers", file_count="multiple")
    speakers.data_model = Slots
    speakers.api_info = lambda: _without_references(Slots.model_json_schema())
    schemas = {"guidance": GUIDANCE_SCHEMA, "shortcuts": SHORTCUTS_SCHEMA, "loras": LORAS_SCHEMA}
    guidance, shortcuts, loras = (_json(name, schema) for name, schema in schemas.items())
    return [
        gr.Textbox(label="prompt"),
        gr.Textbox(None, label="negative_prompt"),
        gr.Image(label="image", type="filepath"),
        speakers,
        gr.Number(None, label="width", precision=0),
        gr.Number(None, label="height", precision=0),
        gr.Number(None, label="num_frames", precision=0),
        gr.Number(None, label="seconds"),
        gr.Number(None, label="fps"),
        gr.Number(None, label="num_inference_steps", precision=0),
        guidance,
        gr.Number(None, label="seed", precision=0),
        gr.Textbox("audio_video", label="modality"),
        shortcuts,
        loras,
    ]


def _json(name: str, schema: dict[str, Any]) -> gr.JSON:
    part = gr.JSON(label=name)
    part.api_info = lambda: schema  # Gradio's own, for any JSON, is none that an MCP client accepts
    return part


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its definitions in place: as a part of a larger one, its references would lead nowhere."""
    definitions = schema.get("$defs", {})

    def unfolded(node: Any) -> Any:
        if isinstance(node, list):
            return [unfolded(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return unfolded(definitions[node["$ref"].rpartition("/")[2]])
        return {key: unfolded(value) for key, value in node.items() if key != "$defs"}

    return unfolded(schema)


def _taking_a_request(
    engine: Engine, folder: LoraFolder, run: Callable[[GenerationRequest, str], Awaitable[Result]], summary: str
) -> Callable[..., Any]:
    """An endpoint with a request's arguments; Gradio reads names, defaults and descriptions off the function."""

    async def endpoint(
        prompt: str,
        negative_prompt: str | None = None,
        image: dict[str, Any] | None = None,
        speakers: list[dict[str, Any] | None] | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        seconds: float | None = None,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance: dict[str, Any] | None = None,
        seed: int | None = None,
        modality: Modality = "audio_video",
        shortcuts: dict[str, Any] | None = None,
        loras: dict[str, float] | None = None,
        request: gr.Request | None = None,
    ) -> Result:
        def asked() -> GenerationRequest:  # reads files, and may wait for the model
            return GenerationRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                image=uploaded_path("image", image),
                speakers=tuple(uploaded_path("speakers", _fetched("speakers", speaker)) for speaker in speakers or ()),
                width=width,
                height=height,
                num_frames=num_frames,
                seconds=seconds,
                fps=fps,
                num_inference_steps=num_inference_steps,
                guidance=_guidance(engine, guidance),
                seed=seed,
                modality=modality,
                shortcuts=shortcuts_of(shortcuts),
                loras=folder.scaled(loras),
            )

        with errors_for_clients():
            return await run(await asyncio.to_thread(asked), owner_of(request))

    endpoint.__name__ = run.__name__  # an MCP tool is called as its function is
    endpoint.__doc__ = summary + ARGUMENTS
    return endpoint


def _guidance(engine: Engine, given: dict[str, Any] | None) -> Guidance | None:
    """The axes that are given, over the model's own; waits for the model where it has to."""
    if not given:
        return None
    axes = [item.name for item in fields(Guidance)]
    if unknown := sorted(set(given) - set(axes)):
        raise RequestError("guidance", f"guidance has no {', '.join(unknown)}; its axes are {', '.join(axes)}")
    return replace(engine.spec.guidance, **given)


async def _wait(engine: Engine, job_id: str) -> Job:
    """The job when it is done; its moments are sent as progress. Raises RequestError or EngineError at other ends."""
    progress = gr.Progress()
    seen: tuple[Any, ...] = ()
    while not (job := engine.job(job_id)).finished:
        now = (job.state, job.phase, job.step, job.ahead)
        if now != seen:
            seen = now
            progress((job.step, job.steps or None), desc=_moment(engine, job), unit="steps")
        await asyncio.sleep(WATCH_INTERVAL)
    if job.error is not None:
        if job.error.field is not None:
            raise RequestError(job.error.field, job.error.message)
        raise EngineError(job.error.message)
    if job.result is None:
        raise EngineError(f"job {job_id} was {job.state}")
    return job


def _moment(engine: Engine, job: Job) -> str:
    """What a job is doing, in a few words, and how long it may still take where that is known."""
    if job.state == "queued":
        what = f"queued, {job.ahead} before it" if job.ahead else "queued"
    else:
        what = job.phase or "starting"
    left = engine.remaining(job.id)
    return what if left is None else f"{what}, about {left:.0f} s left"


async def _wait_for_caption(desk: RewriteDesk, prompt: str, owner: str) -> Rewriting:
    """The rewriting when it is done; its state is sent as progress. Raises RequestError or EngineError."""
    progress = gr.Progress()
    rewriting_id = desk.start(prompt, owner=owner)
    seen: Rewriting | None = None
    try:
        while not (now := desk.rewriting(rewriting_id, owner)).finished:
            if now != seen:
                seen = now
                progress((len(now.text), None), desc=now.state, unit="letters")
            await asyncio.sleep(WATCH_INTERVAL)
    finally:
        desk.cancel(rewriting_id)  # nobody waits for it any more
    if now.error is not None:
        raise EngineError(now.error.message)
    if now.result is None:
        raise EngineError("the rewriting was stopped")
    return now


def _account(now: Rewriting) -> tuple[str, dict[str, Any]]:
    assert now.result is not None
    found = asdict(now.result)
    return found.pop("caption"), found | {"label": now.label, "notes": list(now.result.notes)}
