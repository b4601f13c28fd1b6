"""Rows 1 to 4: one pass of the backbone at its true width, against the official structure and bare operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.catalogue import row
from benchmarks.harness import Row, paired, processor_seconds
from benchmarks.machine import compute_dtype, dtype_name, processor_name
from benchmarks.memory import peak_tensor_bytes
from benchmarks.official import Costs, OfficialBlock, OfficialPass
from benchmarks.operators import Call, OperatorClock, Unreckoned, replay
from benchmarks.subject import (
    SMALL,
    TOLERANCE,
    WHOLE_MODEL,
    Inputs,
    Streams,
    largest_error,
    make_inputs,
    make_model,
)
from nava_core.models.attention_nava import NavaTextContext
from nava_core.models.transformer_nava import NavaTransformer3DModel

FAST = 1e12  # operations a second of one core with AMX in bfloat16, for what is calculated
STEPS = 50  # for which a prompt is projected once


def where() -> str:
    return f"{dtype_name(compute_dtype())}, one thread, {processor_name()}"


@torch.no_grad()
def pass_part(budget: float) -> list[Row]:
    """Row 1: official structure / ours, one pass."""
    model = make_model()
    inputs, small = make_inputs(model), make_inputs(model, *SMALL)
    official, ours = Watched(OfficialPass(model)), WatchedModel(model, inputs)
    official.official(small)
    ours.model_pass(small)
    official.forget()
    ours.forget()
    pairs = paired(lambda: official(inputs), lambda: ours(inputs), budget)
    error = largest_error(official.output, ours.output)
    count, (slow, fast) = len(pairs.first), pairs.medians
    shares = {name: spent / count for name, spent in official.official.ledger.seconds.items()}
    for name, spent in _with_every_switch_off(model, inputs, small).items():
        shares[name] = (shares.get(name, 0.0) - spent) / slow
    overheads = [side.overhead / count for side in (official, ours)]
    flops = [side.clock.flops / count for side in (official, ours)]
    whole_model = official.whole_model(slow, count) / ours.whole_model(fast, count)
    in_bfloat16 = bfloat16_overheads()
    detail = {
        "summary": f"{slow:.2f} s against {fast:.2f} s a pass of {_tokens(inputs):,} tokens ({where()}), of these "
        f"{_seconds(overheads)} outside products; of the official pass {_percentages(shares)}; in bfloat16 "
        f"{_seconds(in_bfloat16['seconds'])} outside products, so {calculated(flops, in_bfloat16['seconds']):.2f} with "
        f"products at 1 TFLOP/s (calculated); {whole_model:.2f} for 30 layers (calculated)",
        "official_seconds": slow,
        "our_seconds": fast,
        "pairs": count,
        "shares": shares,
        "largest_difference": error,
        "tolerance": TOLERANCE[model.dtype],
        "official_overhead_seconds": overheads[0],
        "our_overhead_seconds": overheads[1],
        "official_tflop": flops[0] / 1e12,
        "our_tflop": flops[1] / 1e12,
        "bfloat16_overheads": in_bfloat16,
        "calculated_at_1_tflops": calculated(flops, overheads),
        "calculated_at_1_tflops_in_bfloat16": calculated(flops, in_bfloat16["seconds"]),
        "calculated_for_30_layers": whole_model,
        "tokens": _tokens(inputs),
    }
    return [row("pass", pairs.ratio, detail, pairs.spread, holds=error < TOLERANCE[model.dtype])]


def calculated(flops: list[float], overheads: list[float]) -> float:
    """The ratio of two passes whose products run at `FAST` and whose other seconds are as measured."""
    slow, fast = (products / FAST + others for products, others in zip(flops, overheads, strict=True))
    return slow / fast


def bfloat16_overheads(**config: Any) -> dict[str, Any]:
    """Seconds of a bfloat16 pass (official structure, ours) outside products and attention, which are not computed.

    Measured on any processor; one that emulates bfloat16 is slow at products alone. With what of it is due to each
    switch of the official structure.
    """
    model = make_model(torch.bfloat16, **config)
    inputs = make_inputs(model) if not config else make_inputs(model, (3, 8, 8), 7)
    with Unreckoned():
        official, ours = Watched(OfficialPass(model)), WatchedModel(model, inputs)
        official(inputs)
        ours(inputs)
        official.forget()
        ours.forget()
        pairs = paired(lambda: official(inputs), lambda: ours(inputs), 5.0, at_least=3)
    count = len(pairs.first)
    return {
        "seconds": [side.overhead / count for side in (official, ours)],
        "of_each_switch": {name: spent / count for name, spent in official.official.ledger.seconds.items()},
    }


def _with_every_switch_off(model: NavaTransformer3DModel, inputs: Inputs, small: Inputs) -> dict[str, float]:
    """What the same entries of the ledger cost where nothing is done the costly way."""
    plain = OfficialPass(model, Costs.none())
    plain(small)
    plain.ledger.seconds.clear()
    plain(inputs)
    return plain.ledger.seconds


def _seconds(both: list[float]) -> str:
    return f"{both[0]:.2f} and {both[1]:.2f} s"


def _percentages(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items())


class Watched:
    """The official structure's passes, with the processor seconds inside heavy operators and inside each block."""

    def __init__(self, official: OfficialPass):
        self.official = official
        self.output: Streams = (None, None)
        self.forget()

    def forget(self) -> None:
        self.clock, self.seconds = OperatorClock(), 0.0
        self.official.ledger.seconds.clear()
        self.official.block_seconds = [0.0] * len(self.official.layers)

    def __call__(self, inputs: Inputs) -> None:
        with self.clock:
            self.seconds += processor_seconds(lambda: self._run(inputs))

    def _run(self, inputs: Inputs) -> None:
        self.output = self.official(inputs)

    @property
    def block_seconds(self) -> list[float]:
        return self.official.block_seconds

    @property
    def overhead(self) -> float:
        """Seconds outside heavy operators, of all passes."""
        return self.seconds - self.clock.seconds

    def whole_model(self, seconds: float, passes: int) -> float:
        """Calculated seconds of a pass of all layers, from one that took `seconds` with one of each kind."""
        blocks = [spent / passes for spent in self.block_seconds]
        return seconds - sum(blocks) + sum(count * block for count, block in zip(WHOLE_MODEL, blocks, strict=True))


