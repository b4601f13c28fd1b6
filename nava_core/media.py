"""Media files: clips and sounds written with the recipe that made them, read back, and what people bring along."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageOps, UnidentifiedImageError

from nava_core.ffmpeg import FfmpegProcess, MediaError, input_url, run

logger = logging.getLogger(__name__)

CLIP_SAMPLING_RATE = 48000
STEM_SHOWN = 48
# The colours are right in a player only if the stream names the matrix that was used; all of them know BT.709.
TO_VIDEO = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp,format=yuv420p,setsar=1,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
TO_RGB = "scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp,format=rgb24"


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds; None where it has none. Times in seconds, from the file's start to the end of that stream."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int = 0
    video_seconds: float | None = None
    video_codec: str | None = None
    sampling_rate: int | None = None
    audio_seconds: float | None = None
    audio_codec: str | None = None
    channel_layout: str | None = None


def write_clip(
    path: str | os.PathLike[str],
    frames: Iterable[Any],
    fps: float | Fraction,
    audio: Any = None,
    sampling_rate: int = CLIP_SAMPLING_RATE,
    recipe: dict[str, Any] | None = None,
    *,
    crf: int = 16,
    preset: str = "medium",
    audio_bitrate: str = "192k",
) -> Path:
    """Write an mp4: H.264 yuv420p and AAC 48 kHz stereo, ready to play while it downloads, the recipe in its metadata.

    Frames are passed on as they come and never collected. The file appears under its name when it is complete; after
    an error nothing is left behind. Missing folders are made.

    Args:
        path: ends in `.mp4`.
        frames: frames `(height, width, 3)` or runs of them `(frames, height, width, 3)`, uint8 or float in [0, 1],
            arrays or CPU tensors; all of one even size.
        fps: frames per second.
        audio: `(channels, samples)` with 1 or 2 channels, or `(samples,)`, or None for a silent clip. Cut, or filled
            with silence, to the picture's length. Samples outside [-1, 1] are clipped, and a warning logged; the
            level is never changed.
        sampling_rate: of `audio`, in Hz.
        recipe: JSON-able; `read_recipe` returns it. None writes no recipe.
        crf, preset: x264's quality (lower is better; 16 cannot be told from the original by eye) and effort.
        audio_bitrate: of the AAC stream.

    Raises:
        ValueError: for frames, sound or a recipe that cannot be written.
        MediaError: if ffmpeg fails, the disk is full or the folder cannot be written.
    """
    path = _checked_target(path, ".mp4")
    rate = _checked_fps(fps)
    metadata = _metadata_text(recipe)
    sound = None if audio is None else _checked_audio(audio, str(path))
    with _workshop(path) as folder:
        count = _encode_picture(folder, frames, rate, crf, preset)
        inputs, codecs = ["-i", "picture.mp4"], ["-map", "0:v", "-c:v", "copy"]
        if sound is not None:
            stereo = np.repeat(sound, 2, axis=0) if len(sound) == 1 else sound
            inputs += _raw_sound(folder, _fitted(stereo, round(count / rate * sampling_rate)), sampling_rate, path)
            codecs += ["-map", "1:a", "-c:a", "aac", "-b:a", audio_bitrate, "-ar", str(CLIP_SAMPLING_RATE)]
        _finish(folder, inputs, metadata, [*codecs, "-movflags", "+faststart"], path)
    return path


def write_audio(
    path: str | os.PathLike[str], audio: Any, sampling_rate: int, recipe: dict[str, Any] | None = None
) -> Path:
    """Write a 16-bit wav with the recipe in its INFO chunk. Arguments and errors are those of `write_clip`."""
    path = _checked_target(path, ".wav")
    metadata = _metadata_text(recipe)
    sound = _checked_audio(audio, str(path))
    with _workshop(path) as folder:
        inputs = _raw_sound(folder, sound, sampling_rate, path)
        _finish(folder, inputs, metadata, ["-map", "0:a", "-c:a", "pcm_s16le"], path)
    return path


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe that `write_clip` or `write_audio` put into a file, letter for letter.

    Raises:
        ValueError: if the file is missing or unreadable, or holds no recipe.
    """
    with _reading(path, "a media file"):
        text = run(["-i", input_url(path), "-f", "ffmetadata", "-"]).decode(errors="replace")
    for key, value in _METADATA_LINE.findall(text):
        if key.lower() == "comment":
            with contextlib.suppress(json.JSONDecodeError):
                recipe = json.loads(_METADATA_ESCAPE.sub(r"\1", value))
                if isinstance(recipe, dict):
                    return recipe
    raise ValueError(f"{os.fspath(path)} holds no recipe; only files written by NAVA Studio, and not edited since, do.")


