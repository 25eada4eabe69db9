"""What a node is: versions, cores, memory, limits, environment, locks that a killed build left behind."""

import hashlib
import importlib.metadata
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDERS = ("data_tools", "pretrain", "finetune", "launch")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)


def machine(*, packages: Sequence[str], variables: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Look the machine up; nothing is measured and nothing is imported.

    Args:
        packages: distributions whose versions are wanted.
        variables: beginnings of the environment variables that are wanted.
        paths: folders that should be there.
    """
    soft_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    memory = Path("/dev/shm")
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "packages": {name: _version(name) for name in packages},
        "code": _code_digest(),
        "cores": _cores(),
        "memory_bytes": _available_memory(),
        "shared_memory_bytes": shutil.disk_usage(memory).total if memory.is_dir() else 0,
        "open_files": None if soft_files == resource.RLIM_INFINITY else soft_files,
        "locked_bytes": None if soft_locked == resource.RLIM_INFINITY else soft_locked,
        "environment": {
            name: _unless_secret(name, value)
            for name, value in sorted(os.environ.items())
            if name.startswith(tuple(variables))
        },
        "build_locks": _build_locks(),
        "missing": [path for path in paths if not Path(path).is_dir()],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unless_secret(name: str, value: str) -> str:
    """Equal secrets stay equal, and are not told."""
    if not SECRET.search(name):
        return value
    return f"(secret, digest {hashlib.sha256(value.encode()).hexdigest()[:8]})"


def _code_digest() -> str | None:
    """Of the KineMAE that an import on this node would find; None where it would find none."""
    # The probe's own `kinemae` in sys.modules is not the installed one: ask the finders themselves.
    found = next(filter(None, (finder.find_spec("kinemae", None) for finder in sys.meta_path)), None)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations)))
    root = folder if (folder / "pretrain").is_dir() else folder.parent  # installed, or a checkout
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _cores() -> int:
    """Cores that this process may use: its affinity, and its control group's share of time."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))


def _available_memory() -> int:
    """What is free for new processes: of the machine, or of this control group where that allows less."""
    meminfo = Path("/proc/meminfo").read_text()
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo)
    free = int(available[1]) * 1024 if available else 0
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free  # control groups of the first version, or none
    return free if most == "max" else min(free, int(most) - int(used))


def _build_locks() -> list[dict[str, Any]]:
    """Lock files of torch's extension builds; each hangs whoever builds the same extension later."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(named) if named else Path.home() / ".cache/torch_extensions"
    return [
        {"path": str(path), "age_s": time.time() - path.stat().st_mtime}
        for path in sorted(root.glob("**/lock"))
    ]
