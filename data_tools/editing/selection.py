"""Samples chosen by a condition, by a list of keys, or by both."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.conditions import Condition
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex

_STANDARD_INPUT = "-"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The chosen samples; with both `keys` and `where`, those that both choose.

    Attributes:
        keys: file with one key per line; "-" for standard input.
        where: condition over columns, see `conditions.py`.
        missing: "error" rejects keys that no sample has; "ignore" logs them.
    """

    keys: str | None = None
    where: str | None = None
    missing: Literal["error", "ignore"] = "error"

    def __post_init__(self) -> None:
        if self.where is not None:
            Condition(self.where, key="where")
        require(self.missing in ("error", "ignore"), "missing", "be error or ignore", self.missing)

    @property
    def is_set(self) -> bool:
        """Whether there is a condition or a list."""
        return self.keys is not None or self.where is not None


def choose(sets: Mapping[str, ShardIndex], config: SelectionConfig) -> dict[str, np.ndarray]:
    """Mark the chosen samples of data sets: one boolean per row of each index file, also for removed rows.

    A key must be in one of the data sets; it may be that of a removed row.

    Raises:
        ValueError: a condition that does not fit, or a file of keys that cannot be read.
        DataError: no sample has a key.
    """
    chosen = {name: np.ones(len(index.with_removed()), dtype=bool) for name, index in sets.items()}
    if config.where is not None:
        condition = Condition(config.where, key="where")
        for name, index in sets.items():
            chosen[name] &= condition.mask(index.with_removed())
    if config.keys is not None:
        keys = _read_keys(config.keys)
        is_found = np.zeros(len(keys), dtype=bool)
        for name, index in sets.items():
            code_R = _codes(index.with_removed(), keys)
            is_found[code_R[code_R >= 0]] = True
            chosen[name] &= code_R >= 0
        _check_found(keys, is_found, config, " or ".join(str(index.folder) for index in sets.values()))
    return chosen


def _read_keys(file: str) -> pa.Array:
    """The distinct keys of a file."""
    try:
        text = sys.stdin.read() if file == _STANDARD_INPUT else Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"keys={file}: expected a file with one key per line, got none: {reason}") from error
    keys = list(dict.fromkeys(line for line in text.splitlines() if line.strip()))
    require(len(keys) > 0, "keys", "name a file with at least one key", file)
    return pa.array(keys, pa.string())


def _codes(index: ShardIndex, keys: pa.Array) -> np.ndarray:
    """The position of each row's key in the list; -1 if it has none."""
    found = pc.index_in(index.arrow_column("key"), value_set=keys)
    return found.combine_chunks().fill_null(-1).to_numpy()


def _check_found(keys: pa.Array, is_found: np.ndarray, config: SelectionConfig, folders: str) -> None:
    missing = keys.filter(pa.array(~is_found)).slice(0, _SHOWN).to_pylist()
    if not missing:
        return
    count = int((~is_found).sum())
    found = f"{count} of {len(keys)} keys that no sample has, first {', '.join(missing)}"
    if config.missing == "error":
        raise DataError(
            f"keys={config.keys}: expected keys of {folders}, got {found}; nothing was changed; "
            "fix: correct the file, or missing=ignore"
        )
    log.warning("keys=%s: %s", config.keys, found)
