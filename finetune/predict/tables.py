"""Tables of all predictions of a folder, as csv and parquet.

scores          one row per window, or per step of a task over time: video, start_s, end_s, score/NAME ...
video_scores    one row per video: video, error, frames, duration_s, views, predicted, score/NAME ...
segments        one row per detected event: video, start_s, end_s, label, score; for tasks over time only
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kinemae.finetune.predict.scores import VideoPrediction

_ROWS_PER_GROUP = 20_000
_INFO = (("frames", pa.int64()), ("duration_s", pa.float64()), ("views", pa.int64()))


def write_tables(
    out: Path, columns: Sequence[str], predictions: Iterable[VideoPrediction], failed: Mapping[str, str]
) -> int:
    """Write the tables of OUT; one prediction is in memory at a time.

    Args:
        columns: names of the scores.
        failed: unreadable videos with the reasons; rows of `video_scores` without scores.

    Returns:
        The number of predicted videos.
    """
    names = [f"score/{name}" for name in columns]
    numbers = [(name, pa.float64()) for name in names]
    times = [("video", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())]
    about = [("video", pa.string()), ("error", pa.string()), *_INFO, ("predicted", pa.string())]
    count = 0
    with ExitStack() as stack:
        scores = stack.enter_context(_Table(out / "scores", pa.schema([*times, *numbers])))
        videos = stack.enter_context(_Table(out / "video_scores", pa.schema([*about, *numbers])))
        segments: _Table | None = None
        for each in predictions:
            count += 1
            videos.add([_video_row(each)])
            rows = zip(each.start_R.tolist(), each.end_R.tolist(), each.score_RX.tolist(), strict=True)
            scores.add([each.video, start_s, end_s, *values] for start_s, end_s, values in rows)
            if each.segments is not None:
                if segments is None:
                    schema = pa.schema([*times, ("label", pa.string()), ("score", pa.float64())])
                    segments = stack.enter_context(_Table(out / "segments", schema))
                segments.add([each.video, *segment] for segment in each.segments)
        nothing = [None] * (len(_INFO) + 1 + len(names))
        videos.add([name, reason, *nothing] for name, reason in sorted(failed.items()))
    return count


def _video_row(each: VideoPrediction) -> list[Any]:
    predicted = each.predicted if isinstance(each.predicted, str | None) else _compact(each.predicted)
    info = (each.info["frames"], each.info["duration_s"], each.views)
    return [each.video, "", *info, predicted, *each.summary_X.tolist()]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Table:
    """A csv and a parquet file that are written in groups of rows; complete or absent."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._paths = [path.with_name(f"{path.name}.{ending}") for ending in ("csv", "parquet")]
        self._partial = [each.with_name(f"{each.name}.partial") for each in self._paths]
        self._schema = schema
        self._rows: list[list[Any]] = []

    def __enter__(self) -> "_Table":
        self._file = self._partial[0].open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._csv.writerow(self._schema.names)
        self._parquet = pq.ParquetWriter(self._partial[1], self._schema)
        return self

    def add(self, rows: Iterable[list[Any]]) -> None:
        """Add rows."""
        for row in rows:
            self._csv.writerow(row)
            self._rows.append(row)
            if len(self._rows) == _ROWS_PER_GROUP:
                self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._parquet.write_table(pa.table(arrays, schema=self._schema))
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        self._parquet.close()
        for partial, path in zip(self._partial, self._paths, strict=True):
            if kind is None:
                partial.replace(path)
            else:
                partial.unlink()
