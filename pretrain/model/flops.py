"""FLOPs of a clip, counted from the operations of a real forward pass.

A multiplication and an addition count as two (2 * M * N * K for a matrix product). Other operations (norms,
softmax, GELU), a few per cent, are not counted. Attention counts as executed on the CPU, including masked
pairs that are computed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder

Model = TypeVar("Model", bound=nn.Module)

# PyTorch before 2.15 counts fused attention on GPUs alone; on the CPU it is the same arithmetic.
for _name in ("_scaled_dot_product_flash_attention{}", "_scaled_dot_product_flash_attention{}_backward"):
    _on_gpu, _on_cpu = (getattr(torch.ops.aten, _name.format(device)) for device in ("", "_for_cpu"))
    flop_registry.setdefault(_on_cpu, flop_registry[_on_gpu])


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one clip.

    Attributes:
        encoder: forward, with the patch embedding; also further views, and the projector of their target.
        decoder: forward, with the layer that predicts from visible tokens.
        target: the part of the target without a backward pass, for example a teacher encoder.
    """

    encoder: int
    decoder: int
    target: int

    @property
    def training(self) -> int:
        """Forward and backward; a backward pass costs twice its forward pass."""
        return 3 * (self.encoder + self.decoder) + self.target


def count_flops(model: MaskedAutoencoder, batch: ClipBatch) -> Flops:
    """Count the FLOPs of one clip of a batch.

    Runs on PyTorch's meta device, without memory or arithmetic. If a component needs values, a real forward
    pass runs on the model's device.

    Args:
        model: not modified.
        batch: clips with their tokens, as in training.
    """
    clips = len(batch.clip_index_B)
    try:
        counted = _count(on_meta_device(model), batch.to(torch.device("meta")))
    except (NotImplementedError, RuntimeError):  # an operation needs values
        counted = _count(model, batch.to(next(model.parameters()).device))
    return Flops(
        encoder=counted.encoder // clips, decoder=counted.decoder // clips, target=counted.target // clips
    )


def counter_of(operation: Any) -> Callable[..., int] | None:
    """FLOP counter of a PyTorch operation, called with its arguments and `out_val`; None for others."""
    return flop_registry.get(operation._overloadpacket)


def _count(model: MaskedAutoencoder, batch: ClipBatch) -> Flops:
    """FLOPs of all clips of a batch together."""
    draws = ClipRandom(0, batch.clip_index_B)
    with torch.enable_grad(), FlopCounterMode(display=False) as everything, _WithoutGradient() as target:
        model(batch, draws)
    by_module = everything.get_flop_counts()
    name = type(model).__name__
    decoder = sum(sum(by_module.get(f"{name}.{part}", {}).values()) for part in ("decoder", "visible_head"))
    return Flops(
        encoder=everything.get_total_flops() - decoder - target.flops, decoder=decoder, target=target.flops
    )


class _WithoutGradient(TorchDispatchMode):
    """Counts the FLOPs of operations in `torch.no_grad`."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        counter = counter_of(func)
        if counter is not None and not torch.is_grad_enabled():
            self.flops += counter(*args, **(kwargs or {}), out_val=result)
        return result


def on_meta_device(model: Model) -> Model:
    """A copy of a model on the meta device."""
    memo: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
