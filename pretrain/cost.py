"""`kinemae pretrain cost CONFIG [a.b=c]`: parameters, FLOPs and memory of a run, for each clip.

The model runs on the meta device: shards and memory for weights are not needed. With `--memory-gb` the memory
of a device is estimated too. `kinemae launch plan` reads the result.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kinemae.data_tools.command import DataError
from kinemae.data_tools.conditions import select_rows
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.index import NO_LABEL, open_index
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.builders import block_settings, build_components, build_model, token_selection
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost_text import as_text
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.cost_tracer import trace_step
from kinemae.pretrain.model.flops import Flops, count_flops
from kinemae.pretrain.model.ledger import MATMUL, OTHER, Operation, Place, trace_operations
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.roofline import count_by_part, ledgers, predict
from kinemae.pretrain.runtime.engine import setting_obstacle
from kinemae.pretrain.runtime.memory import Machine, on_machine, run_values, state_counts
from kinemae.pretrain.runtime.muon import iteration_flops
from kinemae.pretrain.runtime.settings import OptimConfig, residual_dtype_on
from kinemae.pretrain.token_selection import TokenSelection

UPDATE_FLOPS = 16
"""FLOPs of fused AdamW for each value: moving averages, corrections, root, division, decay and clipping."""

AVERAGE_FLOPS = 3
"""FLOPs of an exponential moving average for each value: a difference, a product and a sum."""

_EXAMINED_STEPS = 100
_AVERAGED_STEPS = 1000
_WEIGHTS = -1  # number of their tensor in the ledger; recorded ones have numbers from 0


def run_cost(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    cost = measure_cost(config, _machine(arguments, is_cpu=config.engine.device == "cpu"))
    sys.stdout.write((json.dumps(cost) if arguments.json else as_text(cost)) + "\n")


def _machine(arguments: argparse.Namespace, *, is_cpu: bool) -> Machine | None:
    """The machine of the options; None without `--memory-gb`."""
    names = ("processes", "memory_gb", "process_gb", "allocator_overhead")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if not given:
        return None
    require("memory_gb" in given, "--memory-gb", "be given with the other options of the machine", None)
    numbers = {name: _number(f"--{name.replace('_', '-')}", text) for name, text in given.items()}
    processes = numbers.pop("processes", 1)
    require(processes >= 1 and processes % 1 == 0, "--processes", "be a whole number above 0", processes)
    return Machine(processes=int(processes), is_cpu=is_cpu, **numbers)


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_good = 0 < value < math.inf or (value == 0 and option == "--allocator-overhead")
    require(is_good, option, "be a number above 0", text)
    return value


def measure_cost(config: PretrainConfig, machine: Machine | None = None) -> dict[str, Any]:
    """The costs of a config, for JSON.

    "tokens" are for one mask of a clip, "flops" for a clip with all its masks. "plain" and "recomputed"
    (activation checkpointing) hold lines through the bytes of a `Trace` ("held", "peak"). "ledger" counts the
    operations of a step of one micro-batch, and "prediction" is its speed by a roofline model
    (`roofline.py`). If the mask ratio changes, the values are those of the most expensive of the first steps.
    With a machine, the result also has what `on_machine` returns.

    Raises:
        ValueError: the config cannot be run; the message names the key.
    """
    build, split = _parts(config)
    step = _most_expensive_step(config, split)
    clips_of = partial(_clips, config, split, step * config.batch.global_clips)
    visible, target_count = split.counts(step)
    with torch.device("meta"):
        model = build()
    cost = _memory_cost(config, model, build, clips_of)
    parameters, iterations = cost["parameters"], _iteration_flops(build, config.optim)
    flops = _flops(build, clips_of(1), parameters, iterations)
    of_machine = {} if machine is None else on_machine(cost, machine)
    is_chosen = config.batch.is_auto and machine is not None
    clips = of_machine["batch"]["micro"] if is_chosen else config.batch.fixed_clips
    clips = min(clips, config.batch.global_clips)
    update = _update_operations(parameters, iterations)
    return {
        **cost,
        "tokens": {
            "grid": split.grid.tokens,
            "masks": split.masks,
            "visible": visible,
            "encoded": split.encoded(step),
            "predicted": target_count if model.decoder is not None else 0,
        },
        "flops": flops,
        **_ledger(build, config, clips_of, clips, flops=flops, update=update),
        "data": _data(config),
        **of_machine,
    }


def memory_cost(config: PretrainConfig) -> dict[str, Any]:
    """The parts of `measure_cost` that the memory model reads: "run", "parameters", "plain", "recomputed"."""
    build, _ = _parts(config)
    with torch.device("meta"):
        model = build()
    return _memory_cost(config, model, build, black_clips(config))


def _memory_cost(
    config: PretrainConfig,
    model: MaskedAutoencoder,
    build: Callable[[], MaskedAutoencoder],
    clips_of: Callable[[int], ClipBatch],
) -> dict[str, Any]:
    """See `memory_cost`; `model` is on the meta device."""
    return {
        "run": _run(config),
        "parameters": parameter_counts(model, has_average=config.ema.decay > 0),
        **trace_memory(
            build,
            clips_of,
            is_bf16=_precision(config) == "bf16",
            residual_dtype=_residual_dtype(config),
        ),
    }


def black_clips(config: PretrainConfig) -> Callable[[int], ClipBatch]:
    """The function that makes a number of black clips, with the tokens of the most expensive first step."""
    _, split = _parts(config)
    step = _most_expensive_step(config, split)
    return partial(_clips, config, split, step * config.batch.global_clips)


def _most_expensive_step(config: PretrainConfig, split: TokenSelection) -> int:
    return max(range(min(config.steps, _EXAMINED_STEPS)), key=lambda step: sum(split.counts(step)))


def training_flops(config: PretrainConfig) -> int:
    """The training FLOPs of one clip. If the masks of the steps differ, the mean over many steps."""
    return _mean_flops(config, *_parts(config))


def step_flops(config: PretrainConfig) -> int:
    """The training FLOPs of one step: of its clips, and of Muon's iterations."""
    build, split = _parts(config)
    of_clips = config.batch.global_clips * _mean_flops(config, build, split)
    return of_clips + _iteration_flops(build, config.optim)


