"""`kinemae finetune sweep CONFIG 'KEY=[A, B]' ...`: search for settings with successive halving.

RUN_DIR/sweep.json        settings, search space and trials; a later start must have the same
RUN_DIR/base.yaml         the config of all trials
RUN_DIR/trials/000/       the run folder of a trial; 000.log is its output
RUN_DIR/results.json      trials with values, validations and best metric, best first
RUN_DIR/best.yaml         the config with the best values, for `kinemae finetune train`
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import DataError, Stopped, log
from kinemae.data_tools.config import load_config, require, to_yaml
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.sweep.halving import SweepConfig, Trial, halve
from kinemae.finetune.sweep.processes import run_trials
from kinemae.finetune.sweep.space import draw_trials, read_space
from kinemae.finetune.tasks.base import build_task
from kinemae.finetune.train import prepare
from kinemae.finetune.validation.selection import Selection, is_maximized

_PREFIX = "sweep."
_SET_BY_SWEEP = (
    *("run_dir", "data.validation", "data.test", "evaluate.data", "validate.fraction"),
    *("validate.every_epochs", "validate.every_steps", "validate.pause_after"),
)


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A checked sweep.

    Attributes:
        base: the config of all trials, without the swept keys.
        space: the overrides of the swept keys.
    """

    folder: Path
    config: SweepConfig
    base: FinetuneConfig
    space: list[str]
    trials: list[Trial]
    selection: Selection

    def record(self) -> dict[str, Any]:
        """Settings that a later start must repeat, as JSON."""
        settings = {key: value for key, value in asdict(self.config).items() if key != "processes"}
        return {"sweep": settings, "space": self.space, "trials": [trial.values for trial in self.trials]}


def run_sweep(arguments: argparse.Namespace) -> None:
    """Check everything, run the trials, and write the results."""
    sweep = prepare_sweep(arguments.config, arguments.overrides)
    if arguments.dry_run:
        sys.stdout.write(f"{json.dumps(sweep.record(), indent=1, ensure_ascii=False)}\n")
        return
    _open_folder(sweep)
    log.info(
        "sweep: %d trials, %d rungs of %s of the run, by %s on %.0f %% of data.train",
        *(len(sweep.trials), sweep.config.rungs, _rung_names(sweep.config), sweep.selection.metric),
        100 * sweep.config.fraction,
    )
    try:
        best = halve(sweep.trials, sweep.config, sweep.selection, lambda *work: _advance(sweep, *work))
    except Stopped:
        log.info("\n%s", table(results(sweep)))
        raise
    if best is None:
        raise DataError(
            f"{sweep.folder}: expected a trial with a finite {sweep.selection.metric}, got none; "
            "fix: see the logs in trials/, for example with lower learning rates"
        )
    found = _write_results(sweep, best)
    sys.stdout.write(f"{json.dumps(found, ensure_ascii=False) if arguments.json else table(found)}\n")
    log.info("train with the best values: kinemae finetune train %s", sweep.folder / "best.yaml")


def prepare_sweep(path: Path, overrides: list[str]) -> PreparedSweep:
    """Read and check the search space and the config of every trial.

    Raises:
        ValueError: an invalid key or value of the sweep or of a trial, or no swept key.
        DataError, CheckpointError: the first trial cannot be trained.
    """
    own = [override.removeprefix(_PREFIX) for override in overrides if override.startswith(_PREFIX)]
    config = load_config(SweepConfig, None, own)
    given = [override for override in overrides if not override.startswith(_PREFIX)]
    axes, fixed = read_space(FinetuneConfig, given)
    if not axes:
        raise ValueError(
            "sweep: expected a key with several values, got none; "
            "fix: add for example 'optim.lr=[1e-4, 1e-3]'"
        )
    for axis in axes:
        is_free = axis.key not in _SET_BY_SWEEP
        require(is_free, axis.key, "have one value, because the sweep sets it for each trial", "several")
    values = draw_trials(axes, trials=config.trials, seed=config.seed)
    base = load_config(FinetuneConfig, path, fixed)
    require(not base.auto, "auto", "be false in a sweep: give the settings of `finetune plan`", base.auto)
    folder = Path(base.run_dir)
    trials = [
        Trial(number=number, values=each, folder=folder / "trials" / f"{number:03d}")
        for number, each in enumerate(values)
    ]
    keys = {axis.key for axis in axes}
    space = [override for override in given if override.partition("=")[0] in keys]
    sweep = PreparedSweep(
        folder=folder, config=config, base=base, space=space, trials=trials, selection=_selection(base)
    )
    configs = [
        load_config(FinetuneConfig, path, [*fixed, *trial_overrides(sweep, trial)]) for trial in trials
    ]
    if not (folder / "sweep.json").exists():
        prepare(replace(configs[0], run_dir=str(folder / "unused")))
    return sweep


