"""What people send: where it has to lie, how large it may be, and whether it is what its place is for.

A file is judged by its content, never by its name, and before anything else opens it: what is no picture and no sound
is not handed to a decoder, which might take a playlist for a recording and follow the paths in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import soundfile
from gradio.utils import get_upload_folder
from PIL import Image, UnidentifiedImageError

from nava_core.media import probe
from nava_core.request import RequestError

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MAX_SOUND_SECONDS = 600.0

Kind = Literal["picture", "sound"]
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# (offset, bytes) at a file's beginning. An MPEG or Matroska file may hold sound alone, or a clip.
_SOUNDS = (
    (0, b"RIFF"),
    (0, b"RF64"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),
    (0, b"FORM"),
    (0, b"caff"),
    (4, b"ftyp"),
    (0, b"\x1aE\xdf\xa3"),
)
# Frames of MPEG sound: eleven bits of ones, a version and a layer that exist.
_MPEG_SYNC = (b"\xff\xf1", b"\xff\xf9", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2")


def uploaded_path(field: str, payload: Any) -> str | None:
    """Where Gradio has put an uploaded file. Raises RequestError for a path that is no upload, or not fit for `field`.

    Gradio checks files, but not an image whose data lacks the mark of a file: without this, a client could have any
    picture of the server as its first frame.
    """
    if payload is None:
        return None
    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(path, str) or not path or not _is_upload(path):
        raise RequestError(field, "this is no uploaded file; upload it first (gradio_client: handle_file)")
    check = CHECKS.get(field)
    if check is not None and Path(path).is_file():  # else the run says that it is gone
        check(field, path)
    return path


def check_picture(field: str, path: str | Path) -> None:
    """Raises RequestError for what is no picture, or has more pixels than a memory should be filled with."""
    _raise(field, _known(str(path), "picture", _state(path)))


def check_sound(field: str, path: str | Path) -> None:
    """Raises RequestError for what is no recording, or unpacks to more than one."""
    _raise(field, _known(str(path), "sound", _state(path)))


CHECKS: dict[str, Callable[[str, str], None]] = {"image": check_picture, "speakers": check_sound}


def _is_upload(path: str) -> bool:
    try:
        return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _raise(field: str, problem: str | None) -> None:
    if problem is not None:
        raise RequestError(field, problem)


def _state(path: str | Path) -> tuple[int, int]:
    state = Path(path).stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=256)
def _known(path: str, kind: Kind, state: tuple[int, int]) -> str | None:
    """What is wrong with a file, in words; remembered, for a form is read at each change of it."""
    name, size = Path(path).name, state[0]
    if size > MAX_BYTES:
        return f"{name} has {size / 2**20:.0f} MB; up to {MAX_BYTES // 2**20} MB can be taken"
    if size == 0:
        return f"{name} is empty; choose another file"
    return _picture_problem(path, name) if kind == "picture" else _sound_problem(path, name)


def _picture_problem(path: str, name: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=PICTURES) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        return f"{name} has far too many pixels; make it smaller than {MAX_PIXELS // 10**6} megapixels"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return f"{name} is no picture, whatever its name says; use a PNG, JPEG or WebP"
    if width * height > MAX_PIXELS:
        return f"{name} has {width}x{height} pixels; make it smaller than {MAX_PIXELS // 10**6} megapixels"
    return None


def _sound_problem(path: str, name: str) -> str | None:
    with Path(path).open("rb") as file:
        head = file.read(12)
    no_sound = f"{name} is no recording, whatever its name says; use a WAV, FLAC, OGG, MP3 or M4A"
    if not any(head[at:].startswith(mark) for at, mark in _SOUNDS) and head[:2] not in _MPEG_SYNC:
        return no_sound
    seconds: float | None
    try:
        seconds = soundfile.info(path).duration
    except soundfile.LibsndfileError:
        try:
            seconds = probe(path).audio_seconds
        except ValueError:
            return no_sound
    if seconds is None:
        return f"{name} has no sound; choose a recording of a voice"
    if seconds > MAX_SOUND_SECONDS:
        return f"{name} is {seconds / 60:.0f} minutes long; cut it to the voice, {MAX_SOUND_SECONDS / 60:.0f} at most"
    return None
