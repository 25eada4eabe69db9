"""Trace of the memory of a training step.

The real forward and backward pass runs on the meta device, and each allocation is recorded.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.blocks import Block, CrossBlock, set_up_blocks


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One micro-batch, forward and backward. Bytes exclude weights, buffers and the batch.

    Attributes:
        held: tensors saved for the backward pass.
        peak: maximum of live bytes, without gradients of weights.
    """

    held: int
    peak: int


def trace_step(
    build: Callable[[], nn.Module],
    batch: ClipBatch,
    *,
    is_bf16: bool,
    recomputes: bool = False,
    residual_dtype: torch.dtype | None = None,
) -> Trace:
    """Trace one micro-batch on PyTorch's meta device.

    Fused attention and autocast are emulated. Attention kinds other than joint use their CPU backend; the
    GPU's FlexAttention may cost less. If a component needs values, the model is built and run on the default
    device.

    Args:
        build: builds the model on the current default device; `model(batch, draws)` returns per-clip values,
            "loss" among them.
        batch: RGB clips with their tokens, on the CPU.
        is_bf16: emulate `engine.precision=bf16`.
        recomputes, residual_dtype: see `set_up_blocks`.
    """

    def set_up() -> nn.Module:
        model = build().train()
        set_up_blocks(model, recompute=recomputes, compiled=False, residual_dtype=residual_dtype)
        return model

    try:
        with torch.device("meta"):
            model = set_up()
        return _trace(model, batch.to(torch.device("meta")), is_bf16=is_bf16)
    except (NotImplementedError, RuntimeError):  # an operation needs values
        return _trace(set_up(), batch, is_bf16=is_bf16)


def _trace(model: nn.Module, batch: ClipBatch, *, is_bf16: bool) -> Trace:
    draws = ClipRandom(0, batch.clip_index_B)
    recorder, emulated = _Recorder(model, batch), EmulatedDevice(is_bf16=is_bf16)
    emulated.follow_into_backward(model)
    with recorder:
        with emulated:
            loss = model(batch, draws)["loss"].mean()
        emulated.forget()
        held = recorder.live
        loss.backward()
    gradients = {
        weight.grad.untyped_storage()._cdata for weight in model.parameters() if weight.grad is not None
    }
    return Trace(held=held, peak=recorder.peak(without=gradients))


_PRODUCTS = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm, torch.einsum}


class EmulatedDevice(TorchFunctionMode):
    """Emulates fused attention and autocast, which the meta device lacks."""

    def __init__(self, *, is_bf16: bool):
        super().__init__()
        self._is_bf16 = is_bf16
        self._is_forward = True
        self._cast: dict[int, Tensor] = {}  # autocast casts each weight once per forward pass

    def forget(self) -> None:
        """Drop the cast weights, as autocast does when it exits."""
        self._cast.clear()
        self._is_forward = False

    def follow_into_backward(self, model: nn.Module) -> None:
        """Enter the mode in recomputed blocks, since the backward pass runs outside of it."""
        for block in model.modules():
            for part in ("forward", "attend", "feed_forward"):
                if isinstance(block, Block | CrossBlock) and hasattr(block, part):
                    setattr(block, part, functools.partial(self._again, getattr(block, part)))

    def _again(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self._is_forward:
            return part(*inputs)
        with EmulatedDevice(is_bf16=self._is_bf16):
            return part(*inputs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_attention = func is F.scaled_dot_product_attention
        if self._is_bf16 and (is_attention or func in _PRODUCTS):
            args, kwargs = tree_map(self._lower, (args, kwargs))
        if self._is_bf16 and func is F.layer_norm:  # autocast computes it in float32
            args = (args[0].float(), *args[1:])
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


class _Recorder(TorchDispatchMode):
    """Records all allocations and releases."""

    def __init__(self, model: nn.Module, batch: ClipBatch):
        super().__init__()
        self.live = 0
        self._sizes: dict[int, int] = {}
        self._changes: list[tuple[int, int]] = []  # (storage, bytes)
        given = [*model.parameters(), *model.buffers(), *tree_leaves(vars(batch))]
        self._given = {tensor.untyped_storage()._cdata for tensor in given if isinstance(tensor, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                self._allocate(output.untyped_storage())
        return result

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes or key in self._given:
            return
        self._sizes[key] = size
        self._change(key, size)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._change(key, -self._sizes.pop(key))

    def _change(self, key: int, size: int) -> None:
        self.live += size
        self._changes.append((key, size))

    def peak(self, *, without: set[int]) -> int:
        """Maximum of live bytes, excluding these storages."""
        # Storage ids are reused: only the last storage with an id is excluded.
        last = {key: place for place, (key, size) in enumerate(self._changes) if size > 0}
        live = most = 0
        for place, (key, size) in enumerate(self._changes):
            if not (key in without and place >= last[key]):
                live += size
                most = max(most, live)
        return most
