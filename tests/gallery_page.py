"""What the gallery's tests share: clips without a model, and a page that has the gallery alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np

from nava_core.engine.jobs import Job
from nava_core.media import write_audio, write_clip
from nava_core.request import GenerationRequest, ModelSpec
from ui.catalogue import Catalogue
from ui.gallery import GalleryPanel, build_gallery, connect_gallery
from ui.library.gallery import Gallery, private_paths
from ui.service import Service
from ui.theme import STYLES, studio_theme

SPEC = ModelSpec("nava-nano", 96, 64, ((96, 64), (64, 64)), 0.5, 2.0, 24, 4, negative_prompt="模糊")


def make_clip(folder: Path, name: str, prompt: str, colour: tuple[int, int, int] = (200, 60, 40), **fields: Any) -> Job:
    """A finished job: a square that moves from left to right, or a tone where `name` ends in .wav."""
    sound = name.endswith(".wav")
    size = fields.pop("size", (96, 64))
    about = {name: fields.pop(name) for name in ("owner", "variations", "created") if name in fields}
    job_id = fields.pop("job", f"{abs(hash((name, prompt))) % 16**16:016x}")
    request = GenerationRequest(
        prompt,
        seed=fields.pop("seed", 7),
        modality="audio" if sound else "audio_video",
        width=size[0],
        height=size[1],
        **fields,
    ).resolve(SPEC)
    recipe = json.loads(json.dumps(request.to_recipe() | {"model": "nava-nano", "job": job_id}))
    tone = np.sin(np.arange(24_000) / 9) * np.abs(np.sin(np.arange(24_000) / 3000)) * 0.4
    folder.mkdir(parents=True, exist_ok=True)
    if sound:
        path = write_audio(folder / name, tone, 48_000, recipe)
    else:
        path = write_clip(folder / name, _moving_square(size, colour), 24, tone, 48_000, recipe, preset="ultrafast")
    created = about.pop("created", path.stat().st_mtime)
    return Job(job_id, request, "done", result=path, recipe=recipe, created=created, ended=created, **about)


def _moving_square(size: tuple[int, int], colour: tuple[int, int, int], count: int = 13) -> np.ndarray:
    width, height = size
    frames = np.full((count, height, width, 3), 24, np.uint8)
    side = min(size) // 3
    for number, frame in enumerate(frames):
        left = number * (width - side) // (count - 1)
        frame[side : 2 * side, left : left + side] = colour
    return frames


class Heard:
    """What the panel asked the rest of the page for, by the name of the state, the newest last."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []

    def last(self, name: str) -> Any:
        return next((value for other, value in reversed(self.all) if other == name), None)

    def listen(self, panel: GalleryPanel) -> None:
        for name in ("opened", "reuse", "compare", "continued"):
            state = getattr(panel, name)
            state.change(lambda value, name=name: self.all.append((name, value)), state, None, preprocess=False)


@contextmanager
def gallery_page(
    gallery: Gallery, language: str = "en", heard: Heard | None = None, auth: Any = None, port: int | None = None
) -> Iterator[str]:
    text = Catalogue(language)
    service = Service(cast(Any, None), cast(Any, None), text, gallery=gallery)
    with gr.Blocks(fill_width=True, analytics_enabled=False) as demo:
        panel = build_gallery(text, gallery)
        connect_gallery(service, panel)
        (heard or Heard()).listen(panel)
    _, url, _ = demo.queue(default_concurrency_limit=None).launch(
        prevent_thread_lock=True,
        quiet=True,
        server_port=port,
        theme=studio_theme(),
        css_paths=[*STYLES],
        allowed_paths=[str(gallery.output_dir)],
        blocked_paths=private_paths(gallery.database_path, gallery.output_dir),
        auth=auth,
        _frontend=False,
    )
    try:
        yield url
    finally:
        demo.close()
