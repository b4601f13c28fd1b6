"""How the passes of a step are run: choices that cost or save time and memory and change no result. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """None leaves a choice to the rule in `nava_core.passes`, which goes by the length of the sequence.

    batch_passes: whether the passes of a step share one forward call. in_turn: they do, and each block takes them one
    after another (`nava_core.offload`), so that a block's weights travel once a step and the memory is that of one
    pass. keep_text: whether the keys and values of the text are kept from step to step.
    """

    batch_passes: bool | None = None
    in_turn: bool = False
    keep_text: bool | None = None
