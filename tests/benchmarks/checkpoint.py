"""What a checkpoint costs the step loop: saved in the background, saved at once, not saved.

    python tests/benchmarks/checkpoint.py                     # base, about 100 M parameters: some 5 minutes
    python tests/benchmarks/checkpoint.py --size small --folder /mnt/shared    # quicker, on another disk

One process trains on small synthetic clips under DeepSpeed on the CPU, on one thread, and saves every few
steps. A save's stall is the time that the loop spends in `save` and `commit`; the first save of each kind is
told apart, since its memory is new. The three ways take turns, round by round, and saves of one round never
overlap those of the next. The loop's time is that of all steps and saves of a round, up to the last `commit`.
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
from kinemae.pretrain.runtime.optimiser import parameter_groups
from kinemae.pretrain.runtime.processes import Processes, find_processes
from kinemae.pretrain.runtime.settings import EngineConfig, OptimConfig
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection

FRAMES, PIXELS, CLIPS = 4, 64, 2
WAYS = ("not at all", "at once", "in the background")


class Round(NamedTuple):
    """Seconds of one round: the whole loop, and the stall of each save."""

    loop: float
    stalls: list[float]


class Trainee:
    """A model under the engine, and one batch that it sees again and again."""

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
        """One update."""
        values = self.engine(self.batch, ClipRandom(0, self.batch.clip_index_B))
        self.engine.backward(values["loss"].mean())
        self.engine.step(1e-4)


def run_round(trainee: Trainee, saver: Checkpoints | None, *, steps: int, every: int) -> Round:
    """Train, and save as the loop does: a save that is on the disk is committed after the next step."""
    stalls: list[float] = []
    begun = time.perf_counter()
    for step in range(steps):
        trainee.step()
        asked = time.perf_counter()
        if saver is not None and stalls and saver.is_written():
            saver.commit()
            stalls[-1] += time.perf_counter() - asked
        asked = time.perf_counter()
        if saver is not None and step % every == 0:
            saver.save(trainee.engine, RunState(step=step + 1))
            stalls.append(time.perf_counter() - asked)
    asked = time.perf_counter()
    if saver is not None:
        saver.commit()
        stalls[-1] += time.perf_counter() - asked
    return Round(time.perf_counter() - begun, stalls)


def measure(trainee: Trainee, processes: Processes, folder: Path, options: argparse.Namespace) -> None:
    """Run and print."""
    savers: dict[str, Checkpoints | None] = {"not at all": None}
    for way in WAYS[1:]:
        background = way == "in the background"
        savers[way] = Checkpoints(folder / way, processes, keep=1, background=background)
    trainee.step()  # makes the optimiser's memory
    first = {
        way: run_round(trainee, saver, steps=options.every, every=options.every).stalls
        for way, saver in savers.items()
    }
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, saver in savers.items():
            rounds[way].append(run_round(trainee, saver, steps=options.steps, every=options.every))
    size = sum(path.stat().st_size for path in (folder / "at once").rglob("*.safetensors"))
    print(f"{options.size}: {trainee.parameters / 1e6:.0f} M parameters, a checkpoint of {size / 1e9:.2f} GB")
    print(f"{options.rounds} rounds of {options.steps} steps, saved every {options.every}; medians")
    medians = {}
    for way in WAYS:
        loop = statistics.median(one.loop for one in rounds[way])
        stalls = [stall for one in rounds[way] for stall in one.stalls]
        medians[way] = statistics.median(stalls) if stalls else 0.0
        cold = f", {first[way][0]:.3f} s the first time" if stalls else ""
        spread = f" ({min(stalls):.3f} to {max(stalls):.3f})" if stalls else ""
        print(f"saved {way:18} loop {loop:7.2f} s    stall {medians[way]:.3f} s{spread}{cold}")
    print(f"stall, background / at once: {100 * medians['in the background'] / medians['at once']:.1f} %")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=24, help="of a round")
    parser.add_argument("--every", type=int, default=12, help="steps between saves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; temporary if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processes = find_processes("cpu")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Trainee(options.size, processes), processes, Path(folder), options)


if __name__ == "__main__":
    main()
