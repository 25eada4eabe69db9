"""How much arithmetic a clip costs, counted from what is really computed rather than from a formula.

A multiplication and an addition are two (2 * M * N * K for a product of matrices), as in the literature; what
is no product of matrices (norms, softmax, GELU) is not counted, being a few per cent. Attention counts as it
is done on the CPU: where pairs are computed and thrown away, they count.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder

# PyTorch before 2.15 counts fused attention on GPUs alone; on the CPU it is the same arithmetic.
for _name in ("_scaled_dot_product_flash_attention{}", "_scaled_dot_product_flash_attention{}_backward"):
    _on_gpu, _on_cpu = (getattr(torch.ops.aten, _name.format(device)) for device in ("", "_for_cpu"))
    flop_registry.setdefault(_on_cpu, flop_registry[_on_gpu])


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating point operations of one clip.

    Attributes:
        encoder: forward, embedding included.
        decoder: forward, and likewise the layer that predicts from visible tokens.
        target: what the target computes, for example with a copy of the encoder; it has no backward.
    """

    encoder: int
    decoder: int
    target: int

    @property
    def training(self) -> int:
        """Of forward and backward: a backward is twice its forward."""
        return 3 * (self.encoder + self.decoder) + self.target


def count_flops(model: MaskedAutoencoder, batch: ClipBatch) -> Flops:
    """Count what one clip of a batch costs.

    Works on shapes alone (PyTorch's meta device), so that the size of the model costs nothing; where a part
    has to look at values, a real forward pass runs where the model is.

    Args:
        model: stays as it is, whatever weights and device it has.
        batch: clips with their tokens, as training gets them.
    """
    clips = len(batch.clip_index_B)
    try:
        counted = _count(_on_meta(model), batch.to(torch.device("meta")))
    except (NotImplementedError, RuntimeError):  # a value was asked for that shapes do not tell
        counted = _count(model, batch.to(next(model.parameters()).device))
    return Flops(
        encoder=counted.encoder // clips, decoder=counted.decoder // clips, target=counted.target // clips
    )


def counter_of(operation: Any) -> Callable[..., int] | None:
    """What counts an operation of PyTorch's, called with its arguments and `out_val`; None for no product."""
    return flop_registry.get(operation._overloadpacket)


def _count(model: MaskedAutoencoder, batch: ClipBatch) -> Flops:
    """The same for all clips of a batch together."""
    draws = ClipRandom(0, batch.clip_index_B)
    with torch.no_grad():
        with FlopCounterMode(display=False) as predicting:
            model.predict(batch, draws)
        with FlopCounterMode(display=False) as everything:
            model(batch, draws)
    by_module = everything.get_flop_counts()
    name = type(model).__name__
    decoder = sum(sum(by_module.get(f"{name}.{part}", {}).values()) for part in ("decoder", "visible_head"))
    return Flops(
        encoder=predicting.get_total_flops() - decoder,
        decoder=decoder,
        target=everything.get_total_flops() - predicting.get_total_flops(),
    )


def _on_meta(model: MaskedAutoencoder) -> MaskedAutoencoder:
    """A copy of a model without its values."""
    memo: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
