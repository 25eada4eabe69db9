"""The run folder: its config, the record of every start, and the lock that keeps out a second writer.

RUN/config.yaml        the resolved config of the first start; its length is that of the last start
RUN/inputs.json        data sets and encoders of the first start, by fingerprint
RUN/environment.json   commit, versions, command line, host and changed keys of every start, newest last
RUN/lock               held by the first process while it runs; the kernel releases it at its end
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from kinemae.data_tools.command import Stuck, log
from kinemae.data_tools.config import to_yaml, with_defaults
from kinemae.data_tools.error_file import VARIABLE
from kinemae.data_tools.files import Descriptor, atomic_write_text, commit_of_code, flock, read_json
from kinemae.pretrain.folder_kinds import kind_of_config, kind_of_run
from kinemae.pretrain.runtime.checkpoint_storage import RunInStore, storage_of
from kinemae.pretrain.runtime.config_changes import ALLOWED_CHANGES, Change, find_changes, table_of
from kinemae.pretrain.runtime.file_retries import retry_write
from kinemae.pretrain.runtime.inputs import Input, compare_inputs, read_inputs, write_inputs
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.run_length import LENGTH_KEYS, judge_length, with_length
from kinemae.pretrain.runtime.settings import EngineConfig, TimeoutsConfig, precision_on

PREVIEW_FOLDER = "preview"
LOCK_FILE = "lock"
# Allowed in a folder before its run: a preview, files of the launcher, the lock, and an interrupted write.
IGNORED_ENTRIES = (PREVIEW_FOLDER, "launch", "logs", LOCK_FILE, "config.yaml.partial")
_MOST_NAMED = 8  # refused keys in the error; the table before it shows all
_POLL_S = 0.2
_MOST_BYTES = 4096
_PACKAGES = ("torch", "torchvision", "deepspeed", "webdataset", "omegaconf", "tensorboard", "av", "kinemae")


def check_run_dir(
    run_dir: Path, config: Any, inputs: Sequence[Input] = (), *, by_progress: Sequence[str] | None = None
) -> bool:
    """Check whether the folder holds a run to continue; log changed keys.

    Args:
        inputs: the data sets and encoders of the config.
        by_progress: see `judge_length`; None if the length cannot change.

    Raises:
        ValueError: the folder holds a run of another config, or something else; the message names the keys.
    """
    if config.save_to is not None and (in_store := RunInStore(config.save_to)).exists():
        # Also if the run folder is lost: checkpoints of another run would be loaded.
        with in_store.copied() as folder:
            _refuse_changes(folder, config, inputs, by_progress=by_progress, key=f"save_to {config.save_to}")
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir}: expected a folder, got a file; fix: choose another run_dir")
    stored_path = run_dir / "config.yaml"
    if not stored_path.exists():
        if run_dir.exists() and any(path.name not in IGNORED_ENTRIES for path in run_dir.iterdir()):
            raise ValueError(
                f"run_dir {run_dir}: expected a run or an empty folder, got other files; fix: choose another "
                "run_dir"
            )
        return False
    stored, here = kind_of_run(run_dir), kind_of_config(vars(config))
    if stored != here:
        raise ValueError(
            f"run_dir {run_dir}: expected {here}, got {stored or 'no run'}; fix: choose another run_dir"
        )
    changes = _refuse_changes(run_dir, config, inputs, by_progress=by_progress, key=f"run_dir {run_dir}")
    for line in table_of(changes) if changes else ():
        log.info("%s", line)
    return True


def _refuse_changes(
    folder: Path, config: Any, inputs: Sequence[Input], *, by_progress: Sequence[str] | None, key: str
) -> list[Change]:
    """The changes from the run whose config and inputs are in a folder.

    Args:
        key: the config key of the place, with its value, for the message.
    """
    changes = _changes(folder, config, inputs)
    if by_progress is not None:
        done = max(storage_of(Path(config.run_dir), config.save_to).complete(), default=0)
        changes = judge_length(changes, _stored(folder, config), done=done, by_progress=by_progress)
    refused = [change for change in changes if not change.is_allowed]
    if refused:
        for line in table_of(changes):
            log.info("%s", line)
        named = "; ".join(_named(change) for change in refused[:_MOST_NAMED])
        named += f"; and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
        raise ValueError(
            f"{key} holds a run of another config ({named}); fix: choose another {key.split()[0]}, or "
            "restore these keys"
        )
    return changes


def _named(change: Change) -> str:
    reason = f", {change.effect}" if change.key in LENGTH_KEYS else ""
    return f"{change.key}: run {change.old!r}, config {change.new!r}{reason}"


def open_run_dir(run_dir: Path, config: Any, inputs: Sequence[Input] = ()) -> None:
    """Create the folder if it is missing, and record this start. Only the first process may call this.

    Raises:
        DataError: the folder cannot be written.
        CheckpointError: `save_to` cannot be written.
        Stuck: one of them cannot be written, but another attempt may succeed.
    """
    in_store = None if config.save_to is None else RunInStore(config.save_to)
    if in_store is not None and not (run_dir / "config.yaml").exists():
        retry_write(partial(in_store.restore, run_dir), run_dir)
    retry_write(partial(_record_start, run_dir, config, inputs), run_dir)
    if in_store is not None:
        in_store.write(run_dir)


def _record_start(run_dir: Path, config: Any, inputs: Sequence[Input]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "config.yaml").exists():
        atomic_write_text(run_dir / "config.yaml", to_yaml(config))
    path = run_dir / "environment.json"
    starts = read_json(path) if path.exists() else []
    # Compared with the config of the first start, of which only the length is rewritten.
    changes = _changes(run_dir, config, inputs)
    changed = {change.key: [change.old, change.new] for change in changes}
    write_inputs(run_dir, inputs)
    precision = _precision(config.engine)
    if starts and starts[-1].get("precision", precision) != precision:
        effect = ALLOWED_CHANGES["engine.precision"]
        log.info("precision: %s at the last start, %s now: %s", starts[-1]["precision"], precision, effect)
    start = {**_environment(), "precision": precision, "changed": changed}
    atomic_write_text(path, json.dumps([*starts, start], indent=1))
    if changed.keys() & set(LENGTH_KEYS):
        stored = with_length(_stored(run_dir, config), changes)
        text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
        atomic_write_text(run_dir / "config.yaml", text)


def _changes(run_dir: Path, config: Any, inputs: Sequence[Input]) -> list[Change]:
    changes = find_changes(_stored(run_dir, config), yaml.safe_load(to_yaml(config)))
    return compare_inputs(changes, read_inputs(run_dir), inputs)


def _stored(run_dir: Path, config: Any) -> dict[str, Any]:
    """The stored config, with the defaults of keys that it lacks."""
    stored = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    return with_defaults(type(config), stored)


def _precision(engine: EngineConfig) -> str:
    on_cuda = torch.cuda.is_available() and engine.device != "cpu"
    return precision_on(engine, torch.device("cuda" if on_cuda else "cpu"))


def _environment() -> dict[str, Any]:
    has_cuda = torch.cuda.is_available()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit_of_code(),
        "host": platform.node(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name() if has_cuda else platform.processor() or "cpu",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def run_lock(run_dir: Path, processes: Processes, timeouts: TimeoutsConfig) -> Iterator[None]:
    """Hold the folder's lock while entered; only the first process locks.

    It waits first, since the previous process of a restarted run may not have ended yet.

    Raises:
        ValueError: another process holds the lock after `timeouts.lock_wait_s`; names its host and process.
        DataError: the folder cannot be written.
        Stuck: the same, but another attempt may succeed: under a supervisor, which runs one job in a folder,
            the lock is that of a lost host, or of a process that survives SIGKILL.
    """
    if not processes.is_first:
        yield
        return
    lock = retry_write(partial(_open_lock, run_dir), run_dir)
    _acquire(lock.number, run_dir, timeouts.lock_wait_s)
    try:
        yield
    finally:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock.number, fcntl.LOCK_UN)


def _open_lock(run_dir: Path) -> Descriptor:
    run_dir.mkdir(parents=True, exist_ok=True)
    return Descriptor(str(run_dir / LOCK_FILE), os.O_RDWR | os.O_CREAT)


def _acquire(lock: int, run_dir: Path, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    is_logged = False
    while not _try_lock(lock, run_dir):
        if time.monotonic() > deadline_s:
            kind = Stuck if VARIABLE in os.environ else ValueError
            raise kind(
                f"run_dir {run_dir}: expected no other run in it, but it is in use by {_holder(lock)} "
                f"(waited timeouts.lock_wait_s={wait_s:g} seconds); fix: end it, or choose another run_dir"
            )
        if not is_logged:
            log.info("run_dir %s is in use by %s: waiting for its end", run_dir, _holder(lock))
        is_logged = True
        time.sleep(_POLL_S)


def _try_lock(lock: int, run_dir: Path) -> bool:
    """Try to acquire the lock; true also if the file system has no locks."""
    try:
        has_locks = flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not has_locks:
        log.warning("%s is on a file system without locks: make sure that no two runs use it", run_dir)
        return True
    signature = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
    with suppress(OSError):  # a full disk: the lock works without a name in it
        os.ftruncate(lock, 0)
        os.pwrite(lock, signature, 0)
    return True


def _holder(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, _MOST_BYTES, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process (the lock file does not name it yet)"
