"""Arguments of commands with several folders: `FOLDER ... [a.b=c ...]`."""

from collections.abc import Sequence

from kinemae.data_tools.overrides import check_overrides, is_override
from kinemae.data_tools.storage.location import Location, location


def folders_and_overrides(
    words: Sequence[str], *, at_least: int, what: str
) -> tuple[list[Location], list[str]]:
    """Split arguments into folders and overrides, see `is_override`.

    Args:
        what: the folders, for the error.

    Raises:
        ValueError: too few folders.
    """
    overrides = [word for word in words if is_override(word)]
    folders = [location(word) for word in words if word not in overrides]
    if len(folders) < at_least:
        raise ValueError(f"expected {what}, got {' '.join(words) or 'nothing'}; fix: name the folders")
    check_overrides(overrides)
    return folders, overrides