def _mean_flops(config: PretrainConfig, build: Callable[[], MaskedAutoencoder], split: TokenSelection) -> int:
    """See `training_flops`."""
    alike: dict[tuple[tuple[int, int], int], list[int]] = defaultdict(list)
    for step in range(_AVERAGED_STEPS):
        alike[split.counts(step), split.encoded(step)].append(step)
    total = 0
    for steps in alike.values():
        clip = _clips(config, split, steps[0] * config.batch.global_clips, 1)
        total += len(steps) * _clip_flops(build, clip).training
    return total // _AVERAGED_STEPS


def _parts(config: PretrainConfig) -> tuple[Callable[[], MaskedAutoencoder], TokenSelection]:
    """The function that builds the model, and the token selection."""
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    components = build_components(config, grid)
    return lambda: build_model(config, grid, components), token_selection(config, grid, components)


def _clip_flops(build: Callable[[], MaskedAutoencoder], clip: ClipBatch) -> Flops:
    """FLOPs of one clip on the meta device, or with real weights if a component needs values."""
    try:
        with torch.device("meta"):
            model = build()
        return count_flops(model, clip)
    except (NotImplementedError, RuntimeError):
        return count_flops(build(), clip)


def _iteration_flops(build: Callable[[], MaskedAutoencoder], optim: OptimConfig) -> int:
    """FLOPs of Muon's iterations in an update."""
    if optim.optimizer != "muon":
        return 0
    with torch.device("meta"):
        return iteration_flops(build())


