"""Benchmark the cost of checkpoints for the step loop: background save, foreground save, no save.

    python tests/benchmarks/checkpoint.py                     # base, about 100 M parameters: 5 minutes
    python tests/benchmarks/checkpoint.py --size small --folder /mnt/shared    # quicker, on another disk

One process trains on small synthetic clips with DeepSpeed on the CPU, on one thread, and saves every few
steps. The stall of a save is the time of the loop in `save` and `commit`. The first save of each mode is
listed separately, because it allocates memory. The modes alternate, and saves of one round do not overlap
those of the next. The time of a round includes all its steps and saves, up to the last `commit`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.order import plan_batch
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import SIZES, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.optimizer import Rates, parameter_groups
from kinemae.pretrain.runtime.processes import Processes, find_processes
from kinemae.pretrain.runtime.settings import EngineConfig, OptimConfig
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection

FRAMES, PIXELS, CLIPS = 4, 64, 2
MODES = ("none", "foreground", "background")


class Round(NamedTuple):
    """Seconds of one round: the loop, and the stall of each save."""

    loop: float
    stalls: list[float]


class Trainer:
    """An engine with a model, and one batch that is used at every step."""

    def __init__(self, size: str, processes: Processes):
        config = ModelConfig(size=size)
        patch = config.shape().encoder.patch
        grid = TokenGrid.of(FRAMES, PIXELS, patch)
        model = build_autoencoder(config, grid, target=PixelTarget(), noise=NoNoise())
        split = TokenSelection(masking=TubeMasking(ratio=0.5), grid=grid, patch=patch, seed=0)
        clip_BCTHW = torch.randint(0, 256, (CLIPS, 3, FRAMES, PIXELS, PIXELS), dtype=torch.uint8)
        rows = [split(clip_BCTHW[index, 0], index) for index in range(CLIPS)]
        self.batch = ClipBatch(
            pixels=clip_BCTHW,
            clip_index_B=torch.arange(CLIPS),
            label_B=torch.zeros(CLIPS, dtype=torch.int64),
            weight_B=torch.ones(CLIPS),
            tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        )
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.engine = Engine(
            model,
            parameter_groups(model, 0.05),
            optim=OptimConfig(),
            engine=EngineConfig(device="cpu"),
            plan=plan_batch(CLIPS, CLIPS, world=1, views=1),
            processes=processes,
        )

    def step(self) -> None:
        """Do one update."""
        values = self.engine(self.batch, ClipRandom(0, self.batch.clip_index_B))
        self.engine.backward(values["loss"].mean())
        self.engine.step(Rates(1e-4))


def run_round(trainer: Trainer, saver: Checkpoints | None, *, steps: int, every: int) -> Round:
    """Train and save like the training loop, which commits a written save after the next step."""
    stalls: list[float] = []
    begin = time.perf_counter()
    for step in range(steps):
        trainer.step()
        start = time.perf_counter()
        if saver is not None and stalls and saver.is_written():
            saver.commit()
            stalls[-1] += time.perf_counter() - start
        start = time.perf_counter()
        if saver is not None and step % every == 0:
            saver.save(trainer.engine, RunState(step=step + 1))
            stalls.append(time.perf_counter() - start)
    start = time.perf_counter()
    if saver is not None:
        saver.commit()
        stalls[-1] += time.perf_counter() - start
    return Round(time.perf_counter() - begin, stalls)


def measure(trainer: Trainer, processes: Processes, folder: Path, options: argparse.Namespace) -> None:
    """Run all rounds and print the results."""
    savers: dict[str, Checkpoints | None] = {"none": None}
    for mode in MODES[1:]:
        background = mode == "background"
        savers[mode] = Checkpoints(folder / mode, processes, keep=1, background=background)
    trainer.step()  # allocates the optimizer's state
    first = {
        mode: run_round(trainer, saver, steps=options.every, every=options.every).stalls
        for mode, saver in savers.items()
    }
    rounds: dict[str, list[Round]] = {mode: [] for mode in MODES}
    for _ in range(options.rounds):
        for mode, saver in savers.items():
            rounds[mode].append(run_round(trainer, saver, steps=options.steps, every=options.every))
    size = sum(path.stat().st_size for path in (folder / "foreground").rglob("*.safetensors"))
    print(f"{options.size}: {trainer.parameters / 1e6:.0f} M parameters, checkpoint of {size / 1e9:.2f} GB")
    print(f"{options.rounds} rounds of {options.steps} steps, saved every {options.every}; medians")
    medians = {}
    for mode in MODES:
        loop = statistics.median(one.loop for one in rounds[mode])
        stalls = [stall for one in rounds[mode] for stall in one.stalls]
        medians[mode] = statistics.median(stalls) if stalls else 0.0
        first_text = f", first {first[mode][0]:.3f} s" if stalls else ""
        spread = f" ({min(stalls):.3f} to {max(stalls):.3f})" if stalls else ""
        print(f"save {mode:12} loop {loop:7.2f} s    stall {medians[mode]:.3f} s{spread}{first_text}")
    print(f"stall, background / foreground: {100 * medians['background'] / medians['foreground']:.1f} %")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=24, help="per round")
    parser.add_argument("--every", type=int, default=12, help="steps between saves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; temporary if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processes = find_processes("cpu")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Trainer(options.size, processes), processes, Path(folder), options)


if __name__ == "__main__":
    main()
