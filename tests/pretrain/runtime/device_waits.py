"""Count the operations in which the host waits for a CUDA device; the count needs no device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class DeviceWaits:
    """Record the waits and the scalar sums over processes of the code inside a `with` block.

    A wait is an operation that reads values on the host, one whose result has a size that depends on values,
    or a copy between devices that is not asynchronous. The last kind needs two devices, such as a CUDA device
    of `FakeTensorMode`. The backward pass and the optimizer are included.

    Args:
        device: type of the device for which waits count; "cpu" to count as if the CPU were a CUDA device.

    Attributes:
        waits: the operations, in order.
        scalar_sums: number of exchanges of single values.
        copies: number of asynchronous copies from the host.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.waits: list[str] = []
        self.scalar_sums = self.copies = 0
        self._modes = (_Operations(self), _Reads(self))

    def __enter__(self) -> "DeviceWaits":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    """Operations below autograd."""

    def __init__(self, found: DeviceWaits):
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        is_there = any(x.device.type == self._found.device for x in _tensors(inputs))
        if is_there and _depends_on_values(function, inputs, named):
            self._found.waits.append(str(function))
        if function.namespace == "c10d" and all(x.numel() == 1 for x in _tensors(inputs)):
            self._found.scalar_sums += 1
        result = function(*inputs, **named)
        if function in _COPIES:
            source = inputs[0] if function is torch.ops.aten._to_copy.default else inputs[1]
            self._count_copy(str(function), source, result, named.get("non_blocking") or True in inputs[2:])
        return result

    def _count_copy(self, name: str, source: Tensor, result: Tensor, is_asynchronous: bool) -> None:
        if source.device == result.device:
            return
        if is_asynchronous and source.device.type == "cpu":
            self._found.copies += 1
        else:
            self._found.waits.append(f"{name} from {source.device.type} to {result.device.type}")


class _Reads(TorchFunctionMode):
    """Reads of values that are no operation if the tensor is on the CPU."""

    def __init__(self, found: DeviceWaits):
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        inputs: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        if function in _READS and inputs[0].device.type == self._found.device == "cpu":
            self._found.waits.append(function.__name__)
        return function(*inputs, **(named or {}))


def _depends_on_values(function: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    name = function.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):  # by a mask
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in inputs[1])
    if name == "repeat_interleave":
        return named.get("output_size") is None
    return bool(_WAITING_TAGS & set(function.tags))


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    flat = [x for given in inputs for x in (given if isinstance(given, list | tuple) else [given])]
    return [x for x in flat if isinstance(x, Tensor)]
