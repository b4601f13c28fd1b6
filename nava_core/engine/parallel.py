"""One request on many ranks: `parallelize` a pipeline, then run and save together.

Everything is applied from outside. The transformer gets hooks and another self-attention processor (`ulysses`), the
pipeline another runner of its passes, which spreads them over groups of ranks by a written rule (`rank_plan`) and gives
every rank the velocities of all passes; sampling then goes on everywhere alike, so that all ranks hold the same latents
after each step and a step's end is a place to stop. Decoding is shared as well (`split_decode`).

What holds the ranks together:

- data travels in the given group (NCCL or gloo); words travel in a gloo group of our own, without a device in between;
- before the first step all ranks meet. An error before it, on any rank, ends the request on all: its own error where
  it happened, `PeerError` elsewhere. So does a difference between what the ranks were asked;
- an error inside the steps leaves the others waiting in an exchange. The rank that has it waits SETTLE seconds for
  them. Where all come, having exchanged equally often (out of memory, usually), each raises its own error and all live
  on; else `RankFailure` is raised: that process must end (by os._exit: an orderly end waits for the lost ranks too),
  and who started the ranks ends the others (torchrun does).

A callback is called on all ranks at the same steps; one that cancels must do so on all at the same step.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from nava_core.engine.rank_plan import RankPlan, check_plan, plan_ranks, sharing_degrees, spread_passes
from nava_core.engine.ulysses import RankFailure, SequenceExchange, SequenceSharding, Traffic, reaching_others
from nava_core.execution import Execution
from nava_core.export import FrameProgress, save_output
from nava_core.guidance import GuidancePlan, Pass
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.passes import (
    BATCH_BELOW_TOKENS,
    EXECUTION,
    PassRunner,
    PromptEncodings,
    TextContexts,
    Velocities,
)
from nava_core.pipeline import GivenTensors, NavaPipeline, NavaPipelineOutput, StepCallback
from nava_core.request import GenerationCancelled, GenerationRequest
from nava_core.step_cache import step_cache

logger = logging.getLogger(__name__)

SETTLE = 5.0
"""Seconds that a rank with an error inside the steps waits for the others to have it too."""


class PeerError(RuntimeError):
    """Another rank could not do its part; the request has ended on all ranks and the next one may come."""


def parallelize(pipeline: NavaPipeline, group: dist.ProcessGroup | None = None, plan: RankPlan | None = None) -> None:
    """Run `pipeline`'s requests on all ranks of `group` (default: all there are). To be called on each of them.

    A group of one rank changes nothing. Every rank keeps all weights.

    Args:
        plan: how the ranks share a step's passes; None: the cheapest for each request (`plan_ranks`).

    Raises:
        ValueError: the pipeline is parallel already, or the heads or ranks do not fit `plan`.
    """
    if parallelism(pipeline) is not None:
        raise ValueError("this pipeline is parallel already; unparallelize(pipeline) first")
    group = group if group is not None else dist.group.WORLD
    if group is None:
        raise ValueError(
            "there is no process group; call torch.distributed.init_process_group first, as torchrun expects"
        )
    ranks, heads = dist.get_world_size(group), pipeline.transformer.config.num_attention_heads
    if plan is not None:
        check_plan(plan, ranks, heads)
    elif heads % ranks:
        most = sharing_degrees(ranks, heads)[-1]
        logger.warning("%d ranks do not divide %d attention heads: at most %d share a sequence", ranks, heads, most)
    if ranks == 1:
        return
    state = Parallelism(pipeline.transformer, group, plan)
    state.sharding.install()
    pipeline.pass_runner = partial(ParallelPassRunner, state)


def unparallelize(pipeline: NavaPipeline) -> None:
    """Make `pipeline` run alone again. To be called on each rank."""
    state = parallelism(pipeline)
    if state is not None:
        state.sharding.remove()
        del pipeline.pass_runner


def parallelism(pipeline: NavaPipeline) -> Parallelism | None:
    """What `parallelize` has put around the pipeline."""
    runner: Any = getattr(pipeline, "pass_runner", None)
    return runner.args[0] if isinstance(runner, partial) else None


def run_together(
    pipeline: NavaPipeline,
    request: GenerationRequest,
    given: GivenTensors | None = None,
    callback_on_step_end: StepCallback | None = None,
    output_type: str = "latent",
) -> NavaPipelineOutput:
    """`pipeline.run` on all ranks at once; every rank returns the same latents. The first rank's seed counts.

    Raises:
        PeerError: another rank had an error before the first step.
        RankFailure: see the module.
    """
    state = parallelism(pipeline)
    if state is None:
        return pipeline.run(request, given, callback_on_step_end, output_type)
    if given is None or given.generator is None:
        drawn = secrets.randbits(32) if request.seed is None else request.seed
        request = replace(request, seed=state.first_ranks(drawn))
    state.start_request()
    try:
        return pipeline.run(request, given, callback_on_step_end, output_type)
    except (GenerationCancelled, PeerError, RankFailure):
        raise
    except Exception as error:
        if state.has_met:
            state.settle(error)
        state.meet(error=error)
        raise


def save_together(
    pipeline: NavaPipeline,
    output: NavaPipelineOutput,
    request: GenerationRequest,
    path: str | os.PathLike[str],
    progress: FrameProgress | None = None,
    job_id: str | None = None,
) -> dict[str, Any] | None:
    """`save_output` on the first rank, which returns the recipe, while the others decode their strips of the picture.

    Raises:
        PeerError: on the other ranks, when the first could not write.
        RankFailure: see the module.
    """
    from nava_core.engine.split_decode import SplitDecode

    state = parallelism(pipeline)
    if state is None:
        return save_output(pipeline, output, request, path, progress, job_id)
    state.start_request()
    decode = SplitDecode(state, pipeline.vae, output.latents)
    recipe = None
    try:
        if state.rank == 0:
            with decode:
                recipe = save_output(pipeline, output, request, path, progress, job_id, decode)
        else:
            decode.help()
    except RankFailure:
        raise
    except Exception as error:
        if decode.is_broken:
            state.settle(error)
        state.meet(error=error)
        raise
    state.meet()
    return recipe


def agreed(pipeline: NavaPipeline, value: Any) -> Any:
    """The first rank's `value`, on all ranks of a parallel pipeline."""
    state = parallelism(pipeline)
    return value if state is None else state.first_ranks(value)


