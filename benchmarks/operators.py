"""The heavy operators of a pass: matrix products, convolutions, attention, GELU.

`OperatorClock` watches a pass and notes what it calls; `replay` runs exactly these calls bare, with nothing between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

HEAVY: dict[Any, str] = {
    F.linear: "linear",
    torch.conv1d: "convolution",
    torch.conv3d: "convolution",
    F.scaled_dot_product_attention: "attention",
    F.gelu: "gelu",
}


@dataclass(frozen=True)
class Form:
    """A tensor's shape and type, in its place among a call's arguments."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Call:
    """One call of a heavy operator, with a `Form` in place of each tensor."""

    function: Any
    arguments: tuple[Any, ...]
    structure: TreeSpec

    @classmethod
    def of(cls, function: Any, args: Any, options: Any) -> Call:
        leaves, structure = tree_flatten((args, options))
        forms = [Form(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
        return cls(function, tuple(forms), structure)

    @property
    def flops(self) -> float:
        """Floating-point operations of its products; 0 for GELU."""
        shapes = [form.shape for form in self.arguments if isinstance(form, Form)]
        kind = HEAVY[self.function]
        if kind == "linear":
            return 2.0 * math.prod(shapes[0]) * shapes[1][0]
        if kind == "attention":
            return 4.0 * math.prod(shapes[0]) * shapes[1][-2]
        if kind == "convolution":  # whose stride is its kernel, as in a patch embedding
            return 2.0 * math.prod(shapes[0]) * shapes[1][0]
        return 0.0

    def bound(self, make: Callable[[Form], Tensor]) -> Callable[[], Tensor]:
        """The call on tensors that `make` gives."""
        leaves = [make(form) if isinstance(form, Form) else form for form in self.arguments]
        args, options = tree_unflatten(leaves, self.structure)
        return lambda: self.function(*args, **options)


@dataclass
class OperatorClock(TorchFunctionMode):
    """While it is active: the heavy calls, and the processor seconds that passed inside them."""

    calls: list[Call] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func not in HEAVY:
            return func(*args, **options)
        self.calls.append(Call.of(func, args, options))
        started = time.process_time()
        result = func(*args, **options)
        self.seconds += time.process_time() - started
        return result

    @property
    def flops(self) -> float:
        return sum(call.flops for call in self.calls)


def replay(calls: Iterable[Call]) -> Callable[[], None]:
    """A function that runs the calls one after another on random tensors, made here once.

    Every call has weights of its own, as in a model: read again, they would come from a cache.
    """

    def make(form: Form) -> Tensor:
        return torch.empty(form.shape).uniform_(-0.03, 0.03).to(form.dtype)

    bound = [call.bound(make) for call in calls]

    @torch.no_grad()
    def run() -> None:
        for call in bound:
            call()

    return run


class Unreckoned(TorchFunctionMode):
    """While it is active, products and attention get their result's memory and leave it as it is.

    Everything else runs, so that what a pass allocates can be seen without waiting for its products.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, options = HEAVY.get(func), kwargs or {}
        if kind == "linear":
            return args[0].new_empty(*args[0].shape[:-1], args[1].shape[0])
        if kind == "attention":
            query, _, value = (args or (options["query"], options["key"], options["value"]))[:3]
            # As torch's own on a CPU: (batch, tokens, heads, dim) in memory, seen as (batch, heads, tokens, dim).
            batch, heads, tokens, _ = query.shape
            return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        return func(*args, **options)
