"""Every test named in docs/faults.md exists."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
TABLE = REPO / "docs" / "faults.md"


def named_tests() -> list[tuple[str, str]]:
    """Return (file, test) of every reference; the test is empty for a whole file or folder."""
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        file = ""
        for name in re.findall(r"`([^`\s]+)`", line) if line.startswith("|") else ():
            path, _, test = name.partition("::")
            if path.endswith(".py") or (path.startswith("tests/") and path.endswith("/")):
                file = path
                found.append((file, test))
            elif name.startswith("test_") and file:
                found.append((file, name))
            elif name.startswith("..._") and file:
                found.append((file, name.removeprefix("...")))
    return found


def resolved(file: str) -> Path:
    """Resolve a name; names without a folder are in tests/data_tools/."""
    return REPO / file if file.startswith("tests/") else REPO / "tests" / "data_tools" / file


@pytest.mark.parametrize("file, test", sorted(set(named_tests())))
def test_every_test_in_the_table_of_faults_exists(file, test):
    path = resolved(file)
    assert path.exists(), f"docs/faults.md names {file}"
    if test:
        names = re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
        whole = test.startswith("test_")
        assert test in names if whole else any(name.endswith(test) for name in names), f"{file}::{test}"


def test_the_table_has_references():
    found = named_tests()
    assert len(found) > 60 and any(test for _, test in found)
