"""Views of an index: some of its rows, each with a time window and other columns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class IndexView:
    """Rows of a data set that a `ShardIndex` shows in place of all rows.

    Attributes:
        position_R: int64, position of each row in the data set; repeats are allowed.
        window_R2: float64, start and end in seconds from the start of the sample; None for whole samples.
        columns: values that replace a column or add one, by name; one value per row, None for null.
        classes: the classes of `label`; None for those of the data set.
    """

    position_R: np.ndarray
    window_R2: np.ndarray | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.position_R)

    def rows(
        self,
        position_R: np.ndarray,
        window_R2: np.ndarray | None,
        columns: Mapping[str, Sequence[Any]],
        classes: tuple[str, ...] | None,
    ) -> "IndexView":
        """A view of this view, as a view of the data set."""
        if window_R2 is None and self.window_R2 is not None:
            window_R2 = self.window_R2[position_R]
        mine = {name: [values[row] for row in position_R] for name, values in self.columns.items()}
        return IndexView(
            position_R=self.position_R[position_R],
            window_R2=window_R2,
            columns=mine | dict(columns),
            classes=self.classes if classes is None else classes,
        )

    def window_s(self, row: int) -> tuple[float, float] | None:
        """Begin and end of a row's time window."""
        if self.window_R2 is None:
            return None
        begin_s, end_s = self.window_R2[row].tolist()
        return begin_s, end_s

    @property
    def digest(self) -> str:
        """Digest of rows, windows and columns."""
        digest = hashlib.sha256(self.position_R.tobytes())
        digest.update(b"" if self.window_R2 is None else self.window_R2.tobytes())
        digest.update(json.dumps([dict(self.columns), self.classes]).encode())
        return digest.hexdigest()[:16]


def check_windows(window_R2: np.ndarray, duration_R: np.ndarray, frames_R: np.ndarray) -> None:
    """Check time windows against the durations of their samples.

    A window may end one frame after the video, because containers round durations.

    Raises:
        ValueError: names the first wrong row.
    """
    begin_R, end_R = window_R2.T
    is_right = (begin_R >= 0) & (begin_R < end_R) & (begin_R < duration_R)
    is_right &= end_R <= duration_R * (frames_R + 1) / frames_R  # false for NaN
    if not is_right.all():
        row = int(np.flatnonzero(~is_right)[0])
        raise ValueError(
            f"time window of row {row}: expected 0 <= begin < end <= {duration_R[row]:g} (the video's "
            f"duration in seconds), got {begin_R[row]:g} to {end_R[row]:g}"
        )
