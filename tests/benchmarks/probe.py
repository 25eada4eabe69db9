"""Time of a grid of heads against one head, and of filling a feature store against one pass of the encoder.

    python -m tests.benchmarks.probe
    python -m tests.benchmarks.probe --width 768 --classes 101 --heads 20 --device cuda

The heads are linear, on the statistics of random tokens, in the default training. The encoder is tiny, on
synthetic videos. Times are CPU seconds of one thread, the minimum of some repeats that alternate.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.yuv_to_rgb import on_device
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.encode import FixedViews, LayerEncoder
from kinemae.finetune.probe.encoders import find_encoders
from kinemae.finetune.probe.heads import HeadTrainer, head_grid
from kinemae.finetune.probe.stores import ProbedEncoder, make_stores, prepare_encoder, prepare_external
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.processes import Processes, find_processes


def write_features(folder: Path, *, samples: int, width: int, classes: int) -> list[str]:
    """Write random features as files; return the overrides that name them."""
    draws = np.random.default_rng(0)
    for name in ("train", "validation"):
        np.savez(
            folder / f"{name}.npz",
            features=draws.standard_normal((samples, 2 * width), dtype=np.float32),
            key=np.array([f"{name}-{i}" for i in range(samples)]),
            label=np.arange(samples) % classes,
        )
    return [f"data.{name}={folder / name}.npz" for name in ("train", "validation")]


def time_heads(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the time of one head and of a grid."""
    processes = find_processes(arguments.device)
    sizes = {"samples": arguments.samples, "width": arguments.width, "classes": arguments.classes}
    lr = [round(1e-4 * 1.3**i, 8) for i in range(arguments.heads)]
    given = [
        *write_features(folder, **sizes),
        f"run_dir={folder}/run",
        f"grid.lr={lr}",
        "grid.weight_decay=[0.01]",
    ]
    config = load_config(ProbeConfig, None, given)
    probed = prepare_external(config)
    data = probed.train.open(probed.task)
    trainer = HeadTrainer(
        task=probed.task.to(processes.device),
        settings=config.train,
        seed=0,
        width=2 * arguments.width,
        device=processes.device,
    )
    heads = head_grid(config, [0])
    rows = np.arange(arguments.samples)
    seconds = alternating(
        {
            "one": lambda: trainer.train(heads[:1], data, rows),
            "all": lambda: trainer.train(heads, data, rows),
        },
        arguments.repeats,
    )
    print(
        f"{arguments.samples} samples, {2 * arguments.width} values, {arguments.classes} classes, "
        f"{trainer.steps(arguments.samples)} steps: 1 head {seconds['one']:.2f} s, "
        f"{len(heads)} heads {seconds['all']:.2f} s, ratio {seconds['all'] / seconds['one']:.2f}"
    )


def time_encoding(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the time of reading and encoding alone, and of filling a store."""
    processes = find_processes(arguments.device)
    shards = synthetic_shards(folder)
    given = [
        f"encoder={tiny_encoder(folder)}",
        *(f"data.{name}={shards / name}" for name in ("train", "validation")),
        f"run_dir={folder}/run",
        "data.num_workers=0",
        "features.rebuild=true",
    ]
    config = load_config(ProbeConfig, None, given)
    (source,) = find_encoders(config.encoders, config.clip, is_random=False, seed=0)
    probed = prepare_encoder(config, source, processes)
    seconds = alternating(
        {
            "pass": lambda: plain_pass(config, probed, processes),
            "store": lambda: make_stores(config, probed, processes, workers=0),
        },
        arguments.repeats,
    )
    videos = len(probed.train.index) + len(probed.validation.index)
    print(
        f"{videos} videos: one pass {seconds['pass']:.2f} s, filling the store {seconds['store']:.2f} s, "
        "ratio "
        f"{seconds['store'] / seconds['pass']:.2f}"
    )


def plain_pass(config: ProbeConfig, probed: ProbedEncoder, processes: Processes) -> None:
    """Read and encode every video once, and drop the features."""
    assert probed.source is not None
    encode = LayerEncoder(
        encoder=probed.source.load().to(processes.device),
        description=probed.source.description,
        layers=probed.layers,
        kind=config.store_kind,
        is_bf16=False,
        clips_per_device=config.clips_per_device,
    )
    for split in probed.splits:
        reader = FixedViews(split.index, probed.clip, temporal_clips=1, spatial_crops=1)
        waiting = []
        for number in range(len(split.index)):
            waiting.append(reader.item(number, {}, lambda key: None).pixels)
            if len(waiting) == config.clips_per_device or number == len(split.index) - 1:
                encode(torch.cat([on_device(pixels, processes.device) for pixels in waiting]))
                waiting = []


def synthetic_shards(folder: Path) -> Path:
    """Make and shard synthetic videos."""
    counts = ["train_per_class=12", "validation_per_class=6", "unlabelled=1", "workers=1"]
    run_program(PROGRAM, ["synth", str(folder / "videos"), *counts])
    run_program(PROGRAM, ["shard", str(folder / "videos"), str(folder / "shards"), "workers=1"])
    return folder / "shards"


def tiny_encoder(folder: Path) -> Path:
    """Export a tiny encoder with random weights."""
    shape = ModelConfig(size="tiny", patch_size=8).shape().encoder
    grid = TokenGrid.of(8, 32, shape.patch)
    description = EncoderDescription(shape=shape, grid=grid, reference=grid, frames=8, stride=1, size=32)
    save_encoder(folder / "encoder", Encoder(shape, grid), description)
    return folder / "encoder"


def alternating(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The minimum wall time of each function; they alternate."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            times[name].append(time.process_time() - begin)
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=192, help="values per token")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        time_heads(folder, arguments)
        time_encoding(folder, arguments)


if __name__ == "__main__":
    main()