def _flops(
    build: Callable[[], MaskedAutoencoder], clip: ClipBatch, parameters: dict[str, int], iterations: int
) -> dict[str, int]:
    """FLOPs of one clip, and of an update of all weights."""
    flops = _clip_flops(build, clip)
    return {
        **asdict(flops),
        "forward": flops.encoder + flops.decoder + flops.target,
        "backward": 2 * (flops.encoder + flops.decoder),
        "training": flops.training,
        "update": UPDATE_FLOPS * parameters["trainable"]
        + AVERAGE_FLOPS * parameters["averaged"]
        + iterations,
    }


def _precision(config: PretrainConfig) -> str:
    """The precision to assume; "auto" is that of a GPU unless the config names the CPU."""
    if config.engine.precision != "auto":
        return config.engine.precision
    return "fp32" if config.engine.device == "cpu" else "bf16"


def _residual_dtype(config: PretrainConfig) -> torch.dtype:
    """The dtype of the residual stream to assume, as for `_precision`.

    Raises:
        ValueError: bf16 in an fp32 run.
    """
    device = torch.device("cpu" if config.engine.device == "cpu" else "cuda")
    return residual_dtype_on(replace(config.engine, precision=_precision(config)), device)


def _grad_reduce_dtype(config: PretrainConfig) -> str:
    """The dtype of the gradient reduction to assume, as for `_precision`."""
    if config.engine.grad_reduce_dtype != "auto":
        return config.engine.grad_reduce_dtype
    return "fp32" if config.engine.device == "cpu" else _precision(config)


def _compiles(config: PretrainConfig) -> bool:
    """Whether to assume compiled blocks; "auto" as for `_precision`."""
    if config.engine.compile != "auto":
        return config.engine.compile == "true"
    is_cpu = config.engine.device == "cpu"
    return not is_cpu and setting_obstacle(config.engine, block_settings(config)) is None


def _run(config: PretrainConfig) -> dict[str, Any]:
    """The config values that a plan uses."""
    engine = replace(config.engine, precision=_precision(config))
    return {
        **run_values(engine, config.clip, grad_reduce_dtype=_grad_reduce_dtype(config)),
        "run_dir": config.run_dir,
        "steps": config.steps,
        "global_clips": config.batch.global_clips,
        "clips_per_device": config.batch.clips_per_device,
        "views_per_video": config.data.views_per_video,
        "num_workers": config.data.num_workers,
        "compiles": _compiles(config),
        "keep_checkpoints": config.keep_checkpoints,
        "frames": config.clip.frames,
        "size": config.clip.size,
    }


def parameter_counts(model: MaskedAutoencoder, *, has_average: bool = False) -> dict[str, int]:
    """Parameter counts, without a frozen teacher (`unsaved_bytes`); see also `state_counts`."""
    of = {
        name: _size(getattr(model, name, None)) for name in ("encoder", "decoder", "visible_head", "target")
    }
    of_average = 0
    if has_average:
        of_average = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # A target's moving average of the encoder is read and written at each update.
    of_target = sum(weight.numel() for weight in model.target.parameters() if not weight.requires_grad)
    return {
        "encoder": of["encoder"],
        "decoder": of["decoder"] + of["visible_head"],
        "target": of["target"],
        "averaged": of_target + of_average,
        **state_counts(model, unsaved_bytes=model.target.unsaved_bytes(), averaged=of_average),
    }


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(weight.numel() for weight in module.parameters())


def _clips(config: PretrainConfig, split: TokenSelection, first_clip: int, count: int) -> ClipBatch:
    """Black clips with their token lists."""
    clip = config.clip
    luma_THW = torch.zeros(clip.frames, clip.size, clip.size, dtype=torch.uint8)
    tokens = split(luma_THW, first_clip)
    return ClipBatch(
        pixels=torch.zeros(count, 3, clip.frames, clip.size, clip.size, dtype=torch.uint8),
        clip_index_B=torch.arange(first_clip, first_clip + count),
        label_B=torch.full((count,), NO_LABEL),
        weight_B=torch.ones(count),
        tokens={name: torch.stack([index] * count) for name, index in tokens.items()},
    )


