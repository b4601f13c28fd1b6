"""What may be sent in: a picture and a recording are told by their bytes, not by their names, and have limits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from studio_server import uploaded

from nava_core.request import RequestError
from ui.files import MAX_BYTES, MAX_SOUND_SECONDS, check_picture, check_sound, uploaded_path


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.png", b"#!/bin/sh\n", "photo.png is no picture, whatever its name says"),
        ("photo.jpg", b"<svg onload='alert(1)'/>", "is no picture"),
        ("page.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
        ("empty.png", b"", "is empty"),
        ("bomb.png", png_bomb(9_000, 9_000), "has 9000x9000 pixels; make it smaller than 50 megapixels"),
        ("big-bomb.png", png_bomb(60_000, 60_000), "far too many pixels"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(name: str, content: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        uploaded_path("image", uploaded(name, content))
    assert caught.value.field == "image"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("voice.wav", b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "voice.wav is no recording, whatever its name says"),
        ("list.m4a", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is no recording"),
        ("list.wav", b"ffconcat version 1.0\nfile /etc/passwd\n", "is no recording"),
        ("broken.wav", b"RIFF\x00\x00\x00\x00WAVE", "is no recording"),
        ("empty.wav", b"", "is empty"),
    ],
)
def test_what_is_no_recording_is_refused_in_words(name: str, content: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        uploaded_path("speakers", uploaded(name, content))
    assert caught.value.field == "speakers"


def test_sizes_have_limits(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for check in (check_picture, check_sound):
        with pytest.raises(RequestError, match=r"large.png has 64 MB; up to 64 MB"):
            check("image", large)
    long = tmp_path / "long.flac"  # a few kilobytes that unpack to eleven minutes
    soundfile.write(long, np.zeros(round(8000 * (MAX_SOUND_SECONDS + 60))), 8000)
    with pytest.raises(RequestError, match="is 11 minutes long; cut it to the voice"):
        check_sound("speakers", long)


def test_what_its_name_says_wrongly_is_taken_for_what_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x", "PNG")
    picture = uploaded("picture.txt", (tmp_path / "x").read_bytes())
    assert uploaded_path("image", picture) == picture["path"]
    soundfile.write(tmp_path / "v.ogg", np.zeros(8000), 8000)
    voice = uploaded("voice.png", (tmp_path / "v.ogg").read_bytes())
    assert uploaded_path("speakers", voice) == voice["path"]
    assert uploaded_path("file", uploaded("any.jsonl", b"{}")) is not None, "other fields have checks of their own"