class WatchedModel(Watched):
    """Our passes in the same way; the text is projected once, before."""

    def __init__(self, model: NavaTransformer3DModel, inputs: Inputs):
        self.model = model
        self.context = model.encode_context(inputs.text)
        self.output = (None, None)
        self._blocks = [0.0] * len(model.transformer_blocks)
        self.forget()

    def forget(self) -> None:
        self.clock, self.seconds = OperatorClock(), 0.0
        self._blocks = [0.0] * len(self._blocks)

    def model_pass(self, inputs: Inputs) -> Streams:
        return inputs.ours(self.model, self.context)

    def _run(self, inputs: Inputs) -> None:
        with _timed_blocks(self.model, self._blocks):
            self.output = self.model_pass(inputs)

    @property
    def block_seconds(self) -> list[float]:
        return self._blocks


@contextmanager
def _timed_blocks(model: NavaTransformer3DModel, seconds: list[float]) -> Iterator[None]:
    """Adds to `seconds` what each block takes."""
    started = [0.0]

    def before(*_: Any) -> None:
        started[0] = time.process_time()

    def after(index: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            seconds[index] += time.process_time() - started[0]

        return note

    hooks = []
    for index, block in enumerate(model.transformer_blocks):
        hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after(index))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def bare_part(budget: float) -> list[Row]:
    """Row 2: ours / the bare products, attention and GELU of the same shapes."""
    model = make_model()
    inputs, small = make_inputs(model), make_inputs(model, *SMALL)
    context = model.encode_context(inputs.text)
    run_bare = replay(heavy_calls(model, inputs))
    small.ours(model, context)
    replay(heavy_calls(model, small))()
    clock = OperatorClock()

    def ours_watched() -> None:
        with clock:
            inputs.ours(model, context)

    pairs = paired(ours_watched, run_bare, budget)
    ours, bare = pairs.medians
    overhead = sum(pairs.first) / len(pairs.first) - clock.seconds / len(pairs.first)
    tflop = sum(call.flops for call in heavy_calls(model, inputs)) / 1e12
    in_bfloat16 = bfloat16_overheads()["seconds"][1]
    detail = {
        "summary": f"{ours:.2f} s against {bare:.2f} s bare, a pass of {_tokens(inputs):,} tokens ({where()}), "
        f"products at {tflop / bare * 1000:.0f} GFLOP/s; outside them {overhead:.2f} s, in bfloat16 "
        f"{in_bfloat16:.2f} s, so {calculated([tflop * 1e12] * 2, [in_bfloat16, 0.0]):.2f} with products at 1 "
        "TFLOP/s (calculated, with this processor's overhead)",
        "our_seconds": ours,
        "bare_seconds": bare,
        "overhead_seconds": overhead,
        "bfloat16_overhead_seconds": in_bfloat16,
        "pairs": len(pairs.first),
        "tflop": tflop,
        "tokens": _tokens(inputs),
    }
    return [row("bare", pairs.ratio, detail, pairs.spread)]


