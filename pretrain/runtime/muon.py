"""Muon: momentum orthogonalized by a Newton-Schulz iteration, for hidden matrices; AdamW for other weights.

Sources: K. Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024), for the iteration, its
constants and the momentum; arXiv 2502.16982, section 2.2, for the scale of the update.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_FUSED = {"qkv": 3, "kv": 2}  # layers whose weight holds several matrices


def stacked_matrices(name: str, weight: nn.Parameter) -> int:
    """Number of hidden matrices that a weight of a block holds one upon the other; 0 for other weights."""
    *parents, layer, kind = ("", "", *name.split("."))
    is_hidden = "blocks" in parents and kind == "weight" and weight.ndim == 2
    return _FUSED.get(layer, 1) if is_hidden else 0


class MuonAdamW(torch.optim.AdamW):
    """AdamW that updates the groups with "muon" above 0 by Muon, as so many stacked matrices.

    With the gradient g, the momentum m = 0.95 m + 0.05 g and the learning rate lr, a matrix W of A x B values
    changes by -lr (0.2 sqrt(max(A, B)) NewtonSchulz(0.95 m + 0.05 g) + weight_decay W). The factor gives the
    update the size of an AdamW update. `exp_avg` holds the momentum; `exp_avg_sq` stays 0.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights; with `found_inf` above 0 nothing changes, as in fused AdamW."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        loss = super().step(closure)
        self.param_groups = groups
        matrices = defaultdict(list)  # of one shape: iterated together
        for group in groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    update, factor = self._momentum(weight, group), self._factor()
                    weight.mul_(1 - factor * group["lr"] * group["weight_decay"])
                    for matrix, own in zip(
                        weight.chunk(group["muon"]), update.chunk(group["muon"]), strict=True
                    ):
                        matrices[own.shape].append((matrix, own, factor * group["lr"]))
        for shape, of_shape in matrices.items():
            updates = orthogonalize(torch.stack([update for _, update, _ in of_shape]))
            for (matrix, _, rate), update in zip(of_shape, updates, strict=True):
                matrix.sub_(update * (rate * 0.2 * max(shape) ** 0.5))
        return loss

    def _factor(self) -> Tensor | float:
        """1, or 0 if the gradient is not finite; on the device, without a synchronization."""
        found_inf = getattr(self, "found_inf", None)
        return 1.0 if found_inf is None else 1 - found_inf

    def _momentum(self, weight: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Update the momentum; return it with Nesterov's look ahead."""
        assert weight.grad is not None
        state, factor = self.state[weight], self._factor()
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        gradient = weight.grad.nan_to_num(0.0, 0.0, 0.0)
        state["step"] += factor
        state["exp_avg"].lerp_(gradient, torch.as_tensor(factor * (1 - _MOMENTUM)).to(gradient))
        return gradient.lerp(state["exp_avg"], _MOMENTUM)


def orthogonalize(matrix_XAB: Tensor) -> Tensor:
    """Move the singular values of each matrix to about 1, by the quintic Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    is_tall = matrix_XAB.shape[1] > matrix_XAB.shape[2]
    x_XAB = matrix_XAB.mT if is_tall else matrix_XAB
    x_XAB = x_XAB / x_XAB.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram_XAA = x_XAB @ x_XAB.mT
        x_XAB = a * x_XAB + (b * gram_XAA + c * gram_XAA @ gram_XAA) @ x_XAB
    return x_XAB.mT if is_tall else x_XAB


def muon_flops(weight: nn.Parameter, matrices: int) -> int:
    """FLOPs of the Newton-Schulz iterations of a weight that holds some matrices."""
    rows, columns = weight.shape[0] // matrices, weight.shape[1]
    short, long = sorted((rows, columns))
    return matrices * _ITERATIONS * 2 * short * short * (2 * long + short)


def iteration_flops(module: nn.Module) -> int:
    """FLOPs of the Newton-Schulz iterations of an update of all trained weights."""
    hidden = ((weight, stacked_matrices(name, weight)) for name, weight in module.named_parameters())
    return sum(muon_flops(weight, count) for weight, count in hidden if count and weight.requires_grad)
