"""`python -m benchmarks [NAME...] --json FILE`: measure, print a table, write the rows."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import PARTS, row
from benchmarks.table import plain

BUDGET = 45.0
LIMIT_SECONDS = 1800.0  # of a part, after which it counts as hung
ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all limits are met. 1: one is missed, or a part failed. 2: what was asked for makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios of PERFORMANCE: ours against the official structure and against the limit.",
        epilog="Parts: " + "; ".join(f"{name} ({part.title})" for name, part in PARTS.items()),
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="parts to run; all of them if none is given")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--budget",
        metavar="SECONDS",
        type=float,
        default=BUDGET,
        help="for the repeats of a part (default %(default)g); two pairs are run in any case",
    )
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(options.names)) or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(map(repr, unknown))}; choose from {', '.join(PARTS)}")
    if not options.budget > 0:
        parser.error(f"--budget is {options.budget:g}; give more than 0 seconds")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {options.json.absolute().parent} to write {options.json.name} to")

    rows: list[dict[str, Any]] = []
    for name in names:
        started = time.monotonic()
        sys.stderr.write(f"{name}: {PARTS[name].title} ... ")
        sys.stderr.flush()
        rows += run_part(name, options.budget)
        sys.stderr.write(f"{time.monotonic() - started:.0f} s\n")
        if options.json is not None:  # after each part, so that nothing measured is lost
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(plain(rows))
    return 0 if all(one["ok"] for one in rows) else 1


def run_part(name: str, budget: float) -> list[dict[str, Any]]:
    """The rows of one part; where it fails a row that says so."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.child", name, str(budget), str(path)]
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **one_thread, **PARTS[name].environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [_failed(name, f"not finished after {LIMIT_SECONDS:g} s")]
        if run.returncode == 0:
            rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            return rows
    sys.stderr.write(f"\n{run.stderr}")
    lines = run.stderr.strip().splitlines()
    return [_failed(name, lines[-1] if lines else f"ended with code {run.returncode}")]


def _failed(name: str, reason: str) -> dict[str, Any]:
    return row(name, None, {"summary": f"failed: {reason}"}).as_json()


if __name__ == "__main__":
    sys.exit(main())
