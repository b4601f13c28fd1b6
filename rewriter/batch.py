"""A file of prompts -> a file of captions, line for line, that can be stopped and gone on with."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nava_core.batch import EMPTY_SLOTS
from nava_core.speech import bind_speakers, parse_speech, read_jsonl_prompt
from rewriter.results import BackendUnavailable, RewriteError, RewriteResult
from rewriter.rewriter import Rewriter

logger = logging.getLogger("rewriter")

SOME_FAILED = 1
ROWS_SUFFIX = ".rows.jsonl"
LOG_SECONDS = 10.0

Format = Literal["txt", "jsonl"]


@dataclass(frozen=True)
class Row:
    """A line of the input. index: counted from 0. prompt: what is rewritten, empty for a blank or unusable line.

    values: the object of a JSONL line. error: why the line cannot be used, or was not rewritten. caption: once done.
    """

    index: int
    raw: bytes
    prompt: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    key: str = "prompt"
    error: str = ""
    caption: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Batch:
    """What there is to do: the rows of `source`, some of which may have their captions from an earlier run."""

    source: Path
    output: Path
    output_format: Format
    rows: tuple[Row, ...]

    @property
    def record(self) -> Path:
        return self.output.with_name(self.output.name + ROWS_SUFFIX)


def plan(source: Path, output: Path) -> Batch:
    """Read the prompts and what an earlier run has done.

    Raises ValueError where the files do not fit the command, and OSError where they cannot be read.
    """
    if not source.is_file():
        raise ValueError(f"--input {source} is no file; check the path")
    input_format, output_format = _format(source), _format(output)
    if input_format == "jsonl" and output_format == "txt":
        raise ValueError(
            f"--output {output} would lose what {source.name} holds beside its prompts; name a .jsonl file"
        )
    if output.resolve() == source.resolve():
        raise ValueError(f"--output {output} is the input itself; name another file, so that the prompts are kept")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")
    lines = source.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1].strip() == b"":
        lines.pop()
    rows = tuple(_read_row(index, line, input_format) for index, line in enumerate(lines))
    if not any(row.prompt or row.error for row in rows):
        raise ValueError(f"{source} holds no prompt; write one prompt a line")
    batch = Batch(source, output, output_format, rows)
    if output.exists() and not batch.record.exists():
        raise ValueError(
            f"--output {output} exists and was not made by this command ({batch.record.name} is missing beside it); "
            "name another file, or remove it"
        )
    if (lost := _lost_file(batch)) is not None:
        row, name = lost
        logger.warning(
            "%s names %s, which stands beside %s: from %s inference_nava.py will not find it. "
            "Put --output beside the input, or run from there",
            _line(batch, row),
            name,
            source.name,
            output.parent,
        )
    return replace(batch, rows=_with_captions(rows, batch.record))


async def run(batch: Batch, rewriter: Rewriter) -> int:
    """Rewrite what is not done yet and write the output; returns how many lines failed.

    What is done is kept whatever happens. Raises BackendUnavailable where not one prompt could be tried, and OSError
    where a file cannot be written.
    """
    batch.output.parent.mkdir(parents=True, exist_ok=True)
    rows = list(batch.rows)
    todo = [row for row in rows if row.prompt and not row.caption and not row.error]
    done = sum(bool(row.caption) for row in rows)
    logger.info("%d prompts to rewrite", len(todo))
    if done:
        logger.info("%d done already; to do them again, remove %s", done, batch.record)
    for row in rows:
        if row.error:
            logger.error("%s: %s", _line(batch, row), row.error)
    try:
        with batch.record.open("a", encoding="utf-8") as record, _Progress(len(todo)) as progress:
            gone = await _rewrite_all(batch, rewriter, collections.deque(todo), rows, record, progress)
    finally:
        await rewriter.aclose()
        _write(batch, rows)
    if gone is not None and rewriter.counts.total == 0:
        raise gone
    failed = [row.index + 1 for row in rows if row.error]
    if todo:
        logger.info("%s", rewriter.counts)
    told = f": lines {', '.join(map(str, failed))}" if failed else ""
    logger.info(
        "%s: %d captions, %d lines failed%s", batch.output, sum(bool(row.caption) for row in rows), len(failed), told
    )
    return len(failed)


async def _rewrite_all(
    batch: Batch,
    rewriter: Rewriter,
    todo: collections.deque[Row],
    rows: list[Row],
    record: IO[str],
    progress: _Progress,
) -> BackendUnavailable | None:
    """Rewrite the rows to do, several at once. Returns the error after which nothing could rewrite any more."""
    gone: list[BackendUnavailable] = []

    async def work() -> None:
        while todo:
            row = todo.popleft()
            try:
                if gone:
                    raise gone[0]
                result = await rewriter.rewrite(row.prompt)
            except (RewriteError, ValueError) as error:
                if not gone:
                    logger.error("%s: %s", _line(batch, row), error)
                if isinstance(error, BackendUnavailable):
                    gone.append(error)
                rows[row.index] = replace(row, error=str(error))
                _note(record, row, error=str(error))
            else:
                rows[row.index] = replace(row, caption=result.caption)
                _note(record, row, result)
                if result.outcome == "composed" and rewriter.model:
                    logger.info("%s: %s", _line(batch, row), "; ".join(result.notes))
            progress.step()

    unwritable: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(rewriter.concurrency, len(todo))):
                workers.create_task(work())
    except* OSError as group:  # the record cannot be written: without it nothing made would be kept
        unwritable = group.exceptions[0]
    if unwritable is not None:
        raise unwritable
    return gone[0] if gone else None


def _lost_file(batch: Batch) -> tuple[Row, str] | None:
    """The first row with a file that is found from the input's folder, and would not be from the output's."""
    places = (batch.source.parent, batch.output.parent, Path.cwd())
    for row in batch.rows:
        voices = row.values.get("spk_wavs")
        for name in (row.values.get("image_path"), *(voices if isinstance(voices, list) else ())):
            if not isinstance(name, str) or name in EMPTY_SLOTS or "\0" in name:
                continue
            found = [os.path.isfile(place / name) for place in places]  # noqa: PTH113 (Path's raises for a long name)
            if found == [True, False, False]:
                return row, name
    return None


def _format(path: Path) -> Format:
    return "txt" if path.suffix.lower() == ".txt" else "jsonl"


def _read_row(index: int, raw: bytes, input_format: Format) -> Row:
    if not raw.strip():
        return Row(index, raw)
    try:
        text = raw.decode("utf-8").strip()
        return Row(index, raw, text) if input_format == "txt" else _read_object(index, raw, text)
    except UnicodeDecodeError as error:
        return Row(index, raw, error=f"is not UTF-8 text ({error.reason}); save the file as UTF-8")
    except ValueError as error:
        return Row(index, raw, error=str(error))


def _read_object(index: int, raw: bytes, text: str) -> Row:
    """A row as `nava_core.batch` will read it, but for the files it names, which need not be on this machine."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'is not JSON ({error}); write one whole object a line, as {{"prompt": "..."}}') from error
    if not isinstance(values, dict):
        raise ValueError(f'is a JSON {type(values).__name__}; write one object a line, as {{"prompt": "..."}}')
    key = "prompt" if values.get("prompt") is not None else "text"
    written = values.get(key)
    if not isinstance(written, str) or not written.strip():
        raise ValueError(f'has {written!r} as its prompt; give the scene\'s description under "prompt" (or "text")')
    references = values.get("spk_wavs")
    if references is None:
        return Row(index, raw, written, values, key)
    if not isinstance(references, list):
        raise ValueError(f'has {references!r} as spk_wavs; give a list, as ["first.wav", null, "third.wav"]')
    prompt, note = read_jsonl_prompt(written, len(references))
    bind_speakers(parse_speech(prompt).spans, [None if item in EMPTY_SLOTS else item for item in references])
    if note:
        logger.info("line %d: %s", index + 1, note)
    return Row(index, raw, prompt, values, key)


