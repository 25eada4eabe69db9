"""Metrics output: `metrics.jsonl`, TensorBoard, and a progress bar.

Each step has one line in `metrics.jsonl`. A continued run first drops the lines after its checkpoint, so the
files of an interrupted and an uninterrupted run are equal, except for times.
"""

import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from kinemae.data_tools.command import log
from kinemae.data_tools.files import read_jsonl
from kinemae.data_tools.progress import Pace
from kinemae.pretrain.runtime.jsonl_log import JsonlWriter

if TYPE_CHECKING:  # imported when a run opens it: installations for inference lack TensorBoard
    from torch.utils.tensorboard import SummaryWriter


class MetricsWriter:
    """Write the metrics; used on the first process only.

    A failed write, for example on a full disk, gives one warning. Later lines are written once that is
    possible again.
    """

    def __init__(self, run_dir: Path, *, first_step: int, steps: int):
        self._jsonl = JsonlWriter(run_dir / "metrics.jsonl", first_step=first_step, title="metrics")
        self._board = _Board(run_dir / "tensorboard", first_step=first_step)
        self._progress = Progress(first_step=first_step, steps=steps)
        self._extra: dict[str, float] = {}

    def add(self, values: dict[str, float]) -> None:
        """Add values to the last line of the next `write`. TensorBoard shows them under their own names."""
        self._extra |= values

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write one line for each step, oldest first, to the file and to TensorBoard."""
        lines = [*lines[:-1], {**lines[-1], **self._extra}]
        self._extra = {}
        self._jsonl.write([strict_json(line) for line in lines])
        if not self._jsonl.is_failing:
            self._board.reopen(lines[0]["step"])
        for line in lines:
            self._board.write(partial(_write_scalars, line))
        self._progress.show(lines[-1])

    def write_scalars(self, line: Mapping[str, Any], *, prefix: str) -> None:
        """Write the numbers of a line to TensorBoard at its "step", as `PREFIX/NAME`."""
        numbers = {
            f"{prefix}/{name}": value
            for name, value in line.items()
            if name != "step" and not isinstance(value, bool)
        }
        self._board.write(partial(_write_scalars, {"step": line["step"], **numbers}))
        self._board.write(lambda board: board.flush())

    def write_animation(self, tag: str, frames_THWC: np.ndarray, *, step: int, fps: float = 6.0) -> None:
        """Write an animated GIF to TensorBoard's image page.

        `SummaryWriter.add_video` is broken with moviepy 2 and silent without it; a GIF inside an image works.

        Args:
            frames_THWC: uint8 RGB.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = frames_THWC.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif_bytes(frames_THWC, fps=fps)
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._board.write(lambda board: board._get_file_writer().add_summary(summary, step))
        self._board.write(lambda board: board.flush())

    def close(self) -> None:
        self._progress.close()
        self._jsonl.close()
        self._board.close()


class _Board:
    """TensorBoard writer that survives a full disk.

    After an error the thread of a `SummaryWriter` ends, and later calls would wait for it forever. So the
    writer is closed at its first error, and `reopen` opens another one.
    """

    def __init__(self, folder: Path, *, first_step: int):
        self._folder = folder
        self._board: SummaryWriter | None = None
        self._is_warned = False
        self.reopen(first_step)

    def reopen(self, first_step: int) -> None:
        """Open the writer if it is closed; TensorBoard then discards events from `first_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        if self._board is None:
            try:
                self._board = SummaryWriter(str(self._folder), purge_step=first_step)
            except OSError as error:
                self._warn(error)

    def write(self, what: Callable[["SummaryWriter"], object]) -> None:
        if self._board is None:
            return
        try:
            what(self._board)
        except OSError as error:
            self._warn(error)
            self.close()

    def close(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            try:
                board.close()
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._is_warned:
            log.warning("cannot write to TensorBoard (%s); training continues without it", error)
        self._is_warned = True


class Progress:
    """A progress bar on a terminal; otherwise log lines at round numbers of steps, with the time left."""

    def __init__(self, *, first_step: int, steps: int):
        self._steps = steps
        self._pace = Pace(first=first_step, total=steps)
        self._bar = tqdm(total=steps, initial=first_step, unit="step") if sys.stderr.isatty() else None

    def show(self, line: dict[str, Any]) -> None:
        done = line["step"] + 1
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"loss {line['loss']:.4f}")
        elif self._pace.is_due(done):
            speed = f"  {line['clips_per_s']:.1f} clips/s" if "clips_per_s" in line else ""
            left = f"  {self._pace.left()}" if self._pace.left() else ""
            text = "step %d/%d  loss %.4f  lr %.2e%s%s"
            log.info(text, done, self._steps, line["loss"], line["lr"], speed, left)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _write_scalars(line: Mapping[str, Any], board: "SummaryWriter") -> None:
    """Write a line's numbers to TensorBoard."""
    for name, value in line.items():
        if isinstance(value, int | float) and name not in ("step", "samples"):
            board.add_scalar(name if "/" in name else f"train/{name}", value, line["step"])


def gif_bytes(frames_THWC: np.ndarray, *, fps: float) -> bytes:
    """Encode uint8 RGB frames as a GIF that loops."""
    images = [Image.fromarray(frame_HWC) for frame_HWC in frames_THWC]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
    )
    return buffer.getvalue()


def strict_json(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line in strict JSON: values that are not finite become null."""
    is_lost = {name: isinstance(value, float) and not math.isfinite(value) for name, value in line.items()}
    return {name: None if is_lost[name] else value for name, value in line.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's `metrics.jsonl`, without an incomplete last one."""
    return list(read_jsonl(path))
