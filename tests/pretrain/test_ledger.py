"""The ledger of a step counts the operations of a real pass; the roofline predicts its time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kinemae.data_tools.devices import Gpu
from kinemae.pretrain.model.ledger import (
    ATTENTION,
    CAST,
    FUSIBLE,
    MATMUL,
    OTHER,
    TRANSFER,
    Operation,
    OperationRecorder,
    Place,
    fuse,
    trace_operations,
)
from kinemae.pretrain.roofline import Assumptions, count_by_part, ledgers, predicted_seconds
from tests.pretrain.test_cost import GRID, builder
from tests.pretrain.test_flops import blocks, clips

CLIPS, VISIBLE, TARGETS = 8, 18, 30
IN_BLOCK = Place("encoder", 1)


def ledger(**changes: object) -> list[Operation]:
    options: dict[str, Any] = {name: bool(changes.pop(name, False)) for name in ("is_bf16", "recomputes")}
    options["residual_dtype"] = changes.pop("residual_dtype", None)
    batch = partial(clips, GRID, visible=VISIBLE, wanted=TARGETS, patch=8)
    return trace_operations(builder(**changes), lambda count: batch(count=count), CLIPS, **options)


def recorded(function: Callable[[torch.Tensor], object], place: Place = IN_BLOCK) -> list[Operation]:
    """The operations of a function of 1000 float32 numbers."""
    x = torch.empty(10, 100, device="meta")
    recorder = OperationRecorder(place)
    with recorder:
        function(x)
    return recorder.operations


def flops(operations: list[Operation], part: str, kind: str = MATMUL) -> int:
    return sum(one.flops for one in operations if one.place.part == part and one.kind == kind)


def test_views_and_empty_tensors_are_no_operations() -> None:
    assert recorded(lambda x: torch.empty_like(x.view(100, 10).t()[:5].expand(2, 5, 100))) == []


@pytest.mark.parametrize(
    ("function", "kind", "moved"),
    [
        (lambda x: x + x, OTHER, 4000 + 4000),  # one tensor, read once
        (lambda x: x.expand(7, 10, 100).sum(), OTHER, 4000 + 4),
        (lambda x: x.bfloat16(), CAST, 4000 + 2000),
        (lambda x: x.t().contiguous(), OTHER, 4000 + 4000),
        (lambda x: x.add_(1), OTHER, 4000 + 4000),
        (lambda x: x.fill_(1), OTHER, 4000),
        (lambda x: x @ x.t(), MATMUL, 4000 + 400),
        (lambda x: x[torch.zeros(2, dtype=torch.int64, device="meta")], OTHER, 2 * 16 + 2 * 800),
        (lambda x: torch.zeros(5).to("meta"), TRANSFER, 20 + 20),
    ],
)
def test_an_operation_reads_its_inputs_and_writes_its_outputs(
    function: Callable[[torch.Tensor], object], kind: str, moved: int
) -> None:
    operations = recorded(function)
    assert operations[-1].kind == kind
    assert sum(one.bytes for one in operations if one.kind == kind) == moved


def test_the_ledger_has_the_flops_of_the_formulas() -> None:
    """Forward and backward; the backward pass of attention has 2.5 times the FLOPs of the forward pass."""
    operations = ledger(decoder="self")
    depth, width, tokens = 4, 96, VISIBLE
    attention = depth * 4 * tokens**2 * width
    assert flops(operations, "encoder") == 3 * CLIPS * (blocks(depth, width, tokens) - attention)
    assert flops(operations, "encoder", ATTENTION) == pytest.approx(3.5 * CLIPS * attention)
    # The pixels have no gradient.
    assert flops(operations, "embedding") == 2 * CLIPS * 2 * tokens * 2 * 8 * 8 * 3 * width
    assert flops(operations, "target") == flops(operations, "loss") == 0


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_each_part_has_its_forward_and_backward_pass(decoder: str) -> None:
    counts = count_by_part(ledger(decoder=decoder), CLIPS)
    assert list(counts) == ["input", "embedding", "encoder", "decoder", "target", "loss", "all"]
    forward_only = {"input", "target"}
    for part in counts:
        assert counts[part]["operations"] > 0 and counts[part]["elementwise_bytes"] > 0, part
        assert (counts[part]["matmul_flops"] == 0) == (part in {*forward_only, "loss"}), part
    assert counts["all"]["operations"] == sum(counts[part]["operations"] for part in counts if part != "all")


def test_only_mixed_precision_casts_in_blocks() -> None:
    casts = [
        sum(one.kind == CAST for one in ledger(is_bf16=is_bf16) if one.place.part in ("encoder", "decoder"))
        for is_bf16 in (False, True)
    ]
    assert casts[0] == 0 < casts[1]


def test_activation_checkpointing_repeats_the_forward_pass_of_blocks() -> None:
    plain, again = (ledger(recomputes=recomputes) for recomputes in (False, True))
    assert flops(again, "encoder") == pytest.approx(4 / 3 * flops(plain, "encoder"), rel=0.1)
    assert flops(again, "embedding") == flops(plain, "embedding")


def test_an_attention_that_needs_values_has_a_ledger() -> None:
    from kinemae.data_tools.components import Component

    operations = ledger(attention=Component(name="divided"))
    assert flops(operations, "encoder") > flops(ledger(), "encoder")  # two attentions in each block


def chain(x: torch.Tensor) -> torch.Tensor:
    return ((2 * x).exp() + 1).bfloat16()


def test_a_chain_in_a_block_is_one_kernel_that_reads_and_writes_once() -> None:
    assert len(recorded(chain)) == 4
    [kernel] = fuse(recorded(chain))
    assert kernel.bytes == 4000 + 2000 and kernel.place == IN_BLOCK


def test_matrix_products_places_and_eager_operations_end_a_chain() -> None:
    products = fuse(recorded(lambda x: chain(chain(x) @ chain(x).t())))
    assert [one.kind for one in products] == [OTHER, MATMUL, OTHER]
    # Both chains of the first kernel read x, and the product reads both results.
    assert products[0].bytes == 4000 + 2 * 2000
    eager = recorded(chain, Place("loss"))
    assert fuse(eager) == eager
    two_blocks = [*recorded(chain), *recorded(chain, Place("encoder", 2))]
    assert len(fuse(two_blocks)) == 2


def test_a_tensor_that_a_later_operation_reads_is_written() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        hidden = x.exp()
        product = (hidden + 1) @ x.t()
        return product.sum() + hidden.sum()

    assert fuse(recorded(function))[0].bytes == 4000 + 2 * 4000


def test_a_later_kernel_reads_the_source_of_an_upcast_that_is_stored() -> None:
    def function(half: torch.Tensor) -> torch.Tensor:
        wide = half.float()
        product = (wide + 1) @ wide.t()
        return product.sum() + (2 * wide).sum()

    half = torch.empty(10, 100, dtype=torch.bfloat16, device="meta")
    first, product, last = fuse(recorded(lambda x: function(half)))
    assert first.bytes == 2000 + 2 * 4000  # the product reads both results
    assert last.bytes == product.writes.popitem()[1] + 2000 + 4


def test_a_cast_whose_result_no_kernel_reads_is_not_run() -> None:
    def function(half: torch.Tensor) -> torch.Tensor:
        product = half @ half.t()
        wide = half.float()
        return product.sum() + (2 * (product @ half)).sum() + wide.sum()

    half = torch.empty(10, 100, dtype=torch.bfloat16, device="meta")
    kernels = fuse(recorded(lambda x: function(half)))
    assert sum(one.kind == CAST for one in kernels) == 0


def test_compiled_parts_move_less_and_compute_the_same() -> None:
    found = ledgers(ledger(is_bf16=True))
    eager, compiled, everything = (
        count_by_part(found[name], CLIPS)["all"] for name in ("eager", "compiled", "all_compiled")
    )
    for name in ("operations", "casts", "elementwise_bytes"):
        assert everything[name] < compiled[name] < eager[name], name
    assert compiled["matmul_flops"] == eager["matmul_flops"] == everything["matmul_flops"]
    assert not any(one.kind == TRANSFER for one in found["all_compiled"])


def test_conversion_target_and_loss_are_compiled_graphs() -> None:
    in_parts = {
        part: {one.place.region for one in ledger() if one.place.part == part and one.kind != TRANSFER}
        for part in ("input", "target", "loss")
    }
    assert in_parts["input"] == {-1} and len(in_parts["target"]) == 1 and 0 not in in_parts["target"]
    assert in_parts["target"] < in_parts["loss"] == {0, *in_parts["target"]}  # the mean over clips is eager


def test_a_bf16_residual_stream_moves_less_in_compiled_blocks() -> None:
    moved = [
        count_by_part(fuse(ledger(is_bf16=True, residual_dtype=dtype)), CLIPS)["encoder"]["elementwise_bytes"]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert moved[1] < 0.97 * moved[0]


def test_the_roofline_takes_the_longer_of_arithmetic_and_traffic() -> None:
    gpu = Gpu(fp32_tflops=10, bf16_tflops=100, memory_gb=80, bandwidth_gb_s=1000)
    assumed = Assumptions(matmul=0.5, attention=0.25, bandwidth=0.5, launch_us=1000, transfer_gb_s=10)

    def seconds(kind: str, flops: float, read: float, written: float) -> float:
        one = Operation(Place("encoder"), kind, int(flops), {0: int(read)}, {1: int(written)})
        found = predicted_seconds([one], gpu, "bf16", assumed)
        assert found["host"] == 1e-3
        return found["device"]

    assert seconds(MATMUL, 50e12, 1, 1) == pytest.approx(1)
    assert seconds(ATTENTION, 50e12, 1, 1) == pytest.approx(2)
    assert seconds(MATMUL, 1, 1e12, 0.5e12) == pytest.approx(3)
    assert seconds(FUSIBLE[0], 0, 250e9, 250e9) == pytest.approx(1)
    assert seconds(TRANSFER, 0, 10e9, 10e9) == pytest.approx(1)
