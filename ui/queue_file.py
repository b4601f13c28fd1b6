"""What a JSONL file would queue, and queueing it.

A line is what inference_nava.py reads (prompt or text, image_path, spk_wavs), and may say more of the request by the
names that a recipe has (seconds, seed, guidance, ...). Files are only those uploaded together with it, found by their
names: whatever path a line gives, nothing else of the server is looked at. A .zip may hold them all, as exported.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from nava_core.batch import BatchLine, read_object, read_values
from nava_core.engine.jobs import EngineError
from nava_core.request import GenerationRequest, Guidance, RequestError
from nava_core.speech import bind_speakers, parse_speech
from ui import queue_view
from ui.faster import LoraFolder, shortcuts_of
from ui.service import Service
from ui.state import uploaded_path
from ui.views import duration

LARGEST_FILE = 8 * 2**20
LARGEST_ARCHIVE, MOST_FILES = 256 * 2**20, 1000
MOST_LINES = 500
ROWS_SHOWN = 200
LARGEST_NUMBER = 2**63
EXAMPLE = '{"prompt": "A café. She says: ~~Hello~~", "spk_wavs": ["her.wav"]}'

# The rest of a request, by what its value may be. `image` and `speakers` are the recipe's names for what the batch
# format calls image_path and spk_wavs.
TEXTS = ("negative_prompt", "original_prompt", "modality")
WHOLE = ("width", "height", "num_frames", "num_inference_steps", "seed")
NUMBERS = ("seconds", "fps")
_OBJECTS = ("guidance", "shortcuts", "loras")
_REQUEST_KEYS = frozenset((*TEXTS, *WHOLE, *NUMBERS, *_OBJECTS))
_ALIASES = {"image": "image_path", "speakers": "spk_wavs"}
_SEPARATORS = re.compile(r"[/\\]")
_NOT_SAFE = re.compile(r"[^\w.-]")


@dataclass(frozen=True)
class PlannedClip:
    """A line that can be queued. index: of the line, from 0. notes: what a person should know about its reading."""

    index: int
    request: GenerationRequest
    seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A line that cannot, and why."""

    index: int
    message: str


@dataclass(frozen=True)
class ImportPlan:
    """What a file would queue; nothing is queued yet."""

    name: str
    lines: tuple[PlannedClip | Problem, ...]

    @property
    def clips(self) -> list[PlannedClip]:
        return [line for line in self.lines if isinstance(line, PlannedClip)]

    @property
    def problems(self) -> list[Problem]:
        return [line for line in self.lines if isinstance(line, Problem)]

    @property
    def seconds(self) -> float | None:
        """Of all together; None where one is not known."""
        seconds = [clip.seconds for clip in self.clips]
        return None if None in seconds or not seconds else sum(part for part in seconds if part is not None)


# Reading


def read_uploads(service: Service, payload: Any, keep: Callable[[bytes, str], Path]) -> ImportPlan:
    """The plan of an upload, as Gradio hands it over unprocessed. Raises ValueError with words for people.

    keep: writes a file of an archive to a place of its own.
    """
    text = service.text
    uploads: list[tuple[str, Path]] = []
    for item in payload if isinstance(payload, list) else [payload]:
        if (found := uploaded_path("file", item)) is None:
            continue
        path = Path(found)
        given = item.get("orig_name") if isinstance(item, dict) else None
        name = file_name(given) if isinstance(given, str) and given else path.name
        uploads += _unpacked(service, name, path, keep) if name.lower().endswith(".zip") else [(name, path)]
    queues = [(name, path) for name, path in uploads if name.lower().endswith((".jsonl", ".ndjson"))]
    if not queues:
        raise ValueError(text("queue_file.no_jsonl", names=", ".join(name for name, _ in uploads)[:200]))
    if len(queues) > 1:
        raise ValueError(text("queue_file.many_jsonl", count=len(queues)))
    [(name, path)] = queues
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise _too_large(service, name, size, LARGEST_FILE)
    return read_plan(service, name, path.read_bytes(), [upload for upload in uploads if upload[1] != path])


