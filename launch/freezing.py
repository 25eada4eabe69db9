"""Copy the code into the run folder: queued and restarted jobs run the code of their start."""

import hashlib
import os
import shutil
from pathlib import Path

_FOLDERS = ("configs", "data_tools", "finetune", "launch", "pretrain")
# In a checkout the folders lie beside `kinemae/`; installed or frozen, inside it.
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "kinemae" if (_ROOT / "kinemae").is_dir() else _ROOT
_DIGITS = 12


def digest_of_code() -> str:
    """A short digest of all frozen files."""
    digest = hashlib.sha256()
    for name, path in _code_files().items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def digest_of_file(path: Path) -> str:
    """A short digest of one file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]


def freeze_code(folder: Path) -> None:
    """Copy the package to a folder named by its digest, atomically; do nothing if it exists."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for name, path in _code_files().items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)
        if not folder.exists():  # otherwise another launcher has just created it
            raise


def _code_files() -> dict[str, Path]:
    """All files of the package by their path in the frozen copy, sorted."""
    files = {f"kinemae/{path.name}": path for path in _PACKAGE.iterdir() if path.is_file()}
    for folder in _FOLDERS:
        for path in (_ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"kinemae/{path.relative_to(_ROOT)}"] = path
    return dict(sorted(files.items()))
