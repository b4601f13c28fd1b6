"""NAVA Studio in the browser: arguments -> engine and rewriter -> page.

python app.py [--model SOURCE]
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
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
LOOPBACK = "127.0.0.1"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    from nava_core.engine.source import PRECISIONS
    from nava_core.options import add_profile_flag
    from rewriter import BackendName
    from ui.accounts import Accounts
    from ui.catalogue import LANGUAGES
    from ui.files import MAX_BYTES, MAX_PIXELS, MAX_SOUND_SECONDS

    parser = argparse.ArgumentParser(
        description="NAVA Studio: a page that turns a prompt into picture and sound.",
        epilog=f"Uploads: pictures, recordings and clips, told by their content, up to {MAX_BYTES >> 20} MB each; "
        f"pictures up to {MAX_PIXELS // 10**6} megapixels, recordings up to {MAX_SOUND_SECONDS / 60:.0f} minutes. "
        "Files are served from the output folder and the app's own cache, nothing else.",
    )
    parser.add_argument("--model", help="official bundle folder, diffusers folder or hub id (default: nava-nano)")
    parser.add_argument("--device", help="where to run, such as cuda or cpu (default: the best there is)")
    parser.add_argument("--dtype", choices=PRECISIONS, help="precision (default: the device's best)")
    add_profile_flag(parser)
    parser.add_argument("--ranks", type=_at_least_one, default=1, help="worker processes, one for each device")
    parser.add_argument("--in-process", action="store_true", help="no worker process: for a GPU that is only lent")
    parser.add_argument("--idle-minutes", type=_more_than_nothing, help="free the model's memory after so long unused")
    parser.add_argument("--rewriter", choices=get_args(BackendName), default="auto", help="what rewrites prompts")
    parser.add_argument("--rewriter-url", help="its server (default: NAVA_REWRITER_URL, else http://127.0.0.1:8000/v1)")
    host, port = _address(os.environ)
    parser.add_argument("--host", default=host, help="address to listen on; 0.0.0.0 for every network, see --auth")
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address; see --auth")
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD",
        help="who may come in, repeatable; each user's jobs, clips and voices are apart (a command line can be read by "
        "others on this machine: see --auth-file)",
    )
    parser.add_argument("--auth-file", type=Path, metavar="FILE", help="the same, one USER:PASSWORD on a line")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where clips and the queue are kept")
    parser.add_argument(
        "--lora-dir", type=Path, metavar="FOLDER", help="a folder of LoRAs (.safetensors) to choose from on the page"
    )
    parser.add_argument("--language", choices=list(LANGUAGES), default="en", help="language of the page")
    options = parser.parse_args(arguments)
    if options.lora_dir is not None and not options.lora_dir.is_dir():
        parser.error(f"--lora-dir {options.lora_dir} is no folder; make it, or leave the option out")
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
    options.accounts = None
    if options.auth or options.auth_file:
        try:
            options.accounts = Accounts.read(options.auth, options.auth_file)
        except ValueError as error:
            parser.error(str(error))
    del options.auth  # nothing that shows the options shows a password
    return options


def _address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where to listen unless told otherwise: as Gradio's own variables say, and everywhere inside a Space."""
    host = environment.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if environment.get("SPACE_ID") else LOOPBACK)
    port = environment.get("GRADIO_SERVER_PORT", "")
    return host, int(port) if port.isdecimal() else 7860


def _open_to_others(options: argparse.Namespace) -> bool:
    """Whether people on other machines can reach the page."""
    try:
        local = ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        local = options.host == "localhost"
    return options.share or not local


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
    from nava_core.engine import DATABASE, QueueEngine
    from ui.rewriting import ConsiderateRunner

    return QueueEngine(
        ConsiderateRunner(_make_runner(options), desk),
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


def _make_runner(options: argparse.Namespace) -> Runner:
    from nava_core.engine.borrowed import BorrowedRunner, lender

    spaces = lender()  # before anything else touches the GPU
    from nava_core.engine import InProcessRunner, PipelineSource
    from nava_core.engine.workers import WorkerRunner

    source = PipelineSource(options.model, options.device, options.dtype, options.profile)
    if spaces is not None:
        return BorrowedRunner(source.load, spaces)
    return InProcessRunner(source.load) if options.in_process else WorkerRunner(source, options.ranks)


def _serve(
    engine: QueueEngine, desk: RewriteDesk, voices: VoiceLibrary, gallery: Gallery, options: argparse.Namespace
) -> int:
    """Show the page while the model loads; end with 2 where either is impossible."""
    from nava_core.engine.borrowed import lender
    from ui import create_ui, launch_options
    from ui.doors import clips_of, open_for_mcp
    from ui.faster import LoraFolder

    if options.accounts is None and _open_to_others(options):
        logger.warning(
            "anybody who reaches this page can use it and see all clips; --auth USER:PASSWORD asks people who they are"
        )
    demo = create_ui(engine, options.language, desk, voices, gallery, LoraFolder(options.lora_dir))
    if lender() is not None:
        engine.wait_until_loaded()  # the lender takes along what is loaded when the page is launched
    try:
        _, url, _ = demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            prevent_thread_lock=True,
            **launch_options(options.output_dir, options.accounts, [clips_of(engine), gallery.owns]),
        )
    except OSError as error:
        logger.error("cannot listen on %s:%d (%s); choose another --port", options.host, options.port, error)
        return USAGE_ERROR
    if options.accounts is not None:
        open_for_mcp(demo, url, options.accounts)
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
