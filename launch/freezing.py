"""Freezing code: what a queued or restarted job runs is what was there when it was started."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from launch.cluster import UsageError

ROOMS = ("data_tools", "pretrain", "finetune", "launch")
SOURCES = Path(__file__).resolve().parents[1]
_DIGITS = 12


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the one before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _code_files() -> Iterator[Path]:
    """Every file of the rooms and the recipes, relative to their folder, in one order."""
    folders = [SOURCES / room for room in ROOMS]
    if (SOURCES / "pyproject.toml").exists():  # installed, a folder named configs would be somebody else's
        folders.append(SOURCES / "configs")
    for folder in sorted(folders):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(SOURCES)


def digest_of_code() -> str:
    """A short name for the content of the rooms and the recipes."""
    digest = hashlib.sha256()
    for name in _code_files():
        content = (SOURCES / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def digest_of_file(path: Path) -> str:
    """A short name for the content of one config file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}") from error


def find_recipe(given: str, room: str) -> Path:
    """The config file of a job, resolved as its program does: a path, or a name in configs/PROGRAM."""
    path = Path(given)
    names = (folder / f"{given.removeprefix(f'{room}/')}.yaml" for folder in _recipes(room))
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    return next((named for named in names if named.is_file()), path)


def _recipes(room: str) -> tuple[Path, Path]:
    return Path("configs") / room, SOURCES / "configs" / room


def freeze_code(folder: Path) -> None:
    """Copy the rooms and the recipes to a folder that is named by their content; whole or not at all."""
    if folder.exists():
        return  # the same content by its name
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for name in _code_files():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCES / name, partial / name)
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)  # another start was faster
        if not folder.exists():
            raise


def commit_of_code() -> str | None:
    """The commit of the code that runs, where it lies in a git repository."""
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=SOURCES, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return ran.stdout.strip() or None
