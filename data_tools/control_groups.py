"""Limits of this process's control groups: those of a container, or of a job of a scheduler.

Control groups of version 2 have one tree of folders, those of version 1 a tree for each controller.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def group_folders(controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, from its own to the outermost visible one.

    Args:
        controller: "cpu" or "memory".
    """
    for line in text_of(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controllers if controllers else _GROUPS
        for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            if not folder.is_relative_to(root):
                break
            yield folder


def available_memory() -> int:
    """Bytes that the processes of this machine and of this control group may still allocate.

    Memory of the file cache counts as available. Without `/proc`, the memory of the machine.
    """
    kibibytes = _fields(text_of(_MEMORY)).get("MemAvailable:")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [total if kibibytes is None else 1024 * kibibytes]
    for folder in group_folders("memory"):
        # Version 2, then version 1.
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            sizes = [text_of(folder / name).strip() for name in (limit, used)]
            if all(size.isdigit() for size in sizes):  # "max": no limit
                most, now = map(int, sizes)
                found.append(most - now + _fields(text_of(folder / "memory.stat")).get(cached, 0))
    return max(min(found), 0)


def text_of(path: Path) -> str:
    """The text of a file of the kernel; empty if it does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _fields(text: str) -> dict[str, int]:
    """The numbers of lines such as "MemAvailable:  100 kB" by their names."""
    words = [line.split() for line in text.splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) >= 2 and line[1].isdigit()}
