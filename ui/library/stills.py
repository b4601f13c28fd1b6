"""Files made of a clip: its poster, its last frame, and a copy that does not tell how it was made."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nava_core.ffmpeg import MediaError, input_url, run
from nava_core.media import read_audio, read_frames, read_recipe

POSTER_SIDE = 480
WAVE_SIZE = (480, 270)
WAVE_BARS = 60
WAVE_COLOUR, WAVE_BACKGROUND = (65, 176, 165), (20, 21, 23)
_SMALL = f"scale=w='min({POSTER_SIDE},iw)':h=-2:flags=area"
# Nothing that says who wrote the file: neither the recipe nor the program.
_ANONYMOUS = ["-map_metadata", "-1", "-map_chapters", "-1", "-fflags", "+bitexact"]


def make_poster(clip: Path, target: Path, seconds: float | None) -> Path:
    """A small JPEG: a film's middle frame, or a sound's waveform. Raises ValueError where the clip cannot be read."""
    with _finished(target) as partial:
        if clip.suffix.lower() == ".wav":
            waveform(clip).save(partial, "JPEG", quality=85)
        elif not _still_at(clip, partial, (seconds or 0.0) / 2) and not _still_at(clip, partial, 0.0):
            raise ValueError(f"{clip} has no picture")
    return target


def waveform(clip: Path) -> Image.Image:
    """The sound's peaks as bars. Raises ValueError where it cannot be read."""
    samples, _ = read_audio(clip)
    loudness = np.abs(samples).max(axis=1) if len(samples) else np.zeros(1)
    peaks = np.array([part.max(initial=0.0) for part in np.array_split(loudness, WAVE_BARS)])
    width, height = WAVE_SIZE
    picture = Image.new("RGB", WAVE_SIZE, WAVE_BACKGROUND)
    draw = ImageDraw.Draw(picture)
    margin, step = 30, (width - 60) / WAVE_BARS
    for index, peak in enumerate(peaks / max(float(peaks.max()), 1e-6)):
        half, left = max(2.0, peak * height * 0.32), margin + index * step
        draw.rounded_rectangle(
            (left, height / 2 - half, left + step * 0.55, height / 2 + half), radius=2, fill=WAVE_COLOUR
        )
    return picture


def save_last_frame(clip: Path, target: Path) -> Path:
    """The last frame as a PNG, letter for letter what a player shows. Raises ValueError where there is none."""
    frames = deque(read_frames(clip), maxlen=1)
    if not frames:
        raise ValueError(f"{clip} has no picture")
    with _finished(target) as partial:
        Image.fromarray(frames[0]).save(partial, "PNG")
    return target


def save_without_recipe(clip: Path, target: Path) -> Path:
    """A copy with the same picture and sound that holds no recipe. Raises ValueError, MediaError."""
    with _finished(target) as partial:
        faststart = ["-movflags", "+faststart"] if clip.suffix.lower() == ".mp4" else []
        kind = "wav" if clip.suffix.lower() == ".wav" else "mp4"
        run(["-i", input_url(clip), "-map", "0", "-c", "copy", *_ANONYMOUS, *faststart, "-f", kind, str(partial)])
        if _holds_recipe(partial):
            raise MediaError(f"the recipe could not be taken out of {clip.name}; nothing was exported")
    return target


def _holds_recipe(path: Path) -> bool:
    try:
        read_recipe(path)
    except ValueError:
        return False
    return True


def _still_at(clip: Path, target: Path, second: float) -> bool:
    """Whether there was a frame; ffmpeg does not mind if not. Raises ValueError where the clip cannot be read."""
    try:
        seek = ["-ss", f"{second:.3f}", "-i", input_url(clip), "-frames:v", "1", "-vf", _SMALL]
        run([*seek, "-q:v", "4", "-f", "image2", "-update", "1", "-c:v", "mjpeg", str(target)])
    except MediaError as error:
        raise ValueError(f"{clip} cannot be read as a video: {error}") from error
    return target.is_file() and target.stat().st_size > 0


@contextmanager
def _finished(target: Path) -> Iterator[Path]:
    """Where to write: it becomes `target` in one step when all went well, and is gone when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{target.name}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