def _unpacked(service: Service, name: str, archive: Path, keep: Callable[[bytes, str], Path]) -> list[tuple[str, Path]]:
    """The files of an archive by the last part of their names; it decides no more than that."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES:
                raise ValueError(service.text("queue_file.too_many", name=name, count=len(entries), limit=MOST_FILES))
            files, left = [], LARGEST_ARCHIVE
            for entry in entries:
                with opened.open(entry) as packed:
                    data = packed.read(left + 1)  # what its head says of its size may be untrue
                left -= len(data)
                if left < 0:
                    raise _too_large(service, name, LARGEST_ARCHIVE - left, LARGEST_ARCHIVE)
                own_name = file_name(entry.filename)
                files.append((own_name, keep(data, _NOT_SAFE.sub("_", own_name)[-60:].lstrip(".") or "file")))
            return files
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(service.text("queue_file.bad_zip", name=name, message=service.text.said(error))) from error


def _too_large(service: Service, name: str, size: int, limit: int) -> ValueError:
    sizes = {"size": math.ceil(size / 2**20), "limit": limit // 2**20}
    return ValueError(service.text("queue_file.too_large", name=name, **sizes))


def file_name(value: str) -> str:
    """The last part of a path, of whatever system."""
    return _SEPARATORS.split(value)[-1]


def read_plan(service: Service, name: str, data: bytes, files: Sequence[tuple[str, Path]] = ()) -> ImportPlan:
    """What the lines of `data` would queue, with the files that were uploaded with it, by name.

    Raises ValueError where the file as a whole cannot be used.
    """
    text = service.text
    written = [
        (index, line) for index, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")) if line.strip()
    ]
    if not written:
        raise ValueError(text("queue_file.no_lines", name=name, example=EXAMPLE))
    if len(written) > MOST_LINES:
        raise ValueError(text("queue_file.too_many", name=name, count=len(written), limit=MOST_LINES))
    find = _Uploads(files)
    return ImportPlan(name, tuple(_read_line(service, index, line, find) for index, line in written))


class _Uploads:
    """Finds files among those that were uploaded together, each looked into once."""

    def __init__(self, files: Iterable[tuple[str, Path]]):
        self._files: dict[str, list[Path]] = {}
        for name, path in files:
            self._files.setdefault(name, []).append(path)
        self._problems: dict[Path, str | None] = {}

    def __call__(self, value: str, key: str) -> Path:
        found = self._files.get(file_name(value), [])
        if not found:
            raise ValueError(
                f"names {value} as {key}, which was not uploaded with it; choose the JSONL and its files together"
            )
        if len(found) > 1:
            raise ValueError(f"names {value} as {key}, and {len(found)} files of that name were uploaded; rename them")
        [path] = found
        if path not in self._problems:
            self._problems[path] = _unreadable(path, key)
        if (problem := self._problems[path]) is not None:
            raise ValueError(f"names {value} as {key}, which cannot be read ({problem})")
        return path


def _unreadable(path: Path, key: str) -> str | None:
    """Why a file is not what its key asks for; None where it is, as far as its head tells."""
    try:
        if key.startswith("image"):
            with Image.open(path) as image:
                image.verify()
        else:
            soundfile.info(str(path))
    except Image.DecompressionBombError:
        return "it has too many pixels"
    except (OSError, ValueError, SyntaxError, soundfile.LibsndfileError):
        return "it is no picture" if key.startswith("image") else "it is no sound file"
    return None


def _read_line(service: Service, index: int, data: bytes, find: Callable[[str, str], Path]) -> PlannedClip | Problem:
    try:
        line, rest = _parse(index, data, find)
        request = _request_of(service.loras, line, rest)
        return PlannedClip(index, request, _checked(service, request), _notes(service, line))
    except UnicodeDecodeError as error:
        return Problem(index, f"is not UTF-8 text ({error.reason}); save the file as UTF-8")
    except ValueError as error:  # RequestError is one
        return Problem(index, service.text.said(error))


def _parse(index: int, data: bytes, find: Callable[[str, str], Path]) -> tuple[BatchLine, dict[str, Any]]:
    """The line as inference_nava.py reads it, and what it says beyond that."""
    text = data.decode("utf-8").strip()
    values = read_values(text)
    rest = {key: values.pop(key) for key in _REQUEST_KEYS & set(values)}
    for alias, key in _ALIASES.items():
        if alias in values:
            values.setdefault(key, values[alias])
            del values[alias]
    line = read_object(index, json.dumps(values), find)
    if any("\ud800" <= letter <= "\udfff" for letter in line.prompt):
        raise ValueError("has half a character (a lone surrogate) in its prompt; write the file anew as UTF-8")
    return line, {key: value for key, value in rest.items() if value is not None}


def _request_of(folder: LoraFolder, line: BatchLine, rest: Mapping[str, Any]) -> GenerationRequest:
    for key, value in rest.items():
        _check_kind(key, value)
    guidance = rest.get("guidance")
    return GenerationRequest(
        prompt=line.prompt,
        image=None if line.image is None else str(line.image),
        speakers=tuple(None if speaker is None else str(speaker) for speaker in line.speakers),
        guidance=None if guidance is None else _guidance(guidance),
        shortcuts=shortcuts_of(rest.get("shortcuts")),
        loras=folder.scaled(_by_name(rest.get("loras"))),
        **{key: value for key, value in rest.items() if key not in _OBJECTS},
    )


def _check_kind(key: str, value: Any) -> None:
    """Raises RequestError for a value of the wrong kind; what it may be is checked by the request itself."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in TEXTS and not isinstance(value, str):
        raise RequestError(key, f"has {_shown(value)} as {key}; give text")
    if key in (*WHOLE, *NUMBERS) and not (number and abs(value) <= LARGEST_NUMBER):
        raise RequestError(key, f"has {_shown(value)} as {key}; give a number")
    if key in WHOLE and not isinstance(value, int):
        raise RequestError(key, f"has {_shown(value)} as {key}; give a whole number")


