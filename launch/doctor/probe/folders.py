"""Folders that all nodes are to share: what one writes and renames the others must see; speed; room."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCK = b"k" * 65_536
_SYNCS = 5
_PART_BYTES = 4 << 20


def write(*, folder: str, name: str, token: str) -> dict[str, Any]:
    """Write a small file as a checkpoint is written: a partial name, fsync, rename.

    Returns:
        `sync_ms` (the median of writing 64 KiB through to the disk), `free_bytes`, `kind` (the file
        system's), or `failed`.
    """
    path = Path(folder) / name
    partial = path.with_name(f"{name}.partial")
    try:
        seconds = []
        for _ in range(_SYNCS):
            began = time.monotonic()
            with partial.open("wb") as file:
                file.write(_BLOCK)
                file.flush()
                os.fsync(file.fileno())
            seconds.append(time.monotonic() - began)
        partial.write_text(token)
        partial.rename(path)
    except OSError as error:
        return {"failed": errno.errorcode.get(error.errno or 0, "EIO"), "why": error.strerror or str(error)}
    free = shutil.disk_usage(folder).free
    return {"sync_ms": 1000 * statistics.median(seconds), "free_bytes": free, "kind": _kind(path)}


def look(*, folder: str, names: Sequence[str], token: str, wait_s: float) -> dict[str, str]:
    """Which of the others' files are not as they should be: missing, or with other content.

    A network file system may show an old listing for some seconds: it is asked again until `wait_s` is over.
    """
    end = time.monotonic() + wait_s
    while True:
        wrong = {name: state for name in names if (state := _state(Path(folder) / name, token))}
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(0.2)


def _state(path: Path, token: str) -> str:
    try:
        return "" if path.read_text() == token else "other content"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)


def lock(*, path: str) -> Any:
    """Lock a file as a run locks its folder; the lock is held until the probe ends.

    Returns:
        {"state": "mine" | "taken" | the system's reason}, and what holds the lock.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"state": "taken"}
        except OSError as error:
            return {"state": error.strerror or str(error)}
        return {"state": "mine"}, stack.pop_all()


def clean(*, folder: str, names: Sequence[str]) -> dict[str, str]:
    """Remove the doctor's own files, and the folder where nothing else is left in it."""
    for name in (*names, *(f"{name}.partial" for name in names)):
        with contextlib.suppress(OSError):
            (Path(folder) / name).unlink()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()
    return {}


def _kind(path: Path) -> str:
    """The file system that holds a path, as /proc/mounts calls it."""
    best, kind = "", "unknown"
    real = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (point == "/" or real == point or real.startswith(f"{point}/")):
            best, kind = point, name
    return kind


def read_shards(*, folder: str, parts: int) -> dict[str, Any]:
    """Read the description whole and pieces of some shards: all nodes must find the same bytes.

    Returns:
        `fingerprint` of the data set, `digest` of the pieces, `mb_per_s` of reading them (a cache may have
        helped), or `failed`.
    """
    try:
        described = json.loads((Path(folder) / "dataset.json").read_text())
        digest, count, seconds = hashlib.sha256(), 0, 0.0
        shards = [Path(folder) / shard["name"] for shard in described["shards"]]
        for path in shards[:: max(1, len(shards) // parts)][:parts]:
            began = time.monotonic()
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size // 2 - _PART_BYTES // 2))
                part = file.read(_PART_BYTES)
            seconds += time.monotonic() - began
            digest.update(part)
            count += len(part)
    except OSError as error:
        return {"failed": f"{error.strerror}: {error.filename}"}
    except (ValueError, KeyError, TypeError) as error:
        return {"failed": f"dataset.json cannot be read: {error}"}
    rate = count / 1e6 / max(seconds, 1e-6)
    return {"fingerprint": described.get("fingerprint"), "digest": digest.hexdigest(), "mb_per_s": rate}


def decode(*, folder: str, limit_s: float) -> dict[str, Any]:
    """Let the room itself read some clips, with their checksums: `kinemae data bench`.

    Returns:
        `clips_per_s` of one core; or `absent`, where KineMAE cannot be imported here yet; or
        `failed`, or `slow` where there was not time enough.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(
        [sys.executable, "-P", "-c", "import kinemae.data_tools"], env=environment, capture_output=True
    ).returncode:
        return {"absent": True}
    command = [
        sys.executable,
        "-P",
        "-m",
        "kinemae",
        "data",
        "bench",
        folder,
        "clips=32",
        "workers=1",
        "--json",
    ]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"slow": f"32 clips took more than {limit_s:g} s"}
    if ran.returncode != 0:
        return {"failed": (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]}
    return {"clips_per_s": json.loads(ran.stdout.splitlines()[-1])["clips_per_s_per_core"]}
