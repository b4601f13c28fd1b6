"""The soak's hold on the app's process: starting it, telling its tabs what to do, and ending it in every way."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from soak_checks import MARK
from soak_ledger import Command

CHILD = Path(__file__).with_name("soak_child.py")
STARTING_SECONDS = 300.0
ANSWER_SECONDS = 120.0
CLOSING_SECONDS = 60.0
TABS = 2


class AppProcess:
    """One life of the app.

    temporary: its folder for temporary files. log: where all that it writes is added. mark: its processes are told by
    it. prefix: how its command line begins.
    """

    def __init__(self, output: Path, temporary: Path, log: Path, mark: str, prefix: list[str]):
        environment = {**os.environ, MARK: mark, "TMPDIR": str(temporary)}
        arguments = ["--output-dir", str(output), "--rewriter", "offline"]
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, str(CHILD), *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {0: queue.SimpleQueue()}
        self._number = 0
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_open(self) -> None:
        """Until its queue is; the model loads on."""
        assert self._answer(0, STARTING_SECONDS) is not None, "the app did not start; see its log"

    def tell(self, tab: int, command: Command) -> int:
        """Say it and do not wait; returns the number for `answer`."""
        self._number += 1
        self._answers[self._number] = queue.SimpleQueue()
        if self._ended.is_set():
            self._answers[self._number].put(None)
        request = None if command.wish is None else command.wish.request
        order = {"number": self._number, "tab": tab, "do": command.do, "job": command.job, "request": request}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps({**order, **command.options}) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._answers[self._number].put(None)
        return self._number

    def answer(self, number: int) -> Mapping[str, Any] | None:
        """What it said to that; None where it ended before."""
        return self._answer(number, ANSWER_SECONDS)

    def look(self, tab: int = 0) -> Mapping[str, Any]:
        answer = self.answer(self.tell(tab, Command("look")))
        assert answer is not None and "error" not in answer, answer
        return answer

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9"""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def close(self) -> int:
        """End it in order; its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(CLOSING_SECONDS)

    def _answer(self, number: int, seconds: float) -> dict[str, Any] | None:
        try:
            return self._answers[number].get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"the app gave no answer within {seconds:.0f} s") from None
        finally:
            del self._answers[number]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers[answer["number"]].put(answer)
        self._ended.set()
        for answers in list(self._answers.values()):
            answers.put(None)  # whoever waits is told
