"""The run folder: one config for ever, and a note of where and with what it ran.

RUN/config.yaml        the resolved config of the first start
RUN/environment.json   commit, versions, command line and host of every start, newest last
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from data_tools.command import writing_to
from data_tools.config import to_yaml
from data_tools.files import write_whole
from pretrain.runtime.run_lock import LOCK_FILE

# A continued run may differ in these: they change neither the samples nor the arithmetic's order of steps.
FREE_KEYS = (
    "run_dir",
    "save_every_steps",
    "keep_checkpoints",
    "data.workers",
    "data.timeout_s",
    "data.cache_dir",
    "data.cache_gb",
    "data.max_bad_fraction",
    "batch.clips_per_device",
    "engine.cpu_threads",
    "engine.device",
    "engine.bucket_mb",
    "evaluate",
    "log",
    "pictures",
    "health",
    "watch",
    "guard",
)

PREVIEW_FOLDER = "preview"
# What may be there before the run is: a preview, what the launcher writes, and who is about to open it.
OVERLOOKED = (PREVIEW_FOLDER, "launch", "logs", LOCK_FILE)


def check_run_dir(run_dir: Path, config: Any) -> bool:
    """Whether the folder holds a run to continue.

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
    stored = _flat(yaml.safe_load(stored_path.read_text(encoding="utf-8")))
    wanted = _flat(yaml.safe_load(to_yaml(config)))
    changed = [
        f"{key}: {stored.get(key)!r} there, {wanted.get(key)!r} here"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key) and not _is_free(key)
    ]
    if changed:
        raise ValueError(
            f"run_dir {run_dir} holds a run of another config ({'; '.join(changed)}): choose another run_dir"
        )
    return True


def open_run_dir(run_dir: Path, config: Any) -> None:
    """Create the folder where needed and note this start in it. Only the first process may call this.

    Raises:
        DataError: the folder cannot be written.
    """
    with writing_to(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / "config.yaml").exists():
            write_whole(run_dir / "config.yaml", to_yaml(config))
        path = run_dir / "environment.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        write_whole(path, json.dumps([*starts, _environment()], indent=1))


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
    if "KINEMAE_COMMIT" in os.environ:  # the launcher froze the code outside its repository
        return os.environ["KINEMAE_COMMIT"]
    code = Path(__file__).resolve().parent
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=code, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return ran.stdout.strip() or None


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        name: leaf
        for child_key, child in value.items()
        for name, leaf in _flat(child, f"{key}.{child_key}" if key else str(child_key)).items()
    }


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
