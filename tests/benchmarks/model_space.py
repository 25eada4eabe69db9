"""Compare masks, noises, pruning and targets on real clips at equal compute, for docs/results.md.

    python -m tests.benchmarks.model_space VIDEOS WORK             # VIDEOS: a folder per class
    python -m tests.benchmarks.model_space VIDEOS WORK --rows tube,blocks --seeds 1 --budget 0.1

Two tasks. "moves": the direction of a camera over the real clips, eight classes, few labels
(`camera_moves.py`). "classes": the clips' own classes, from the whole picture. Each row pretrains a tiny
encoder on the training clips of a fold, then trains an attentive probe on the frozen encoder and fine-tunes
it, with the commands. A seed is a fold: the clips are cut into blocks of neighbouring files (clips of one
camera are neighbours), each block is held out once, and each seed also draws other weights, masks and
orders. "random" probes an encoder with random weights, "scratch" fine-tunes one. Each row gets the same
training FLOPs in pretraining, as `preview` counts them. Finished results in WORK are kept.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from tests.benchmarks.camera_moves import cut_windows, write_table

LABELS = 800
"""Labelled videos of the task "moves", over all eight classes."""

BLOCK = 10
"""Neighbouring clips of a class that belong to the same fold."""

# Windows have the size of the clips, and mirroring would change the class.
STILL = ["augment={min_scale: 1.0, max_scale: 1.0, min_aspect: 1.0, max_aspect: 1.0, flip: false}"]
COMMON = ["data.num_workers=0", "engine.cpu_threads=1"]
PRETRAIN = [
    *("model.size=tiny", "model.patch_size=8", "model.decoder=cross", "model.predict_ratio=0.5"),
    *("optim.lr=1e-3", "optim.warmup_fraction=0.05", "save_every_steps=1000000"),
    *("pictures.every_steps=0", "monitor.every_steps=0"),
]
TUNE = [
    *(
        "head={name: attentive, args: {norm: standardize}}",
        "task.args.label_smoothing=0.1",
        "optim.warmup_fraction=0.1",
    ),
    *("save_every_steps=1000000", "evaluate.spatial_crops=1"),
]
FROZEN = ["adapt.method=frozen", "drop_path=0.0", "optim.lr=3e-3"]
TUNED = [
    *("adapt.method=full", "drop_path=0.1", "optim.lr=1e-3", "optim.layer_decay=0.75"),
    "head={name: linear, args: {norm: standardize}}",  # learns from the first step on
]
PROBE = [
    *("method=attentive", "grid={lr: [3e-3], weight_decay: [0.05]}", "task.args.label_smoothing=0.1"),
    *("train={epochs: 1, min_steps: 600, batch: 64}", "save_model=false"),
]
UNTRAINED = ["encoder=null", "model.size=tiny", "model.patch_size=8", "optim.layer_decay=1.0"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings of a task.

    Attributes:
        steps: steps of pretraining for the base row.
        views: clips per decoded video in pretraining.
        tuning: epochs, and clips per video in evaluation.
    """

    ratio: float
    steps: int
    clip: list[str]
    batch: list[str]
    views: int
    tuning: list[str]
    pool: str


TASKS = {
    "moves": Task(
        ratio=0.5,
        steps=1100,
        clip=["clip.frames=8", "clip.stride=1", "clip.size=32", *STILL],
        batch=["batch.global_clips=32", "batch.clips_per_device=32"],
        views=2,
        tuning=["epochs=12", "evaluate.temporal_clips=1"],
        pool="unlabelled",
    ),
    "classes": Task(
        ratio=0.75,
        steps=1500,
        clip=["clip.frames=8", "clip.stride=4", "clip.size=64", "augment.min_scale=0.5"],
        batch=["batch.global_clips=16", "batch.clips_per_device=16"],
        views=1,
        tuning=["epochs=25", "evaluate.temporal_clips=2"],
        pool="train",
    ),
}
ROWS = {
    "tube": ["masking.name=tube"],
    "uniform": ["masking.name=uniform"],
    "motion-led": ["masking.name=motion"],
    "blocks": ["masking.name=blocks"],
    "noise": ["noise={name: gaussian, args: {std: 0.5}}"],
    "run-length": ["pruning={name: run_length, args: {keep: 0.7}}"],
    "pixels + motion": ["target={name: weighted, args: {parts: {pixels: {}, motion: {}}}}"],
    "EMA features": ["target={name: features, args: {decay: 0.99}}"],
}
MASKS = ("tube", "uniform", "motion-led", "blocks")
FLOORS = ("random", "scratch")


