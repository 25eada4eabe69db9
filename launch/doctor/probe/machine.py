"""Versions, cores, memory, limits and environment of a node."""

import importlib.metadata
import os
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine(*, packages: Sequence[str], variables: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Describe the machine without importing packages.

    Args:
        packages: distributions whose versions are reported.
        variables: environment variables whose values are reported.
        paths: folders that should exist.
    """
    shared_memory = Path("/dev/shm")
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "packages": {name: _version(name) for name in packages},
        "cores": _cores(),
        "memory_bytes": _available_memory(),
        "shared_memory_bytes": shutil.disk_usage(shared_memory).total if shared_memory.is_dir() else 0,
        "open_files": _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),  # a rank raises the soft limit
        "locked_bytes": _finite(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        "environment": {name: os.environ[name] for name in variables if name in os.environ},
        "missing": [path for path in paths if not Path(path).is_dir()],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _cores() -> int:
    """Available cores by CPU affinity and control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))


def _available_memory() -> int:
    """Free memory of the machine, or of the control group if it allows less."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(available[1]) * 1024 if available else 0
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free  # control groups of version 1, or none
    return free if most == "max" else min(free, int(most) - int(used))
