"""How the ranks share the passes of a step: all on one sequence, each on its own pass, or groups in between. Pure.

The rule. A step runs one to four passes over the same tokens. Sequence parallelism (Ulysses) splits the tokens of a
pass over the ranks of a group; CFG parallelism gives passes to different groups. Of all ways in which `sequence_ranks`
divides the attention heads and `groups * sequence_ranks` ranks exist, the one is taken whose slowest group is fastest:

    one rank:  cost of a group = max(calls * CALL, work)
    more:      cost of a group = max(calls * CALL, work * (1 + EXCHANGE_SHARE * (ranks - 1) / ranks)) + calls * EXCHANGE
    work = tokens of the group's passes / ranks;  calls = its passes, or 1 where they share one batch

in units of the time that one token takes on one rank (about 26 microseconds on an H100: 21 GFLOP). CALL is what a
forward call costs however few its tokens are, and behind which their arithmetic hides: 12.6 GB of weights read and
some 1,200 launches, about 12 ms. EXCHANGE is the latency of two exchanges in each of 30 layers, about 3 ms;
EXCHANGE_SHARE is the time of their bytes (4 * 6 KB a token and layer at 300 GB/s) over the token's own. Computed from
data sheets, not measured. Ties go to fewer ranks. So:

- audio alone (250 tokens): passes spread over the ranks, one rank each; more ranks than passes stay idle;
- 720p (32,712 tokens) on 8 ranks: 3 passes -> one group of 8; 4 passes -> 4 groups of 2, which exchange less;
- heads that the number of ranks does not divide: the largest sharing that does, and the rest idle or on other passes.

The numbers decide the speed only; every choice computes the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CALL = 460.0
EXCHANGE = 120.0
EXCHANGE_SHARE = 0.1


@dataclass(frozen=True)
class RankPlan:
    """`groups` groups of `sequence_ranks` ranks each, in rank order; each group runs its own passes of a step.

    Ranks beyond the last group run nothing and receive what the others made.
    """

    groups: int
    sequence_ranks: int

    @property
    def busy(self) -> int:
        """How many ranks have work."""
        return self.groups * self.sequence_ranks

    def group_of(self, rank: int) -> int | None:
        """The group that `rank` works in, None for an idle one."""
        return rank // self.sequence_ranks if rank < self.busy else None

    def members(self, group: int) -> list[int]:
        """The ranks of a group."""
        return list(range(group * self.sequence_ranks, (group + 1) * self.sequence_ranks))


def plan_ranks(ranks: int, heads: int, pass_tokens: Sequence[int], batch_below: int = 0) -> RankPlan:
    """The cheapest way to run a step's passes, by the rule above.

    Args:
        ranks: how many there are.
        heads: attention heads, which the ranks of a group must divide.
        pass_tokens: tokens of each pass.
        batch_below: passes share one forward call where the longest has fewer tokens than this.
    """
    candidates = [
        RankPlan(groups, sequence_ranks)
        for sequence_ranks in sharing_degrees(ranks, heads)
        if sequence_ranks == 1 or 2 * sequence_ranks <= min(pass_tokens)  # a rank without any token cannot run
        for groups in range(1, min(ranks // sequence_ranks, len(pass_tokens)) + 1)
    ]
    return min(candidates, key=lambda plan: (_cost(plan, pass_tokens, batch_below), plan.busy))


def sharing_degrees(ranks: int, heads: int) -> list[int]:
    """How many of `ranks` ranks can share one sequence: divisors of `heads`."""
    return [degree for degree in range(1, ranks + 1) if heads % degree == 0]


def check_plan(plan: RankPlan, ranks: int, heads: int) -> None:
    """Raises ValueError for a plan that this many ranks or heads cannot follow."""
    if heads % plan.sequence_ranks:
        raise ValueError(
            f"{plan.sequence_ranks} ranks cannot share a sequence of {heads} attention heads evenly; "
            f"possible are {', '.join(map(str, sharing_degrees(heads, heads)))}"
        )
    if plan.groups < 1 or plan.busy > ranks:
        raise ValueError(
            f"{plan.groups} groups of {plan.sequence_ranks} ranks need {plan.busy} ranks and there are {ranks}; "
            "start more or plan fewer"
        )


def spread_passes(pass_tokens: Sequence[int], groups: int) -> list[list[int]]:
    """The passes (by index) of each group: the longest first, each to the group with the least work so far."""
    assigned: list[list[int]] = [[] for _ in range(groups)]
    for index in sorted(range(len(pass_tokens)), key=lambda index: -pass_tokens[index]):
        least = min(assigned, key=lambda passes: sum(pass_tokens[member] for member in passes))
        least.append(index)
    return [sorted(passes) for passes in assigned]


def share(count: int, ranks: int, rank: int) -> tuple[int, int]:
    """(start, stop) of the part of `count` things that is `rank`'s; parts differ by at most one."""
    return rank * count // ranks, (rank + 1) * count // ranks


def _cost(plan: RankPlan, pass_tokens: Sequence[int], batch_below: int) -> float:
    ranks, batched = plan.sequence_ranks, max(pass_tokens) < batch_below

    def group_cost(passes: list[int]) -> float:
        calls = 1 if batched else len(passes)
        work = sum(pass_tokens[index] for index in passes) / ranks
        if ranks == 1:
            return max(calls * CALL, work)
        return max(calls * CALL, work * (1 + EXCHANGE_SHARE * (ranks - 1) / ranks)) + calls * EXCHANGE

    return max(group_cost(passes) for passes in spread_passes(pass_tokens, plan.groups))