@torch.no_grad()
def heavy_calls(model: NavaTransformer3DModel, inputs: Inputs) -> list[Call]:
    """What our pass calls when the text has been projected before, found on shapes alone."""
    shapes = make_model(model.dtype, "meta", **_sizes(model))
    on_meta = Inputs(*(None if x is None else x.to("meta") for x in vars(inputs).values()))  # type: ignore[arg-type]
    context = shapes.encode_context(on_meta.text)
    on_meta.ours(shapes, context)
    with OperatorClock() as clock:
        on_meta.ours(shapes, context)
    return clock.calls


def _sizes(model: NavaTransformer3DModel) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


@torch.no_grad()
def fixed_part(budget: float) -> list[Row]:
    """Row 3: what a pass spends on time and text before and beside its tokens, official structure / ours."""
    model = make_model()
    inputs = make_inputs(model)
    tokens, official = _tokens(inputs), OfficialPass(model)
    assert inputs.video is not None
    video_tokens = model.token_count(inputs.video, None)

    def official_fixed() -> None:
        official.embed_time(inputs.timestep, torch.Size((1, tokens)), clean=0)
        text = official.embed_text(inputs.text, None)
        for index in range(len(official.layers)):
            block = OfficialBlock(official, index, video_tokens)
            for suffix, _, _ in block.runs(tokens):
                block.text_rows("k", suffix, text)
                block.text_rows("v", suffix, text)

    def our_time() -> None:
        model._embed_time(inputs.timestep, second=None)

    def our_text() -> None:
        project_text(model, model.encode_context(inputs.text))

    our_time()
    official.embed_time(inputs.timestep, torch.Size((1, 8)), clean=0)
    text_seconds = processor_seconds(our_text)
    pairs = paired(official_fixed, our_time, budget, at_least=3)
    ratios = type(pairs)(pairs.first, [spent + text_seconds / STEPS for spent in pairs.second])
    slow, fast = ratios.medians
    detail = {
        "summary": f"{slow:.2f} s against {fast:.3f} s for {tokens:,} tokens and two layers ({where()}); ours holds a "
        f"{STEPS}th of the {text_seconds:.2f} s in which a prompt is projected once for all steps",
        "official_seconds": slow,
        "our_seconds": fast,
        "our_text_seconds_per_prompt": text_seconds,
        "pairs": len(pairs.first),
        "tokens": tokens,
    }
    return [row("fixed", ratios.ratio, detail, ratios.spread)]


def project_text(model: NavaTransformer3DModel, context: NavaTextContext) -> None:
    """Keys and values of the text in all layers."""
    blocks: Any = model.transformer_blocks
    for block in blocks:
        for stream in range(block.streams):
            context.key_value(block.cross_attn, stream)


@torch.no_grad()
def memory_part(budget: float) -> list[Row]:
    """Row 4: peak memory above the weights, official structure / ours."""
    peaks = {name: pass_peaks(dtype) for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))}
    official, ours = peaks["bfloat16"]
    tokens = _tokens(make_inputs(make_model(device="meta")))
    detail = {
        "summary": f"{official / 2**20:.0f} MiB against {ours / 2**20:.0f} MiB in a pass of {tokens:,} tokens in "
        f"bfloat16, counted by torch's allocator while products are allocated and not computed; in float32 "
        f"{peaks['float32'][0] / peaks['float32'][1]:.2f}",
        "peak_bytes": {name: {"official": pair[0], "ours": pair[1]} for name, pair in peaks.items()},
        "tokens": tokens,
    }
    return [row("memory", official / ours, detail)]


def pass_peaks(dtype: torch.dtype, **config: Any) -> tuple[int, int]:
    """Bytes of the official structure and of ours; the text's projections are counted on both sides."""
    model = make_model(dtype, **config)
    inputs = make_inputs(model) if not config else make_inputs(model, (3, 8, 8), 7)
    official = OfficialPass(model)

    def ours() -> None:
        inputs.ours(model, model.encode_context(inputs.text))

    ours_once, official_once = (lambda: inputs.ours(model)), (lambda: official(inputs))
    peaks = []
    for warm, action in ((official_once, official_once), (ours_once, ours)):
        with Unreckoned():
            warm()  # tables that are kept from pass to pass are no part of a peak
            peaks.append(peak_tensor_bytes(action))
    return peaks[0], peaks[1]


def _tokens(inputs: Inputs) -> int:
    frames, height, width = (0, 0, 0) if inputs.video is None else inputs.video.shape[2:]
    audio: Tensor | None = inputs.audio
    return frames * height * width // 4 + (0 if audio is None else audio.shape[1])
