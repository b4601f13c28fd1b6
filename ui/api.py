"""The named endpoints for gradio_client and MCP: the engine's jobs, with the pipeline's own argument names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

import gradio as gr
from gradio.data_classes import FileData, GradioRootModel

from nava_core.engine.jobs import Engine, EngineError, Job, UnknownJob
from nava_core.request import GenerationRequest, Guidance, Modality, RequestError
from ui.rewriting import RewriteDesk, Rewriting
from ui.state import uploaded_path

WATCH_INTERVAL = 0.1
ARGUMENTS = """

Args:
    prompt: the scene; each spoken line between ~~ marks.
    negative_prompt: what to stay away from; left out, it is the model's own.
    image: the clip's first frame.
    speakers: a recording for each spoken line, in order; null leaves a line without a reference.
    width: in pixels.
    height: in pixels.
    num_frames: pixel frames, 4n+1; the other way to say seconds.
    seconds: the clip's length.
    fps: frames per second.
    num_inference_steps: denoising steps.
    guidance: any of video, audio, video_align, audio_align, timbre (numbers) and align (true or false).
    seed: a whole number; left out, a random one is drawn, and the recipe says which.
    modality: audio_video, audio or video.
"""

Result = TypeVar("Result")


def add_endpoints(engine: Engine, desk: RewriteDesk) -> None:
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
        settings = {"show_progress": "hidden", "concurrency_limit": None, "preprocess": False}
        trigger.click(function, inputs, outputs, api_name=function.__name__, **settings)

    async def submit(request: GenerationRequest) -> str:
        return await asyncio.to_thread(engine.submit, request)

    async def generate(request: GenerationRequest) -> tuple[str, dict[str, Any] | None]:
        finished = await _wait(engine, await submit(request))
        return str(finished.result), finished.recipe

    async def rewrite(prompt: str) -> tuple[str, dict[str, Any]]:
        """Rewrite a prompt into the dense Chinese caption that the model was trained on, its spoken lines kept letter
        for letter; returns the caption, and who wrote it and how that went.

        Args:
            prompt: the scene; each spoken line between ~~ marks.
        """
        with errors_for_clients():
            return _account(await _wait_for_caption(desk, prompt))

    async def speaker_embedding(reference: dict[str, Any]) -> list[float]:
        """What the model hears in a recording of one person's voice, as 192 numbers: two recordings of one voice lie
        close together (cosine). Works beside a running clip, whatever waits in the queue.

        Args:
            reference: a recording of 1 to 30 seconds: WAV, FLAC, OGG or MP3.
        """
        with errors_for_clients():
            path = uploaded_path("speakers", reference)
            if path is None:
                raise RequestError("speakers", "there is no recording; upload one first (gradio_client: handle_file)")
            return (await asyncio.to_thread(engine.speaker_embedding, path)).tolist()

    async def rewrite_and_generate(request: GenerationRequest) -> tuple[str, dict[str, Any] | None, str]:
        if engine.status.state == "ready":
            request.resolve(engine.spec)  # what is wrong is better said now than after the writing
        written, _ = _account(await _wait_for_caption(desk, request.prompt))
        clip, recipe = await generate(replace(request, prompt=written, original_prompt=request.prompt))
        return clip, recipe, written

    def job(job_id: str) -> tuple[dict[str, Any], str | None]:
        """How a job is getting on: its state, its step, why it failed; and its clip when it is done."""
        with errors_for_clients():
            now = engine.job(job_id)
        return describe(now), None if now.result is None else str(now.result)

    def cancel(job_id: str) -> dict[str, Any]:
        """Ask a job to end, which takes a step at most; returns how it stands."""
        with errors_for_clients():
            engine.cancel(job_id)
            return describe(engine.job(job_id))

    add(_taking_a_request(engine, generate, "Make a clip; returns the file and its recipe."), arguments, [clip, recipe])
    add(_taking_a_request(engine, submit, "Queue a clip; returns the job's id for /job and /cancel."), arguments, which)
    both = "Rewrite a prompt and make a clip of the caption; returns the file, its recipe and the caption."
    add(_taking_a_request(engine, rewrite_and_generate, both), arguments, [clip, recipe, caption])
    add(rewrite, prompt, [caption, account])
    add(speaker_embedding, reference, numbers)
    add(job, which, [found, clip])
    add(cancel, which, found)


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
    """Uploaded files in order, where a place may be empty."""

    root: list[FileData | None]


def _arguments() -> list[Any]:
    speakers = gr.File(label="speakers", file_count="multiple")
    speakers.data_model = Slots
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
        gr.JSON(label="guidance"),
        gr.Number(None, label="seed", precision=0),
        gr.Textbox("audio_video", label="modality"),
    ]


def _taking_a_request(
    engine: Engine, run: Callable[[GenerationRequest], Awaitable[Result]], summary: str
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
    ) -> Result:
        with errors_for_clients():
            request = GenerationRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                image=uploaded_path("image", image),
                speakers=tuple(uploaded_path("speakers", speaker) for speaker in speakers or ()),
                width=width,
                height=height,
                num_frames=num_frames,
                seconds=seconds,
                fps=fps,
                num_inference_steps=num_inference_steps,
                guidance=await asyncio.to_thread(_guidance, engine, guidance),
                seed=seed,
                modality=modality,
            )
            return await run(request)

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
    """The job when it is done; its steps are sent as progress. Raises RequestError or EngineError at any other end."""
    progress = gr.Progress()
    step = None
    while not (job := engine.job(job_id)).finished:
        if job.step != step:
            step = job.step
            progress((job.step, job.steps or None), desc=job.phase or job.state, unit="steps")
        await asyncio.sleep(WATCH_INTERVAL)
    if job.error is not None:
        if job.error.field is not None:
            raise RequestError(job.error.field, job.error.message)
        raise EngineError(job.error.message)
    if job.result is None:
        raise EngineError(f"job {job_id} was {job.state}")
    return job


async def _wait_for_caption(desk: RewriteDesk, prompt: str) -> Rewriting:
    """The rewriting when it is done; its state is sent as progress. Raises RequestError or EngineError."""
    progress = gr.Progress()
    rewriting_id = desk.start(prompt)
    seen: Rewriting | None = None
    try:
        while not (now := desk.rewriting(rewriting_id)).finished:
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
