"""What stands in the form, and its way to a request and back.

Handlers take the components' values as the browser sends them (`preprocess=False`): Gradio's own checks would end an
event with a general error, where `GenerationRequest` has one for the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nava_core.request import (
    GUIDANCE_AXES,
    GUIDANCE_SWITCHES,
    GenerationRequest,
    Guidance,
    Modality,
    ModelSpec,
    RequestError,
)
from nava_core.speech import bind_speakers, parse_speech
from ui.catalogue import Catalogue
from ui.faster import (
    DEFAULTS,
    INTERVALS,
    LARGEST_CACHE,
    LARGEST_SCALE,
    NO_LORAS,
    LoraFolder,
    lora_values,
    read_shortcuts,
    shortcut_values,
)
from ui.files import uploaded_path

VARIATIONS = (1, 2, 4)


@dataclass(frozen=True)
class Form:
    """The form's values, in the order in which the page hands them over; assignments: which voice speaks which line."""

    prompt: str
    negative_prompt: str
    image: str | None
    modality: Modality
    size: str
    seconds: float | None
    steps: float | None
    seed: str
    random_seed: bool
    variations: int
    video: float
    audio: float
    video_align: float
    audio_align: float
    timbre: float
    align: bool
    timbre_apart: bool
    step_cache: float
    negative_until: float
    align_until: float
    timbre_until: float
    loras: list[str]
    lora_scale: float
    assignments: Any

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Form:
        given = dict(zip((item.name for item in fields(cls)), values, strict=True))
        return cls(**given | {"image": uploaded_path("image", given["image"])})

    @property
    def number(self) -> int:
        """How many variations are asked for. Raises RequestError."""
        if self.variations not in VARIATIONS:
            allowed = ", ".join(map(str, VARIATIONS))
            raise RequestError("variations", f"variations is {self.variations!r}; choose one of {allowed}")
        return int(self.variations)

    def request(
        self,
        text: Catalogue,
        speakers: Sequence[Any] = (),
        loras: LoraFolder = NO_LORAS,
    ) -> GenerationRequest:
        """Raises RequestError where the form itself cannot be read; `GenerationRequest.resolve` checks the rest.

        speakers: a recording for each spoken line, or None. loras: those that there are.
        """
        width, height = _read_size(self.size)
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            image=self.image,
            speakers=bind_speakers(parse_speech(self.prompt).spans, speakers),
            width=width,
            height=height,
            seconds=self.seconds,
            num_inference_steps=None if self.steps is None else int(self.steps),
            guidance=Guidance(**{item.name: getattr(self, item.name) for item in fields(Guidance)}),
            seed=None if self.random_seed else _read_seed(self.seed, text),
            modality=self.modality,
            shortcuts=read_shortcuts({name: getattr(self, name) for name in DEFAULTS}),
            loras=loras.chosen(self.loras, self.lora_scale),
        )


