"""What the app has promised in the soak, as the person at its tabs heard it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from soak_mix import Wish

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """What a tab is told. job: the id that it is about; wish: the new request."""

    do: str
    job: str | None = None
    wish: Wish | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adds(self) -> bool:
        return self.do in ("submit", "duplicate")


@dataclass
class Promise:
    """A job that was accepted. wishes: what it may be, several where nobody heard whether an edit was taken.

    seed: None where that is not known. must_be_cancelled: the app has said that it is.
    """

    wishes: list[Wish]
    seed: int | None
    cancel_asked: bool = False
    must_be_cancelled: bool = False


class Ledger:
    """Takes down each command before it is sent and its answer, or that there was none.

    faults: answers that should not have been given. refused: bad requests refused at once, by field.
    """

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.unanswered: list[Command] = []
        self.refused: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.faults: list[str] = []

    def sent(self, command: Command) -> None:
        self.said[command.do] += 1
        promise = self.promises.get(command.job or "")
        if promise is None:
            return
        if command.do == "cancel":
            promise.cancel_asked = True
        elif command.do == "retry":
            promise.must_be_cancelled = False
        elif command.do == "edit" and command.wish is not None:
            promise.wishes.append(command.wish)

    def answered(self, command: Command, answer: Mapping[str, Any] | None) -> None:
        """answer: None where the app ended before it gave one."""
        if answer is None:
            self.unanswered.append(command)
            if command.do == "edit" and command.job is not None:
                self.promises[command.job].seed = None
        elif "error" in answer:
            self._refused(command, answer)
        elif command.do == "submit" and command.wish is not None:
            self.promises[answer["job"]] = Promise([command.wish], answer["seed"])
        elif command.do == "duplicate" and command.job is not None:
            self.promises[answer["job"]] = Promise(list(self.promises[command.job].wishes), answer["seed"])
        elif command.do == "edit" and command.job is not None and command.wish is not None:
            promise = self.promises[command.job]
            promise.wishes, promise.seed = [command.wish], answer["seed"]
        elif command.do == "cancel" and command.job is not None:
            self.promises[command.job].must_be_cancelled |= answer["state"] == "cancelled"

    def _refused(self, command: Command, answer: Mapping[str, Any]) -> None:
        if command.do == "edit" and command.job is not None and command.wish is not None:
            self.promises[command.job].wishes.remove(command.wish)
        blamed = None if command.wish is None else command.wish.blamed
        if answer["error"] == "RequestError" and blamed is not None and answer["field"] == blamed:
            self.refused[blamed] += 1
        elif not (answer["error"] == "JobStateError" and command.do in ("edit", "move", "retry")):
            self.faults.append(f"{command.do} of {command.job or command.wish} was answered with {dict(answer)}")

    # What the store says in the end

    def violations(self, rows: list[Row]) -> list[str]:
        """Each way in which the stored jobs are not what was promised."""
        found = list(self.faults)
        stored = {row["id"]: row for row in rows}
        found += [f"job {job_id} was accepted and is lost" for job_id in self.promises if job_id not in stored]
        unheard = [self._wishes_of(command) for command in self.unanswered if command.adds]
        for job_id, row in stored.items():
            promise = self.promises.get(job_id)
            if promise is None:
                wishes = next((wishes for wishes in unheard if _fitting(wishes, row)), None)
                if wishes is None:
                    found.append(f"job {job_id} was asked for by nobody: {row['request']}")
                    continue
                unheard.remove(wishes)
                promise = Promise(wishes, None)
            found += _broken(promise, row)
        return found

    def _wishes_of(self, command: Command) -> list[Wish]:
        if command.wish is not None:
            return [command.wish]
        return list(self.promises[command.job].wishes) if command.job is not None else []


def _fitting(wishes: list[Wish], row: Row) -> Wish | None:
    return next((wish for wish in wishes if wish.fits(row["request"])), None)


def _broken(promise: Promise, row: Row) -> list[str]:
    name, state = f"job {row['id']}", row["state"]
    wish = _fitting(promise.wishes, row)
    if wish is None:
        return [f"{name} holds a request that is not the one that was accepted: {row['request']}"]
    found = []
    if promise.seed is not None and row["request"]["seed"] != promise.seed:
        found.append(f"{name} was accepted with seed {promise.seed} and has {row['request']['seed']}")
    allowed = {"done" if wish.blamed is None else "failed"}
    if promise.cancel_asked:
        allowed = {"cancelled"} if promise.must_be_cancelled else {*allowed, "cancelled"}
    if state not in allowed:
        found.append(f"{name} is {state} and not {' or '.join(sorted(allowed))}; its error: {row['error']}")
    elif state == "failed":
        error = row["error"] or {}
        if (error.get("kind"), error.get("field")) != ("request", wish.blamed) or not error.get("message"):
            found.append(f"{name} should have failed of its {wish.blamed} and failed of {error}")
    return found
