"""Available memory, limited by the control groups of this process."""

from pathlib import Path

import pytest

from kinemae.data_tools import control_groups
from kinemae.data_tools.control_groups import available_memory

V2 = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 100\n"}
V1 = {"limit_in_bytes": "1000", "usage_in_bytes": "700"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 2048),
        ({f"job/{name}": text for name, text in V2.items()}, 400),
        ({**V2, "job/memory.max": "max", "job/memory.current": "5"}, 400),
        ({**V2, "memory.max": "600"}, 0),
        ({f"memory/job/memory.{name}": text for name, text in V1.items()}, 300),
        ({"memory/job/memory.limit_in_bytes": str(1 << 62), "memory/job/memory.usage_in_bytes": "0"}, 2048),
    ],
)
def test_the_smallest_limit_counts_and_file_caches_are_free(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = "MemTotal:  9 kB\nMemAvailable:    2 kB\nHugePages: x\n"
    for name, text in {"own": "4:memory:/job\n0::/job\n", "meminfo": meminfo, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(control_groups, "_MEMORY", tmp_path / "meminfo")
    assert available_memory() == expected


def test_this_machine_has_memory() -> None:
    assert available_memory() > 1e7