def run(command: list[str], log: Path) -> None:
    """Run a module on one thread, with its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", *command], check=True, stdout=file, stderr=file, env=environment
        )


def held_out(videos: list[Path], fold: int, folds: int) -> set[int]:
    """Return the numbers of a fold's validation clips."""
    within: dict[str, int] = {}
    chosen = set()
    for number, video in enumerate(videos):
        place = within.setdefault(video.parent.name, 0)
        within[video.parent.name] += 1
        if place // BLOCK % max(folds, 2) == fold:
            chosen.add(number)
    return chosen


def make_folds(task: str, videos: list[Path], work: Path, seeds: int) -> None:
    """Shard the videos once per fold to `work/shards/FOLD/{train,validation,...}`."""
    cuts = cut_windows(videos, work.parent / "windows") if task == "moves" else []
    for fold in range(seeds):
        if (work / f"shards/{fold}/validation").exists():
            continue
        table, away = work / f"fold-{fold}.csv", held_out(videos, fold, seeds)
        table.parent.mkdir(parents=True, exist_ok=True)
        layout = ["layout.name=copy"]
        if task == "moves":
            write_table(table, cuts, away, LABELS)
        else:
            layout = ["layout.args.short_side=96"]
            with table.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["path", "label", "split"])
                for number, video in enumerate(videos):
                    split = "validation" if number in away else "train"
                    writer.writerow([video, video.parent.name, split])
        shards = str(work / f"shards/{fold}")
        run(
            ["kinemae", "data", "shard", str(table), shards, *layout, "leaks=warn"],
            work / f"shard-{fold}.log",
        )


