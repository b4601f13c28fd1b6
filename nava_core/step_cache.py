"""Steps that reuse most of an earlier one: the library's first-block cache, with one decision for all passes and ranks.

`FirstBlockCacheConfig` keeps, for each pass, what the blocks after the first added to the tokens, and adds it again
where the first block's update has hardly changed. By itself it decides for each forward call and on each rank's own
tokens. Here a step has one decision, by its first pass (the conditional one): passes are combined with weights that sum
to 1, so that errors made in all of them at once partly cancel, and ranks that exchange tokens must not part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

if TYPE_CHECKING:
    from torch import Tensor

    from nava_core.guidance import GuidancePlan
    from nava_core.models.transformer_nava import NavaTransformer3DModel

_ATTRIBUTE = "_nava_step_cache"


class StepCache:
    """Decides at each step whether the blocks after the first are run; counts what it decided.

    agree: adds up a tensor over all ranks that share the step, in place; None on one rank. computed, skipped: steps.
    """

    def __init__(self, threshold: float, state_manager: Any):
        self.threshold = threshold
        self.agree: Callable[[Tensor], None] | None = None
        self.computed = self.skipped = 0
        self._states = state_manager
        self._leads = True
        self._plan: GuidancePlan | None = None
        self._is_due: bool | None = None  # the step's decision, once it is made

    def start_step(self, plan: GuidancePlan, leads: bool) -> None:
        """The next forward call decides anew.

        leads: its first sample is the step's first pass, by which all go. With another plan than the last step's
        everything is run again: ranks may share the passes, and so the tokens, in another way.
        """
        if plan is not self._plan:
            self._states.reset()
        self._plan, self._leads = plan, leads
        self._is_due = None

    def must_compute(self, update: Tensor) -> bool:
        """Whether the blocks after the first are to be run, from what the first one added to the tokens."""
        state = self._states.get_state()
        if state.tail_block_residuals is None:  # a pass that has not been run yet, on all ranks alike
            if self._is_due is None:
                self._decide(True)
            return True
        if self._is_due is None:
            before = state.head_block_residual
            sizes = torch.stack(
                [(update - before).abs().sum(dtype=torch.float64), before.abs().sum(dtype=torch.float64)]
            )
            if self.agree is not None:
                self.agree(sizes)
            change, size = sizes.tolist()
            self._decide(change > self.threshold * size)
        assert self._is_due is not None
        return self._is_due

    def _decide(self, is_due: bool) -> None:
        self._is_due = is_due
        if is_due:
            self.computed += 1
        else:
            self.skipped += 1


def step_cache(transformer: NavaTransformer3DModel) -> StepCache | None:
    """The cache that `caching_steps` has put on the transformer."""
    return getattr(transformer, _ATTRIBUTE, None)


@contextmanager
def caching_steps(transformer: NavaTransformer3DModel, threshold: float) -> Iterator[StepCache | None]:
    """Inside, the transformer reuses steps; with a threshold of 0 it does not. For the steps of one clip.

    Raises ValueError where another cache is on.
    """
    if threshold == 0.0:
        yield None
        return
    if len(transformer.transformer_blocks) < 2:
        raise ValueError("a step cache reuses the blocks after the first, and this model has one block only")
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    registry: Any = transformer.transformer_blocks[0]._diffusers_hook
    head = registry.get_hook(_FBC_LEADER_BLOCK_HOOK)
    cache = StepCache(threshold, head.state_manager)
    head._should_compute_remaining_blocks = cache.must_compute
    setattr(transformer, _ATTRIBUTE, cache)
    try:
        yield cache
    finally:
        delattr(transformer, _ATTRIBUTE)
        transformer.disable_cache()
