"""What of a recipe goes back into the form: all of it, or only its prompt, voices, frame or seed.

A recipe may be of another model, of another version, or made up: each value is checked by itself against what today's
model can do. What it cannot do is said, and the rest is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from nava_core.request import GenerationRequest, Guidance, ModelSpec, RequestError, Shortcuts
from ui.catalogue import Catalogue
from ui.faster import NO_LORAS, LoraFolder, begin_later, lora_values, shortcut_values
from ui.state import size_value

Part = Literal["prompt", "voices", "frame", "seed", "settings", "new_seed"]
SHOWN_LETTERS = 60
MOST_FRAMES = 1_000_000
PARTS: tuple[Part, ...] = ("prompt", "voices", "frame", "seed", "settings")
"""All of a recipe. "new_seed" stands in the place of "seed" where the next clip is to be another one."""


def reused_form(
    form_values: Mapping[str, Any],
    recipe: Mapping[str, Any],
    parts: Iterable[str],
    spec: ModelSpec,
    text: Catalogue | None = None,
    loras: LoraFolder = NO_LORAS,
) -> tuple[dict[str, Any], list[str]]:
    """The form's fields that change, by the names of `ui.state.form_values`, and what people should know about it.

    form_values: what stands in the form now; random_seed may be among it. parts: of `Part`; others are left aside.
    Fields that already have the recipe's value are not named.
    """
    wanted = set(parts)
    reading = _Reading(recipe, spec, text or Catalogue(), loras)
    if "settings" in wanted:
        reading.settings()
    if "prompt" in wanted:
        reading.prompt()
    if "voices" in wanted:
        reading.voices()
    if "frame" in wanted:
        reading.frame(reading.found.get("modality", form_values.get("modality")))
    if "new_seed" in wanted:
        reading.found["random_seed"] = True
    elif "seed" in wanted:
        reading.seed()
    changed = {
        name: value for name, value in reading.found.items() if name not in form_values or form_values[name] != value
    }
    return changed, reading.messages


class _Reading:
    """One recipe against one model; `found` holds what can be used, `messages` what cannot."""

    def __init__(self, recipe: Mapping[str, Any], spec: ModelSpec, text: Catalogue, loras: LoraFolder):
        self.recipe, self.spec, self.text, self.here = recipe, spec, text, loras
        self.found: dict[str, Any] = {}
        self.messages: list[str] = []

    def prompt(self) -> None:
        prompt = self.recipe.get("prompt")
        if isinstance(prompt, str) and prompt.strip():
            self.found["prompt"] = prompt
        else:
            self._say("prompt", self.text("gallery.reuse_none"))

    def voices(self) -> None:
        given = self.recipe.get("speakers")
        speakers = list(given) if isinstance(given, list | tuple) else []
        if any(speakers) and not self.spec.accepts_speakers:
            self._say("voices", self.text("gallery.reuse_no_speakers", model=self.spec.name))
            return
        self.found["voices"] = [self._file("voices", voice) for voice in speakers]

    def frame(self, modality: Any) -> None:
        image = self.recipe.get("image")
        if image is None:
            self.found["image"] = None
        elif modality == "audio":
            self._say("frame", self.text("gallery.reuse_no_picture"))
        elif not self.spec.accepts_images:
            self._say("frame", self.text("gallery.reuse_no_images", model=self.spec.name))
        elif (path := self._file("frame", image)) is not None:
            self.found["image"] = path

    def seed(self) -> None:
        if self._asked("seed", lambda seed: {"seed": seed}) is not None:
            self.found |= {"seed": str(self.recipe["seed"]), "random_seed": False}

    def settings(self) -> None:
        if (modality := self._asked("modality", lambda modality: {"modality": modality})) is not None:
            self.found["modality"] = modality.modality
        negative = self.recipe.get("negative_prompt")
        if isinstance(negative, str):
            self.found["negative_prompt"] = negative
        elif negative is not None:
            self._say("negative_prompt", self.text("gallery.reuse_unreadable", value=_shown(negative)))
        if self.recipe.get("modality") != "audio":
            self._size()
        self._length()
        if (steps := self._asked("num_inference_steps", lambda steps: {"num_inference_steps": steps})) is not None:
            self.found["steps"] = steps.num_inference_steps
        self._guidance()
        self._shortcuts()
        self._loras()

    def _size(self) -> None:
        width, height = self.recipe.get("width"), self.recipe.get("height")
        if width is None or height is None:
            return
        if (width, height) in self.spec.sizes:
            self.found["size"] = size_value(width, height)
        else:
            asked = f"{_shown(width)} × {_shown(height)}"
            self._say("size", self.text("gallery.reuse_size", size=asked, model=self.spec.name))

    def _length(self) -> None:
        """The form asks in seconds at the model's own frames per second."""
        frames, fps = self.recipe.get("num_frames"), self.recipe.get("fps")
        seconds = self.recipe.get("seconds")
        if _is_number(frames) and _is_number(fps) and fps > 0 and 1 <= frames <= MOST_FRAMES:
            seconds = (frames - 1) / fps  # the first frame stands at second 0
            if fps != self.spec.fps:
                self._say("fps", self.text("gallery.reuse_fps", fps=_shown(fps), own=self.spec.fps))
        if self._asked("seconds", lambda seconds: {"seconds": seconds}, seconds) is not None:
            self.found["seconds"] = seconds

    def _guidance(self) -> None:
        guidance = self.recipe.get("guidance")
        if guidance is None:
            return
        if not isinstance(guidance, dict):
            self._say("guidance", self.text("gallery.reuse_unreadable", value=_shown(guidance)))
            return
        for axis in asdict(Guidance()):
            value = guidance.get(axis)
            if value is None:
                continue
            try:
                self.found[axis] = getattr(replace(Guidance(), **{axis: value}), axis)
            except RequestError as error:
                self._say("guidance", self.text.said(error))
        if unknown := sorted(_shown(axis) for axis in guidance.keys() - asdict(Guidance()).keys()):
            self._say("guidance", self.text("gallery.reuse_unknown", names=", ".join(unknown)))

    def _shortcuts(self) -> None:
        """A recipe without any was made without any."""
        given = self.recipe.get("shortcuts")
        try:
            shortcuts = Shortcuts() if given is None else Shortcuts(**given)
        except (RequestError, TypeError) as error:
            words = self.text.said(error) if isinstance(error, RequestError) else ""
            self._say("shortcuts", words or self.text("gallery.reuse_unreadable", value=_shown(given)))
            return
        self.found |= shortcut_values(shortcuts)
        if begin_later(shortcuts):
            self._say("shortcuts", self.text("gallery.reuse_later"))

    def _loras(self) -> None:
        given = self.recipe.get("loras") or ()
        if not isinstance(given, list | tuple):
            self._say("loras", self.text("gallery.reuse_unreadable", value=_shown(given)))
            return
        loras = [(entry[0], entry[1]) for entry in given if isinstance(entry, list | tuple) and len(entry) == 2]
        usable = []
        for path, scale in loras:
            if self.here.name_of(path) is None:
                self._say("loras", self.text("gallery.reuse_file_gone", name=_shown(Path(str(path)).name)))
            elif not _is_number(scale):
                self._say("loras", self.text("gallery.reuse_unreadable", value=_shown(scale)))
            else:
                usable.append((path, scale))
        self.found |= lora_values(usable, self.here)
        if len({scale for _, scale in usable}) > 1:
            self._say("loras", self.text("gallery.reuse_scales", scale=self.found["lora_scale"]))

    def _asked(
        self, field: str, fields: Callable[[Any], dict[str, Any]], value: Any = None
    ) -> GenerationRequest | None:
        """The request with this one value, if the model can do it; else None, and why is said."""
        value = self.recipe.get(field) if value is None else value
        if value is None:
            return None
        try:
            return GenerationRequest(prompt="…", **fields(value)).resolve(self.spec)
        except (RequestError, TypeError, OverflowError) as error:
            words = self.text.said(error) if isinstance(error, RequestError) else ""
            self._say(field, words or self.text("gallery.reuse_unreadable", value=_shown(value)))
            return None

    def _file(self, field: str, value: Any) -> str | None:
        """Only a whole path is followed: a bare name stands for a file that is not ours to give."""
        if value is None:
            return None
        if isinstance(value, str) and _is_there(value):
            return value
        name = Path(value).name if isinstance(value, str) else _shown(value)
        self._say(field, self.text("gallery.reuse_file_gone", name=name))
        return None

    def _say(self, field: str, words: str) -> None:
        label = self.text(f"gallery.field_{_LABELS.get(field, field)}")
        self.messages.append(self.text("gallery.reuse_note", field=label, words=words))


_LABELS = {"num_inference_steps": "steps", "seconds": "length", "fps": "length"}


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else repr(value)
    return words if len(words) <= SHOWN_LETTERS else f"{words[:SHOWN_LETTERS]}…"


def _is_there(value: str) -> bool:
    try:
        return Path(value).is_absolute() and Path(value).is_file()
    except (OSError, ValueError):  # no name that a file system knows
        return False


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
