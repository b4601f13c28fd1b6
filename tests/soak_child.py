"""The app's process in the soak (tests/soak.py): its engine as app.py builds it, with two tabs that obey lines of JSON.

`python soak_child.py APP-ARGUMENTS`. Each line on standard input is for one of the tabs, which have a thread each, so
that what is said to both happens at once; each is answered by a line of its own. The end of the input closes the app in
order.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
from nava_core.engine import EngineError, QueueEngine, UnknownJob
from nava_core.request import GenerationRequest, RequestError

TABS = 2
# How often a tab looks at what has changed, at most; a page does not draw faster either.
LOOK_INTERVAL = 0.1


class Answers:
    """Where the answers go, whole lines from any thread; what libraries print goes with the log."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def say(self, words: dict[str, Any]) -> None:
        with self._lock:
            os.write(self._descriptor, (json.dumps(words) + "\n").encode())


class Tab:
    """Does what it is told, follows every job that it started, and looks at the whole queue whenever it changes."""

    def __init__(self, engine: QueueEngine, answers: Answers):
        self._engine, self._answers = engine, answers
        self._orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._followers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, order: dict[str, Any] | None) -> None:
        self._orders.put(order)

    def join(self) -> None:
        self.tell(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                answer = self._do(**order)
            except (RequestError, EngineError, UnknownJob) as error:
                answer = {"error": type(error).__name__, "field": getattr(error, "field", None), "message": str(error)}
            except Exception as error:
                logging.exception("an order failed")
                answer = {"error": "unexpected", "message": f"{type(error).__name__}: {error}"}
            self._answers.say({"number": order["number"], **answer})

    def _do(self, number: int, do: str, job: str | None, request: Any, **options: Any) -> dict[str, Any]:
        engine = self._engine
        if do == "look":
            return self._look()
        if do in ("pause", "resume"):
            getattr(engine, do)()
            return {}
        if do == "submit":
            job = engine.submit(GenerationRequest.from_recipe(request))
        elif do == "duplicate":
            job = engine.duplicate(str(job))
        elif do == "edit":
            engine.edit(str(job), GenerationRequest.from_recipe(request))
        else:  # cancel, move, retry
            getattr(engine, do)(str(job), **options)
        assert job is not None
        if do in ("submit", "duplicate", "retry"):
            self._follow(job)
        now = engine.job(job)
        return {"job": job, "state": now.state, "seed": now.request.seed}

    def _follow(self, job: str) -> None:
        follower = threading.Thread(target=deque, args=(self._engine.events(job), 1), daemon=True)
        follower.start()
        self._followers = [*(other for other in self._followers if other.is_alive()), follower]

    def _look(self) -> dict[str, Any]:
        step = max((job.step for job in self._engine.jobs() if job.state == "running"), default=0)
        following = sum(follower.is_alive() for follower in self._followers)
        status = self._engine.status
        return {
            "state": status.state,
            "message": status.message,
            "paused": self._engine.paused,
            "following": following,
            "step": step,
        }

    def _watch(self) -> None:
        for _ in self._engine.changes():
            for job in self._engine.jobs():
                if job.state in ("queued", "running"):
                    self._engine.remaining(job.id)
            time.sleep(LOOK_INTERVAL)


def obey(engine: QueueEngine, answers: Answers, read: Callable[[], str]) -> None:
    tabs = [Tab(engine, answers) for _ in range(TABS)]
    answers.say({"number": 0})
    while line := read():
        order = json.loads(line)
        tabs[order.pop("tab")].tell(order)
    for tab in tabs:
        tab.join()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    answers = Answers()
    options = app.parse_arguments(sys.argv[1:])
    with closing(app._make_desk(options)) as desk, closing(app._make_engine(options, desk)) as engine:
        obey(engine, answers, sys.stdin.readline)


if __name__ == "__main__":
    main()