def steps_of(rows: list[str], task: str, base: str, work: Path, budget: float) -> dict[str, int]:
    """Return the steps of each row that take the FLOPs of the base row."""
    flops = {}
    for row in {base, *rows} - set(FLOORS):
        command = ["preview", str(work / "empty.yaml"), *overrides(row, task, base, work, 0)]
        out = subprocess.run(
            [
                sys.executable,
                "-m",
                "kinemae",
                "pretrain",
                *command,
                "--json",
                "--out",
                str(work / "preview" / row),
            ],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        flops[row] = int(json.loads(out.stdout)["flops"]["training"])
    return {
        row: round(budget * TASKS[task].steps * flops[base] / flops[row]) for row in rows if row not in FLOORS
    }


def overrides(row: str, task: str, base: str, work: Path, seed: int) -> list[str]:
    """Return the overrides of a row's pretraining without steps and folder, on top of the base row's."""
    settings = TASKS[task]
    data = [f"data.shards={work}/shards/{seed}/{settings.pool}", f"seed={seed}", "steps=1", "run_dir=unused"]
    mask = ROWS[row] if row in MASKS else [*ROWS[base], *ROWS[row]]
    ratio = [f"masking.args.ratio={settings.ratio}"]
    return [
        *settings.clip,
        *settings.batch,
        f"data.views_per_video={settings.views}",
        *COMMON,
        *PRETRAIN,
        *data,
        *mask,
        *ratio,
    ]


def pretrain(row: str, seed: int, task: str, base: str, work: Path, steps: int) -> None:
    """Pretrain one row of one seed unless it is finished."""
    folder = work / row.replace(" ", "") / str(seed)
    if row not in FLOORS and not (folder / "pretrain/encoder/encoder.json").exists():
        given = [*overrides(row, task, base, work, seed), f"steps={steps}", f"run_dir={folder}/pretrain"]
        run(["kinemae", "pretrain", str(work / "empty.yaml"), *given], folder / "pretrain.log")


def score(name: str, row: str, seed: int, task: str, work: Path) -> None:
    """Run the "probe" or the fine-tuning ("tuned") of one row of one seed unless it is finished."""
    settings, folder = TASKS[task], work / row.replace(" ", "") / str(seed)
    encoder = folder / "pretrain/encoder"
    if result_of(folder, name, task).exists():
        return
    data = [f"data.{split}={work}/shards/{seed}/{split}" for split in ("train", "validation")]
    if name == "probe" and task == "moves":  # without augmentation, features are computed once
        if row in FLOORS:
            save_random_encoder(encoder, seed)
        given = [f"encoder={encoder}", *data, *PROBE, *COMMON, f"seed={seed}", f"run_dir={folder}/probe"]
        return run(["kinemae", "finetune", "probe", *given], folder / "probe.log")
    start = UNTRAINED if row in FLOORS else [f"encoder={encoder}"]
    how = FROZEN if name == "probe" else TUNED
    given = [*settings.clip, *settings.batch, *COMMON, *TUNE, *settings.tuning, *how, *start, *data]
    config = str(work / "empty.yaml")
    run(
        ["kinemae", "finetune", "train", config, *given, f"seed={seed}", f"run_dir={folder}/{name}"],
        folder / f"{name}.log",
    )


def result_of(folder: Path, name: str, task: str) -> Path:
    """The result file of the "probe" or the fine-tuning ("tuned") of a row."""
    is_probe = name == "probe" and task == "moves"
    return folder / name / ("attentive/result.json" if is_probe else "result.json")


def save_random_encoder(folder: Path, seed: int) -> None:
    """Export an encoder with random weights for the task "moves"."""
    torch.manual_seed(seed)
    shape = ModelConfig(size="tiny", patch_size=8).shape().encoder
    grid = TokenGrid.of(8, 32, shape.patch)
    description = EncoderDescription(shape=shape, grid=grid, reference=grid, frames=8, stride=1, size=32)
    save_encoder(folder, Encoder(shape, grid), description)


def table(rows: list[str], seeds: int, work: Path) -> str:
    """Format the table as Markdown: mean, seeds and deviation."""
    lines = [
        "| row | frozen, attentive probe | deviation | fine-tuned | deviation |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for task in ("probe", "tuned"):
            folders = [work / row.replace(" ", "") / str(seed) for seed in range(seeds)]
            found = [result_of(folder, task, work.name) for folder in folders]
            scores = [100 * read(path)["top1"] for path in found if path.exists()]
            spread = f"{statistics.stdev(scores):.1f}" if len(scores) > 1 else "-"
            each = ", ".join(f"{score:.0f}" for score in scores)
            cells += [f"{statistics.mean(scores):.1f} ({each})", spread] if scores else ["-", "-"]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    """Read a result file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Make folds, run missing rows, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", default="moves", choices=list(TASKS))
    parser.add_argument("--base", default="uniform", choices=MASKS, help="mask of the rows that set none")
    parser.add_argument("--rows", default=",".join([*ROWS, *FLOORS]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="parallel rows, one core each")
    parser.add_argument(
        "--budget", type=float, default=1.0, help="fraction of the pretraining steps, for a trial"
    )
    arguments = parser.parse_args()
    rows, task, base = arguments.rows.split(","), arguments.task, arguments.base
    work = arguments.work.resolve() / task
    work.mkdir(parents=True, exist_ok=True)
    (work / "empty.yaml").write_text("{}\n", encoding="utf-8")
    videos = sorted(path.resolve() for path in arguments.videos.glob("*/*"))
    make_folds(task, videos, work, arguments.seeds)
    steps = steps_of(rows, task, base, work, arguments.budget)
    print(f"steps at equal FLOPs: {steps}", flush=True)
    everything = [(row, seed) for seed in range(arguments.seeds) for row in rows]

    def pretrain_and_probe(row: str, seed: int) -> None:
        pretrain(row, seed, task, base, work, steps.get(row, 0))
        if row != "scratch":
            score("probe", row, seed, task, work)

    def tune(row: str, seed: int) -> None:
        if row != "random":
            score("tuned", row, seed, task, work)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for stage in (pretrain_and_probe, tune):
            list(pool.map(stage, *zip(*everything, strict=True)))  # re-raises errors
    print(table(rows, arguments.seeds, work))


if __name__ == "__main__":
    main()