def trial_overrides(sweep: PreparedSweep, trial: Trial, rung: int | None = None) -> list[str]:
    """The overrides of a trial: its values, a held-out part of data.train, and the end of the rung."""
    values = [f"{key}={text}" for key, text in trial.values.items()]
    every = float(trial.values.get("epochs", sweep.base.epochs)) / sweep.config.all_validations
    pause = 0 if rung is None or rung == sweep.config.rungs - 1 else sweep.config.validations(rung)
    return [
        *values,
        f"run_dir={json.dumps(str(trial.folder))}",
        *("data.validation=null", "data.test=null", "evaluate.data=null"),
        f"validate.fraction={sweep.config.fraction:g}",
        *(f"validate.every_epochs={every!r}", "validate.every_steps=null"),
        f"validate.pause_after={pause}",
    ]


def results(sweep: PreparedSweep) -> list[dict[str, Any]]:
    """The trials with their values and best validations, the longest and best first."""
    last = sweep.config.rungs - 1
    found = []
    for trial in sweep.trials:
        history = trial.history()
        line = trial.best(last, sweep.config, sweep.selection)
        found.append(
            {
                "trial": trial.number,
                "values": trial.values,
                "validations": len(history),
                "metric": sweep.selection.metric,
                "best": None if line is None else line[sweep.selection.metric],
                "epoch": None if line is None else line.get("epoch"),
                "status": trial.failure or _status(trial, history),
            }
        )
    sign = -1 if sweep.selection.maximize else 1
    return sorted(
        found,
        key=lambda each: (
            each["best"] is None,
            each["status"] != "finished",
            -each["validations"],
            sign * (each["best"] or 0.0),
            each["trial"],
        ),
    )


def table(found: list[dict[str, Any]]) -> str:
    """The results as an aligned table."""
    keys = list(found[0]["values"])
    rows = [["trial", *keys, found[0]["metric"], "epoch", "validations", "status"]]
    for each in found:
        numbers = ["-" if each[name] is None else f"{each[name]:.4g}" for name in ("best", "epoch")]
        values = [each["values"][key] for key in keys]
        rows.append([str(each["trial"]), *values, *numbers, str(each["validations"]), each["status"]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _status(trial: Trial, history: list[dict[str, Any]]) -> str:
    if trial.is_finished:
        return "finished"
    return "not started" if not history and trial.rung < 0 else f"ended after rung {trial.rung + 1}"


def _selection(base: FinetuneConfig) -> Selection:
    task = build_task(base.task)
    metric = base.validate.metric or task.metric
    maximize = is_maximized(metric, task_metric=task.metric, maximize=task.maximize)
    return Selection(metric=metric, maximize=maximize)


def _advance(sweep: PreparedSweep, trials: list[Trial], rung: int) -> None:
    """Train trials up to a rung."""
    if not trials:
        return
    log.info("rung %d of %d: %d trials", rung + 1, sweep.config.rungs, len(trials))
    start = [sys.executable, "-m", "kinemae", "finetune", "train", str(sweep.folder / "base.yaml")]
    run_trials(
        trials,
        lambda trial: [*start, *trial_overrides(sweep, trial, rung)],
        processes=sweep.config.processes,
        gpus=_gpus(sweep.base.engine.device),
    )


def _gpus(device: str) -> list[str]:
    """The identifiers of the visible GPUs; none on the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _open_folder(sweep: PreparedSweep) -> None:
    """Write the record of the sweep, or compare it with that of an earlier start.

    Raises:
        ValueError: the folder holds another sweep, or something else.
    """
    record, path, base = sweep.record(), sweep.folder / "sweep.json", sweep.folder / "base.yaml"
    text = to_yaml(sweep.base)
    if path.exists():
        if json.loads(path.read_text()) != record or base.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"run_dir {sweep.folder}: expected the same sweep, got one of another config or search "
                "space; fix: choose another run_dir, or restore the keys of sweep.json and base.yaml"
            )
        return
    if sweep.folder.exists() and any(sweep.folder.iterdir()):
        raise ValueError(
            f"run_dir {sweep.folder}: expected a sweep or an empty folder, got other files; fix: choose "
            "another run_dir"
        )
    sweep.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(base, text)
    atomic_write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _write_results(sweep: PreparedSweep, best: Trial) -> list[dict[str, Any]]:
    found = results(sweep)
    content = {"best": best.number, "best_values": best.values, "trials": found}
    atomic_write_text(sweep.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    values = [f"{key}={text}" for key, text in best.values.items()]
    config = load_config(FinetuneConfig, sweep.folder / "base.yaml", values)
    atomic_write_text(
        sweep.folder / "best.yaml", to_yaml(replace(config, run_dir=str(sweep.folder / "best")))
    )
    return found


def _rung_names(config: SweepConfig) -> str:
    shares = (config.validations(rung) / config.all_validations for rung in range(config.rungs))
    return ", ".join(f"{share:.0%}" for share in shares)
