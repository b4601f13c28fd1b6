"""The settings that are faster or of another style, and another clip: skipped steps, guidance for a part, LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from nava_core.request import RequestError, Shortcuts
from ui.catalogue import Catalogue
from ui.scene import message_place

LARGEST_CACHE = 0.3
LARGEST_SCALE = 2.0
# Percent of the steps after which an axis ends, by the form's field and Shortcuts' field.
INTERVALS = {"negative_until": "negative", "align_until": "align", "timbre_until": "timbre"}
DEFAULTS: dict[str, Any] = {"step_cache": 0.0, **dict.fromkeys(INTERVALS, 100.0), "loras": [], "lora_scale": 1.0}


@dataclass(frozen=True)
class LoraFolder:
    """The LoRAs that the page and its endpoints offer: a folder's `.safetensors`, by their names without the ending.

    What a browser sends is a name, never a path.
    """

    folder: Path | None = None

    def names(self) -> list[str]:
        return sorted(self._files())

    def path(self, name: Any) -> str:
        """Raises RequestError for a name that is none of the folder's."""
        found = self._files().get(name) if isinstance(name, str) else None
        if found is None:
            there = ", ".join(self.names()) or "none; start the studio with --lora-dir FOLDER"
            raise RequestError("loras", f"there is no LoRA {name!r}; there is {there}")
        return str(found)

    def name_of(self, path: Any) -> str | None:
        """The name of a recipe's LoRA, if its file is still here."""
        names = [name for name, file in self._files().items() if str(file) == path]
        return names[0] if names else None

    def chosen(self, names: Any, scale: Any) -> tuple[tuple[str, float], ...]:
        """Several at one scale, as the form has them. Raises RequestError."""
        if names is not None and not isinstance(names, list | tuple):
            raise RequestError("loras", f"loras is {names!r}; give a list of names")
        return tuple((self.path(name), 1.0 if scale is None else scale) for name in names or ())

    def scaled(self, scales: Any) -> tuple[tuple[str, float], ...]:
        """Each at its own scale, as endpoints and files take them: {name: scale}. Raises RequestError."""
        if not isinstance(scales, dict | None):
            raise RequestError("loras", f"loras is {scales!r}; give an object of names and scales")
        return tuple((self.path(name), scale) for name, scale in (scales or {}).items())

    def _files(self) -> dict[str, Path]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        return {file.stem: file.resolve() for file in self.folder.glob("*.safetensors")}


NO_LORAS = LoraFolder()


@dataclass(frozen=True)
class FasterPanel:
    """controls: by the form's field names."""

    controls: dict[str, Any]
    error: gr.HTML
    loras_error: gr.HTML


def build_faster(text: Catalogue) -> FasterPanel:
    controls: dict[str, Any] = {}
    with gr.Column(elem_id="loras-part", min_width=0):
        controls["loras"] = gr.Dropdown(
            [], value=[], multiselect=True, label=text("loras.label"), info=text("loras.info"), elem_id="loras",
            visible=False,
        )  # fmt: skip
        controls["lora_scale"] = gr.Slider(
            0, LARGEST_SCALE, 1, step=0.05, label=text("loras.scale"), elem_id="lora-scale", buttons=[], visible=False
        )
        loras_error = message_place()
    with gr.Accordion(text("faster.title"), open=False, elem_id="faster"):
        gr.Markdown(text("faster.info"), elem_id="faster-info")
        controls["step_cache"] = gr.Slider(
            0, LARGEST_CACHE, 0, step=0.01, label=text("faster.step_cache"), info=text("faster.step_cache_info"),
            elem_id="step-cache", buttons=[],
        )  # fmt: skip
        for name in INTERVALS:
            controls[name] = gr.Slider(
                0, 100, 100, step=5, label=text(f"faster.{name}"), info=text(f"faster.{name}_info"),
                elem_id=name.replace("_", "-"), buttons=[],
            )  # fmt: skip
        error = message_place()
    order = list(DEFAULTS)
    return FasterPanel({name: controls[name] for name in order}, error, loras_error)


def shown_loras(folder: LoraFolder) -> dict[str, dict[str, Any]]:
    """What the folder's files make of the form's fields."""
    names = folder.names()
    return {"loras": {"choices": names, "visible": bool(names)}, "lora_scale": {"visible": bool(names)}}


def shortcuts_of(given: Any) -> Shortcuts:
    """From an object of Shortcuts' fields, as endpoints and files take them. Raises RequestError."""
    known = [item.name for item in fields(Shortcuts)]
    if not isinstance(given, dict | None):
        raise RequestError("shortcuts", f"shortcuts is {given!r}; give an object with {', '.join(known)}")
    if unknown := sorted(set(given or ()) - set(known)):
        raise RequestError("shortcuts", f"shortcuts have no {', '.join(unknown)}; there are {', '.join(known)}")
    return Shortcuts(**given or {})


def read_shortcuts(values: Mapping[str, Any]) -> Shortcuts:
    """From the form's fields. Raises RequestError."""
    shares: dict[str, Any] = {}
    for name, axis in INTERVALS.items():
        percent = values[name]
        if not isinstance(percent, int | float) or isinstance(percent, bool):
            raise RequestError("shortcuts", f"the steps of {axis} end at {percent!r}; give a percentage up to 100")
        shares[axis] = (0.0, percent / 100)
    return Shortcuts(values["step_cache"], **shares)


def shortcut_values(shortcuts: Shortcuts) -> dict[str, Any]:
    """The form's fields that ask for these; a part that begins later than the first step has no field."""
    ends = {name: round(getattr(shortcuts, axis)[1] * 100, 6) for name, axis in INTERVALS.items()}
    return {"step_cache": shortcuts.step_cache, **ends}


def begin_later(shortcuts: Shortcuts) -> bool:
    return any(getattr(shortcuts, axis)[0] > 0 for axis in INTERVALS.values())


def lora_values(loras: Sequence[tuple[str, float]], folder: LoraFolder) -> dict[str, Any]:
    """The form's fields for a request's LoRAs that are here, at the scale of the first of them."""
    here = [(name, scale) for path, scale in loras if (name := folder.name_of(path)) is not None]
    return {"loras": [name for name, _ in here], "lora_scale": here[0][1] if here else 1.0}
