"""The soak's view from outside: the job store, the files and the processes, each read without asking the app."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from soak_ledger import Row

from nava_core import media
from nava_core.engine import DATABASE
from nava_core.ffmpeg import input_url
from nava_core.ffmpeg import run as ffmpeg

MARK = "NAVA_SOAK"
SHARED_MEMORY = Path("/dev/shm")
PROC = Path("/proc")
# A recipe's part that says how a clip was made, and not what it is.
CIRCUMSTANCES = ("job", "created", "versions", "original_prompt")
WORKER, LAUNCHER = "nava_core.engine.worker", "nava_core.engine.launch"
SECONDS_APART = 0.1  # sound is made in steps of a latent's length
JSON_COLUMNS = ("request", "recipe", "error")


# The job store


def read_store(output: Path, app_lives: bool) -> list[dict[str, Any]]:
    """Every row. After an orderly end reading must not leave files of its own, which without an app it would."""
    rows = _query(output, "SELECT * FROM jobs ORDER BY number", app_lives)
    for row in rows:
        row |= {name: None if row[name] is None else json.loads(row[name]) for name in JSON_COLUMNS}
    return rows


def read_states(output: Path) -> list[dict[str, Any]]:
    """Of each job the id, the state, the attempts and the seconds; of a living app."""
    return _query(output, "SELECT id, state, attempts, seconds FROM jobs ORDER BY number", True)


def is_paused(output: Path) -> bool:
    return bool(_query(output, "SELECT 1 FROM settings WHERE name = 'paused'", True))


def _query(output: Path, statement: str, app_lives: bool) -> list[dict[str, Any]]:
    options = "mode=ro" if app_lives else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"file:{output / DATABASE}?{options}", uri=True, timeout=30)
    try:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]
    finally:
        connection.close()


# The clips


def check_clips(rows: list[Row], output: Path) -> tuple[list[str], dict[str, str]]:
    """Whether each done job has one file, with its own recipe, that decodes; and a hash of what each file shows."""
    found, contents = [], {}
    for row in rows:
        name = f"job {row['id']}"
        if row["state"] != "done":
            if row["result"] is not None:
                found.append(f"{name} is {row['state']} and has a result")
            continue
        path = Path(row["result"] or "")
        try:
            recipe = media.read_recipe(path)
            contents[row["id"]] = content(path)
            length = media.probe(path)
        except (ValueError, media.MediaError) as error:
            found.append(f"{name} is done without a clip: {error}")
            continue
        if recipe != row["recipe"] or recipe.get("job") != row["id"]:
            found.append(f"{name} has a clip with another recipe: {recipe}")
        if any(recipe[part] != row["request"][part] for part in ("prompt", "seed", "num_inference_steps")):
            found.append(f"{name} has a clip of another request: {recipe}")
        if not _is_whole(length, row["request"]):
            found.append(f"{name} has a clip that is not whole: {length}")
    wanted = {Path(row["result"]) for row in rows if row["result"] is not None}
    there = {path for path in output.iterdir() if path != (output / DATABASE).parent}
    found += [f"{path.name} lies in the output folder and is no job's result" for path in sorted(there - wanted)]
    return found, contents


def _is_whole(length: media.MediaInfo, request: Row) -> bool:
    if request["modality"] != "audio":
        return length.num_frames == request["num_frames"]
    return length.audio_seconds is not None and abs(length.audio_seconds - request["seconds"]) < SECONDS_APART


def content(path: Path) -> str:
    """Hashes of all decoded frames and samples; what a file says about itself does not count. Raises MediaError."""
    return ffmpeg(["-i", input_url(path), "-map", "0", "-f", "streamhash", "-hash", "sha256", "-"]).decode()


def groups_of_twins(rows: list[Row]) -> list[list[str]]:
    """Ids of done jobs with the same request and seed."""
    groups = defaultdict(list)
    for row in rows:
        if row["state"] == "done" and row["recipe"] is not None:
            asked = {name: value for name, value in row["recipe"].items() if name not in CIRCUMSTANCES}
            groups[json.dumps(asked, sort_keys=True)].append(row["id"])
    return [group for group in groups.values() if len(group) > 1]


def check_twins(rows: list[Row], contents: dict[str, str]) -> list[str]:
    """Whether the same request and seed gave the same clip each time."""
    found = []
    for group in groups_of_twins(rows):
        known = [name for name in group if name in contents]
        if len({contents[name] for name in known}) > 1:
            found.append(f"the same request and seed gave different clips: {', '.join(known)}")
    return found


# Processes and what they leave


def our_processes(mark: str) -> dict[int, str]:
    """Command lines of all living processes with this mark in their environment, by id."""
    found = {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue  # gone, or somebody else's
    return found


def worker_pids(mark: str) -> list[int]:
    return [pid for pid, line in our_processes(mark).items() if WORKER in line and LAUNCHER not in line]


def launcher_pids(mark: str) -> list[int]:
    return [pid for pid, line in our_processes(mark).items() if LAUNCHER in line]


def is_alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float) -> float | None:
    """How long it took; None where some of them are still there."""
    started = time.monotonic()
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.05)
    return time.monotonic() - started


def memory(pid: int) -> dict[str, float]:
    """A process's memory in MB (RSS, and what of it is no file's), its threads and its open files.

    Not its fair share (PSS), which changes with what other programs on the machine map of the same libraries.
    """
    rollup = (PROC / str(pid) / "smaps_rollup").read_text()
    sizes = {name: int(kilobytes) / 1024 for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB", rollup, re.MULTILINE)}
    threads, files = (len(list((PROC / str(pid) / kind).iterdir())) for kind in ("task", "fd"))
    megabytes, anonymous = round(sizes["Rss"], 1), round(sizes["Anonymous"], 1)
    return {"megabytes": megabytes, "anonymous": anonymous, "threads": threads, "files": files}


def with_own_shared_memory(folder: Path) -> list[str]:
    """How a command line begins whose processes have `folder` as their /dev/shm; empty where that is not allowed."""
    prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount --bind {shlex.quote(str(folder))} {SHARED_MEMORY} && exec "$@"',
        "-",
    ]
    try:
        possible = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    return prefix if possible else []


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def check_leftovers(output: Path, temporary: Path, mark: str) -> list[str]:
    """Processes and temporary files that are left after the app has closed."""
    found = [f"process {pid} was left behind: {line}" for pid, line in our_processes(mark).items()]
    folder = (output / DATABASE).parent
    kept = {DATABASE.name, f"{DATABASE.name}.lock", "files"}
    found += [f"{path.name} was left beside the queue" for path in folder.iterdir() if path.name not in kept]
    found += [f"{path.name} was left among the queue's copies" for path in folder.glob("files/.part-*")]
    found += [f"{path.name} was left in the output folder" for path in output.glob(media.workshop_pattern())]
    return found + [f"{name} was left in the temporary folder" for name in names_in(temporary)]
