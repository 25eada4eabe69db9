"""Freezing code: what a queued or restarted job runs is what was there when it was started."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from kinemae.launch.cluster import UsageError

FOLDERS = ("configs", "data_tools", "finetune", "launch", "pretrain")
# The folders lie beside `kinemae/` in a checkout and inside it once installed or frozen.
_ROOT = Path(__file__).resolve().parents[1]
PACKAGE = _ROOT / "kinemae" if (_ROOT / "kinemae").is_dir() else _ROOT
_DIGITS = 12


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the one before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _code_files() -> dict[str, Path]:
    """All files of the package, by their path in the frozen copy, in a fixed order."""
    files = {f"kinemae/{path.name}": path for path in PACKAGE.iterdir() if path.is_file()}
    for folder in FOLDERS:
        for path in (_ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"kinemae/{path.relative_to(_ROOT)}"] = path
    return dict(sorted(files.items()))


def digest_of_code() -> str:
    """A short name for the content of all frozen files."""
    digest = hashlib.sha256()
    for name, path in _code_files().items():
        content = path.read_bytes()
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
    return Path("configs") / room, _ROOT / "configs" / room


def freeze_code(folder: Path) -> None:
    """Copy packages and configs to a folder that is named by their content; all or nothing."""
    if folder.exists():
        return  # the same content by its name
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for name, path in _code_files().items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)
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
            ["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return ran.stdout.strip() or None