@dataclass(frozen=True)
class Draft:
    """What a browser keeps of the last rewriting.

    id: of the rewriting; source: the prompt that it was given; random_seed: how the clip that follows it was asked for.
    used: the caption that took the prompt's place; original: what a person wrote, of which it was made; before: what
    stood in the prompt's place until then. All three None where none was used.
    """

    id: str | None = None
    source: str = ""
    random_seed: bool = True
    used: str | None = None
    original: str | None = None
    before: str | None = None

    @classmethod
    def read(cls, stored: Any) -> Draft:
        """From what a browser hands over, which may be nothing, or of another version."""
        given = stored if isinstance(stored, dict) else {}
        kinds = {item.name: bool if item.name == "random_seed" else str for item in fields(cls)}
        return cls(**{name: given[name] for name, kind in kinds.items() if isinstance(given.get(name), kind)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def original_of(self, prompt: str) -> str | None:
        """What a person wrote, if `prompt` is the caption that was made of it, letter for letter."""
        return self.original if self.used is not None and same_text(prompt, self.used) else None

    def belongs_to(self, prompt: str) -> bool:
        """Whether the rewriting was of this prompt."""
        return same_text(prompt, self.source)

    def begun(self, rewriting_id: str, prompt: str, random_seed: bool = True) -> Draft:
        """With a new rewriting, of a prompt that may be a caption in use itself."""
        kept = self if self.original_of(prompt) is not None else Draft()
        return replace(kept, id=rewriting_id, source=prompt, random_seed=random_seed)

    def with_used(self, caption: str, prompt: str) -> Draft:
        """With `caption` in the place of `prompt`; the way back leads to a person's own words."""
        original = self.original_of(prompt)
        if original is not None:
            return replace(self, used=caption)
        return replace(self, used=caption, original=self.source, before=prompt)

    def without_used(self) -> Draft:
        return replace(self, used=None, original=None, before=None)


def same_text(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but the kind of their line ends, which a browser changes."""
    return one.splitlines() == other.splitlines()


def _read_size(value: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in value.split("x"))
    except (ValueError, AttributeError):
        raise RequestError("width", f"the size is {value!r}; give it as WIDTHxHEIGHT") from None
    return width, height


def _read_seed(typed: str, text: Catalogue) -> int | None:
    if not typed.strip():
        return None
    try:
        return int(typed)
    except ValueError:
        raise RequestError("seed", text("seed.not_a_number", value=typed)) from None


def size_value(width: int, height: int) -> str:
    return f"{width}x{height}"


def form_values(
    request: GenerationRequest,
    spec: ModelSpec,
    loras: LoraFolder = NO_LORAS,
) -> dict[str, Any]:
    """The form that makes `request` again, by field name; the voices are not part of it."""
    resolved = request.resolve(spec)
    assert resolved.num_frames is not None and resolved.fps is not None
    guidance = resolved.guidance or spec.guidance
    return {
        "prompt": request.prompt,
        "negative_prompt": resolved.negative_prompt,
        "image": _existing(request.image),
        "modality": request.modality,
        "size": size_value(resolved.width or spec.width, resolved.height or spec.height),
        "seconds": (resolved.num_frames - 1) / resolved.fps,  # as asked: the first frame stands at second 0
        "steps": resolved.num_inference_steps,
        "seed": str(resolved.seed),
        **asdict(guidance),
        **shortcut_values(request.shortcuts),
        **lora_values(request.loras, loras),
    }


def kept_words(stored: Any) -> dict[str, Any]:
    """Of a form that a browser kept, what suits any model: what a person wrote, chose as a picture, and the seed."""
    given = stored if isinstance(stored, dict) else {}
    words = {name: given[name] for name in ("prompt", "seed") if isinstance(given.get(name), str)}
    if isinstance(given.get("random_seed"), bool):
        words["random_seed"] = given["random_seed"]
    if given.get("variations") in VARIATIONS:
        words["variations"] = given["variations"]
    image = given.get("image")
    return words | ({"image": kept_file(image)} if image else {})


def kept_settings(
    stored: Any,
    spec: ModelSpec,
    loras: LoraFolder = NO_LORAS,
) -> dict[str, Any]:
    """Of a form that a browser kept, what suits this model; the rest stays as the model has it."""
    given = stored if isinstance(stored, dict) else {}
    kept: dict[str, Any] = {}
    if given.get("size") in [size_value(*size) for size in spec.sizes]:
        kept["size"] = given["size"]
    if given.get("modality") in spec.modalities:
        kept["modality"] = given["modality"]
    limits = {"seconds": (0.5, spec.max_seconds), "steps": (1, 500)}
    limits |= dict.fromkeys(GUIDANCE_AXES, (0.0, 30.0))
    limits |= dict.fromkeys(INTERVALS, (0.0, 100.0))
    limits |= {"step_cache": (0.0, LARGEST_CACHE), "lora_scale": (0.0, LARGEST_SCALE)}
    for name, (least, most) in limits.items():
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            kept[name] = value
    kept |= {name: given[name] for name in GUIDANCE_SWITCHES if isinstance(given.get(name), bool)}
    if isinstance(given.get("negative_prompt"), str):
        kept["negative_prompt"] = given["negative_prompt"]
    if isinstance(given.get("loras"), list):
        kept["loras"] = [name for name in given["loras"] if name in loras.names()]
    return kept


def kept_file(payload: Any) -> str | None:
    """An upload that a browser remembers, while Gradio still has it."""
    try:
        path = uploaded_path("file", payload)
    except RequestError:
        return None
    return path if path is not None and Path(path).is_file() else None


def _existing(value: Any) -> str | None:
    return str(value) if isinstance(value, str | Path) and Path(value).is_file() else None
