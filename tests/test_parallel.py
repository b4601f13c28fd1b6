"""Many ranks against one: gloo processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import parallel_workers as workers
import pytest

from nava_core.engine.rank_plan import RankPlan, check_plan, plan_ranks, share, sharing_degrees, spread_passes

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module", autouse=True)
def one_import() -> Any:
    """A process that has imported everything once, from which the ranks are forked."""
    before = os.environ.get("PYTHONPATH")
    root = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    multiprocessing.set_forkserver_preload(["parallel_workers"])
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.mark.parametrize("ranks", [2, 4])
def test_many_ranks_equal_one(ranks: int, tmp_path: Path) -> None:
    seen = workers.start(ranks, tmp_path, workers.equality)
    print(f"\n{'model':18}{'case':10}{'groups x ranks':16}error")
    for rows in zip(*(report["rows"] for report in seen), strict=True):
        row = rows[0]
        print(f"{row['model']:18}{row['case']:10}{row['plan']!s:16}{max(r['error'] for r in rows):.1e}")
        assert max(r["error"] for r in rows) < 1e-5, row
        assert all(r["checksums"] == row["checksums"] for r in rows), "ranks hold different latents"
        check_traffic(row, rows)
    if ranks == 2:
        check_half_precision(seen)
    check_decoding(ranks, seen)


def check_traffic(row: dict[str, Any], rows: tuple[dict[str, Any], ...]) -> None:
    """Two exchanges a layer of each call, and nothing where ranks do not share sequences."""
    plan = None if row["plan"] is None else RankPlan(*row["plan"])
    if plan is None:
        return
    for rank, other in enumerate(rows):
        traffic = other["traffic"]
        calls = traffic["gathers"]
        if row["case"] == "cached":  # the ranks with work agree on each step after the first, and skip one at least
            assert traffic["exchanges"] < 2 * row["layers"] * calls or calls == 0
            assert traffic["sums"] == (workers.STEPS - 1 if plan.group_of(rank) is not None else 0)
        else:
            assert traffic["exchanges"] == 2 * row["layers"] * calls and traffic["sums"] == 0
        assert (calls > 0) == (plan.sequence_ranks > 1 and plan.group_of(rank) is not None) or row["case"] == "plain"
        assert (traffic["shares"] > 0) == (plan.sequence_ranks < len(rows))


def check_half_precision(seen: list[dict[str, Any]]) -> None:
    alone, shared = seen[0]["half"]["alone"], seen[0]["half"]["shared"]
    print(
        "bfloat16 error, alone and shared:", [f"{value:.4f}" for value in alone], [f"{value:.4f}" for value in shared]
    )
    assert sum(shared) <= 1.1 * sum(alone)


def check_decoding(ranks: int, seen: list[dict[str, Any]]) -> None:
    for size, whole in zip(workers.SIZES, seen[0]["decode"], strict=True):
        print(f"decode {size}: largest difference {whole['largest']:.1e}, PSNR {whole['psnr']:.0f} dB")
        frames, height, width = size
        assert whole["shape"] == [4 * frames - 3, 16 * height, 16 * width, 3]
        assert whole["largest"] < 1e-5
        assert whole["halos"] > 10 * frames


def test_errors_reach_all_ranks_and_leave_them_usable(tmp_path: Path) -> None:
    first, second = workers.start(2, tmp_path, workers.troubles)
    assert "3 ranks cannot share a sequence of 4 attention heads" in first["heads"]
    assert "2 groups of 2 ranks need 4 ranks and there are 2" in first["ranks"]
    assert "parallel already" in first["twice"]
    assert first["untouched"], "unparallelize leaves something behind"
    assert first["bad request on rank 1"][0].startswith("PeerError: rank 1: RequestError: ")
    assert second["bad request on rank 1"][0].startswith("RequestError: ")
    assert all("drew other noise" in seen["other noise"][0] for seen in (first, second))
    assert first["no seed"] == second["no seed"]
    for seen in (first, second):
        assert seen["cancelled"][0] == "GenerationCancelled: enough"
        assert seen["error on all"][0] == "OutOfMemoryError: no memory left"
        assert all(seen[name][1] for name in ("bad request on rank 1", "other noise", "cancelled", "error on all"))
    assert first["alone outside a run"]
    assert first["error on rank 1"][0].startswith("the other ranks cannot be reached: ")
    assert [first["error on rank 1"][1], second["error on rank 1"][1]] == ["None", "no memory left"]


def test_files_are_made_together(tmp_path: Path) -> None:
    first, second = workers.start(2, tmp_path, workers.files)
    assert first["codes"] == second["codes"] == [1, 1]  # the bad line
    assert Counter(path.suffix for path in (tmp_path / "clips").iterdir()) == {".mp4": 2}
    assert "the disk is full" in first["stopped"]
    assert second["stopped"] == f"PeerError: rank 0: {first['stopped']}"
    assert first["nowhere"] and second["nowhere"].startswith("PeerError: rank 0: ")
    assert (first["recipe"], second["recipe"]) == (1, None)
    assert (tmp_path / "b.mp4").stat().st_size > 0


# ---- the rule ----

SHORT, LONG = 250, 32_712


@pytest.mark.parametrize(
    ("ranks", "heads", "pass_tokens", "expected"),
    [
        (8, 24, [LONG] * 3, (1, 8)),  # 720p, no references: all on one sequence
        (8, 24, [LONG] * 4, (4, 2)),  # with references: as much work a rank, fewer exchanges
        (8, 24, [LONG], (1, 8)),
        (8, 24, [SHORT] * 3, (3, 1)),  # audio alone: a pass each, the rest idle
        (2, 24, [SHORT] * 3, (2, 1)),
        (8, 24, [SHORT], (1, 1)),
        (2, 24, [LONG] * 3, (1, 2)),  # 2 + 1 passes would leave a rank idle
        (2, 24, [LONG] * 2, (2, 1)),
        (2, 24, [LONG] * 4, (2, 1)),
        (4, 24, [LONG] * 3, (1, 4)),
        (4, 24, [LONG] * 2, (2, 2)),
        (3, 24, [LONG] * 3, (3, 1)),
        (7, 24, [LONG], (1, 6)),  # 7 does not divide 24
        (5, 7, [LONG] * 2, (2, 1)),  # nor does anything up to 5 divide 7
        (4, 24, [3], (1, 1)),
        (1, 24, [LONG] * 3, (1, 1)),
    ],
)
def test_the_rule_of_sharing(ranks: int, heads: int, pass_tokens: list[int], expected: tuple[int, int]) -> None:
    plan = plan_ranks(ranks, heads, pass_tokens, batch_below=1000)
    assert (plan.groups, plan.sequence_ranks) == expected
    check_plan(plan, ranks, heads)


def test_passes_are_spread_by_their_length() -> None:
    assert spread_passes([100, 100, 10, 100], 2) == [[0, 3], [1, 2]]
    assert spread_passes([5], 2) == [[0], []]
    assert RankPlan(2, 2).members(1) == [2, 3]
    assert [RankPlan(2, 2).group_of(rank) for rank in range(5)] == [0, 0, 1, 1, None]
    assert sharing_degrees(8, 24) == [1, 2, 3, 4, 6, 8]


@pytest.mark.parametrize(("count", "ranks"), [(0, 3), (2, 4), (45, 4), (7, 1)])
def test_shares_cover_everything_once(count: int, ranks: int) -> None:
    shares = [share(count, ranks, rank) for rank in range(ranks)]
    assert [index for start, stop in shares for index in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in shares) - min(stop - start for start, stop in shares) <= 1
