"""Batch files -> one line per clip, and what each clip is called and seeded with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nava_core.request import Modality
from nava_core.speech import bind_speakers, parse_speech, read_jsonl_prompt

DataFormat = Literal["txt", "jsonl"]
FindFile = Callable[[str, str], Path]
"""From what a line says and the key that says it to the file that is meant. Raises ValueError."""

NAME_LETTERS = 20
EMPTY_SLOTS = ("", "None")  # the published datasets write a missing reference as "None"
KNOWN_KEYS = frozenset({"prompt", "text", "image_path", "spk_wavs", "original_prompt"})
# What some file system refuses in a name, and white space, which a shell splits at.
_NOT_IN_NAMES = re.compile(r'[\s/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]')


@dataclass(frozen=True)
class BatchLine:
    """One line of a batch file. `index` counts the file's lines from 0, blank ones too.

    written: the prompt as it stands in the file, which names the output. speakers: one entry for each speech span, or
    none at all. notes: what a person should know about how the line was read.
    """

    index: int
    written: str
    prompt: str
    image: Path | None = None
    speakers: tuple[Path | None, ...] = ()
    notes: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used, and why."""

    index: int
    message: str


def read_batch(path: Path, data_format: DataFormat | None = None) -> list[BatchLine | BadLine]:
    """The lines of a batch file that are not blank, in order; one that cannot be used is a `BadLine` among them.

    data_format: "txt" (a prompt a line) or "jsonl" (an object a line: prompt or text, image_path, spk_wavs); None goes
    by the file's suffix. Relative paths in a JSONL file count from its folder, then from the working directory.
    Raises ValueError where the file holds no line at all, and OSError where it cannot be read.
    """
    if data_format is None:
        data_format = "txt" if path.suffix.lower() == ".txt" else "jsonl"
    find = partial(_find_beside, path)
    lines: list[BatchLine | BadLine] = []
    for index, data in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if not data.strip():
            continue
        try:
            text = data.decode("utf-8").strip()
            lines.append(BatchLine(index, text, text) if data_format == "txt" else read_object(index, text, find))
        except UnicodeDecodeError as error:
            lines.append(BadLine(index, f"is not UTF-8 text ({error.reason}); save the file as UTF-8"))
        except ValueError as error:
            lines.append(BadLine(index, str(error)))
    if not lines:
        raise ValueError(f"{path} holds no prompt; write one prompt a line")
    return lines


def output_name(line: BatchLine, turn: int, modality: Modality) -> str:
    """The name of the clip of a line and a turn: `idx{line}_{first 20 letters}-av-{turn}.mp4`, `.wav` for sound alone.

    White space and what file systems refuse become `_`.
    """
    letters = _NOT_IN_NAMES.sub("_", line.written[:NAME_LETTERS])
    return f"idx{line.index}_{letters}-av-{turn}{'.wav' if modality == 'audio' else '.mp4'}"


def clip_seed(seed: int, index: int, turn: int) -> int:
    """The seed of a clip: `seed` itself for line 0, turn 0, and another for every other line and turn.

    The pairing `(i + t)(i + t + 1)/2 + t` gives each (line, turn) a number of its own, whatever the size of the batch,
    so that a clip keeps its seed when lines or turns are added behind it.
    """
    diagonal = index + turn
    return seed + diagonal * (diagonal + 1) // 2 + turn


def read_values(text: str) -> dict[str, Any]:
    """The object on a line of a JSONL file. Raises ValueError."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'is not JSON ({error}); write one whole object a line, as {{"prompt": "..."}}') from error
    if not isinstance(values, dict):
        raise ValueError(f'is a JSON {type(values).__name__}; write one object a line, as {{"prompt": "..."}}')
    return values


def read_object(index: int, text: str, find: FindFile) -> BatchLine:
    """A line of a JSONL file whose files `find` finds. Raises ValueError."""
    values = read_values(text)
    written = values["prompt"] if values.get("prompt") is not None else values.get("text")
    if not isinstance(written, str) or not written.strip():
        raise ValueError(f'has {written!r} as its prompt; give the scene\'s description under "prompt" (or "text")')
    references = _references(values.get("spk_wavs"), find)
    prompt, note = read_jsonl_prompt(written, len(references))
    speakers = bind_speakers(parse_speech(prompt).spans, references)
    return BatchLine(
        index,
        written,
        prompt,
        image=_resolve(values.get("image_path"), "image_path", find),
        speakers=speakers if any(speakers) else (),
        notes=(note,) if note else (),
        unknown_keys=tuple(sorted(set(values) - KNOWN_KEYS)),
    )


def _references(value: Any, find: FindFile) -> list[Path | None]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f'has {value!r} as spk_wavs; give a list, as ["first.wav", null, "third.wav"]')
    return [_resolve(item, f"spk_wavs[{slot}]", find) for slot, item in enumerate(value)]


def _resolve(value: Any, key: str, find: FindFile) -> Path | None:
    if value is None or value in EMPTY_SLOTS:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"has {value!r} as {key}; give a path, or null for none")
    return find(value, key)


def _find_beside(source: Path, value: str, key: str) -> Path:
    for folder in (source.parent, Path.cwd()):
        if os.path.isfile(path := folder / value):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            return path
    raise ValueError(f"names {value} as {key}, which is neither in {source.parent.resolve()} nor in {Path.cwd()}")
