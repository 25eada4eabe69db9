"""Benchmark the throughput of pretraining on the device at hand, beside transformers' VideoMAE.

    python -m tests.benchmarks.throughput --json result.json --minutes 6    # base and large
    python -m tests.benchmarks.throughput --sizes giant --clips 16 32
    python -m tests.benchmarks.throughput --tiny                            # every section on a CPU

Sections, each of which `--only` selects:

- `device`: the largest rate of a matrix product, and of a copy in memory.
- `models`: forward and backward of a micro-batch (tube mask of 0.9): `VideoMAEForPreTraining` with fused
  attention; our model with the same mathematics, with dual masking, and with the cross-attention decoder on a
  half and a quarter of the hidden tokens; each eager and compiled, at several micro-batches.
- `engine`: a whole step with the update: a plain loop of PyTorch, and the engine at ZeRO 0 to 3.
- `run`: `kinemae pretrain` with its loader on synthetic videos, with its fraction of waiting for data.

Models take turns, so that a busy machine affects all alike; the table shows medians, and the JSON also the
lowest and the highest value. On CUDA, times are wall-clock times of several steps between two
synchronizations, in bf16; on the CPU, CPU times in float32. The MFU is relative to the matrix product that
was measured, and to the data sheet if the GPU is known. After `--minutes`, further measurements are omitted
and counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinemae.data_tools.devices import find_gpu
from kinemae.pretrain.model import flops  # noqa: F401 - registers the FLOPs of attention on the CPU
from kinemae.pretrain.model.blocks import set_up_blocks
from kinemae.pretrain.model.sizes import SIZES, ModelConfig
from tests.benchmarks.peers import why_missing
from tests.benchmarks.step import OURS, PEER, our_step, peer_step
from tests.benchmarks.throughput_engine import loops
from tests.benchmarks.throughput_run import make_shards, measure_run
from tests.benchmarks.timing import Step

SECTIONS = ("device", "run", "engine", "models")
Row = dict[str, Any]


class Clock:
    """Times on a device, until a deadline.

    Attributes:
        omitted: number of measurements that the deadline has prevented.
    """

    def __init__(self, device: torch.device, *, minutes: float, rounds: int, steps: int):
        self.device = device
        self.rounds = rounds
        self.steps = steps
        self.omitted = 0
        self._end_s = time.monotonic() + 60 * minutes

    def has_time(self) -> bool:
        """Whether the deadline lies ahead; counts a measurement that is omitted."""
        is_late = time.monotonic() > self._end_s
        self.omitted += is_late
        return not is_late

    def seconds(self, step: Callable[[], object], steps: int) -> float:
        """Seconds of a step, averaged over successive ones."""
        if self.device.type != "cuda":
            begin = time.process_time()
            for _ in range(steps):
                step()
            return (time.process_time() - begin) / steps
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    def take_turns(self, steps: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each step in each round, after a warm-up; without those that are out of memory."""
        fitting = {name: step for name, step in steps.items() if self._warm_up(name, step)}
        rounds = [
            {name: self.seconds(step, self.steps) for name, step in fitting.items()}
            for _ in range(self.rounds)
        ]
        return {name: [one[name] for one in rounds] for name in fitting}

    def _warm_up(self, name: str, step: Callable[[], object]) -> bool:
        try:
            for _ in range(2):
                step()
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: out of memory", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
            return False
        return True


