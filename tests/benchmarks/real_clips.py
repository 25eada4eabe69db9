"""Compare the ways to use an encoder on real clips, fold by fold, for docs/results.md.

    python -m tests.benchmarks.real_clips VIDEOS WORK --folds 'A B,C D,E F'   # held-out prefixes of names
    python -m tests.benchmarks.real_clips VIDEOS WORK --blocks 5        # or blocks of neighbouring files
    python -m tests.benchmarks.real_clips VIDEOS WORK ... --only 0,1    # some folds; the table needs all

VIDEOS holds a folder per class. A tiny encoder is pretrained once on all clips without their labels. In each
fold the labels of the held-out clips are used for scoring only. Every row is one command of `kinemae
finetune` on the pretrained and on the random encoder; hyperparameters are chosen inside the training part.
The floors are logistic regressions on pixels by the same command. Finished results in WORK are kept.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

FRAMES, SIZE, FLOOR_SIZE = 8, 64, 16
PRETRAIN = f"""
save_every_steps: 1000
data: {{num_workers: 0}}
clip: {{frames: {FRAMES}, sampling: uniform, size: {SIZE}}}
augment: {{min_scale: 0.6, max_scale: 1.0, min_aspect: 0.85, max_aspect: 1.18, flip: true}}
batch: {{global_clips: 32, clips_per_device: 32}}
model: {{size: tiny, patch_size: 8, decoder: cross, predict_ratio: 0.5}}
masking: {{name: uniform, args: {{ratio: 0.75}}}}
noise: {{name: none}}
target: {{name: pixels}}
engine: {{cpu_threads: 1}}
optim: {{lr: 1e-3, warmup_fraction: 0.05}}
"""
FLOOR_GRID = "logistic={c: [1e-3, 1e-2], max_iter: 200}"  # pixels need a strong penalty
PROBE = ["engine.cpu_threads=1", "data.num_workers=0", "save_model=false"]
TRAIN = [
    *("engine.cpu_threads=1", "data.num_workers=0", "batch={global_clips: 32, clips_per_device: 32}"),
    *("augment={min_scale: 0.6, max_scale: 1.0, min_aspect: 0.85, max_aspect: 1.18, flip: true}",),
    *("task.args.label_smoothing=0.1", "head={name: linear, args: {norm: standardize, pool: statistics}}"),
    *("optim.warmup_fraction=0.1", "optim.layer_decay=null", "drop_path=0.1", "save_every_steps=100000"),
    *("evaluate.temporal_clips=1", "validate.every_epochs=0", "report=false"),
]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to use an encoder: a name, the command and its overrides, and the score in `result.json`.

    Attributes:
        method: the folder of a probe's result inside its run.
    """

    name: str
    command: str
    overrides: list[str]
    method: str = ""
    score: Callable[[dict[str, Any]], float] = lambda result: result["top1"]


def rows(epochs: int) -> list[Row]:
    """List the rows of the table, except for the floors."""
    grid = "grid={lr: [1e-3, 3e-3, 1e-2], weight_decay: [0.0, 0.01]}"
    attentive = "grid={lr: [1e-3, 3e-3], weight_decay: [0.01]}"
    return [
        Row(name="kNN", command="knn", method="knn", overrides=PROBE),
        Row(
            name="logistic regression",
            command="probe",
            method="logistic",
            overrides=["method=logistic", *PROBE],
        ),
        Row(name="linear probe", command="probe", method="linear", overrides=["method=linear", grid, *PROBE]),
        Row(
            name="attentive probe",
            command="probe",
            method="attentive",
            overrides=["method=attentive", attentive, *PROBE],
        ),
        Row(
            name="10 labels per class, logistic regression",
            command="probe",
            method="logistic",
            overrides=["method=logistic", "few_shot={per_class: [10], tries: 5}", *PROBE],
            score=lambda result: result["probe"]["few_shot"][0]["mean"],
        ),
        Row(
            name="LoRA",
            command="train",
            overrides=["demo", "adapt.method=lora", f"epochs={epochs}", "optim.lr=3e-3", *TRAIN],
        ),
        Row(
            name="fine-tuned",
            command="train",
            overrides=["demo", "adapt.method=full", f"epochs={epochs}", "optim.lr=1e-3", *TRAIN],
        ),
    ]


def kinemae(*arguments: object) -> None:
    """Run a command of the package; stop at its first error."""
    command = [sys.executable, "-m", "kinemae", *map(str, arguments)]
    sys.stderr.write(f"{shlex.join(command[2:])}\n")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


Part = Callable[[Path, int, int], bool]
"""Whether a clip is held out, by its path, its number in its class, and the number of clips of the class."""

ALL: dict[str, Part] = {"all": lambda path, number, count: False}


def in_groups(names: Collection[str]) -> Part:
    """The part that holds out the clips of some groups."""
    return lambda path, number, count: group_of(path) in names


def group_of(path: Path) -> str:
    """The group of a clip: its name up to the first _."""
    return path.name.split("_")[0]


