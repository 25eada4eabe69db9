"""Ledger of a micro-batch: its operations in order, with memory traffic and FLOPs, by part of the model.

The real forward and backward pass runs on the meta device, and each operation that is no view is recorded.
"""

import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, on_device
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.blocks import Compilable, set_up_blocks
from kinemae.pretrain.model.cost_tracer import EmulatedDevice
from kinemae.pretrain.model.flops import counter_of

MATMUL, ATTENTION, CAST, TRANSFER, OTHER = "matmul", "attention", "cast", "transfer", "other"
FUSIBLE = (CAST, OTHER)

_EAGER_REGION, _CONVERSION = 0, -1
_LOOKUPS = {"index", "gather", "index_select", "embedding"}  # read only the rows that they return
_NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_OVERWRITES = {"copy_", "fill_", "zero_"}


class Place(NamedTuple):
    """Where an operation belongs.

    Attributes:
        part: "input" (copy to the device, conversion to RGB), "embedding", "encoder", "decoder", "target"
            (true values), "loss" or "update".
        region: number of the graph that `engine.compile` compiles; 0 outside of graphs.
    """

    part: str
    region: int = _EAGER_REGION


class Operation(NamedTuple):
    """One operation on tensors, one kernel on a GPU.

    Attributes:
        kind: `MATMUL`, fused `ATTENTION`, `CAST` (another dtype), `TRANSFER` (from host memory) or `OTHER`
            (elementwise operations, reductions, copies).
        flops: of matrix products and attention; 0 for others.
        reads, writes: bytes by number of the tensor, without caches.
    """

    place: Place
    kind: str
    flops: int
    reads: dict[int, int]
    writes: dict[int, int]

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())

    def scaled(self, factor: float) -> "Operation":
        """The operation on more clips."""
        reads, writes = (
            {number: round(factor * size) for number, size in sizes.items()}
            for sizes in (self.reads, self.writes)
        )
        return self._replace(flops=round(factor * self.flops), reads=reads, writes=writes)


def trace_operations(
    build: Callable[[], MaskedAutoencoder],
    clips_of: Callable[[int], ClipBatch],
    clips: int,
    *,
    is_bf16: bool,
    recomputes: bool,
    residual_dtype: torch.dtype | None = None,
) -> list[Operation]:
    """Trace a micro-batch from the copy of its planes to the last gradient.

    If a component needs values, two clips are run on the default device and their bytes and FLOPs scaled, so
    that weights count once for each two clips. See also `trace_step`.

    Args:
        build: builds the model on the current default device.
        clips_of: makes a batch of RGB clips with their tokens on the CPU.
        is_bf16: emulate `engine.precision=bf16`.
        recomputes, residual_dtype: see `set_up_blocks`.
    """
    trace = functools.partial(_trace, is_bf16=is_bf16, recomputes=recomputes, residual_dtype=residual_dtype)
    meta = torch.device("meta")
    try:
        with meta:
            model = build()
        run = trace(model, clips_of(clips).to(meta))
    except (NotImplementedError, RuntimeError):  # an operation needs values
        few = trace(build(), clips_of(2))
        run = [operation.scaled(clips / 2) for operation in few]
    frames, size = clips_of(1).clip_BCTHW.shape[2:4]
    return [*_trace_input(YuvClips.empty(clips, frames, size)), *run]


def _trace_input(planes: YuvClips) -> list[Operation]:
    recorder = OperationRecorder(Place("input"))

    def convert(planes: Pixels) -> Tensor:
        assert isinstance(planes, YuvClips)
        with recorder.at(Place("input", _CONVERSION)):
            return planes.rgb_at_once()

    with recorder:
        on_device(planes, torch.device("meta"), convert=convert)
    return recorder.operations


