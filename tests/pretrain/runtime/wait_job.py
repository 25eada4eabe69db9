"""One process of a job that counts the waits of a step, for the structure of each recipe at a tiny size.

    RANK=.. WORLD_SIZE=.. python -m tests.pretrain.runtime.wait_job SHARDS FOLDER STAGE DEVICE [RECIPE ...]

Rank 0 prints a JSON: for each recipe and step the waits, the number of scalar sums, and the number of device
synchronizations that DeepSpeed requests. On CUDA PyTorch raises an error at a wait.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import training_loader
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.train import prepare, training
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.loop import Trainer
from kinemae.pretrain.runtime.processes import destroy_process_group, find_processes, init_process_group
from kinemae.pretrain.runtime.train_step import TrainStep
from kinemae.pretrain.runtime.watchdog import Watchdog
from kinemae.pretrain.runtime.weight_average import with_average
from kinemae.pretrain.training import make_plan, make_trainer
from tests.pretrain.runtime.device_waits import DeviceWaits
from tests.pretrain.target_models import save_teacher

Start = tuple[str, Callable[[], Trainer]]
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
STEPS, FIRST = 2, 1  # the first step fills caches
FRAMES, SIZE, PATCH = 4, 32, (2, 8, 8)
TINY = [
    *("data.num_workers=0", "data.views_per_video=1", "batch={global_clips: 4, clips_per_device: 2}"),
    *(f"clip.frames={FRAMES}", f"clip.size={SIZE}", "ema.decay=0.9"),
]
PRETRAIN = [
    *("steps=10", "model.size=tiny", f"model.patch_size={PATCH[1]}", "model.width=24", "model.heads=2"),
    *("model.depth=2", "model.decoder_width=24", "model.decoder_heads=2", "model.decoder_depth=1"),
    *("model.drop_path=0.1", "pictures.every_steps=0"),
]
FINETUNE = [
    *("epochs=10", "clip.stride=1", "clip.chunks=1", "drop_path=0.1", "augment.flip=false"),
    *("model.size=null", "model.patch_size=null"),
]
PROBE = ["head.args.head_width=12"]


def pretraining(paths: list[Path], shards: Path, _: Path, overrides: list[str]) -> Iterator[Start]:
    """The pretraining recipes, one for each structure."""
    known = set()
    for path in paths:
        keys = [*TINY, *PRETRAIN, f"data.shards={shards / 'unlabelled'}", *overrides]
        config = load_config(PretrainConfig, path, keys)
        parts = (config.model, config.masking, config.pruning, config.noise, config.target)
        structure = structure_of(*parts, config.optim)
        if structure not in known:
            known.add(structure)
            yield path.stem, lambda config=config: make_trainer(make_plan(config, is_run=False))


def finetuning(paths: list[Path], shards: Path, folder: Path, overrides: list[str]) -> Iterator[Start]:
    """The fine-tuning recipes with classes, one for each structure."""
    known, encoder = set(), folder / "encoder"
    if not encoder.exists():
        save_teacher(encoder, TokenGrid.of(FRAMES, SIZE, PATCH), PATCH)
    for path in paths:
        places = [f"data.train={shards / 'train'}", "data.validation=null", f"encoder={encoder}"]
        probe = PROBE if path.stem.startswith("probe_") else []
        config = load_config(FinetuneConfig, path, [*TINY, *FINETUNE, *probe, *places, *overrides])
        parts = (config.head, config.pruning, config.adapt, config.mix, config.merge)
        structure = structure_of(*parts, config.optim)
        if structure not in known and config.task.name == "classification":
            known.add(structure)
            yield path.stem, lambda config=config: training(prepare(config))


def structure_of(*parts: Any) -> str:
    """Config sections without the values of their numbers: recipes of several sizes are equal."""
    text = json.dumps([asdict(part) for part in parts])
    return re.sub(r"\b\d[\d.e-]*", lambda number: str(float(number[0]) != 0), text)


def measured(trainer: Trainer) -> list[dict[str, Any]]:
    """Counts of the steps of a run after the first one."""
    config, processes = trainer.config, trainer.processes
    module = with_average(trainer.module, config.ema, steps=trainer.steps)
    engine = Engine(
        module,
        trainer.groups,
        optim=config.optim,
        engine=config.engine,
        plan=trainer.plan,
        processes=processes,
    )
    found = []
    with Watchdog(config.timeouts, rank=processes.rank) as watchdog:
        step_runner = TrainStep(
            engine,
            clips=trainer.clips,
            plan=trainer.plan,
            config=config,
            steps=trainer.steps,
            processes=processes,
            watchdog=watchdog,
            state=RunState(),
            on_outage=lambda text: None,
            compiled=trainer.compiled,
        )
        step_runner._batches = iter(batches(trainer))  # the loader's own work is on the host
        synchronized: list[object] = []
        count_synchronizations(synchronized)
        for step in range(STEPS):
            synchronized.clear()
            with refused_waits(processes.device, step), DeviceWaits(processes.device.type) as counted:
                step_runner.run(step, may_take_long=True)
            synchronizations = len(synchronized)
            counts = {"waits": counted.waits, "scalar_sums": counted.scalar_sums}
            found.append({**counts, "synchronized": synchronizations})
        report = step_runner.metrics.fetch()
        assert len(report.lines) == STEPS and all(line["grad_norm"] > 0 for line in report.lines)
        step_runner.close()
    return found[FIRST:]


def batches(trainer: Trainer) -> list[ClipBatch]:
    """All micro-batches of this process."""
    return list(
        training_loader(
            trainer.clips,
            trainer.plan,
            rank=trainer.processes.rank,
            first_step=0,
            last_step=STEPS,
            workers=0,
            pin=trainer.processes.device.type == "cuda",
        )
    )


@contextmanager
def refused_waits(device: torch.device, step: int) -> Iterator[None]:
    """While entered, PyTorch raises an error at a wait for a CUDA device, unless the step fills caches."""
    if device.type != "cuda" or step < FIRST:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def count_synchronizations(found: list[object]) -> None:
    """Record the device synchronizations that DeepSpeed requests on CUDA."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().synchronize = lambda *_: found.append(None)
    # True on the CPU: operations run in order. On CUDA DeepSpeed synchronizes where this is false.
    get_accelerator().resolves_data_dependency = lambda: False


def main() -> None:
    """See the top of this file."""
    stage, device, *recipes = sys.argv[3:]
    processes = find_processes(device)
    shards, folder = Path(sys.argv[1]), Path(sys.argv[2]) / f"rank{processes.rank}"
    init_process_group(processes)
    overrides = [f"run_dir={folder / 'run'}", f"engine.zero_stage={stage}", f"engine.device={device}"]
    found = {}
    for kind, name in ((pretraining, "pretrain"), (finetuning, "finetune")):
        paths = sorted((CONFIGS / name).glob("*.yaml"))
        chosen = [path for path in paths if not recipes or path.stem in recipes]
        for recipe, start in kind(chosen, shards, folder, overrides):
            found[f"{kind.__name__} {recipe}"] = measured(start())
    if processes.is_first:
        sys.stdout.write(json.dumps(found))
    destroy_process_group()


if __name__ == "__main__":
    main()