def prepare(videos: Path, work: Path, parts: Mapping[str, Part], *, has_groups: bool) -> None:
    """Write a list of the clips for each part, and shard it to `work / NAME`."""
    clips = {kind.name: sorted(kind.iterdir()) for kind in sorted(videos.iterdir()) if kind.is_dir()}
    for name, is_held_out in parts.items():
        if (work / name / "train" / "dataset.json").exists():
            continue
        with (work / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "group", "split"])
            for label, paths in clips.items():
                for number, path in enumerate(paths):
                    held_out = is_held_out(path, number, len(paths))
                    group = group_of(path) if has_groups else ""
                    table.writerow([path.resolve(), label, group, "validation" if held_out else "train"])
        layout = "layout={name: h264, args: {short_side: 80}}"
        kinemae("data", "shard", work / f"{name}.csv", work / name, layout)


def pretrain(work: Path, steps: int) -> Path:
    """Pretrain on all clips without labels; return the exported encoder."""
    if not (work / "pretrain" / "encoder" / "encoder.json").exists():
        (work / "pretrain.yaml").write_text(PRETRAIN)
        keys = {"data.shards": work / "all" / "train", "steps": steps, "run_dir": work / "pretrain"}
        kinemae("pretrain", work / "pretrain.yaml", *(f"{key}={value}" for key, value in keys.items()))
    return work / "pretrain" / "encoder"


def pixels(path: Path) -> np.ndarray:
    """Read evenly spaced grey frames of a clip, as grey_THW in the range of 0 to 1."""
    with av.open(str(path)) as container:
        frames = [
            frame.reformat(FLOOR_SIZE, FLOOR_SIZE, "gray").to_ndarray() for frame in container.decode(video=0)
        ]
    chosen = [frames[int((number + 0.5) * len(frames) / FRAMES)] for number in range(FRAMES)]
    return np.stack(chosen).astype(np.float32) / 255


FLOORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor: first frame": lambda grey_THW: grey_THW[0].ravel(),
    "floor: all pixels": lambda grey_THW: grey_THW.ravel(),
    "floor: frame differences": lambda grey_THW: np.diff(grey_THW, axis=0).ravel(),
}


def floors(work: Path, fold: int) -> dict[str, float]:
    """Score logistic regressions on pixels, through the command that accepts features of any model."""
    scores = {}
    with (work / f"fold{fold}.csv").open() as file:
        clips = list(csv.DictReader(file))
    grey = {clip["path"]: pixels(Path(clip["path"])) for clip in clips}
    for name, function in FLOORS.items():
        folder = work / f"fold{fold}-floors" / name.removeprefix("floor: ").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            some = [clip for clip in clips if clip["split"] == split]
            np.savez(
                folder / f"{split}.npz",
                features=np.stack([function(grey[clip["path"]]) for clip in some]),
                key=np.array([clip["path"] for clip in some]),
                label=np.array([clip["label"] for clip in some]),
            )
        data = [f"data.{split}={folder / f'{split}.npz'}" for split in ("train", "validation")]
        result = folder / "run" / "logistic" / "result.json"
        if not result.exists():
            kinemae("finetune", "probe", "method=logistic", FLOOR_GRID, *data, f"run_dir={folder / 'run'}")
        scores[name] = json.loads(result.read_text())["top1"]
    return scores


def run_fold(work: Path, fold: int, encoder: Path, epochs: int) -> dict[str, float]:
    """Run every row on the pretrained and the random encoder; return the scores by row."""
    data = [f"data.{split}={work / f'fold{fold}' / split}" for split in ("train", "validation")]
    scores = floors(work, fold)
    for weights in ("pretrained", "random"):
        for row in rows(epochs):
            run = work / f"fold{fold}-{weights}" / row.name.replace(" ", "-").replace(",", "")
            result = run / row.method / "result.json"
            if not result.exists():
                source = [f"encoder={encoder}", f"weights={weights}", f"run_dir={run}"]
                store = [f"features.folder={run.parent / 'features'}"] if row.command != "train" else []
                if "method=attentive" in row.overrides:
                    store = [f"features.folder={run.parent / 'tokens'}"]
                kinemae("finetune", row.command, *row.overrides, *data, *source, *store)
            scores[f"{row.name} ({weights})"] = row.score(json.loads(result.read_text()))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--folds", help="held-out prefixes of each fold: 'A B,C D'; a prefix ends at the first _"
    )
    parser.add_argument("--blocks", type=int, default=5, help="number of folds of neighbouring files")
    parser.add_argument("--only", help="numbers of the folds to run")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the pretraining")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of LoRA and fine-tuning")
    options = parser.parse_args()
    if options.folds:
        parts = [in_groups(set(part.split())) for part in options.folds.split(",")]
    else:
        blocks = range(options.blocks)
        parts = [
            lambda path, number, count, block=block: number * options.blocks // count == block
            for block in blocks
        ]
    options.work.mkdir(parents=True, exist_ok=True)
    folds = {f"fold{fold}": part for fold, part in enumerate(parts)}
    prepare(options.videos, options.work, ALL | folds, has_groups=bool(options.folds))
    encoder = pretrain(options.work, options.steps)
    chosen = range(len(parts)) if options.only is None else map(int, options.only.split(","))
    scores = [run_fold(options.work, fold, encoder, options.epochs) for fold in chosen]
    for name in scores[0]:
        values = [100 * each[name] for each in scores]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        folds = ", ".join(f"{value:.1f}" for value in values)
        sys.stdout.write(f"| {name} | {statistics.mean(values):.1f} ({spread:.1f}) | {folds} |\n")


if __name__ == "__main__":
    main()
