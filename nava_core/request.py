"""What may be asked of NAVA, and every check of a person's input, once.

A `GenerationRequest` is what a person wrote; `resolve` checks it against what the loaded model can do (`ModelSpec`) and
fills in every blank, so that the rest of the code never meets a None, an impossible size or an unknown seed.
"""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from nava_core.speech import bind_speakers, open_slots, parse_speech

Modality = Literal["audio_video", "audio", "video"]
MAX_SEED = 2**63 - 1
EMBEDDING_DIM = 192


class RequestError(ValueError):
    """A person's input cannot be used. `field` names the request's field, so that a page can say it beside it."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class GenerationCancelled(Exception):
    """Raised inside `callback_on_step_end` to end a run at a step's boundary."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


GUIDANCE_AXES = ("video", "audio", "video_align", "audio_align", "timbre")
GUIDANCE_SWITCHES = ("align", "timbre_apart")


@dataclass(frozen=True)
class Guidance:
    """Scales of the guidance axes (NAVA.md section 4). With `align` off the alignment axes are not computed.

    timbre_apart: the sound's other axes are measured without the voice references, whose push is then 1 + `timbre` and
    nothing else. By the published formulas it is 1 + audio + audio_align + timbre, and with a small model the words of
    a voice pushed that far are lost. It costs a pass where `timbre` is 0 and a line has a reference.
    """

    video: float = 3.0
    audio: float = 2.0
    video_align: float = 3.0
    audio_align: float = 2.0
    timbre: float = 3.0
    align: bool = True
    timbre_apart: bool = False

    def __post_init__(self) -> None:
        for axis in GUIDANCE_AXES:
            scale = getattr(self, axis)
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 <= scale <= 30.0:
                raise RequestError("guidance", f"guidance {axis} is {scale!r}; give a number from 0 to 30")
        for switch in GUIDANCE_SWITCHES:
            if not isinstance(value := getattr(self, switch), bool):
                raise RequestError("guidance", f"guidance {switch} is {value!r}; give true or false")


@dataclass(frozen=True)
class Shortcuts:
    """Ways to be faster that change the clip; by default none is taken. See docs/performance.md for what each changes.

    step_cache: where the first block's update differs from that of the last whole step by less than this share, the
    other blocks' update is taken from that step (0: never). negative, align, timbre: the part of the steps, as
    (start, stop) shares of them, in which the passes of that guidance axis run; in the others the axis is off.
    """

    step_cache: float = 0.0
    negative: tuple[float, float] = (0.0, 1.0)
    align: tuple[float, float] = (0.0, 1.0)
    timbre: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not _is_number(self.step_cache) or not 0.0 <= self.step_cache <= 1.0:
            raise RequestError("shortcuts", f"step_cache is {self.step_cache!r}; give a share from 0 (off) to 1")
        for axis in ("negative", "align", "timbre"):
            interval = getattr(self, axis)
            if (
                not isinstance(interval, tuple | list)
                or len(interval) != 2
                or not all(_is_number(bound) for bound in interval)
                or not 0.0 <= interval[0] <= interval[1] <= 1.0
            ):
                raise RequestError(
                    "shortcuts",
                    f"the steps of {axis} are {interval!r}; give (start, stop), shares from 0 to 1 in order",
                )
            object.__setattr__(self, axis, tuple(interval))


@dataclass(frozen=True)
class ModelSpec:
    """What the loaded model can do and what it does by default. Sizes in pixels, times in seconds.

    places_speakers: whether it knows whose line a reference belongs to. One that does not, as the released one, gives
    a voice to whom the prompt's words fit: see `keep_speaker_text` of the backbone.
    """

    name: str
    width: int = 1280
    height: int = 704
    sizes: tuple[tuple[int, int], ...] = ((1280, 704), (704, 1280), (960, 960), (832, 480), (480, 832), (640, 640))
    seconds: float = 6.0
    max_seconds: float = 10.0
    fps: int = 24
    num_inference_steps: int = 50
    guidance: Guidance = Guidance()
    negative_prompt: str = ""
    negative_prompt_audio: str = ""
    hint: str = ""
    max_text_tokens: int = 512
    spatial_multiple: int = 32
    temporal_multiple: int = 4
    speaker_dim: int = 192
    accepts_speakers: bool = True
    places_speakers: bool = False
    accepts_images: bool = True
    modalities: tuple[str, ...] = get_args(Modality)
    phase_rounds: int = 0  # of `refine_phases`, for a vocoder that is too small for voices


