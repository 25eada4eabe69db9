"""Write, read and lock files in folders that all nodes share."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCK = b"k" * 65_536
_SYNCS = 5
_PART_BYTES = 4 << 20


def write(*, folder: str, name: str, token: str) -> dict[str, Any]:
    """Write a small file as checkpoints are written: partial name, fsync, rename.

    Returns:
        `sync_ms` (median for 64 KiB), `free_bytes`, `kind` of the file system; or `failed`, `reason`.
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
        return {
            "failed": errno.errorcode.get(error.errno or 0, "EIO"),
            "reason": error.strerror or str(error),
        }
    free = shutil.disk_usage(folder).free
    return {"sync_ms": 1000 * statistics.median(seconds), "free_bytes": free, "kind": _kind(path)}


def look(*, folder: str, names: Sequence[str], token: str, wait_s: float) -> dict[str, str]:
    """Files of other nodes that are missing or have other content.

    A network file system may show an old listing for some seconds: retry until `wait_s` is over.
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
    """Lock a file as a run locks its folder, until the probe ends.

    Returns:
        {"state": "locked", "busy" or the system's reason}, and an object that holds the lock.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"state": "busy"}
        except OSError as error:
            return {"state": error.strerror or str(error)}
        return {"state": "locked"}, stack.pop_all()


def clean(*, folder: str, names: Sequence[str]) -> dict[str, str]:
    """Remove the doctor's files, and the folder if it is empty."""
    for name in (*names, *(f"{name}.partial" for name in names)):
        with contextlib.suppress(OSError):
            (Path(folder) / name).unlink()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()
    return {}


def _kind(path: Path) -> str:
    """The file system type of a path, from /proc/mounts."""
    best, kind = "", "unknown"
    real = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (point == "/" or real == point or real.startswith(f"{point}/")):
            best, kind = point, name
    return kind


def read_shards(*, folder: str, parts: int) -> dict[str, Any]:
    """Read dataset.json and parts of some shards.

    Returns:
        `fingerprint` of the data set, `digest` of the parts, `mb_per_s` (possibly from a cache); or `failed`.
    """
    try:
        description = json.loads((Path(folder) / "dataset.json").read_text())
        digest, count, seconds = hashlib.sha256(), 0, 0.0
        # Shards outside the folder, as of a data set that was indexed in place, are not compared.
        shards = sorted(Path(folder).glob("*.tar")) or sorted(Path(folder).glob("index*.arrow"))
        for path in shards[:: max(1, len(shards) // parts)][:parts]:
            began = time.monotonic()
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size // 2 - _PART_BYTES // 2))
                part = file.read(_PART_BYTES)
            seconds += time.monotonic() - began
            digest.update(part)
            count += len(part)
        name = description["fingerprint"]
    except OSError as error:
        return {"failed": f"{error.strerror}: {error.filename}"}
    except (ValueError, KeyError, TypeError) as error:
        return {"failed": f"dataset.json cannot be read: {error}"}
    rate = count / 1e6 / max(seconds, 1e-6)
    return {"fingerprint": name, "digest": digest.hexdigest(), "mb_per_s": rate}