def _trace(
    model: MaskedAutoencoder,
    batch: ClipBatch,
    *,
    is_bf16: bool,
    recomputes: bool,
    residual_dtype: torch.dtype | None,
) -> list[Operation]:
    model.train()
    set_up_blocks(model, recompute=recomputes, compiled=False, residual_dtype=residual_dtype)
    recorder, emulated = OperationRecorder(Place("embedding")), EmulatedDevice(is_bf16=is_bf16)
    emulated.follow_into_backward(model)
    recorder.follow(model)
    for weight in model.parameters():  # at ZeRO 0 gradients are added to zeros
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with recorder:
        with emulated:
            values = model(batch, ClipRandom(0, batch.clip_index_B))
            with recorder.at(Place("loss")):
                loss = values["loss"].mean()
        emulated.forget()
        recorder.is_forward = False
        loss.backward()
    return recorder.operations


class OperationRecorder(TorchDispatchMode):
    """Records operations with the place at which they run.

    The backward pass of an operation has the place of its forward pass: `at` marks the nodes of the graph
    that a function call has added.
    """

    _next = itertools.count()  # of all recorders: a ledger may have several

    def __init__(self, place: Place):
        super().__init__()
        self.operations: list[Operation] = []
        self.is_forward = True
        self._place = place
        self._numbers: dict[int, int] = {}  # of storages that live
        self._regions = itertools.count(_EAGER_REGION + 1)
        self._marked: set[Any] = set()

    def follow(self, model: MaskedAutoencoder) -> None:
        """Follow the calls of the parts of a model."""
        for part in model.modules():
            if isinstance(part, Compilable):
                self._follow(part, "forward", None)
        self._follow(model.encoder, "embed", "embedding")
        self._follow(model.encoder, "encode", "encoder")
        self._follow(model.target, "losses", "loss")
        for head in (model.decoder, model.visible_head):
            if head is not None:
                self._follow(head, "forward", "decoder")

    def _follow(self, owner: nn.Module, name: str, part: str | None) -> None:
        """Follow a method: the operations of a part, or without a part those of a compiled graph."""
        region = _EAGER_REGION if part is not None else next(self._regions)
        setattr(owner, name, functools.partial(self._call, getattr(owner, name), part, region))

    def _call(
        self, function: Callable[..., Any], part: str | None, region: int, *args: Any, **kwargs: Any
    ) -> Any:
        given = {leaf.grad_fn for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        place = Place(part or self._place.part, region or self._place.region)
        with self.at(place):
            result = function(*args, **kwargs)
        leaves = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self._mark([leaf.grad_fn for leaf in leaves], given, place)
        return result

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Record operations at a place."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def _mark(self, nodes: list[Any], given: set[Any], place: Place) -> None:
        """Mark the nodes of the graph between the result and the arguments of a call."""
        while nodes:
            node = nodes.pop()
            if node is None or node in given or node in self._marked:
                continue
            self._marked.add(node)
            is_gradient = "AccumulateGrad" in node.name()  # outside of compiled graphs
            where = place._replace(region=_EAGER_REGION) if is_gradient else place
            node.register_prehook(functools.partial(self._enter, where))
            nodes.extend(following for following, _ in node.next_functions)

    def _enter(self, place: Place, gradients: Any) -> None:
        self._place = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = {self._number(tensor) for tensor in inputs}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = func._overloadpacket.__name__
        is_mutable = func._schema.is_mutable
        # Not all views are marked as such, for example `_unsafe_view`.
        is_view = func.is_view or all(self._number(output) in sources for output in outputs)
        if (is_mutable or not is_view) and outputs and name not in _NO_KERNEL:
            counter = counter_of(func)
            flops = 0 if counter is None else counter(*args, **kwargs, out_val=result)
            kind = _kind(func, inputs, outputs, is_counted=counter is not None)
            self._record(name, kind, flops, inputs, outputs)
        return result

    def _record(self, name: str, kind: str, flops: int, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        place = self._place
        if place.part == "loss" and self.is_forward and not torch.is_grad_enabled():
            place = place._replace(part="target")
        writes = {self._number(tensor): _bytes(tensor) for tensor in outputs}
        if name in _LOOKUPS:
            most = max(writes.values())
            reads = {self._number(tensor): min(_bytes(tensor), most) for tensor in inputs}
        else:
            first = 1 if name in _OVERWRITES else 0
            reads = {self._number(tensor): _bytes(tensor) for tensor in inputs[first:]}
        self.operations.append(Operation(place, kind, flops, reads, writes))

    def _number(self, tensor: Tensor) -> int:
        """Number of a tensor's storage; other than ids of storages, numbers are not used again."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._numbers:
            self._numbers[storage._cdata] = next(self._next)
            weakref.finalize(storage, self._numbers.pop, storage._cdata, None)
        return self._numbers[storage._cdata]


def _kind(func: Any, inputs: list[Tensor], outputs: list[Tensor], *, is_counted: bool) -> str:
    if is_counted:
        return ATTENTION if "attention" in str(func) else MATMUL
    if "copy" not in str(func):
        return OTHER
    source, copied = inputs[-1], outputs[0]
    if source.device != copied.device:
        return TRANSFER
    return OTHER if source.dtype == copied.dtype else CAST


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded one is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def fuse(operations: Iterable[Operation]) -> list[Operation]:
    """The operations with `engine.compile`.

    In a compiled graph a chain of successive casts and other operations between matrix products and attention
    is one kernel. It reads each tensor from outside of the chain once, and writes each tensor that a later
    operation reads once. Instead of the result of a cast to a wider dtype, later kernels read its source if
    that is in memory. All other operations stay as they are.
    """
    operations = list(operations)
    changes = (_chain(*one) != _chain(*two) for one, two in itertools.pairwise(enumerate(operations)))
    chains = list(itertools.accumulate(changes, initial=0))
    unread = {number: -1 for one in operations for number in one.reads}
    operations = _repeat_upcasts(operations, chains)
    last_read = unread | {number: place for place, one in enumerate(operations) for number in one.reads}
    grouped = itertools.groupby(zip(chains, enumerate(operations), strict=True), key=lambda pair: pair[0])
    return [kernel for _, group in grouped for kernel in _kernels([one for _, one in group], last_read)]


def _chain(index: int, operation: Operation) -> tuple[int, int]:
    """Equal for successive operations of one chain."""
    return operation.place.region, -1 if _is_fused(operation) else index


def _is_fused(operation: Operation) -> bool:
    return operation.place.region != _EAGER_REGION and operation.kind in FUSIBLE


def _repeat_upcasts(operations: list[Operation], chains: list[int]) -> list[Operation]:
    """Let compiled kernels read the sources of casts to a wider dtype, where these are stored anyway."""
    writers = Counter(number for one in operations for number in one.writes)
    made_in = {number: chain for chain, one in zip(chains, operations, strict=True) for number in one.writes}
    read_in = {number: chain for chain, one in zip(chains, operations, strict=True) for number in one.reads}
    sources: dict[int, tuple[int, int]] = {}  # number and bytes, by the number of the cast tensor
    found = []
    for chain, one in zip(chains, operations, strict=True):
        if _is_fused(one):
            one = one._replace(reads=dict(sources.get(pair[0], pair) for pair in one.reads.items()))
        found.append(one)
        if one.kind == CAST and _is_fused(one):
            [(source, narrow)], [(number, wide)] = one.reads.items(), one.writes.items()
            is_stored = made_in.get(source) != chain or read_in[source] > chain
            if narrow < wide and writers[number] == 1 and is_stored:  # not changed in place
                sources[number] = source, narrow
    return found


def _kernels(chain: list[tuple[int, Operation]], last_read: dict[int, int]) -> list[Operation]:
    first, end = chain[0][1], chain[-1][0]
    if not _is_fused(first):
        return [first]
    reads: dict[int, int] = {}
    written: dict[int, int] = {}
    for _, operation in chain:
        reads |= {number: size for number, size in operation.reads.items() if number not in written}
        written |= operation.writes
    writes = {number: size for number, size in written.items() if last_read.get(number, end + 1) > end}
    kind = first.kind if len(chain) == 1 else OTHER
    return [Operation(first.place, kind, 0, reads, writes)] if writes else []
