"""Programs of fixed shapes: `torch.export` (.pt2), ONNX, and ONNX with int8 weights.

Each writer writes one file, each reader loads it in its runtime. The number of clips per call is any number,
or fixed.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.export.base import Run
from kinemae.finetune.export.static_model import StaticModel, tracing

INPUT = "clip"
OPSET = 20
ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
_DYNAMIC = {"If", "Loop", "Scan", "Range", "NonZero"}  # operators that fixed shapes do not need
_BIGGEST_FILE = 1_800_000_000  # bytes of weights within model.onnx; protobuf's limit is 2 GiB
_MESSAGE = 300  # characters of PyTorch's messages


def write_torch(path: Path, model: StaticModel, clips: Tensor, *, is_fixed: bool) -> None:
    """Write a program of `torch.export`.

    Args:
        clips: uint8, for tracing; at least two, unless the number is fixed.
        is_fixed: the program takes exactly as many clips.

    Raises:
        CheckpointError: the model cannot be traced with fixed shapes.
    """
    torch.export.save(_traced(model, clips, is_fixed=is_fixed), path)


def write_onnx(path: Path, model: StaticModel, clips: Tensor, *, is_fixed: bool) -> None:
    """Write an ONNX model with the opset OPSET; see `write_torch`."""
    import onnx  # fails early if it is missing

    names = list(model.output_names)
    with _quiet():
        program = torch.onnx.export(
            _traced(model, clips, is_fixed=is_fixed),
            (clips,),
            dynamo=True,
            input_names=[INPUT],
            output_names=names,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
    assert program is not None
    size = sum(value.nbytes for value in [*model.parameters(), *model.buffers()])
    program.save(path, external_data=size > _BIGGEST_FILE)
    used = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node} & _DYNAMIC
    if used:
        raise CheckpointError(
            f"{path.name}: expected no operators of dynamic shapes, got {', '.join(sorted(used))}; "
            "fix: --to torch-export"
        )


def write_int8(path: Path, model: StaticModel, clips: Tensor, *, is_fixed: bool) -> None:
    """Write an ONNX model whose linear layers have int8 weights, one scale per output channel.

    Activations are quantized at run time, with one scale for all clips of a call.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full = path.with_name("float32.onnx")
    write_onnx(full, model, clips, is_fixed=is_fixed)
    with _quiet():
        quantize_dynamic(
            full,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of two products exceed 16 bits on x86 CPUs without VNNI
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=full.with_name(f"{full.name}.data").exists(),
        )
    for file in path.parent.glob(f"{full.name}*"):
        file.unlink()


def read_torch(path: Path, names: tuple[str, ...]) -> Run:
    """Load a program of `torch.export`."""
    module = torch.export.load(path).module()

    def run(clips: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(names, module(clips), strict=True))

    return run


def read_onnx(path: Path, names: tuple[str, ...]) -> Run:
    """Load an ONNX model in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> dict[str, Tensor]:
        found = session.run(list(names), {INPUT: clips.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run


def _traced(model: StaticModel, clips: Tensor, *, is_fixed: bool) -> torch.export.ExportedProgram:
    model(clips)  # fills caches, which would keep tensors of the trace
    batch: Mapping[int, object] = {} if is_fixed else {0: torch.export.Dim("batch")}
    try:
        with tracing(), _quiet():
            return torch.export.export(model, (clips,), dynamic_shapes=(batch,), strict=False)
    except Exception as error:  # the kinds of errors of a trace are not documented
        reason = " ".join(str(error).split())[:_MESSAGE]
        raise CheckpointError(
            "--to: expected a model whose shapes do not depend on the pixels, got one that torch.export "
            f"cannot trace ({type(error).__name__}: {reason}); fix: --to kinemae"
        ) from error


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Translate a stable sort, which PyTorch's exporter lacks: TopK takes the first of equal values first."""
    from onnxscript import opset20

    op: Any = opset20  # its types do not fit its own results
    count = op.Constant(value_ints=[values.shape[dim]])
    # TopK has no int8.
    sortable = values if values.dtype.is_floating_point() else op.Cast(values, to=6)
    ordered, index = op.TopK(sortable, count, axis=dim, largest=int(descending), sorted=1)
    return op.CastLike(ordered, values), index


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress reports of the exporters, which log to the root logger."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(level)