def _with_captions(rows: Sequence[Row], record: Path) -> tuple[Row, ...]:
    """The rows with the captions that an earlier run noted for the same prompts, whatever their lines were then."""
    if not record.exists():
        return tuple(rows)
    known: dict[str, collections.deque[str]] = collections.defaultdict(collections.deque)
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line cut off where an earlier run was killed
            noted = json.loads(line)
            if noted.get("caption"):
                known[noted["prompt_sha256"]].append(noted["caption"])
    return tuple(
        replace(row, caption=known[row.digest].popleft()) if row.prompt and known.get(row.digest) else row
        for row in rows
    )


def _note(record: IO[str], row: Row, result: RewriteResult | None = None, error: str = "") -> None:
    """One line about a row that is done, on disk at once."""
    values: dict[str, Any] = {"line": row.index + 1, "prompt_sha256": row.digest}
    if result is None:
        values["error"] = error
    else:
        values |= {
            "caption": result.caption,
            "backend": result.backend,
            "outcome": result.outcome,
            "attempts": result.attempts,
            "notes": list(result.notes),
        }
    record.write(json.dumps(values) + "\n")  # ASCII: a caption may hold any letter, a line end of Unicode too
    record.flush()


def _write(batch: Batch, rows: Sequence[Row]) -> None:
    """The output, whole or not at all."""
    lines = [_output_line(row, batch.output_format) for row in rows]
    partial = batch.output.with_name(f"{batch.output.name}.{os.getpid()}.partial")
    partial.write_bytes(b"".join(line + b"\n" for line in lines))
    partial.replace(batch.output)


def _output_line(row: Row, output_format: Format) -> bytes:
    if not row.prompt and not row.error:
        return b""
    if output_format == "txt":
        return row.caption.encode("utf-8", "replace") if row.caption else row.raw.strip()
    if row.caption:
        written = row.values.get(row.key, row.prompt)
        values = {**row.values, row.key: row.caption}
        values.setdefault("original_prompt", written)
        values.pop("rewrite_error", None)
    else:
        unread = {} if row.values or row.prompt else {"line": row.raw.decode("utf-8", "replace").strip()}
        values = {**(row.values or ({"prompt": row.prompt} if row.prompt else unread))}
        values["rewrite_error"] = row.error or "not rewritten yet; run the same command again"
    line = json.dumps(values, ensure_ascii=False)
    for line_end in "\x85\u2028\u2029":  # some readers would end the line there
        line = line.replace(line_end, f"\\u{ord(line_end):04x}")
    try:
        return line.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(values).encode("ascii")


def _line(batch: Batch, row: Row) -> str:
    return f"{batch.source.name} line {row.index + 1}"


class _Progress:
    """Prompts done: a bar where stderr is a terminal, a line now and then where it is a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._told = total, 0, time.monotonic()
        self._interactive = sys.stderr.isatty()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Progress:
        self._stack.enter_context(logging_redirect_tqdm())
        bar: tqdm[Any] = tqdm(total=self._total, desc="prompts", disable=not self._interactive, dynamic_ncols=True)
        self._bar = self._stack.enter_context(bar)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def step(self) -> None:
        self._done += 1
        self._bar.update()
        if not self._interactive and time.monotonic() - self._told >= LOG_SECONDS:
            self._told = time.monotonic()
            logger.info("%d of %d prompts", self._done, self._total)