def read_audio(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """The sound of a file: `(samples, channels)` float32 and its rate in Hz.

    Whatever soundfile reads, else whatever ffmpeg reads: m4a and videos too.

    Raises:
        ValueError: if the file is missing, unreadable or without sound.
    """
    url = input_url(path)
    try:
        return soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        logger.debug("%s is not for soundfile; trying ffmpeg", path)
    with _reading(path, "a file with sound"), tempfile.TemporaryDirectory(prefix="nava-") as folder:
        run(["-i", url, "-map", "0:a:0", "-c:a", "pcm_f32le", "sound.wav"], Path(folder))
        return soundfile.read(Path(folder) / "sound.wav", dtype="float32", always_2d=True)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image as RGB, turned as its camera says; what is transparent becomes white.

    Raises:
        ValueError: if the file is missing or is no image.
    """
    input_url(path)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as an image ({error}); use a PNG, JPEG or WebP.") from error


def read_frames(path: str | os.PathLike[str], fps: float | None = None) -> Iterator[np.ndarray]:
    """The frames of a video, `(height, width, 3)` uint8, one at a time; as they are stored, or resampled to `fps`.

    Raises:
        ValueError: if the file is missing, unreadable or without a picture; for damage within it, at that frame.
    """
    info = probe(path)
    if info.width is None or info.height is None:
        raise ValueError(f"{os.fspath(path)} has no picture; pass a video.")
    return _decoded_frames(path, (info.height, info.width, 3), fps)


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """What a file holds: its first picture stream and its first sound stream. No decoding, so it is quick.

    Raises:
        ValueError: if the file is missing, unreadable or holds neither.
    """
    with _reading(path, "a media file"):
        # A listing of the packets (time base, times and durations), preceded by each stream's properties.
        listing = run(["-i", input_url(path), "-map", "0:V:0?", "-map", "0:a:0?", "-c", "copy", "-f", "framecrc", "-"])
    header: dict[tuple[str, str], str] = {}
    ends: dict[str, int] = {}
    counts: dict[str, int] = {}
    for line in listing.decode(errors="replace").splitlines():
        if match := re.match(r"#(\w+) (\d+): +(\S+)", line):
            header[match[2], match[1]] = match[3]
        elif not line.startswith("#"):
            stream, _, start, duration = (part.strip() for part in line.split(",")[:4])
            ends[stream] = max(ends.get(stream, 0), int(start) + int(duration))
            counts[stream] = counts.get(stream, 0) + 1
    found: dict[str, Any] = {}
    for (stream, name), kind in header.items():
        if name != "media_type" or stream not in ends:
            continue
        seconds = float(ends[stream] * Fraction(header[stream, "tb"]))
        if kind == "video":
            width, height = map(int, header[stream, "dimensions"].split("x"))
            fps = counts[stream] / seconds if seconds else None
            found |= {"width": width, "height": height, "fps": fps, "num_frames": counts[stream]}
            found |= {"video_seconds": seconds, "video_codec": header[stream, "codec_id"]}
        elif kind == "audio":
            found |= {"sampling_rate": int(header[stream, "sample_rate"]), "audio_seconds": seconds}
            found |= {"audio_codec": header[stream, "codec_id"]}
            found |= {"channel_layout": header.get((stream, "channel_layout_name"))}
    if not found:
        raise ValueError(f"{os.fspath(path)} holds neither picture nor sound.")
    return MediaInfo(**found)


# A line of ffmpeg's metadata file: key=value, where a backslash protects = ; # \ and line ends, also inside the value.
_METADATA_LINE = re.compile(r"^((?:[^\\\n=]|\\.)+)=((?:[^\\\n]|\\.)*)$", re.MULTILINE | re.DOTALL)
_METADATA_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def _metadata_text(recipe: dict[str, Any] | None) -> str:
    if recipe is None:
        return ";FFMETADATA1\n"
    text = json.dumps(recipe, ensure_ascii=False, allow_nan=False)
    # JSON writes control characters as escapes, but leaves half a surrogate pair, which no file can hold, as it is.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    return ";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\\n])", r"\\\1", text) + "\n"


def _checked_target(path: str | os.PathLike[str], suffix: str) -> Path:
    target = Path(path).absolute()
    if target.suffix.lower() != suffix:
        raise ValueError(f"{os.fspath(path)} should end in {suffix}.")
    return target


def _checked_fps(fps: float | Fraction) -> Fraction:
    if not 0 < fps <= 1000:
        raise ValueError(f"{fps} frames per second cannot be written; give a number above 0, up to 1000.")
    return Fraction(fps).limit_denominator(1001)


def _checked_audio(audio: Any, name: str) -> np.ndarray:
    """`(channels, samples)` float32 in [-1, 1]."""
    sound = np.asarray(audio, dtype=np.float32)
    sound = sound[None] if sound.ndim == 1 else sound
    if sound.ndim != 2 or sound.shape[0] not in (1, 2):
        raise ValueError(f"the sound has the shape {sound.shape}; pass (channels, samples) with 1 or 2 channels.")
    peak = float(np.abs(sound).max(initial=0.0))
    if not np.isfinite(peak):
        raise ValueError("the sound holds samples that are not finite numbers; the model's output is broken.")
    if peak > 1.0:
        outside = int((np.abs(sound) > 1.0).sum())
        logger.warning(
            "%s: %d of %d samples exceed full scale (peak %.2f) and are clipped", name, outside, sound.size, peak
        )
        sound = sound.clip(-1.0, 1.0)
    return sound


def _fitted(sound: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(sound[:, :samples], ((0, 0), (0, max(samples - sound.shape[1], 0))))


def _each_frame(pieces: Iterable[Any]) -> Iterator[np.ndarray]:
    """Single uint8 frames `(height, width, 3)` out of what `write_clip` takes; all of the first one's size."""
    size = None
    for piece in pieces:
        run_of_frames = np.asarray(piece)
        if run_of_frames.ndim == 3:
            run_of_frames = run_of_frames[None]
        if run_of_frames.ndim != 4 or run_of_frames.shape[-1] != 3:
            raise ValueError(
                f"frames have the shape {np.shape(piece)}; pass (height, width, 3) or (frames, height, width, 3)."
            )
        size = size or run_of_frames.shape[1:]
        height, width, _ = run_of_frames.shape[1:]
        if run_of_frames.shape[1:] != size:
            raise ValueError(f"a frame of {width}x{height} follows one of {size[1]}x{size[0]}; all must have one size.")
        if width % 2 or height % 2 or not width or not height:
            raise ValueError(f"a clip of {width}x{height} cannot be written as yuv420p; make width and height even.")
        yield from map(_as_uint8, run_of_frames)


def _as_uint8(frame: np.ndarray) -> np.ndarray:
    if frame.dtype == np.uint8:
        return np.ascontiguousarray(frame)
    if not np.issubdtype(frame.dtype, np.floating):
        raise ValueError(f"frames are {frame.dtype}; pass uint8, or float in [0, 1].")
    if not np.isfinite(frame).all():
        raise ValueError("a frame holds values that are not finite numbers; the model's output is broken.")
    return np.ascontiguousarray(np.rint(frame.clip(0.0, 1.0) * 255.0).astype(np.uint8))


def _encode_picture(folder: Path, frames: Iterable[Any], rate: Fraction, crf: int, preset: str) -> int:
    """Stream frames into `folder`/picture.mp4 and return how many there were."""
    each = _each_frame(frames)
    first = next(each, None)
    if first is None:
        raise ValueError("there are no frames to write; pass at least one.")
    height, width, _ = first.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
    codec = ["-c:v", "libx264", "-crf", str(crf), "-preset", preset]
    arguments = [*source, "-vf", TO_VIDEO, *codec, "picture.mp4"]
    count = 0
    with FfmpegProcess(arguments, folder, stdin=True) as process:
        for frame in chain([first], each):
            process.write(frame.data)
            count += 1
    return count


def _raw_sound(folder: Path, sound: np.ndarray, sampling_rate: int, path: Path) -> list[str]:
    """Leave the sound in `folder` and return ffmpeg's input arguments for it."""
    try:
        # Not numpy's tofile: its error does not say that the disk is full.
        (folder / "sound.f32").write_bytes(np.ascontiguousarray(sound.T, dtype="<f4").data)
    except OSError as error:
        raise _unwritable(path, error) from error
    return ["-f", "f32le", "-ar", str(sampling_rate), "-ac", str(len(sound)), "-i", "sound.f32"]


def _finish(folder: Path, inputs: list[str], metadata: str, outputs: list[str], path: Path) -> None:
    """Put the parts and the recipe together and move the file to its place."""
    target = f"finished{path.suffix.lower()}"
    index = str(inputs.count("-i"))
    try:
        (folder / "recipe.txt").write_text(metadata, encoding="utf-8", newline="\n")
        run([*inputs, "-f", "ffmetadata", "-i", "recipe.txt", "-map_metadata", index, *outputs, target], folder)
        (folder / target).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def workshop_pattern(pid: int | str = "*") -> str:
    """Glob pattern of the temporary folders beside a target that the process `pid` leaves if it is killed."""
    return f".nava-{pid}-*"


@contextlib.contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, on the same disk, so that the finished file can be moved there in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Named after the process and the file, so that what a killed process has left behind can be told from the rest.
        prefix = f".nava-{os.getpid()}-{path.stem[-STEM_SHOWN:]}-"
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    with folder as name:
        yield Path(name)


def _unwritable(path: Path, error: OSError) -> MediaError:
    return MediaError(
        f"{path} could not be written ({error.strerror or error}); choose a folder with rights and space."
    )


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as {what}: {error}") from error


def _decoded_frames(
    path: str | os.PathLike[str], shape: tuple[int, int, int], fps: float | None
) -> Iterator[np.ndarray]:
    filters = TO_RGB if fps is None else f"fps={_checked_fps(fps)},{TO_RGB}"
    arguments = ["-noautorotate", "-i", input_url(path), "-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough"]
    size = shape[0] * shape[1] * shape[2]
    with _reading(path, "a video"), FfmpegProcess([*arguments, "-f", "rawvideo", "-"], stdout=True) as process:
        while len(data := process.stdout.read(size)) == size:
            yield np.frombuffer(data, np.uint8).reshape(shape).copy()
