"""What the studio's tests share: the golden bundle as a pipeline with small sizes, and a page served from it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from conftest import GOLDEN
from gradio.utils import get_upload_folder
from peft import LoraConfig, get_peft_model_state_dict
from rewriter_server import obedient

from nava_core.engine import Engine, PipelineSource
from rewriter import make_rewriter
from rewriter.backends.base import Chunk
from ui.faster import DEFAULTS
from ui.rewriting import RewriteDesk
from ui.state import Form

SMALL = {
    "name": "nava-nano",
    "width": 96,
    "height": 64,
    "sizes": [[96, 64], [64, 64]],
    "seconds": 0.5,
    "max_seconds": 2.0,
    "num_inference_steps": 4,
    "negative_prompt": "模糊",
    "negative_prompt_audio": "噪声",
    "hint": "Shapes: ball, star. 形状：圆球、星星。",
}

# The server shares the processors with all else that a test does: httpx's own patience of 5 s is for a network.
get, post = (partial(ask, timeout=60.0) for ask in (httpx.get, httpx.post))


def tiny_pipeline() -> Any:
    pipeline = PipelineSource(str(GOLDEN / "official_tiny"), "cpu", "float32").load()
    pipeline.register_to_config(defaults={**pipeline.config.defaults, **SMALL})
    return pipeline


def random_lora(pipeline: Any, folder: Path) -> Path:
    """A random LoRA on attention and feed-forward layers, written by the library; the pipeline is not used again."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["self_attn.q", "cross_attn.v", "ffn.0", "ffn.2"])
    pipeline.transformer.add_adapter(config, "made")
    for name, weight in pipeline.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    state = get_peft_model_state_dict(pipeline.transformer, adapter_name="made")
    pipeline.save_lora_weights(folder, state)
    return folder / "pytorch_lora_weights.safetensors"


@contextmanager
def slow_down(pipeline: Any, seconds: float) -> Iterator[None]:
    """Make every pass of the backbone take `seconds` longer, so that a person (or a test) can watch it."""
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def held_up(pipeline: Any, engine: Engine) -> Iterator[threading.Event]:
    """Make the newest job wait after its first step until the event is set; it is at the end."""
    go_on = threading.Event()

    def wait(*_: Any) -> None:
        if any(job.step for job in engine.jobs() if job.state == "running"):
            go_on.wait()

    hook = pipeline.transformer.register_forward_pre_hook(wait)
    try:
        yield go_on
    finally:
        go_on.set()
        hook.remove()


class TypingModel:
    """A language model that thinks, and then types a good caption piece by piece; without weights.

    It thinks until `thought` is set, and stops after its first piece until `typed` is; both are at first. stopped: how
    often somebody ended a reply early. parked: how often it was sent off the device.
    """

    concurrency = 4
    label = "typing model"
    thinking_opened = False

    def __init__(self, name: str = "vllm"):
        self.name = name
        self.thought, self.typed = threading.Event(), threading.Event()
        self.thought.set()
        self.typed.set()
        self.stopped = self.parked = 0

    async def reply(self, messages: list[dict[str, str]], seed: int) -> AsyncGenerator[Chunk, None]:
        text = obedient(messages)
        try:
            yield Chunk("reasoning", "SECRET THOUGHT")
            await _until(self.thought)
            for start in range(0, len(text), 60):
                yield Chunk("text", text[start : start + 60])
                await _until(self.typed)
            yield Chunk("end", "stop")
        except (GeneratorExit, asyncio.CancelledError):
            self.stopped += 1
            raise

    async def aclose(self) -> None:
        pass

    def park(self) -> None:
        self.parked += 1

    def resume(self) -> None:
        pass


async def _until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.02)


def offline_desk() -> RewriteDesk:
    return RewriteDesk(lambda: make_rewriter("offline"))


@contextmanager
def studio(
    engine: Engine,
    output_dir: Path,
    language: str = "en",
    desk: RewriteDesk | None = None,
    lora_dir: Path | None = None,
) -> Iterator[str]:
    """The page over `engine`, on a free port; yields its address. desk: by default one that rewrites by rule."""
    from ui import create_ui, launch_options
    from ui.faster import LoraFolder
    from ui.library.gallery import GALLERY_DATABASE, Gallery
    from ui.library.voices import VOICES, VoiceLibrary

    with (
        closing(desk or offline_desk()) as desk,
        closing(VoiceLibrary(output_dir / VOICES)) as voices,
        closing(Gallery(output_dir / GALLERY_DATABASE, output_dir)) as gallery,
    ):
        gallery.watch(engine)
        demo = create_ui(engine, language, desk, voices, gallery, LoraFolder(lora_dir))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(output_dir))
        try:
            yield url
        finally:
            demo.close()


def form(**changes: Any) -> Form:
    """A form as somebody has filled it in."""
    values: dict[str, Any] = {
        "prompt": "圆球 ~~你好~~ ~~再见~~",
        "negative_prompt": "模糊",
        "image": None,
        "modality": "audio_video",
        "size": "832x480",
        "seconds": 3.0,
        "steps": 7,
        "seed": "5",
        "random_seed": False,
        "variations": 1,
        "video": 1.0,
        "audio": 2.0,
        "video_align": 3.0,
        "audio_align": 4.0,
        "timbre": 5.0,
        "align": False,
        "timbre_apart": True,
    }
    return Form(**values | DEFAULTS | {"assignments": None} | changes)


def uploaded(name: str, content: bytes) -> dict[str, Any]:
    """As if the page had sent it."""
    folder = Path(get_upload_folder()) / "sent"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return {"path": str(path)}
