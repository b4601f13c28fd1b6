"""Muon for matrices and convolutions; embeddings, norms and biases are AdamW's.

torch.optim.Muon orthogonalises in bfloat16, which a CPU without its instructions emulates sixty times slower than
float32, and takes matrices alone, so the iteration is written here: in bfloat16 where that is fast, and for convolution
kernels too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nava_core.checkpoint import cpu_computes_in_bfloat16

# Newton-Schulz coefficients that first lift small singular values, then settle (Amsel et al., "Polar Express", 2025).
STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values of about 1, (matrices, rows, columns), in their own precision."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    x = x.bfloat16() if cpu_computes_in_bfloat16() else x
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024); kernels count as (outputs, all inputs).

    An update has the root mean square of about 0.2 x the learning rate, as AdamW's has, so that one rate serves both
    (Liu et al. 2025). Matrices of one shape are orthogonalised together, which halves the time of small ones.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for parameters in alike.values():
                directions = torch.stack([self._direction(parameter, group["momentum"]) for parameter in parameters])
                for parameter, update in zip(parameters, orthogonalised(directions), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient with the momentum behind it (Nesterov's), as a matrix."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum).flatten(1)
