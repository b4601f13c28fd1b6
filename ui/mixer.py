"""The guidance mixer: five axes in plain words, presets relative to the model, and what a setting costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from typing import Any, Literal, get_args

import gradio as gr

from nava_core.guidance import plan_guidance
from nava_core.request import GUIDANCE_AXES, GUIDANCE_SWITCHES, Guidance, Modality, ModelSpec, RequestError
from ui.assignments import Assignments
from ui.catalogue import Catalogue
from ui.scene import message_place

LARGEST = 10.0
Preset = Literal["balanced", "lips", "voice", "free"]
# Relative to the model's own scales, so that they mean the same for every model.
FACTORS: dict[Preset, dict[str, float]] = {
    "balanced": {},
    "lips": {"video_align": 1.5, "audio_align": 1.5},
    "voice": {"timbre": 1.6, "audio": 1.25},
    "free": {"video": 0.6, "video_align": 0.5},
}


@dataclass(frozen=True)
class MixerPanel:
    section: gr.Accordion
    preset: gr.Radio
    axes: dict[str, gr.Slider]
    switches: dict[str, gr.Checkbox]
    reset: gr.Button
    cost: gr.HTML
    error: gr.HTML

    @property
    def controls(self) -> list[Any]:
        """The sliders and the switches, in the order of Guidance's fields."""
        return [*self.axes.values(), *self.switches.values()]


def build_mixer(text: Catalogue) -> MixerPanel:
    def axis(name: str) -> gr.Slider:
        value = getattr(Guidance(), name)
        label, info = text(f"guidance.{name}"), text(f"guide.{name}")
        slider_id = f"guidance-{name.replace('_', '-')}"
        return gr.Slider(0, LARGEST, value, step=0.1, label=label, info=info, elem_id=slider_id, buttons=[])

    def switch(name: str) -> gr.Checkbox:
        value, label = getattr(Guidance(), name), text(f"guidance.{name}")
        return gr.Checkbox(value, label=label, container=False, elem_id=f"guidance-{name.replace('_', '-')}")

    with gr.Accordion(text("guidance.title"), open=False, elem_id="guidance", elem_classes="nava-card") as section:
        with gr.Row(elem_id="mixer-presets"):
            preset = gr.Radio(
                label=text("preset.label"),
                choices=[(text(f"preset.{name}"), name) for name in get_args(Preset)],
                value="balanced",
                elem_id="preset",
            )
            reset = gr.Button(text("guidance.reset"), size="sm", elem_id="mixer-reset", min_width=0)
        with gr.Column(elem_id="mixer-axes"):
            axes = {name: axis(name) for name in GUIDANCE_AXES}
        switches = {name: switch(name) for name in GUIDANCE_SWITCHES}
        cost = gr.HTML(elem_id="mixer-cost")
        error = message_place()
    return MixerPanel(section, preset, axes, switches, reset, cost, error)


def preset_guidance(preset: Preset, spec: ModelSpec) -> Guidance:
    """A preset's scales for a model: the model's own, some of them larger or smaller."""
    own = spec.guidance
    changes: dict[str, Any] = {name: _changed(getattr(own, name), factor) for name, factor in FACTORS[preset].items()}
    if preset == "lips":
        changes["align"] = True
    return replace(own, **changes)


def _changed(own: float, factor: float) -> float:
    """A scale larger or smaller by a factor; one that the model leaves at 0 is raised as one at 1 would be."""
    return min(round(own * factor if own else max(factor - 1.0, 0.0), 1), LARGEST)


def preset_of(guidance: Guidance, spec: ModelSpec) -> Preset | None:
    """The preset that these scales are, if they are one."""
    return next((name for name in FACTORS if preset_guidance(name, spec) == guidance), None)


def passes_of(guidance: Guidance, modality: Modality, has_references: bool) -> int:
    """How often the model runs in a step."""
    return len(plan_guidance(guidance, modality, has_references).passes)


def cost_view(text: Catalogue, guidance: Guidance, modality: Modality, has_references: bool) -> str:
    """The passes that a step takes, and how many of them each axis alone is the reason for."""
    total = passes_of(guidance, modality, has_references)
    words = text("mixer.one_pass") if total == 1 else text("mixer.passes", count=total)
    parts = []
    for name in GUIDANCE_AXES:
        saved = total - passes_of(_without(guidance, name), modality, has_references)
        label = escape(text(f"mixer.{name}"))
        alone = text("mixer.saves", count=saved) if saved > 0 else text("mixer.free")
        parts.append(f"<li><span>{label}</span> <b>{getattr(guidance, name):g}</b> <small>{escape(alone)}</small></li>")
    return f'<p class="nava-passes"><b>{escape(words)}</b></p><ul class="nava-costs">{"".join(parts)}</ul>'


def _without(guidance: Guidance, axis: str) -> Guidance:
    """The same without one axis: 0 where it is a push beyond the conditional, 1 where it is the classical scale."""
    neutral = 1.0 if axis in ("video", "audio") and not guidance.align else 0.0
    changes: dict[str, Any] = {axis: neutral}
    return replace(guidance, **changes)


def read_guidance(values: Sequence[Any]) -> Guidance:
    """From the mixer's controls. Raises RequestError for a scale that is none."""
    return Guidance(**dict(zip((item.name for item in fields(Guidance)), values, strict=True)))


def choose_preset(spec: ModelSpec | None, panel: MixerPanel, preset: str) -> dict[Any, Any]:
    if spec is None or preset not in FACTORS:
        return {panel.preset: gr.skip()}
    guidance = preset_guidance(preset, spec)  # type: ignore[arg-type]
    return {part: getattr(guidance, name) for name, part in (panel.axes | panel.switches).items()}


def follow_mixer(
    text: Catalogue, spec: ModelSpec | None, panel: MixerPanel, has_references: bool, modality: Modality, *values: Any
) -> dict[Any, Any]:
    """What the controls are together: a preset or none, and what they cost."""
    try:
        guidance = read_guidance(values)
    except RequestError:
        return {panel.cost: gr.skip()}
    return {
        panel.preset: None if spec is None else preset_of(guidance, spec),
        panel.cost: gr.update(value=cost_view(text, guidance, modality, has_references)),
        panel.error: gr.update(value="", visible=False),
    }


def connect_mixer(
    spec: Callable[[], ModelSpec | None],
    text: Catalogue,
    panel: MixerPanel,
    modality: gr.Radio,
    assignments: Any,
    **quiet: Any,
) -> None:
    """Attach the mixer's events. assignments: the component that says which voice speaks which line."""

    def follow(modality: Modality, stored: Any, *values: Any) -> dict[Any, Any]:
        has_references = any(Assignments.read(stored).voices)
        return follow_mixer(text, spec(), panel, has_references, modality, *values)

    def choose(preset: str) -> dict[Any, Any]:
        return choose_preset(spec(), panel, preset)

    panel.preset.input(choose, panel.preset, [panel.preset, *panel.controls], **quiet)
    panel.reset.click(lambda: choose("balanced"), None, [panel.preset, *panel.controls], **quiet)
    gr.on(
        [part.change for part in (*panel.controls, modality, assignments)],
        follow,
        [modality, assignments, *panel.controls],
        [panel.preset, panel.cost, panel.error],
        trigger_mode="always_last",
        **quiet,
    )
