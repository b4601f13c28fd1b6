"""One part in a process of its own, whose memory and threads no other part has touched: writes its rows as JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch

from benchmarks.catalogue import PARTS
from benchmarks.machine import describe_machine


def main(name: str, budget: str, path: str) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    machine = describe_machine()
    rows = [row.as_json() for row in PARTS[name].load()(float(budget))]
    for row in rows:
        row["detail"]["machine"] = machine
    Path(path).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
