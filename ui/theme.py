"""The page's look: one accent colour on quiet neutrals, system fonts only, light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

# The page's own come first: features build on them.
STYLES = sorted(Path(__file__).with_name("styles").glob("*.css"), key=lambda path: (path.stem != "studio", path.stem))
SCRIPTS = [Path(__file__).parent / "scripts" / f"{name}.js" for name in ("page", "scene")]

_ACCENT = gr.themes.Color(
    name="nava",
    c50="#effaf8",
    c100="#d3f1ec",
    c200="#a8e3da",
    c300="#74cdc2",
    c400="#41b0a5",
    c500="#1f938a",
    c600="#0f766e",
    c700="#0d5f59",
    c800="#0e4b48",
    c900="#103f3d",
    c950="#052524",
)
_SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Consolas", "Noto Sans Mono", "monospace")


def studio_theme() -> gr.themes.Base:
    """Gradio's base theme with the studio's colours; nothing in it is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )
    return theme.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="#0e0f11",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#17181b",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="#1c1e21",
        block_background_fill="#ffffff",
        block_background_fill_dark="#17181b",
        block_border_color="*neutral_200",
        block_border_color_dark="#2a2c31",
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_info_text_size="*text_sm",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#2a2c31",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0e0f11",
        input_border_width="1px",
        input_padding="10px 12px",
        input_border_color="*neutral_300",
        input_border_color_dark="#3a3d43",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color_dark="*primary_950",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="#232529",
        button_secondary_background_fill_hover_dark="#2d3035",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#3a3d43",
        button_border_width="1px",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
        checkbox_background_color_selected="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color_selected_dark="*primary_500",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_950",
        checkbox_label_border_color_selected="*primary_600",
        checkbox_label_border_color_selected_dark="*primary_400",
        checkbox_label_text_color_selected="*body_text_color",
        checkbox_label_text_color_selected_dark="*body_text_color",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
