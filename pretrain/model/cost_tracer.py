"""What a training step computes, moves and holds, found by running it on tensors without values.

A formula would have to know every part of every model. Here shapes without memory go through the real forward
and backward pass, and each operation is written down.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.blocks import Block, CrossBlock, set_up_blocks
from kinemae.pretrain.model.flops import counter_of

PRODUCT, ATTENTION, OTHER = "product", "attention", "other"


class Operation(NamedTuple):
    """One operation on tensors.

    Attributes:
        kind: `PRODUCT` of matrices, fused `ATTENTION`, or `OTHER` (element by element, copies, sums).
        flops: of products; 0 for others.
        bytes: read and written, had it found nothing in a cache.
    """

    kind: str
    flops: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One micro-batch, forward and backward. Bytes are those beside weights, buffers and the batch itself.

    Attributes:
        held: what autograd keeps from forward for backward.
        peak: the most that is there at any moment, weights' gradients not counted.
        peak_with_gradients: the same where they are made in this very backward pass, as they are after an
            optimiser has set them to none.
        operations: of both passes, in their order; views are none.
    """

    held: int
    peak: int
    peak_with_gradients: int
    operations: tuple[Operation, ...]


def trace_step(
    build: Callable[[], MaskedAutoencoder], batch: ClipBatch, *, is_bf16: bool, recomputes: bool = False
) -> Trace:
    """Run one micro-batch on shapes alone (PyTorch's meta device).

    Attention that is fused on other devices is fused here, and products are done in bfloat16 where autocast
    would. Kinds of attention that leave pairs out go the CPU's way; FlexAttention, the GPU's, may cost less.
    Where a part has to look at values, the model is built and run for real.

    Args:
        build: makes the model, on the device that is set.
        batch: RGB clips with their tokens, on the CPU.
        is_bf16: as with `engine.precision=bf16`.
        recomputes: hold only what enters each block, and compute the block again in backward.
    """
    try:
        with torch.device("meta"):
            model = build()
        return _trace(model, batch.to(torch.device("meta")), is_bf16=is_bf16, recomputes=recomputes)
    except (NotImplementedError, RuntimeError):  # a value was asked for that shapes do not tell
        return _trace(build(), batch, is_bf16=is_bf16, recomputes=recomputes)


def _trace(model: MaskedAutoencoder, batch: ClipBatch, *, is_bf16: bool, recomputes: bool) -> Trace:
    model.train()
    set_up_blocks(model, recompute=recomputes, compiled=False)
    draws = ClipRandom(0, batch.clip_index_B)
    ledger, as_on_a_device = _Ledger(model, batch), _AsOnADevice(is_bf16=is_bf16)
    as_on_a_device.follow_into_backward(model)
    with ledger:
        with as_on_a_device:
            loss = model(batch, draws)["loss"].mean()
        as_on_a_device.forget()
        held = ledger.live
        loss.backward()
    gradients = {
        weight.grad.untyped_storage()._cdata for weight in model.parameters() if weight.grad is not None
    }
    return Trace(
        held=held,
        peak=ledger.peak(without=gradients),
        peak_with_gradients=ledger.peak(without=set()),
        operations=tuple(ledger.operations),
    )


_PRODUCTS = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm, torch.einsum}


class _AsOnADevice(TorchFunctionMode):
    """Lets shapes go the way of values: fused attention, and autocast, which the meta device lacks."""

    def __init__(self, *, is_bf16: bool):
        super().__init__()
        self._is_bf16 = is_bf16
        self._is_forward = True
        self._cast: dict[int, Tensor] = {}  # autocast converts each weight once in a forward pass

    def forget(self) -> None:
        """Let go of the converted weights, as autocast does at its end."""
        self._cast.clear()
        self._is_forward = False

    def follow_into_backward(self, model: nn.Module) -> None:
        """Let blocks that a backward pass computes again, which no mode reaches, enter one themselves."""
        for block in model.modules():
            for part in ("forward", "attend", "feed_forward"):
                if isinstance(block, Block | CrossBlock) and hasattr(block, part):
                    setattr(block, part, functools.partial(self._again, getattr(block, part)))

    def _again(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self._is_forward:
            return part(*inputs)
        with _AsOnADevice(is_bf16=self._is_bf16):
            return part(*inputs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_attention = func is F.scaled_dot_product_attention
        if self._is_bf16 and (is_attention or func in _PRODUCTS):
            args, kwargs = tree_map(self._lower, (args, kwargs))
        if is_attention and args[0].is_meta:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args[:3], attn_mask=kwargs.get("attn_mask"))[0]
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(torch.bfloat16)
        return self._cast[id(value)]


def _shares_storage(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operation moves no data, such as `_unsafe_view`, a view that is not marked as one."""
    given = {tensor.untyped_storage()._cdata for tensor in inputs}
    return not func._schema.is_mutable and all(out.untyped_storage()._cdata in given for out in outputs)


class _Ledger(TorchDispatchMode):
    """Writes down every operation, and all memory that comes and goes."""

    def __init__(self, model: nn.Module, batch: ClipBatch):
        super().__init__()
        self.live = 0
        self._there: dict[int, int] = {}
        self._changes: list[tuple[int, int]] = []  # (storage, bytes)
        self.operations: list[Operation] = []
        given = [*model.parameters(), *model.buffers(), *tree_leaves(vars(batch))]
        self._given = {tensor.untyped_storage()._cdata for tensor in given if isinstance(tensor, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        is_view = func.is_view or not outputs or _shares_storage(func, inputs, outputs)
        for output in outputs:
            self._arrive(output.untyped_storage())
        if not is_view:
            self._count(func, (args, kwargs, result), inputs, outputs)
        return result

    def _arrive(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._there or key in self._given:
            return
        self._there[key] = size
        self._change(key, size)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self._change(key, -self._there.pop(key))

    def _change(self, key: int, size: int) -> None:
        self.live += size
        self._changes.append((key, size))

    def _count(
        self, func: Any, call: tuple[Any, Any, Any], inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        args, kwargs, result = call
        kind, flops = OTHER, 0
        counter = counter_of(func)
        if counter is not None:
            kind = ATTENTION if "attention" in str(func) else PRODUCT
            flops = counter(*args, **kwargs, out_val=result)
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        self.operations.append(Operation(kind, flops, moved))

    def peak(self, *, without: set[int]) -> int:
        """The most bytes at once, those storages not counted."""
        # A storage's number may be that of an earlier one that is gone: only the last to bear it is meant.
        last = {key: place for place, (key, size) in enumerate(self._changes) if size > 0}
        live = most = 0
        for place, (key, size) in enumerate(self._changes):
            if not (key in without and place >= last[key]):
                live += size
                most = max(most, live)
        return most
