"""The soak: many jobs, two tabs, bad input, and processes that are killed, stopped and restarted; nothing may be lost.

    python -m tests.soak --jobs 200 --out report.json

The app's own process runs its engine over real workers and nava-nano. First a few jobs, then many without an end of any
process, so that memory can be compared; then the rest under harm. What came of it is read from the job store, the files
and the list of processes. Linux only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import soak_checks as checks
from soak_app import TABS, AppProcess
from soak_ledger import Command, Ledger
from soak_mix import Mix, prepare
from soak_plan import Plan, Report

logger = logging.getLogger("soak")

QUEUE_FULL, QUEUE_LOW = 6, 2
STUCK_SECONDS = 180.0
GONE_SECONDS = 10.0  # as promised: a broken group is gone within so long
STANDSTILL_SECONDS = 7.0  # longer than the silence that the app bears of its workers
AT_REST = ("done", "failed", "cancelled")


class Stuck(Exception):
    """Nothing moves any more."""


class Soak:
    """One soak in `folder`, which must not exist yet. The same seed asks for the same, as far as time allows."""

    def __init__(self, plan: Plan, folder: Path, seed: int = 0, gone_within: float = GONE_SECONDS):
        self.plan, self.folder, self.gone_within = plan, folder, gone_within
        self.mark = secrets.token_hex(8)
        self.output, self.temporary, self.log = folder / "outputs", folder / "temporary", folder / "app.log"
        self.ledger, self.report = Ledger(), Report(plan.jobs, seed)
        self.shared_memory = folder / "shared-memory"
        self._own_memory: list[str] = []
        self._shared_before: set[str] = set()
        self._dice = random.Random(seed)
        self._mix = Mix(folder / "wishes", self._dice)
        self._paused = False
        self._usual = 2.0  # seconds that prey runs
        self._harms_left = 0
        self._closed = False
        self._harms: dict[str, Callable[[], None]] = {
            "kill the worker": lambda: self._strike(checks.worker_pids, signal.SIGKILL),
            "stop the worker": lambda: self._strike(checks.worker_pids, signal.SIGSTOP),
            "kill the worker while it loads": self._kill_while_worker_loads,
            "kill the launcher": lambda: self._strike(checks.launcher_pids, signal.SIGKILL),
            "kill the app": self._kill_the_app,
            "close the app": self._close_the_app,
            "kill the app while it pauses": self._kill_while_paused,
            "kill the app while it loads": self._kill_while_loading,
            "stop the app for a while": self._stop_the_app,
        }

    def run(self) -> Report:
        """All of it; `report.violations` is empty if it went well."""
        logger.info("%s", self.plan)
        started = time.monotonic()
        self.folder.mkdir(parents=True)
        self.temporary.mkdir()
        self.shared_memory.mkdir()
        self._own_memory = checks.with_own_shared_memory(self.shared_memory)
        if not self._own_memory:
            self.shared_memory = checks.SHARED_MEMORY
        self._shared_before = checks.names_in(self.shared_memory)
        prepare(self.folder / "wishes")
        try:
            self._start()
            self._phases()
            self._close()
            self._closed = True
        except (Stuck, AssertionError) as error:
            self._fault(f"{type(error).__name__}: {error}")
        finally:
            self._app.kill()
            self.report.seconds = round(time.monotonic() - started, 1)
        try:
            self._judge()
        finally:
            for pid in checks.our_processes(self.mark):
                os.kill(pid, signal.SIGKILL)
        return self.report

    def _phases(self) -> None:
        plan = self.plan
        # Before the model is there nothing is refused; what is wrong then is said when its turn comes.
        self._say(Command("submit", wish=self._mix.bad("steps")), Command("submit", wish=self._mix.good()))
        for moment, until in (("first", plan.first), ("calm", plan.calm)):
            self._go_on(until - plan.looks)
            self._measure(moment)
        harms = [harm for harm, count in plan.harms.items() for _ in range(count)]
        self._dice.shuffle(harms)
        for number, harm in enumerate(harms, start=1):
            self._harms_left = len(harms) - number
            self._under_harm(harm, plan.calm + (plan.jobs - plan.looks - plan.calm) * number // len(harms))
        while (missing := plan.jobs - plan.looks - self._count()) > 0:
            self._go_on(self._count() + missing)
        self._measure("end")

    def _judge(self) -> None:
        """Read everything from outside, the app being gone."""
        report = self.report
        checks.wait_until_gone(list(checks.our_processes(self.mark)), GONE_SECONDS)
        report.violations += self.leftovers()
        rows = self.rows()
        report.violations += self.ledger.violations(rows) + self.wrong_clips(rows)
        report.states = dict(Counter(row["state"] for row in rows))
        report.said, report.refused = dict(self.ledger.said), dict(self.ledger.refused)
        report.failed_of = dict(Counter((row["error"] or {}).get("field") for row in rows if row["error"]))
        report.run_again = sum(row["attempts"] > 1 or row["interruptions"] > 0 for row in rows)
        twins = checks.groups_of_twins(rows)
        report.twins = {"groups": len(twins), "clips": sum(len(group) for group in twins)}
        report.tracebacks = self.log.read_text(errors="replace").count("Traceback (most recent call last)")
        if report.tracebacks:
            report.violations.append(f"the app's log holds {report.tracebacks} tracebacks")

    def leftovers(self) -> list[str]:
        shared = checks.names_in(self.shared_memory) - self._shared_before
        found = checks.check_leftovers(self.output, self.temporary, self.mark)
        return found + [f"{name} was left in shared memory" for name in shared]

    def rows(self) -> list[dict[str, Any]]:
        return checks.read_store(self.output, app_lives=not self._closed)

    def wrong_clips(self, rows: list[dict[str, Any]]) -> list[str]:
        found, contents = checks.check_clips(rows, self.output)
        return found + checks.check_twins(rows, contents)

    def _fault(self, words: str) -> None:
        logger.error("%s", words)
        self.report.violations.append(words)

    # The app

    def _start(self) -> None:
        self._app = AppProcess(self.output, self.temporary, self.log, self.mark, self._own_memory)
        self._app.wait_until_open()

    def _say(self, *commands: Command) -> list[Any]:
        """One command to each tab, at the same time; their answers, once they are taken down."""
        return self._hear(commands, self._tell(commands))

    def _tell(self, commands: tuple[Command, ...]) -> list[int]:
        for command in commands:
            self.ledger.sent(command)
        return [self._app.tell(tab % TABS, command) for tab, command in enumerate(commands)]

    def _hear(self, commands: tuple[Command, ...], numbers: list[int]) -> list[Any]:
        answers = [self._app.answer(number) for number in numbers]
        for command, answer in zip(commands, answers, strict=True):
            self.ledger.answered(command, answer)
        return answers

    def _states(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in checks.read_states(self.output)}

    def _count(self) -> int:
        return len(self._states())

    def _wait(self, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Until the jobs' states are so. Raises Stuck where they do not change for too long."""
        seen, since = None, time.monotonic()
        while not condition(states := self._states()):
            if states != seen:
                seen, since = states, time.monotonic()
            elif time.monotonic() - since > STUCK_SECONDS:
                waiting = {name: state for name, state in states.items() if state not in AT_REST}
                raise Stuck(f"nothing changed for {STUCK_SECONDS:.0f} s: {waiting}; the app says {self._app.look()}")
            time.sleep(0.1)
        return states

    def _close(self) -> None:
        if (status := self._app.close()) != 0:
            self._fault(f"the app ended with status {status}")

    # What people do

    def _go_on(self, until: int) -> None:
        """Use the studio until it has so many jobs, then wait for all of them."""
        self._use(until)
        self._drain()
        logger.info("%d jobs: %s", self._count(), dict(Counter(self._states().values())))

    def _use(self, until: int) -> None:
        while (count := len(states := self._states())) < until:
            if list(states.values()).count("queued") >= QUEUE_FULL:
                self._resume()
                self._wait(lambda states: list(states.values()).count("queued") <= QUEUE_LOW)
            self._say(*self._draw(states, until - count))

    def _draw(self, states: dict[str, str], room: int) -> tuple[Command, ...]:
        """A command for each tab; `room`: how many jobs these may add."""
        commands: list[Command] = []
        for _ in range(TABS):
            left = room - sum(command.adds for command in commands)
            command = self._draw_one({name: state for name, state in states.items() if name in self.ledger.promises})
            edited = [other.job for other in commands if other.do == "edit"]
            if (command.adds and left <= 0) or command.job in edited:
                command = Command("look")
            self._paused = {"pause": True, "resume": False}.get(command.do, self._paused)
            commands.append(command)
        return tuple(commands)

    def _draw_one(self, states: dict[str, str]) -> Command:
        dice, by_state = self._dice, {state: [] for state in ("queued", "running", "cancelled")}
        for name, state in states.items():
            by_state.setdefault(state, []).append(name)
        queued, running, cancelled = by_state["queued"], by_state["running"], by_state["cancelled"]
        drawn: list[tuple[float, Callable[[], Command]]] = [
            (10, lambda: Command("submit", wish=self._mix.good())),
            (2.5, lambda: Command("submit", wish=self._mix.bad())),
            (3 * bool(states), lambda: Command("duplicate", dice.choice(list(states)))),
            (2 * bool(queued), lambda: Command("cancel", dice.choice(queued))),
            (1.5 * bool(running), lambda: Command("cancel", dice.choice(running))),
            (2 * bool(queued), lambda: Command("edit", dice.choice(queued), self._mix.good())),
            (2 * (len(queued) > 1), lambda: self._draw_move(queued)),
            (0.7 if not self._paused else 4, lambda: Command("resume" if self._paused else "pause")),
            (0.5 * bool(cancelled), lambda: Command("retry", dice.choice(cancelled))),
        ]
        weights, makers = zip(*drawn, strict=True)
        return dice.choices(makers, weights)[0]()

    def _draw_move(self, queued: list[str]) -> Command:
        moved, neighbour = self._dice.sample(queued, 2)
        places = ({"to": "front"}, {"to": "end"}, {"before": neighbour}, {"after": neighbour})
        return Command("move", moved, options=self._dice.choice(places))

    def _resume(self) -> None:
        self._paused = False
        self._say(Command("resume"))

    def _drain(self) -> None:
        """Let everything be made, as a person would who comes back: what was interrupted twice goes on when asked."""
        if self._paused:
            self._resume()
        while True:
            states = self._wait(lambda states: all(state in (*AT_REST, "interrupted") for state in states.values()))
            interrupted = [name for name, state in states.items() if state == "interrupted"]
            if not interrupted:
                break
            for name in interrupted:
                self._say(Command("retry", name))
        deadline = time.monotonic() + STUCK_SECONDS
        while any(look["state"] == "loading" or look["following"] for look in map(self._app.look, range(TABS))):
            if time.monotonic() > deadline:
                raise Stuck(f"the jobs are at rest; the tabs say {[self._app.look(tab) for tab in range(TABS)]}")
            time.sleep(0.1)
        look = self._app.look()
        if look["state"] != "ready" or look["paused"] or look["message"]:
            self._fault(f"after all jobs the app is {dict(look)}")

    def _measure(self, moment: str) -> None:
        """Memory at rest, after a job that is the same each time."""
        most = self.report.memory[moment] = {}
        for _ in range(self.plan.looks):
            self._say(Command("submit", wish=self._mix.ruler()))
            self._drain()
            time.sleep(0.5)
            (worker,) = checks.worker_pids(self.mark)
            for name, pid in (("app", self._app.pid), ("worker", worker)):
                seen = checks.memory(pid)
                most[name] = max(most.get(name, seen), seen, key=lambda look: look["megabytes"])
        logger.info("memory, %s: %s", moment, most)

    # What goes wrong

    def _under_harm(self, harm: str, until: int) -> None:
        """Some use, with a longer job in front; and the harm at a random moment of that one."""
        self._use(until - 1)
        self._resume()
        (answer,) = self._say(Command("submit", wish=self._mix.prey()))
        prey = answer["job"]
        self._say(Command("move", prey, options={"to": "front"}))
        self._wait(lambda states: states[prey] != "queued")
        time.sleep(self._dice.uniform(0.0, 1.1 * self._usual))
        logger.info("%d jobs; now: %s", self._count(), harm)
        self._harms[harm]()
        self.report.harms[harm] = self.report.harms.get(harm, 0) + 1
        self._wait(lambda states: states[prey] in (*AT_REST, "interrupted"))
        took = {row["id"]: row["seconds"] for row in checks.read_states(self.output) if row["attempts"] == 1}
        self._usual = min(self._usual, took.get(prey) or self._usual)

    def _strike(self, pids_of: Callable[[str], list[int]], number: signal.Signals) -> None:
        if not pids_of(self.mark):
            self._wait_for_workers()
        struck = pids_of(self.mark)
        assert struck, "there is nothing to strike"
        group = checks.worker_pids(self.mark) + checks.launcher_pids(self.mark)
        for pid in struck:
            os.kill(pid, number)
        self._note_gone(number.name, group)

    def _wait_for_workers(self) -> None:
        """Who was struck at rest is replaced with the next job, and can be struck again once that has a step."""
        deadline = time.monotonic() + STUCK_SECONDS
        while "running" in self._states().values() and not self._app.look()["step"]:
            if time.monotonic() > deadline:
                raise Stuck("no worker came after one that was struck")
            time.sleep(0.05)

    def _kill_while_worker_loads(self) -> None:
        """The one that takes the place of another which was killed."""
        (old,) = checks.worker_pids(self.mark)
        self._strike(checks.worker_pids, signal.SIGKILL)
        deadline = time.monotonic() + STUCK_SECONDS
        while not (new := [pid for pid in checks.worker_pids(self.mark) if pid != old]):
            if time.monotonic() > deadline:
                raise Stuck("no worker came after one that was killed")
            time.sleep(0.05)
        time.sleep(self._dice.uniform(0.0, 1.0))
        os.kill(new[0], signal.SIGKILL)

    def _note_gone(self, what: str, pids: list[int]) -> None:
        seconds = checks.wait_until_gone(pids, 60.0)
        self.report.gone.setdefault(what, []).append(round(seconds or 60.0, 2))
        if seconds is None or seconds > self.gone_within:
            self._fault(f"after {what} processes were there for {seconds or 60.0:.1f} s")

    def _kill_the_app(self) -> None:
        """While both tabs are saying something, and with a new one that starts at once."""
        states = self._states()
        commands = self._draw(states, room=self.plan.jobs - self.plan.looks - self._harms_left - len(states))
        numbers = self._tell(commands)
        time.sleep(self._dice.choice((0.0, 0.002, 0.01)))
        old = list(checks.our_processes(self.mark))
        self._app.kill()
        self._hear(commands, numbers)
        self._start()
        self._note_gone("app SIGKILL", old)
        self._paused = checks.is_paused(self.output)
        self._resume()

    def _close_the_app(self) -> None:
        self._close()
        if left := checks.our_processes(self.mark):
            self._fault(f"the app closed and left {left}")
        self._start()

    def _kill_while_paused(self) -> None:
        self._say(Command("pause"))
        self._kill_and_start()
        if not self._app.look()["paused"]:
            self._fault("a queue that was paused is not after a restart")
        self._resume()

    def _kill_while_loading(self) -> None:
        self._kill_and_start()
        time.sleep(self._dice.uniform(0.0, 4.0))
        self._kill_and_start()

    def _kill_and_start(self) -> None:
        old = list(checks.our_processes(self.mark))
        self._app.kill()
        self._start()
        self._note_gone("app SIGKILL", old)

    def _stop_the_app(self) -> None:
        self._app.signal(signal.SIGSTOP)
        time.sleep(STANDSTILL_SECONDS)
        self._app.signal(signal.SIGCONT)


def soak(plan: Plan, folder: Path, seed: int = 0, gone_within: float = GONE_SECONDS) -> Soak:
    """Run one; raises what its own code raises, with every process of it ended."""
    running = Soak(plan, folder, seed, gone_within)
    running.run()
    return running


def main() -> int:
    parser = argparse.ArgumentParser(description="Use the studio's engine hard, and see that nothing is lost.")
    parser.add_argument("--jobs", type=int, default=200, help="how many jobs")
    parser.add_argument("--seed", type=int, default=0, help="what the dice begin with")
    parser.add_argument("--out", type=Path, help="where the report goes (JSON)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the clips and the log in any case")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = Path(tempfile.mkdtemp(prefix="nava-soak-"))
    report = soak(Plan.of(options.jobs), folder / "soak", options.seed).report
    text = json.dumps(asdict(report), indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)
    if options.keep or report.violations:
        logger.info("the clips and the log are in %s", folder)
    else:
        shutil.rmtree(folder)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