def _by_name(loras: Any) -> Any:
    """{name: scale}, also of a recipe's list of files and scales: a file is looked for by its name alone."""
    if not isinstance(loras, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in loras):
        return loras
    return {Path(file_name(str(path))).stem: scale for path, scale in loras}


def _guidance(value: Any) -> Guidance:
    names = [item.name for item in fields(Guidance)]
    if not isinstance(value, dict) or set(value) - set(names):
        raise RequestError("guidance", f"has {_shown(value)} as guidance; give an object with {', '.join(names)}")
    return Guidance(**value)


def _shown(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 60 else f"{words[:59]}…"


def _checked(service: Service, request: GenerationRequest) -> float | None:
    """Seconds that it would take, where that is known. Raises RequestError where it could not be made at all."""
    if service.spec is None:
        bind_speakers(parse_speech(request.prompt).spans, request.speakers)
        return None
    request.resolve(service.spec)
    try:
        return service.engine.estimate(request)
    except EngineError:
        return None


def _notes(service: Service, line: BatchLine) -> tuple[str, ...]:
    if not line.unknown_keys:
        return line.notes
    return (*line.notes, service.text("queue_file.ignored", keys=", ".join(line.unknown_keys)[:200]))


# Showing and queueing


def plan_view(service: Service, plan: ImportPlan) -> str:
    """The dry run as a table, line by line."""
    text = service.text
    summary = [_counted(service, "total", len(plan.clips))]
    if plan.seconds is not None:
        summary.append(text("queue_file.total_time", time=duration(text, plan.seconds)))
    if plan.problems:
        summary.append(_counted(service, "bad", len(plan.problems)))
    rows = [_row(service, line) for line in plan.lines[:ROWS_SHOWN]]
    title = text("queue_file.title", name=plan.name)
    return queue_view.plan(text, title, summary, rows, max(0, len(plan.lines) - ROWS_SHOWN))


def _row(service: Service, line: PlannedClip | Problem) -> dict[str, Any]:
    text = service.text
    if isinstance(line, Problem):
        return {"line": line.index + 1, "problem": line.message}
    spec, request = service.spec, line.request
    seed = text("queue.seed_random") if request.seed is None else text("queue.seed", seed=request.seed)
    if spec is not None:
        request = request.resolve(spec)
    parts = [queue_view.facts(text, request), seed]
    if request.num_inference_steps:
        parts.append(text("queue.steps", count=request.num_inference_steps))
    return {
        "line": line.index + 1,
        "words": queue_view.words(request),
        "facts": " · ".join(parts),
        "time": "" if line.seconds is None else duration(text, line.seconds),
        "notes": line.notes,
    }


def _counted(service: Service, key: str, count: int) -> str:
    return service.text(f"queue_file.{key}_one") if count == 1 else service.text(f"queue_file.{key}", count=count)


def queue_plan(service: Service, plan: ImportPlan, owner: str) -> tuple[str, str]:
    """Queue every clip of the plan; what to say of it, and the kind of message that this is."""
    queued = 0
    for clip in plan.clips:
        try:
            service.engine.submit(clip.request, owner)
        except (RequestError, EngineError, OSError) as error:
            words = service.text("queue_file.stopped", line=clip.index + 1, message=service.text.said(error))
            return f"{_counted(service, 'queued', queued)} {words}", "error"
        queued += 1
    return _counted(service, "queued", queued), "hint"