def spread(seconds: list[float]) -> Row:
    """The median, the lowest and the highest of repeated measurements."""
    return {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def measure_device(clock: Clock, *, is_tiny: bool) -> Row:
    """TFLOP/s of a square matrix product and GB/s of a copy, the best of several sizes and rounds."""
    device = clock.device
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    tflops = 0.0
    for size in (4096, 8192) if is_cuda else (128 if is_tiny else 1024,):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        [times] = clock.take_turns({"product": lambda a=left, b=right: a @ b}).values()  # type: ignore[misc]
        tflops = max(tflops, 2e-12 * size**3 / min(times))
    source = torch.empty(2**30 if is_cuda else 2**20 if is_tiny else 2**27, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    [times] = clock.take_turns({"copy": lambda: target.copy_(source)}).values()
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU, one thread"
    gpu = find_gpu(name) if is_cuda else None
    return {
        "name": name,
        "torch": torch.__version__,
        "precision": "bf16" if is_cuda else "fp32",
        "product_tflops": tflops,
        "copy_gb_s": 2e-9 * source.numel() / min(times),  # read and written
        "data_sheet_tflops": None if gpu is None else gpu.peak_tflops("bf16"),
    }


def model_steps(size: str, clip_BCTHW: torch.Tensor) -> dict[str, Step]:
    """The models of a size, by name."""
    no_peer = why_missing("transformers", "'transformers>=5,<6'")
    steps = {} if no_peer else {PEER: peer_step(ModelConfig(size=size, decoder="self"), clip_BCTHW)}
    for name, (decoder, ratio) in OURS.items():
        steps[name] = our_step(ModelConfig(size=size, decoder=decoder, predict_ratio=ratio), clip_BCTHW)
    if no_peer:
        print(no_peer, file=sys.stderr)
    return steps


def clip_flops(step: Step, clips: int) -> float:
    """Training FLOPs of a clip: three times its forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        step.loss()
    return 3 * counted.get_total_flops() / clips


def micro_batch(step: Step, device: torch.device) -> Callable[[], None]:
    """Forward and backward of a micro-batch, from no gradients."""

    def run() -> None:
        step.model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = step.loss()
        loss.backward()

    return run


def compile_model(name: str, step: Step, backend: str) -> None:
    """Compile our blocks as `engine.compile` does, and the whole of the other model."""
    if name == PEER:
        step.model.compile(backend=backend)
    else:
        set_up_blocks(step.model, recompute=False, compiled=True, backend=backend)


def peak_gb(run: Callable[[], None], step: Step) -> float | None:
    """Peak memory of a model alone: weights, gradients, activations; None on the CPU."""
    if not torch.cuda.is_available() or next(step.model.parameters()).device.type != "cuda":
        return None
    step.model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    step.model.zero_grad(set_to_none=True)
    weights = sum(weight.numel() * weight.element_size() for weight in step.model.parameters())
    return (torch.cuda.max_memory_allocated() - before + weights) / 1e9


def measure_models(clock: Clock, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of all sizes and micro-batches, eager and compiled."""
    for size in options.sizes:
        for clips in options.clips:
            if not clock.has_time():
                continue
            shape = (clips, 3, options.frames, options.pixels, options.pixels)
            steps = model_steps(size, torch.randint(0, 256, shape, dtype=torch.uint8).to(clock.device))
            work = {name: clip_flops(step, clips) for name, step in steps.items()}
            for is_compiled in (False, True):
                if is_compiled:
                    if options.backend == "none" or not clock.has_time():
                        continue
                    for name, step in steps.items():
                        compile_model(name, step, options.backend)
                runs = {name: micro_batch(step, clock.device) for name, step in steps.items()}
                for name, times in clock.take_turns(runs).items():
                    yield {
                        **{"size": size, "clips": clips, "model": name, "compiled": is_compiled},
                        **_measured(times, clips, work[name]),
                        "peak_gb": peak_gb(runs[name], steps[name]),
                    }
            del steps, runs
            torch._dynamo.reset()


def measure_engine(clock: Clock, options: argparse.Namespace) -> list[Row]:
    """Rows of a whole step at the first size and the smallest micro-batch, where overhead counts most."""
    size, clips = options.sizes[0], min(options.clips)
    shape = (clips, 3, options.frames, options.pixels, options.pixels)
    clip_BCTHW = torch.randint(0, 256, shape, dtype=torch.uint8).to(clock.device)
    work = clip_flops(our_step(ModelConfig(size=size), clip_BCTHW), clips)
    times = clock.take_turns(loops(size, clip_BCTHW))
    return [
        {"size": size, "clips": clips, "loop": name, **_measured(seconds, clips, work)}
        for name, seconds in times.items()
    ]


def _measured(seconds: list[float], clips: int, work: float) -> Row:
    """Seconds of a step, clips per second, and TFLOP/s; `work` are the FLOPs of a clip."""
    found = spread(seconds)
    rates = {"clips_per_s": clips / found["seconds"], "tflops": 1e-12 * clips * work / found["seconds"]}
    return {**found, **rates, "clip_gflops": work / 1e9}


def mfu_of(row: Row, device: Row | None) -> Row:
    """The MFU of a row with FLOP/s: of the measured product and of the data sheet."""
    if device is None or "tflops" not in row:
        return {}
    sheet = device["data_sheet_tflops"]
    of_product = {"mfu_of_product": row["tflops"] / device["product_tflops"]}
    return of_product if sheet is None else {**of_product, "mfu": row["tflops"] / sheet}


def print_result(result: dict[str, Any], *, omitted: int) -> None:
    """Print all sections as short tables."""
    for device in result.get("device", []):
        print(
            f"{device['name']}, torch {device['torch']}, {device['precision']}: matrix product "
            f"{device['product_tflops']:.3g} TFLOP/s, copy {device['copy_gb_s']:.4g} GB/s"
        )
    for row in result.get("models", []):
        peak = "" if row["peak_gb"] is None else f"  {row['peak_gb']:6.1f} GB"
        print(
            f"{row['size']:7}{row['clips']:5} clips  {row['model']:34}"
            f"{'compiled' if row['compiled'] else 'eager':9}{_rate(row)}{peak}"
        )
    for row in result.get("engine", []):
        print(f"{row['size']:7}{row['clips']:5} clips  step, {row['loop']:28}{'':9}{_rate(row)}")
    for row in result.get("run", []):
        print(
            f"run, {row['config']}: {row['clips_per_s']:.4g} clips/s, {row['data_wait_fraction']:.0%} "
            f"waiting for data, {row['tflops_per_device']:.3g} TFLOP/s"
        )
    if omitted:
        print(f"{omitted} measurements were omitted: the time was over")


def _rate(row: Row) -> str:
    spread_of = (row["high"] - row["low"]) / row["seconds"]
    mfu = f"  MFU {row['mfu_of_product']:5.1%} of the product" if "mfu_of_product" in row else ""
    sheet = f", {row['mfu']:5.1%} of the data sheet" if "mfu" in row else ""
    return (
        f"{row['clips_per_s']:9.4g} clips/s +-{spread_of / 2:4.0%}  {row['tflops']:.3g} TFLOP/s{mfu}{sheet}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options; `--tiny` sets those that were not given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="tiny models and clips on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--clips", nargs="+", type=int, help="micro-batches")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--pixels", type=int, help="height and width of the clip")
    parser.add_argument("--backend", help="of torch.compile; none for eager models only")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="steps in a round")
    parser.add_argument("--minutes", type=float, default=60.0, help="then further measurements are omitted")
    parser.add_argument("--config", help="of the run, with its overrides", nargs="+")
    parser.add_argument("--shards", type=Path, help="of the run; synthetic videos if not given")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(arguments)
    is_cuda = torch.cuda.is_available() if options.device is None else options.device == "cuda"
    defaults: dict[str, Any] = {
        "device": "cuda" if is_cuda else "cpu",
        "sizes": ["base", "large"],
        "clips": [64, 256] if is_cuda else [4],
        "frames": 16,
        "pixels": 224,
        "backend": "inductor" if is_cuda else "none",
        "rounds": 5,
        "steps": 5 if is_cuda else 1,
        "config": ["kinemae_base_k400", "batch.global_clips=256", "batch.clips_per_device=256"],
    }
    if options.tiny:
        tiny_run = ["demo", "batch.global_clips=4", "batch.clips_per_device=4"]
        defaults |= {"device": "cpu", "sizes": ["tiny"], "clips": [1, 2], "frames": 4, "pixels": 64}
        defaults |= {"backend": "eager", "rounds": 2, "steps": 1, "config": tiny_run}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Run the sections and print their results."""
    options = parse()
    torch.manual_seed(0)
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.set_float32_matmul_precision("high")  # as in a bf16 run
    clock = Clock(device, minutes=options.minutes, rounds=options.rounds, steps=options.steps)
    result: dict[str, Any] = {"options": {key: str(value) for key, value in vars(options).items()}}
    with tempfile.TemporaryDirectory() as folder:
        sections: dict[str, Callable[[], Iterable[Row]]] = {
            "device": lambda: [measure_device(clock, is_tiny=options.tiny)],
            "models": lambda: measure_models(clock, options),
            "engine": lambda: measure_engine(clock, options),
            "run": lambda: measure_run(
                options.config,
                options.shards or make_shards(Path(folder), pixels=options.pixels),
                Path(folder),
                device=device.type,
            ),
        }
        for name in SECTIONS:
            if name not in options.only or not clock.has_time():
                continue
            for row in sections[name]():
                device_row = result["device"][0] if "device" in result else None
                result.setdefault(name, []).append({**row, **mfu_of(row, device_row)})
                if options.json is not None:  # after each row, in case that a later one fails
                    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_result(result, omitted=clock.omitted)


if __name__ == "__main__":
    main()
