"""Code blocks marked with `run`, as in "```bash run", run in the order of the pages, in one folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kinemae.__main__ import main

REPO = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+) run\n(.*?)^```$", re.M | re.S)


def runnable_pages() -> list[str]:
    """The pages with such blocks, in the order of the navigation; each may use files of the ones before."""
    nav = (REPO / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    found = re.findall(r"[ -](\S+\.md)$", nav, re.M)
    names = [f"docs/{name}" for name in found if (REPO / "docs" / name).exists()]
    # The README is the first page of the repository, and uses the files of docs/start.md.
    return [
        name for name in [*names, "README.md"] if _BLOCK.search((REPO / name).read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all pages are run."""
    return tmp_path_factory.mktemp("pages")


def test_pages_with_marked_blocks_are_found() -> None:
    assert runnable_pages()[0] == "docs/start.md" and len(runnable_pages()) > 3
    for page in [REPO / "README.md", *(REPO / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        marked = re.findall(r"^\s*```\w+ run\b.*$", text, re.M)
        assert len(marked) == len(_BLOCK.findall(text)), f"{page}: a block with run has another form"


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable_pages())
def test_marked_blocks_run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    names: dict[str, Any] = {}
    for language, source in _BLOCK.findall((REPO / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(source, page, "exec"), names)
        else:
            assert language == "bash"
            run_commands(source)


def run_commands(source: str) -> None:
    """Run a block line by line; `kinemae` runs in this process, which has loaded PyTorch already."""
    for line in re.sub(r"\\\n\s*", "", source).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "kinemae" and not {"|", ">", "&&"} & set(words):
            assert main(words[1:]) == 0, line
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)