class Parallelism:
    """The ranks that share a pipeline, and how they talk."""

    def __init__(self, transformer: NavaTransformer3DModel, group: dist.ProcessGroup, plan: RankPlan | None):
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.heads: int = transformer.config.num_attention_heads
        self.forced_plan = plan
        self.traffic = Traffic()
        self.sharding = SequenceSharding(transformer)
        self.place: int | None = 0  # the group that this rank works in
        self.start_request()
        self.words = _subgroup(group, tuple(range(self.ranks)), "gloo")
        self._exchanges: dict[int, SequenceExchange] = {}

    def exchange(self, plan: RankPlan) -> SequenceExchange | None:
        """Between the ranks that share this rank's sequences under `plan`; None where it has them alone, or none."""
        group = plan.group_of(self.rank)
        if group is None or plan.sequence_ranks == 1:
            return None
        if plan.sequence_ranks not in self._exchanges:
            members = plan.members(group)
            shared = self.group if len(members) == self.ranks else _subgroup(self.group, tuple(members))
            self._exchanges[plan.sequence_ranks] = SequenceExchange(shared, self.traffic)
        return self._exchanges[plan.sequence_ranks]

    def adding(self, plan: RankPlan) -> Callable[[Tensor], None] | None:
        """Adds a tensor up, in place, over the ranks that have work under `plan`; None where this rank has none."""
        if plan.busy == 1 or plan.group_of(self.rank) is None:
            return None

        def add(values: Tensor) -> None:
            shared = self.group if plan.busy == self.ranks else _subgroup(self.group, tuple(range(plan.busy)))
            with reaching_others():
                dist.all_reduce(values, group=shared)
            self.traffic.sums += 1

        return add

    def start_request(self) -> None:
        """Forget what the last request did."""
        self.has_met = False
        self.place = 0
        self._traffic_before = replace(self.traffic)

    @contextmanager
    def sharing(self, exchange: SequenceExchange | None) -> Iterator[None]:
        """The transformer's sequences are shared inside; outside it runs alone."""
        self.sharding.exchange = exchange
        try:
            yield
        finally:
            self.sharding.exchange = None

    def first_ranks(self, value: Any) -> Any:
        """The first rank's `value`, on all ranks."""
        values = [value]
        with reaching_others():
            dist.broadcast_object_list(values, group=self.words, group_src=0)
        return values[0]

    def signal(self, value: bool = False) -> bool:
        """The first rank's `value`, on all ranks; quicker."""
        flag = torch.tensor([value], dtype=torch.uint8)
        with reaching_others():
            dist.broadcast(flag, group=self.words, group_src=0)
        return bool(flag)

    def meet(self, facts: Any = None, error: BaseException | None = None) -> None:
        """Wait for all ranks. Raises on all of them where one brings an error, or where their facts differ."""
        self.has_met = True
        reports = self._gather((facts, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        failed = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(reports) if text is not None]
        if failed:
            raise PeerError("; ".join(failed))
        differing = [rank for rank, report in enumerate(reports) if report[0] != reports[0][0]]
        if differing:
            raise PeerError(
                f"ranks {differing} were asked for something else than rank 0, or drew other noise; "
                "give all the same request, with a seed"
            )

    def settle(self, error: Exception) -> NoReturn:
        """After an error inside shared work: raise it where all ranks have one at the same place, else RankFailure."""
        try:
            # Not monitored_barrier: there only the first rank's patience ends.
            all_here = dist.barrier(self.words, async_op=True)
            assert all_here is not None
            all_here.wait(timedelta(seconds=SETTLE))
            reports = self._gather((self.place, self._begun()))
        except RuntimeError as lost:
            raise RankFailure(f"rank {self.rank} failed inside a step ({error}), the others did not: {lost}") from error
        same_place = {begun[:-1] for place, begun in reports if place == self.place}
        if len(same_place) > 1 or len({begun[-1] for _, begun in reports}) > 1:
            raise RankFailure(f"rank {self.rank} failed inside a step ({error}), the others elsewhere") from error
        raise error

    def _begun(self) -> tuple[int, ...]:
        """How many collectives of each kind this request has begun; the last kind is among all ranks."""
        before, now = self._traffic_before, self.traffic
        return tuple(
            getattr(now, kind) - getattr(before, kind) for kind in ("exchanges", "gathers", "halos", "sums", "shares")
        )

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.ranks
        with reaching_others():
            dist.all_gather_object(values, value, group=self.words)
        return values


@cache
def _subgroup(group: dist.ProcessGroup, members: tuple[int, ...], backend: str | None = None) -> dist.ProcessGroup:
    """The group of some ranks of `group`, made once: torch gives the same ranks' next group the name, and the stale
    addresses, of one that was destroyed."""
    ranks = [dist.get_global_rank(group, member) for member in members]
    made = dist.new_group(ranks, backend=backend, use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)
    return made


@dataclass(frozen=True)
class _Place:
    """What this rank does in the steps of one plan.

    group: where it works, None for an idle one. sources: which rank sends a pass to all; None: all have all.
    agree: adds a step cache's numbers up over all ranks that have work.
    """

    group: int | None
    runner: PassRunner
    exchange: SequenceExchange | None
    sources: dict[Pass, int] | None
    agree: Callable[[Tensor], None] | None


class ParallelPassRunner:
    """`PassRunner` on many ranks: each group runs its passes, and every rank gets the velocities of all."""

    def __init__(
        self,
        state: Parallelism,
        transformer: NavaTransformer3DModel,
        plan: GuidancePlan,
        encodings: PromptEncodings,
        tokens: int,
        first_frame_is_clean: bool,
        execution: Execution = EXECUTION,
    ):
        self.state = state
        self.transformer = transformer
        self.guidance_plan = plan
        self._settings = (encodings, tokens, first_frame_is_clean)
        self._execution = execution
        self._tokens = tokens
        self._contexts: TextContexts | None = None
        self._places: dict[tuple[tuple[Pass, tuple[bool, bool]], ...], _Place] = {}

    def __call__(
        self, video: Tensor | None, audio: Tensor | None, timestep: Tensor, plan: GuidancePlan | None = None
    ) -> Velocities:
        """Velocities of video (channels, frames, height, width) and audio (tokens, channels) for each pass."""
        plan = self.guidance_plan if plan is None else plan
        if not self._places:
            self._meet(video, audio)
        key = tuple((kind, plan.streams(kind)) for kind in plan.passes)
        if key not in self._places:
            self._places[key] = self._find_place(plan, video, audio)
        place = self._places[key]
        self.state.place = place.group
        cache = step_cache(self.transformer)
        if cache is not None:
            cache.agree = place.agree
        with self.state.sharing(place.exchange):
            own = place.runner(video, audio, timestep, plan)
        return own if place.sources is None else self._shared(own, place.sources, plan, video, audio)

    def _meet(self, video: Tensor | None, audio: Tensor | None) -> None:
        noise = [None if latents is None else latents.flatten()[:8].tolist() for latents in (video, audio)]
        self.state.meet((noise, self._tokens, [kind.value for kind in self.guidance_plan.passes]))

    def _find_place(self, guidance: GuidancePlan, video: Tensor | None, audio: Tensor | None) -> _Place:
        """This rank's place in the steps with these passes; all ranks come to the same plan."""
        state, passes = self.state, guidance.passes
        pass_tokens = [
            self.transformer.token_count(video if with_video else None, audio if with_audio else None)
            for with_video, with_audio in map(guidance.streams, passes)
        ]
        plan = state.forced_plan or plan_ranks(state.ranks, state.heads, pass_tokens, BATCH_BELOW_TOKENS)
        if plan.groups > len(passes):  # a forced plan, in steps with fewer passes
            plan = replace(plan, groups=len(passes))
        if plan.sequence_ranks > 1 and 2 * plan.sequence_ranks > min(pass_tokens):
            raise ValueError(f"{plan.sequence_ranks} ranks cannot share {min(pass_tokens)} tokens; plan fewer")
        if plan.sequence_ranks > 1 and self.transformer.is_cache_enabled and step_cache(self.transformer) is None:
            raise ValueError(
                "this step cache decides by each rank's own tokens, so that ranks would part; call "
                "transformer.disable_cache() and ask for Shortcuts(step_cache=...), whose ranks agree"
            )
        spread = spread_passes(pass_tokens, plan.groups)
        logger.debug("%s for passes of %s tokens", plan, pass_tokens)
        group = plan.group_of(state.rank)
        sources = None
        if plan.sequence_ranks < state.ranks:
            sources = {passes[index]: plan.members(group)[0] for group, own in enumerate(spread) for index in own}
        only = [] if group is None else [passes[index] for index in spread[group]]
        runner = PassRunner(
            self.transformer,
            guidance,
            *self._settings,
            only=only,
            execution=self._execution,
            contexts=self._contexts,
        )
        self._contexts = runner.contexts
        return _Place(group, runner, state.exchange(plan), sources, state.adding(plan))

    def _shared(
        self,
        own: Velocities,
        sources: dict[Pass, int],
        plan: GuidancePlan,
        video: Tensor | None,
        audio: Tensor | None,
    ) -> Velocities:
        """Each pass from the first rank of its group to all, both streams in one float32 tensor."""
        shared: Velocities = ({}, {})
        for kind in plan.passes:
            carried = plan.streams(kind)
            streams = [latents for latents, is_carried in zip((video, audio), carried, strict=True) if is_carried]
            sizes = [latents.numel() for latents in streams if latents is not None]
            if kind in own[0]:
                made = [velocities[kind] for velocities in own]
                buffer = torch.cat([velocity.float().flatten() for velocity in made if velocity is not None])
            else:
                buffer = self._like(video, audio).new_empty(sum(sizes), dtype=torch.float32)
            with reaching_others():
                dist.broadcast(buffer, group=self.state.group, group_src=sources[kind])
            self.state.traffic.shares += 1
            parts = iter(buffer.split(sizes))
            for velocities, latents, is_carried in zip(shared, (video, audio), carried, strict=True):
                velocities[kind] = next(parts).view(latents.shape) if is_carried and latents is not None else None
        return shared

    @staticmethod
    def _like(video: Tensor | None, audio: Tensor | None) -> Tensor:
        latents = video if video is not None else audio
        assert latents is not None
        return latents
