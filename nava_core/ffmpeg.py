"""Running the ffmpeg that imageio-ffmpeg brings: whole commands, and streams into and out of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import imageio_ffmpeg

LINES_SHOWN = 5


class MediaError(RuntimeError):
    """A media file could not be made: ffmpeg is missing or failed, the disk is full, the folder cannot be written."""


class FfmpegProcess:
    """One run of ffmpeg, ended and collected when the `with` block is left, however it is left.

    Its messages go to a temporary file, so that no pipe can fill up and block it.

    Args:
        arguments: everything after `ffmpeg`.
        folder: its working directory; relative names in `arguments` are resolved there.

    Raises:
        MediaError: if there is no ffmpeg; on leaving the block, if it failed; its last lines are in the message.
    """

    def __init__(self, arguments: Sequence[str], folder: Path | None = None, stdin: bool = False, stdout: bool = False):
        self._arguments = [_executable(), "-hide_banner", "-nostats", "-loglevel", "error", "-y", *arguments]
        self._folder = folder
        self._pipes = (
            subprocess.PIPE if stdin else subprocess.DEVNULL,
            subprocess.PIPE if stdout else subprocess.DEVNULL,
        )

    def __enter__(self) -> FfmpegProcess:
        self._messages = tempfile.TemporaryFile()
        stdin, stdout = self._pipes
        try:
            self._process = subprocess.Popen(
                self._arguments, cwd=self._folder, stdin=stdin, stdout=stdout, stderr=self._messages
            )
        except OSError as error:
            self._messages.close()
            raise MediaError(f"ffmpeg could not be started ({error}); {_REMEDY}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._process.kill()
            self._close_pipes()
            status = self._process.wait()
            if kind is None and status != 0:
                raise self._failure(status)
        finally:
            self._process.kill()  # only if the wait above was interrupted; otherwise it has no effect
            self._process.wait()
            self._messages.close()

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def write(self, data: memoryview) -> None:
        """Pass data to ffmpeg's input; it may wait until ffmpeg has taken it. Raises MediaError if ffmpeg has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except OSError as error:  # a broken pipe; the reason is in ffmpeg's own words
            raise self._failure(self._process.wait()) from error

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    # Flushing into an ffmpeg that is gone; its exit status tells why.
                    continue

    def _failure(self, status: int) -> MediaError:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        ending = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
        return MediaError(f"ffmpeg {ending}: {' | '.join(lines[-LINES_SHOWN:]) or 'it gave no reason'}")


def run(arguments: Sequence[str], folder: Path | None = None) -> bytes:
    """Run ffmpeg to its end and return what it wrote to its standard output. Raises MediaError if it fails."""
    with FfmpegProcess(arguments, folder, stdout=True) as process:
        return process.stdout.read()


def input_url(path: str | os.PathLike[str]) -> str:
    """A path as ffmpeg's `-i` wants it: never taken for an option or a protocol, whatever it is called.

    Raises:
        ValueError: if there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file at {os.fspath(path)}; check the path.")
    return f"file:{Path(path).absolute()}"


def _executable() -> str:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MediaError(f"No ffmpeg was found ({error}); {_REMEDY}") from error


_REMEDY = "install it with `pip install imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to an ffmpeg on this machine."
