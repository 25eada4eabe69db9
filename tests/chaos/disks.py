"""Small disks that can be filled and freed: a tmpfs of a fixed size, which only root can mount."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

_MEBIBYTES = 64
_BLOCK = bytes(1 << 16)


class Disk:
    """A file system in memory at a folder.

    Raises:
        OSError: it cannot be mounted here.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={_MEBIBYTES}m", "kinemae-chaos", str(folder)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise OSError(f"cannot mount a tmpfs at {folder}: {ran.stderr.strip()}")

    def fill(self) -> None:
        """Fill the disk to the last byte. Call it again if pages are freed later."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for block in (_BLOCK, bytes(4096), bytes(1)):
                try:
                    while file.write(block):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Remove the file that fills the disk."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def unmount(self) -> None:
        """Unmount the disk, lazily if it is still in use."""
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


def can_mount() -> bool:
    """Check by an attempt whether this user may mount file systems."""
    if os.geteuid() != 0:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(command, capture_output=True).returncode == 0
