"""AdamW for many models at once: the first dim of every tensor is the model, with its own rate and decay."""

from collections.abc import Sequence

import torch
from torch import Tensor


class BatchedAdamW:
    """Update H models in a few operations. Each model is updated as PyTorch's AdamW would update it alone.

    Args:
        tensors: parameters with the models as the first dim.
        lr_H, weight_decay_H: peak learning rate and weight decay of each model.
        is_decayed: whether weight decay applies, for each tensor.
        clip_norm: largest gradient norm of each model; 0 for no clipping.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        lr_H: Tensor,
        weight_decay_H: Tensor,
        is_decayed: Sequence[bool],
        clip_norm: float,
    ):
        self.tensors = list(tensors)
        self.lr_H = lr_H
        self.decay_H = [weight_decay_H * float(decayed) for decayed in is_decayed]
        self.clip_norm = clip_norm
        self.betas, self.eps = (0.9, 0.999), 1e-8
        self.steps = 0
        self._first = [torch.zeros_like(each) for each in tensors]
        self._second = [torch.zeros_like(each) for each in tensors]

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Update all tensors by their gradients, and clear the gradients.

        Args:
            factor: of the learning rates, from the schedule.
        """
        self.steps += 1
        low, high = self.betas
        corrections = 1 - low**self.steps, 1 - high**self.steps
        gradients = [each.grad for each in self.tensors if each.grad is not None]
        scale_H = self._clip_scale(gradients)
        lr_H = self.lr_H * factor
        for number, (value, gradient) in enumerate(zip(self.tensors, gradients, strict=True)):
            if scale_H is not None:
                gradient.mul_(_expand(scale_H, value))
            first, second = self._first[number], self._second[number]
            first.lerp_(gradient, 1 - low)
            second.mul_(high).addcmul_(gradient, gradient, value=1 - high)
            value.mul_(_expand(1 - lr_H * self.decay_H[number], value))
            # The learning rate is in the divisor, which saves passes over memory.
            rate_H = lr_H / corrections[0]
            slope, offset = (
                _expand(1 / (rate_H * corrections[1] ** 0.5), value),
                _expand(self.eps / rate_H, value),
            )
            value.addcdiv_(first, torch.addcmul(offset, second.sqrt(), slope), value=-1)
        for value in self.tensors:
            value.grad = None

    def _clip_scale(self, gradients: Sequence[Tensor]) -> Tensor | None:
        if not self.clip_norm:
            return None
        square_H = sum(gradient.square().flatten(1).sum(dim=1) for gradient in gradients)
        assert isinstance(square_H, Tensor)
        return (self.clip_norm / (square_H.sqrt() + 1e-6)).clamp(max=1.0)


def _expand(values_H: Tensor, like: Tensor) -> Tensor:
    """Values per model in the shape of a tensor of all models."""
    return values_H.view(-1, *[1] * (like.dim() - 1))
