"""NAVA Studio in the browser: arguments -> engine and rewriter -> page.

python app.py [--model SOURCE]
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from nava_core.engine import QueueEngine, Runner
    from ui.library.gallery import Gallery
    from ui.library.voices import VoiceLibrary
    from ui.rewriting import RewriteDesk

logger = logging.getLogger("nava_studio")

USAGE_ERROR, INTERRUPTED = 2, 130


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    from nava_core.engine.source import PRECISIONS
    from rewriter import BackendName
    from ui.catalogue import LANGUAGES

    parser = argparse.ArgumentParser(description="NAVA Studio: a page that turns a prompt into picture and sound.")
    parser.add_argument("--model", help="official bundle folder, diffusers folder or hub id (default: nava-nano)")
    parser.add_argument("--device", help="where to run, such as cuda or cpu (default: the best there is)")
    parser.add_argument("--dtype", choices=PRECISIONS, help="precision (default: the device's best)")
    parser.add_argument("--ranks", type=_at_least_one, default=1, help="worker processes, one for each device")
    parser.add_argument("--in-process", action="store_true", help="no worker process: for a GPU that is only lent")
    parser.add_argument("--idle-minutes", type=_more_than_nothing, help="free the model's memory after so long unused")
    parser.add_argument("--rewriter", choices=get_args(BackendName), default="auto", help="what rewrites prompts")
    parser.add_argument("--rewriter-url", help="its server (default: NAVA_REWRITER_URL, else http://127.0.0.1:8000/v1)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where clips and the queue are kept")
    parser.add_argument("--language", choices=list(LANGUAGES), default="en", help="language of the page")
    options = parser.parse_args(arguments)
    if options.in_process and options.ranks > 1:
        parser.error(f"--in-process has one process and --ranks asks for {options.ranks}; leave one of them out")
    if options.rewriter_url and options.rewriter not in ("auto", "vllm"):
        parser.error(f"--rewriter {options.rewriter} asks no server; leave --rewriter-url out, or take vllm")
    if options.rewriter in ("auto", "vllm"):
        from rewriter.backends.server import ServerModel

        try:
            ServerModel(options.rewriter_url)
        except ValueError as error:
            parser.error(f"--rewriter-url or NAVA_REWRITER_URL: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own server whether it is there
    # Gradio reads this when a page is built: nothing is sent anywhere unless the user asked for it.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    if threading.current_thread() is threading.main_thread():
        # How a container or a service is asked to end: in order, as with Ctrl-C, so that the running clip is noted.
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    from nava_core.engine import EngineError

    try:
        with (
            closing(_make_desk(options)) as desk,
            closing(_make_engine(options, desk)) as engine,
            closing(_make_voices(options)) as voices,
            closing(_make_gallery(options, engine)) as gallery,
        ):
            return _serve(engine, desk, voices, gallery, options)
    except (EngineError, ValueError) as error:
        logger.error("%s", error)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _make_desk(options: argparse.Namespace) -> RewriteDesk:
    """Where prompts are rewritten. What is not there is said when a prompt comes: a server may be started later."""
    from rewriter import make_rewriter
    from ui.rewriting import RewriteDesk

    return RewriteDesk(partial(make_rewriter, options.rewriter, base_url=options.rewriter_url))


def _make_engine(options: argparse.Namespace, desk: RewriteDesk) -> QueueEngine:
    """Raises EngineError where the queue is another app's, or cannot be used."""
    from nava_core.engine import DATABASE, InProcessRunner, PipelineSource, QueueEngine
    from nava_core.engine.workers import WorkerRunner
    from ui.rewriting import ConsiderateRunner

    source = PipelineSource(options.model, options.device, options.dtype)
    runner: Runner = InProcessRunner(source.load) if options.in_process else WorkerRunner(source, options.ranks)
    return QueueEngine(
        ConsiderateRunner(runner, desk),
        options.output_dir,
        options.output_dir / DATABASE,
        idle_minutes=options.idle_minutes,
    )


def _make_voices(options: argparse.Namespace) -> VoiceLibrary:
    from ui.library.voices import VOICES, VoiceLibrary

    return VoiceLibrary(options.output_dir / VOICES)


def _make_gallery(options: argparse.Namespace, engine: QueueEngine) -> Gallery:
    """Raises ValueError where its index cannot be used."""
    from ui.library.gallery import GALLERY_DATABASE, Gallery

    gallery = Gallery(options.output_dir / GALLERY_DATABASE, options.output_dir)
    gallery.watch(engine)
    return gallery


def _serve(
    engine: QueueEngine, desk: RewriteDesk, voices: VoiceLibrary, gallery: Gallery, options: argparse.Namespace
) -> int:
    """Show the page while the model loads; end with 2 where either is impossible."""
    from ui import create_ui, launch_options

    demo = create_ui(engine, options.language, desk, voices, gallery)
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            prevent_thread_lock=True,
            **launch_options(options.output_dir),
        )
    except OSError as error:
        logger.error("cannot listen on %s:%d (%s); choose another --port", options.host, options.port, error)
        return USAGE_ERROR
    status = engine.wait_until_loaded()
    if status.state == "failed":
        logger.error(status.message)
        demo.close()
        return USAGE_ERROR
    demo.block_thread()
    return 0


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of processes; give 1 or more")
    return int(value)


def _more_than_nothing(value: str) -> float:
    try:
        minutes = float(value)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{value!r} is no length of time; give minutes, more than 0")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