@dataclass(frozen=True)
class GenerationRequest:
    """One clip to make. None means "the model's default"; `resolve` fills it in.

    num_frames counts pixel frames (4n+1); seconds is the other way to say it. speakers: one entry for each speech span,
    in order: a path, a waveform (an array at 16 kHz, or `(samples, rate)`), an embedding, or None for no reference.
    image: the clip's first frame. shortcuts: ways to be faster that change the clip. loras: (file, scale) of each LoRA
    that changes the backbone for this clip. original_prompt: what a person wrote, where `prompt` was made of it by
    rewriting; it is kept in the recipe and changes nothing else.
    """

    prompt: str
    negative_prompt: str | None = None
    image: Any = None
    speakers: tuple[Any, ...] = ()
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    seconds: float | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance: Guidance | None = None
    seed: int | None = None
    modality: Modality = "audio_video"
    original_prompt: str | None = None
    shortcuts: Shortcuts = Shortcuts()
    loras: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        # Whoever counts references must not take a form's blank field for one.
        object.__setattr__(self, "speakers", open_slots(self.speakers))
        object.__setattr__(self, "loras", tuple((os.fspath(path), scale) for path, scale in self.loras))

    @property
    def has_references(self) -> bool:
        return any(speaker is not None for speaker in self.speakers)

    def resolve(self, spec: ModelSpec, encoded: bool = False) -> ResolvedRequest:
        """This request with every blank filled from `spec` and every rule checked. Raises RequestError.

        encoded: the prompt comes as text states, so that there are no words to check.
        """
        if not encoded:
            _check_words(self)
        _check_parts(self, spec)
        num_frames = _pixel_frames(self, spec)
        fps = self.fps if self.fps is not None else spec.fps
        negative = spec.negative_prompt_audio if self.modality == "audio" else spec.negative_prompt
        resolved = ResolvedRequest(
            prompt=self.prompt,
            image=self.image,
            speakers=self.speakers,
            modality=self.modality,
            negative_prompt=negative if self.negative_prompt is None else self.negative_prompt,
            width=spec.width if self.width is None else self.width,
            height=spec.height if self.height is None else self.height,
            num_frames=num_frames,
            seconds=self.seconds if self.modality == "audio" and self.seconds is not None else num_frames / fps,
            fps=fps,
            num_inference_steps=(
                spec.num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
            ),
            guidance=spec.guidance if self.guidance is None else self.guidance,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            original_prompt=self.original_prompt,
            shortcuts=self.shortcuts,
            loras=self.loras,
        )
        _check_numbers(resolved, spec)
        return resolved

    def to_recipe(self) -> dict[str, Any]:
        """The request as JSON-able data; what cannot be written (arrays, images in memory) becomes a description."""
        recipe = asdict(replace(self, image=_describe(self.image), speakers=()))
        recipe["speakers"] = [_describe(speaker) for speaker in self.speakers]
        if self.original_prompt is None:
            del recipe["original_prompt"]
        if self.shortcuts == Shortcuts():
            del recipe["shortcuts"]
        if not self.loras:
            del recipe["loras"]
        return recipe

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any]) -> GenerationRequest:
        """The request that wrote `recipe`; keys that are not the request's own (model, versions) are left aside."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in recipe.items() if key in known}
        if "prompt" not in values:
            raise RequestError("recipe", "this recipe has no prompt; was it written by NAVA Studio?")
        try:
            if isinstance(values.get("guidance"), dict):
                values["guidance"] = Guidance(**values["guidance"])
            if isinstance(values.get("shortcuts"), dict):
                values["shortcuts"] = Shortcuts(**values["shortcuts"])
            values["speakers"] = tuple(values.get("speakers") or ())
            values["loras"] = tuple(values.get("loras") or ())
            return cls(**values)
        except TypeError as error:
            raise RequestError("recipe", f"this recipe cannot be read ({error}); was it edited?") from error


@dataclass(frozen=True)
class ResolvedRequest(GenerationRequest):
    """A request without blanks that has passed every check; only `GenerationRequest.resolve` makes one."""

    negative_prompt: str = ""
    width: int = 0
    height: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    fps: int = 0
    num_inference_steps: int = 0
    guidance: Guidance = Guidance()
    seed: int = 0


def is_embedding(reference: Any) -> bool:
    """Whether a voice reference is a speaker embedding already; any other array is a waveform."""
    return tuple(getattr(reference, "shape", ())) in ((EMBEDDING_DIM,), (1, EMBEDDING_DIM))


def _describe(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Path):
        return os.fspath(value)
    return f"({type(value).__name__} given in memory)"


def _check_words(request: GenerationRequest) -> None:
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise RequestError("prompt", "the prompt is empty; describe the scene in a sentence or more")
    if not isinstance(request.original_prompt, str | None):
        raise RequestError("prompt", f"original_prompt is {request.original_prompt!r}; give text, or leave it out")
    bind_speakers(parse_speech(request.prompt).spans, request.speakers)


def _check_parts(request: GenerationRequest, spec: ModelSpec) -> None:
    for path, scale in request.loras:
        if not _is_number(scale) or not math.isfinite(scale):
            raise RequestError("loras", f"the scale of the LoRA {path} is {scale!r}; give a number, usually 1")
    if request.modality not in spec.modalities:
        raise RequestError("modality", f"modality is {request.modality!r}; choose one of {', '.join(spec.modalities)}")
    if request.image is not None:
        if request.modality == "audio":
            raise RequestError("image", "a first-frame image was given for sound alone; remove it or ask for a picture")
        if not spec.accepts_images:
            raise RequestError("image", f"{spec.name} was loaded without a video encoder; remove the first-frame image")
    heard = [speaker for speaker in request.speakers if speaker is not None and not is_embedding(speaker)]
    if heard and not spec.accepts_speakers:
        raise RequestError(
            "speakers",
            f"{spec.name} has no speaker encoder, so it cannot follow a voice reference; remove the references, or "
            "load a bundle that holds a ReDimNet release (<name>.pt)",
        )


def _pixel_frames(request: GenerationRequest, spec: ModelSpec) -> int:
    """Pixel frames asked for, of the form temporal_multiple * n + 1."""
    step, fps = spec.temporal_multiple, request.fps if request.fps is not None else spec.fps
    seconds = spec.seconds if request.seconds is None else request.seconds
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 1 <= fps <= 120:
        raise RequestError("fps", f"fps is {fps!r}; give a number from 1 to 120 (the model was trained at {spec.fps})")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        raise RequestError("seconds", f"seconds is {seconds!r}; give a length above 0 and up to {spec.max_seconds:g}")
    from_seconds = round(seconds * fps / step) * step + 1
    if request.num_frames is not None:
        if isinstance(request.num_frames, bool) or not isinstance(request.num_frames, int) or request.num_frames < 1:
            raise RequestError("num_frames", f"num_frames is {request.num_frames!r}; give a whole number, 1 or more")
        if (request.num_frames - 1) % step:
            lower = (request.num_frames - 1) // step * step + 1
            raise RequestError(
                "num_frames",
                f"num_frames is {request.num_frames}; it must be {step}n+1, for example {lower} or {lower + step}",
            )
        if request.seconds is not None and request.num_frames != from_seconds:
            raise RequestError(
                "num_frames",
                f"num_frames is {request.num_frames}, but {seconds:g} seconds at {fps} fps are {from_seconds} frames; "
                "give one of the two",
            )
        return request.num_frames
    return from_seconds


def _check_numbers(request: ResolvedRequest, spec: ModelSpec) -> None:
    clock_seconds = (request.num_frames - 1) / request.fps  # the first frame stands at 0 s
    if clock_seconds > spec.max_seconds + 1e-9:
        raise RequestError(
            "seconds", f"the clip would be {clock_seconds:.2f} s long; {spec.name} makes up to {spec.max_seconds:g} s"
        )
    for name in ("width", "height"):
        pixels = getattr(request, name)
        multiple = spec.spatial_multiple
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < multiple or pixels % multiple:
            nearest = max(round(pixels / multiple), 1) * multiple if isinstance(pixels, int | float) else multiple
            raise RequestError(name, f"{name} is {pixels!r}; it must divide by {multiple}, for example {nearest}")
    steps = request.num_inference_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 500:
        raise RequestError("num_inference_steps", f"steps is {steps!r}; give a whole number from 1 to 500")
    seed = request.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise RequestError("seed", f"seed is {seed!r}; give a whole number from 0 to {MAX_SEED}, or leave it empty")
