"""Arguments of commands with several folders: `FOLDER ... [a.b=c ...]`."""

import re
from collections.abc import Sequence
from pathlib import Path

from kinemae.data_tools.overrides import check_overrides
from kinemae.data_tools.storage.location import Location, location

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*", re.DOTALL)


def folders_and_overrides(
    words: Sequence[str], *, at_least: int, what: str
) -> tuple[list[Location], list[str]]:
    """Split arguments into folders and overrides; a word with `=` that is no existing path is an override.

    Args:
        what: the folders, for the error.

    Raises:
        ValueError: too few folders.
    """
    overrides = [word for word in words if _OVERRIDE.fullmatch(word) and not Path(word).exists()]
    folders = [location(word) for word in words if word not in overrides]
    if len(folders) < at_least:
        raise ValueError(f"expected {what}, got {' '.join(words) or 'nothing'}; fix: name the folders")
    check_overrides(overrides)
    return folders, overrides
