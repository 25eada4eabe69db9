"""File helpers: atomic writes, JSON lines, reads in blocks, locks, the commit of the code."""

import errno
import fcntl
import json
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools import heartbeat

COMMIT = "KINEMAE_COMMIT"
"""Variable with the commit of code that `kinemae launch` has copied out of its repository."""

_BLOCK = 1 << 20
_READ_AT_ONCE = 64 << 20  # Linux reads at most 2 GiB less a page at once
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Write a file under another name, and rename it at the end of the block; an error deletes it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a small file atomically: a reader sees the old or the new content, also after a power failure."""
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)
        fsync_path(partial)  # otherwise a file system may store the new name before the content


def fsync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_default_mode(path: Path) -> None:
    """Give a file the default permissions of a new file, according to the umask.

    Some libraries write to a temporary file that only its owner can read.
    """
    usual = path.with_name(f"{path.name}.mode")
    usual.touch()
    try:
        path.chmod(stat.S_IMODE(usual.stat().st_mode))
    finally:
        usual.unlink()


def read_blocks(path: Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Read a file, or a range of it, in blocks of a megabyte."""
    with open_regular(path) as file:
        file.seek(offset)
        left = length
        while block := file.read(_BLOCK if left is None else min(left, _BLOCK)):
            left = None if left is None else left - len(block)
            heartbeat.progress()
            yield block


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Named pipes and devices are rejected without opening them.

    Raises:
        OSError: the file does not exist or is not regular.
    """
    require_regular_file(path)
    return path.open("rb")


def require_regular_file(path: Path) -> None:
    """Raise `OSError` for a named pipe, a socket or a device."""
    kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind is not None:
        raise OSError(errno.EINVAL, f"expected a regular file, got {kind}", str(path))


def read_at(descriptor: int, offset: int, length: int, *, at_once: int = _READ_AT_ONCE) -> bytes:
    """Read up to `length` bytes from an open file; a single system call may return fewer."""
    piece = os.pread(descriptor, min(length, at_once), offset)
    if len(piece) in (0, length):
        return piece
    pieces, taken = [piece], len(piece)
    while taken < length and (piece := os.pread(descriptor, min(length - taken, at_once), offset + taken)):
        heartbeat.progress()
        pieces.append(piece)
        taken += len(piece)
    return b"".join(pieces)


def write_at(descriptor: int, offset: int, content: bytes | memoryview) -> None:
    """Write all bytes to an open file; a single system call may write fewer."""
    left = memoryview(content)
    while left:
        taken = os.pwrite(descriptor, left, offset)
        left, offset = left[taken:], offset + taken


def to_json_lines(content: Mapping[str, Any]) -> str:
    """Format as a JSON object with one key per line: json's own indentation puts every number on a line."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def to_json_text(content: Any) -> str:
    """Format as indented JSON, without escapes of non-ASCII characters."""
    return json.dumps(content, indent=1, ensure_ascii=False)


def to_jsonl(entries: Iterable[Mapping[str, Any]]) -> str:
    """Format entries as JSON lines, without escapes of non-ASCII characters."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON, got an error: {error}; fix: restore it from a copy, or remove it"
        ) from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read a JSON lines file up to the first incomplete line, which a killed process may leave."""
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def flock(descriptor: int, operation: int) -> bool:
    """Lock a file with `fcntl.flock`. Return False if its file system has no locks (Lustre without -o flock).

    Raises:
        BlockingIOError: another process holds the lock and the operation is non-blocking.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def names_in(folder: Path) -> list[str]:
    """Names of the entries of a folder; empty if there is none. `Path.glob` hides an unreadable folder too.

    Raises:
        OSError: the folder exists and cannot be read.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def commit_of_code() -> str | None:
    """The git commit of the running code; None outside a checkout, such as an environment in a repository."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        return os.environ.get(COMMIT)
    try:
        command = ["git", "describe", "--always", "--dirty"]
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return ran.stdout.strip() or None


class Descriptor:
    """A file descriptor that is closed when the object is garbage collected."""

    def __init__(self, path: str, flags: int, mode: int = 0o666):
        self.number = os.open(path, flags | os.O_CLOEXEC, mode)

    def is_at(self, path: Path) -> bool:
        """Check whether the file is still the one at a path: a lock of a removed file excludes nobody."""
        try:
            return os.path.samestat(os.fstat(self.number), path.stat())
        except FileNotFoundError:
            return False

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
