"""Row 7: Ulysses, two gloo processes of one thread each against one."""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.backbone import where
from benchmarks.catalogue import row
from benchmarks.harness import Pairs, Row, paired, processor_seconds
from benchmarks.machine import compute_dtype
from benchmarks.operators import OperatorClock
from benchmarks.subject import SMALL, TOLERANCE, largest_error, make_inputs, make_model
from nava_core.engine.parallel import parallelism, parallelize
from nava_core.engine.rank_plan import RankPlan
from nava_core.pipeline import NavaPipeline

RANKS = 2
LIBRARY_EXCHANGES = 4  # all-to-alls in a layer of the library's context parallelism


def ulysses_part(budget: float) -> list[Row]:
    """Processor seconds of a rank that shares a pass / of one that has it alone; all-to-alls in a layer."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, (folder, budget), nprocs=RANKS, start_method="spawn")
        ranks: list[dict[str, Any]] = [
            json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(RANKS)
        ]
    together = [max(spent) for spent in zip(*(rank["together"] for rank in ranks), strict=True)]
    pairs = Pairs(together, ranks[0]["alone"])
    busier, alone = pairs.medians
    error = max(rank["error"] for rank in ranks)
    detail = {
        "summary": f"{busier:.2f} s of the busier rank against {alone:.2f} s alone, a pass "
        f"of {ranks[0]['tokens']} tokens ({where()}); of these {ranks[0]['products']['together']:.2f} and "
        f"{ranks[0]['products']['alone']:.2f} s in products, attention and GELU",
        "products_seconds": [rank["products"] for rank in ranks],
        "rank_seconds": [rank["together"] for rank in ranks],
        "alone_seconds": ranks[0]["alone"],
        "pairs": len(together),
        "largest_difference": error,
    }
    exchanges = ranks[0]["exchanges"]
    counts = {
        "summary": f"{exchanges:g} all-to-alls in a layer (the library's way needs {LIBRARY_EXCHANGES}, the fewest is "
        f"2), {ranks[0]['bytes_sent'] / 2**20:.0f} MiB sent by a rank in a pass of two layers",
        "bytes_sent": ranks[0]["bytes_sent"],
    }
    return [
        row("ulysses", pairs.ratio, detail, pairs.spread, holds=error < TOLERANCE[compute_dtype()]),
        row("ulysses.exchanges", exchanges, counts),
    ]


def _process(rank: int, folder: str, budget: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    try:
        result = _measure(rank, budget)
    except BaseException:  # noqa: BLE001 (reported, and the process ends)
        traceback.print_exc()
        os._exit(1)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # a group does not wait for its members in order


@torch.no_grad()
def _measure(rank: int, budget: float) -> dict[str, Any]:
    model = make_model()
    pipeline = NavaPipeline(model)
    inputs, small = make_inputs(model), make_inputs(model, *SMALL)
    context = model.encode_context(inputs.text)
    parallelize(pipeline, plan=RankPlan(1, RANKS))
    state = parallelism(pipeline)
    assert state is not None
    exchange = state.exchange(RankPlan(1, RANKS))
    outputs: dict[str, Any] = {}
    products = {"alone": OperatorClock(), "together": OperatorClock()}

    def alone() -> None:
        if rank == 0:
            with products["alone"]:
                outputs["alone"] = inputs.ours(model, context)

    def together() -> None:
        with state.sharing(exchange), products["together"]:
            outputs["together"] = inputs.ours(model, context)

    def cost(action: Callable[[], Any]) -> float:
        dist.barrier()
        spent = processor_seconds(action)
        dist.barrier()
        return spent

    small.ours(model, context)
    with state.sharing(exchange):
        small.ours(model, context)
    before = vars(state.traffic).copy()
    # Both ranks must run equally many pairs: the first one's clock decides.
    pairs = paired(alone, together, budget, cost=cost, clock=lambda: state.first_ranks(time.monotonic()))
    count = len(pairs.second)
    done = {name: (value - before[name]) / count for name, value in vars(state.traffic).items()}
    error = largest_error(outputs["together"], outputs["alone"]) if rank == 0 else 0.0
    return {
        "alone": pairs.first,
        "together": pairs.second,
        "exchanges": done["exchanges"] / len(model.transformer_blocks),
        "bytes_sent": done["bytes_sent"],
        "error": error,
        "products": {name: clock.seconds / count for name, clock in products.items()},
        "tokens": model.token_count(inputs.video, inputs.audio),
    }
