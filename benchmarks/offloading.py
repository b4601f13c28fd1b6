"""Row 10: bytes that block offload moves to the device in a step of all passes, over the bytes of the blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.catalogue import row
from benchmarks.harness import Row
from benchmarks.subject import make_inputs, make_model
from nava_core.execution import Execution
from nava_core.guidance import Pass, plan_guidance
from nava_core.offload import offload_blocks
from nava_core.passes import PassRunner, PromptEncodings
from nava_core.request import Guidance

STEPS = 3
CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "ffn_dim": 256,
    "text_dim": 32,
    "text_len": 16,
    "num_layers": 2,
    "num_single_layers": 4,
}
"""Small: what is counted does not depend on the width."""


@torch.no_grad()
def offload_part(budget: float) -> list[Row]:
    """Four passes a step, picture and sound with a voice; outputs equal those without offload."""
    expected, _ = _run(None)
    actual, counter = _run(torch.device("cpu"))
    exact = all(torch.equal(actual[kind], expected[kind]) for kind in expected)
    ratio = counter.bytes_onloaded / STEPS / counter.block_bytes
    detail = {
        "summary": f"{len(expected)} passes a step, {counter.trips / STEPS:g} trips to the device for "
        f"{CONFIG['num_layers'] + CONFIG['num_single_layers']} blocks, counted on the CPU at a small width; outputs "
        f"{'equal bit for bit' if exact else 'DIFFER'}",
        "bytes_a_step": counter.bytes_onloaded / STEPS,
        "block_bytes": counter.block_bytes,
        "trips_a_step": counter.trips / STEPS,
        "exact": exact,
    }
    return [row("offload", ratio, detail, holds=exact and ratio == 1.0)]


def _run(device: torch.device | None) -> tuple[dict[Pass, Tensor], Any]:
    """Velocities of the picture in the last of `STEPS` steps, and what was counted."""
    model = make_model(torch.float32, **CONFIG)
    inputs = make_inputs(model, (3, 8, 8), 7)
    assert inputs.video is not None and inputs.audio is not None
    plan = plan_guidance(Guidance(video=3, audio=2, video_align=3, audio_align=2, timbre=3), "audio_video", True)
    draw = torch.Generator().manual_seed(2)
    negative, speakers = torch.randn(inputs.text[0].shape, generator=draw), torch.randn(1, 192, generator=draw)
    encodings = PromptEncodings(inputs.text[0], negative, speakers, (3,))
    tokens = model.token_count(inputs.video, inputs.audio)
    counter = None if device is None else offload_blocks(model, device)
    runner = PassRunner(model, plan, encodings, tokens, False, execution=Execution(in_turn=True))
    for _ in range(STEPS):
        velocities, _ = runner(inputs.video[0], inputs.audio[0], inputs.timestep)
    return {kind: rows for kind, rows in velocities.items() if rows is not None}, counter
