"""Errors of `launch plan` on this machine's CPU: calibrated with one run, it predicts others.

    python tests/benchmarks/plan.py SHARDS    # a folder that `kinemae data shard` made; about 15 minutes

Trains `small` on clips of 16x112x112 for a few steps with DeepSpeed and one thread, without data workers.
Calibrated with the first case, the plan predicts time and memory of the others. The time of a step is the
difference of the CPU times of a longer and a shorter run, and the minimum over all rounds, because a shared
machine is slower at times. The last rows compare the memory of the first case at every ZeRO stage on two
processes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kinemae.data_tools.config import load_config
from kinemae.launch.plan.command import flops_of_step
from kinemae.launch.plan.machines import CORE_MFU, Machines
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost
from kinemae.pretrain.runtime.memory import STAGES, Machine, row_of

CONFIG = """
run_dir: RUN
steps: 1
save_every_steps: 1000
data: {shards: SHARDS, num_workers: 0}
clip: {frames: 16, stride: 1, size: 112}
batch: {global_clips: 8, clips_per_device: 8}
model: {size: small}
masking: {name: tube, args: {ratio: 0.9}}
engine: {device: cpu, cpu_threads: 1}
log: {every_steps: 1}
pictures: {every_steps: 0}
monitor: {every_steps: 0}
"""
CASES = {
    "calibration": [],
    "half the depth": ["model.depth=6"],
    "mask of 0.75": ["masking.args.ratio=0.75"],
    "half the batch": ["batch.global_clips=4"],
    "self decoder, all tokens": ["model.decoder=self", "model.predict_ratio=1.0"],
    "width 576": ["model.width=576", "model.heads=9"],
}
FEW, MANY = 2, 8
WORLD = 2


def train(config: Path, overrides: list[str], *, steps: int, processes: int = 1) -> tuple[float, float]:
    """CPU seconds of the first process with its children, and peak bytes of one process, of a real run."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        own = [
            "-m",
            "kinemae",
            "pretrain",
            str(config),
            f"run_dir={folder}/run",
            f"steps={steps}",
            *overrides,
        ]
        words = own if processes == 1 else [*start, *own]
        ran = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(ran.pid, 0)
        assert status == 0, f"the run {own} failed"
        lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return usage.ru_utime + usage.ru_stime, 1e9 * json.loads(lines[-1])["memory_gb"]


def measure(config: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """CPU seconds of a step and peak bytes of real runs, by case."""
    least_s = {(name, steps): math.inf for name in CASES for steps in (FEW, MANY)}
    most_bytes = dict.fromkeys(CASES, 0.0)
    for _ in range(rounds):
        for name, steps in least_s:
            seconds, size = train(config, CASES[name], steps=steps)
            least_s[name, steps] = min(seconds, least_s[name, steps])
            most_bytes[name] = max(size, most_bytes[name])
    return {
        name: ((least_s[name, MANY] - least_s[name, FEW]) / (MANY - FEW), most_bytes[name]) for name in CASES
    }


def cost_of(config: Path, overrides: list[str], processes: int) -> dict[str, Any]:
    """The cost of a config, with its memory."""
    machine = Machine(processes=processes, memory_gb=4.0, is_cpu=True)
    return measure_cost(load_config(PretrainConfig, config, overrides), machine)


def planned_bytes(cost: dict[str, Any], stage: int) -> float:
    """Planned memory of a process."""
    return float(row_of(cost["memory"], stage=stage, recomputes=False)["bytes"]["all"])


def measure_stages(config: Path) -> None:
    """Print the memory of the calibration's model at each stage on two processes."""
    cost = cost_of(config, [], WORLD)
    for stage in STAGES:
        _, real = train(config, [f"engine.zero_stage={stage}"], steps=FEW, processes=WORLD)
        plan = planned_bytes(cost, stage)
        name = f"ZeRO {stage}, {WORLD} processes"
        print(f"{name:61}{real / 1e9:16.3f}{plan / 1e9:9.3f}{plan / real - 1:+8.1%}", flush=True)


def main() -> None:
    """Measure, predict and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machines = Machines(device="cpu", devices_per_node=1).resolved("fp32", CORE_MFU)
    print(
        f"{'':26}{'step, s: measured':>18}{'planned':>9}{'off':>8}{'memory, GB: measured':>24}"
        f"{'planned':>9}{'off':>8}"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(CONFIG.replace("SHARDS", str(arguments.shards)), encoding="utf-8")
        for name, (real_s, real_bytes) in measure(config, arguments.rounds).items():
            cost = cost_of(config, CASES[name], 1)
            flops = flops_of_step(cost)
            peak_flops = 1e12 * machines["peak_tflops"]
            if name == "calibration":
                print(f"{'before it':26}{real_s:18.3f}{flops / peak_flops / machines['mfu']:9.3f}")
                machines["mfu"] = flops / real_s / peak_flops
            planned_s = flops / peak_flops / machines["mfu"]
            planned = planned_bytes(cost, 0)
            print(
                f"{name:26}{real_s:18.3f}{planned_s:9.3f}{planned_s / real_s - 1:+8.0%}"
                f"{real_bytes / 1e9:24.3f}{planned / 1e9:9.3f}{planned / real_bytes - 1:+8.1%}",
                flush=True,
            )
        measure_stages(config)


if __name__ == "__main__":
    main()
