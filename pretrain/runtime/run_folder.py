"""The run folder: one config for ever, and a note of where and with what it ran.

RUN/config.yaml        the resolved config of the first start
RUN/inputs.json        data sets and encoders of the first start, by fingerprint
RUN/environment.json   commit, versions, command line, host and changed keys of every start, newest last
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from kinemae.data_tools.command import log
from kinemae.data_tools.config import to_yaml, with_defaults
from kinemae.data_tools.files import atomic_write_text
from kinemae.pretrain.folder_kinds import kind_of_config, kind_of_run
from kinemae.pretrain.runtime.config_changes import FREE_KEYS, Change, find_changes, table_of
from kinemae.pretrain.runtime.file_retries import written
from kinemae.pretrain.runtime.inputs import Input, judge, read_inputs, write_inputs
from kinemae.pretrain.runtime.run_lock import LOCK_FILE
from kinemae.pretrain.runtime.settings import EngineConfig, precision_on

PREVIEW_FOLDER = "preview"
_MOST_NAMED = 8  # of the keys that are refused; the table before the error shows all
# What may be there before the run is: a preview, what the launcher writes, who is about to open it, and a
# config whose writing a full disk or a kill cut short.
OVERLOOKED = (PREVIEW_FOLDER, "launch", "logs", LOCK_FILE, "config.yaml.partial")


def check_run_dir(run_dir: Path, config: Any, inputs: Sequence[Input] = ()) -> bool:
    """Whether the folder holds a run to continue. What its config does not share with this one is logged.

    Args:
        inputs: the data sets and encoders that the config names.

    Raises:
        ValueError: it holds a run of another config, or something that is no run; the message names the keys.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is a file: choose another run_dir")
    stored_path = run_dir / "config.yaml"
    if not stored_path.exists():
        if run_dir.exists() and any(path.name not in OVERLOOKED for path in run_dir.iterdir()):
            raise ValueError(f"run_dir {run_dir} exists, is not empty and is no run: choose another run_dir")
        return False
    stored, here = kind_of_run(run_dir), kind_of_config(vars(config))
    if stored != here:
        raise ValueError(
            f"run_dir {run_dir}: expected {here}, got {stored or 'no run'}; fix: choose another run_dir"
        )
    changes = _changes(run_dir, config, inputs)
    for line in table_of(changes) if changes else ():
        log.info("%s", line)
    refused = [change for change in changes if not change.is_free]
    if refused:
        named = "; ".join(
            f"{change.key}: {change.there!r} there, {change.here!r} here" for change in refused[:_MOST_NAMED]
        )
        named += f"; and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
        raise ValueError(
            f"run_dir {run_dir} holds a run of another config ({named}): choose another run_dir, or leave "
            "these keys as they are there"
        )
    return True


def open_run_dir(run_dir: Path, config: Any, inputs: Sequence[Input] = ()) -> None:
    """Create the folder where needed and note this start in it. Only the first process may call this.

    Raises:
        DataError: the folder cannot be written.
        Stuck: the same, where it may succeed if it is tried again.
    """
    written(partial(_note_start, run_dir, config, inputs), run_dir)


def _note_start(run_dir: Path, config: Any, inputs: Sequence[Input]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "config.yaml").exists():
        atomic_write_text(run_dir / "config.yaml", to_yaml(config))
    path = run_dir / "environment.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    # Against the config of the first start, which stays as it is.
    changed = {change.key: [change.there, change.here] for change in _changes(run_dir, config, inputs)}
    write_inputs(run_dir, inputs)
    precision = _precision(config.engine)
    if starts and starts[-1].get("precision", precision) != precision:
        effect = FREE_KEYS["engine.precision"]
        log.info("precision: %s at the last start, %s now: %s", starts[-1]["precision"], precision, effect)
    atomic_write_text(
        path,
        json.dumps([*starts, {**_environment(), "precision": precision, "changed": changed}], indent=1),
    )


def _changes(run_dir: Path, config: Any, inputs: Sequence[Input]) -> list[Change]:
    stored = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    changes = find_changes(with_defaults(type(config), stored), yaml.safe_load(to_yaml(config)))
    return judge(changes, read_inputs(run_dir), inputs)


def _precision(engine: EngineConfig) -> str:
    on_cuda = torch.cuda.is_available() and engine.device != "cpu"
    return precision_on(engine, torch.device("cuda" if on_cuda else "cpu"))


def _environment() -> dict[str, Any]:
    packages = (
        "torch",
        "torchvision",
        "deepspeed",
        "webdataset",
        "omegaconf",
        "tensorboard",
        "av",
        "kinemae",
    )
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": _commit(),
        "host": platform.node(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    code = Path(__file__).resolve().parent
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=code, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return ran.stdout.strip() or None
