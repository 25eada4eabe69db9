"""AdamW for many models at once: the first dim of every tensor is the model, with its own rate and decay."""

from collections.abc import Sequence

import torch
from torch import Tensor


class BatchedAdamW:
    """Update H models in a few operations. Each model is updated as PyTorch's AdamW would update it alone.

    PyTorch's AdamW computes the changes of all models at a learning rate of 1, since its changes are
    proportional to the rate.

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
        self._changes = [torch.zeros_like(each, requires_grad=True) for each in tensors]
        self._adam = torch.optim.AdamW(self._changes, lr=1.0, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Update all tensors by their gradients, and clear the gradients.

        Args:
            factor: of the learning rates, from the schedule.
        """
        scale_H = self._clip_scale()
        for value, change in zip(self.tensors, self._changes, strict=True):
            assert value.grad is not None
            if scale_H is not None:
                value.grad.mul_(_expand(scale_H, value))
            change.zero_()
            change.grad, value.grad = value.grad, None
        self._adam.step()
        lr_H = self.lr_H * factor
        for value, change, decay_H in zip(self.tensors, self._changes, self.decay_H, strict=True):
            value.mul_(_expand(1 - lr_H * decay_H, value)).addcmul_(change, _expand(lr_H, value))

    def _clip_scale(self) -> Tensor | None:
        """Factor of each model's gradient."""
        if not self.clip_norm:
            return None
        gradients = [each.grad for each in self.tensors if each.grad is not None]
        norm_TH = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients])
        return (self.clip_norm / (torch.linalg.vector_norm(norm_TH, dim=0) + 1e-6)).clamp(max=1.0)


def _expand(values_H: Tensor, like: Tensor) -> Tensor:
    """Values per model in the shape of a tensor of all models."""
    return values_H.view(-1, *[1] * (like.dim() - 1))