def trace_memory(
    build: Callable[[], nn.Module],
    clips: Callable[[int], ClipBatch],
    *,
    is_bf16: bool,
    residual_dtype: torch.dtype,
    multiple_of: int = 1,
) -> dict[str, dict[str, dict[str, int]]]:
    """Trace two micro-batches on the meta device, "plain" and "recomputed"; fit a line through their values.

    Args:
        build, is_bf16, residual_dtype: see `trace_step`.
        clips: makes a micro-batch of a number of clips.
        multiple_of: that number is a multiple of this.
    """
    # One clip costs a part of the difference, since a batch of one is a special case.
    low = multiple_of * math.ceil(2 / multiple_of)
    counts = (low, 2 * low)
    lines = {}
    for name, recomputes in (("plain", False), ("recomputed", True)):
        few, many = (
            trace_step(
                build,
                clips(count),
                is_bf16=is_bf16,
                recomputes=recomputes,
                residual_dtype=residual_dtype,
            )
            for count in counts
        )
        lines[name] = {key: _line(getattr(few, key), getattr(many, key), counts) for key in ("held", "peak")}
    return lines


def _ledger(
    build: Callable[[], MaskedAutoencoder],
    config: PretrainConfig,
    clips_of: Callable[[int], ClipBatch],
    clips: int,
    *,
    flops: dict[str, int],
    update: list[Operation],
) -> dict[str, Any]:
    """The ledger of a step of one micro-batch and its update, and the speed that follows from it."""
    operations = trace_operations(
        build,
        clips_of,
        clips,
        is_bf16=_precision(config) == "bf16",
        recomputes=config.engine.activation_checkpointing,
        residual_dtype=_residual_dtype(config),
    )
    variants = ledgers([*operations, *update])
    counts = {name: count_by_part(variants[name], clips) for name in ("eager", "compiled")}
    prediction = predict(variants, clips=clips, clip_flops=flops["training"], precision=_precision(config))
    return {"ledger": {"clips": clips, **counts}, "prediction": prediction}


def _update_operations(parameters: dict[str, int], iterations: int) -> list[Operation]:
    """The operations of an update of float32 weights, each on all weights at once.

    The gradient's norm, its clipping, fused AdamW (reads four values, writes three), moving averages, the
    matrix products of Muon, and the gradient set to zero.
    """
    trained, averaged = 4 * parameters["trainable"], 4 * parameters["averaged"]
    moved = [(trained, 0), (trained, trained), (4 * trained, 3 * trained), (0, trained)]
    moved += [(2 * averaged, averaged)] if averaged else []
    place = Place("update")
    elementwise = [
        Operation(place, OTHER, 0, {_WEIGHTS: read}, {_WEIGHTS: written}) for read, written in moved
    ]
    return [*elementwise, *([Operation(place, MATMUL, iterations, {}, {})] if iterations else [])]


def _line(low: int, high: int, counts: tuple[int, int]) -> dict[str, int]:
    """Bytes that grow with the micro-batch, fixed + per_clip * clips, from those of two numbers of clips."""
    per_clip = math.ceil((high - low) / (counts[1] - counts[0]))
    return {"fixed": low - counts[0] * per_clip, "per_clip": per_clip}


def _data(config: PretrainConfig) -> dict[str, float] | None:
    """Number and size of the stored videos; None if they are not on this machine."""
    if config.data.shards is None:
        return None
    try:
        index = select_rows(open_index(config.data.shards, cache=config.data.cache), config.data.where)
    except DataError:
        return None
    return {"videos": len(index), "bytes_per_video": float(index.column("length").mean())}
