"""What a run tells: `metrics.jsonl`, TensorBoard, and a progress bar. This is the only file that knows
tensorboard.

One line of `metrics.jsonl` is one step. A continued run first drops the lines past its checkpoint, so that
the file
of an interrupted run ends up as the file of an unbroken one (times aside).
"""

import io
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data_tools.command import log
from data_tools.files import write_whole

_PLAIN_LINE_EVERY_S = 20.0


class MetricsWriter:
    """Writes the metrics of the first process.

    A full disk costs metrics, never the run: a failed write is warned of once.
    """

    def __init__(self, run_dir: Path, *, first_step: int, steps: int):
        self._path = run_dir / "metrics.jsonl"
        drop_lines_from(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        # purge_step makes TensorBoard forget what a killed run wrote past its checkpoint.
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)
        self._progress = Progress(first_step=first_step, steps=steps)
        self._warned = False
        self._noted: dict[str, float] = {}

    def note(self, values: dict[str, float]) -> None:
        """Add numbers to the last of the lines written next; the board has them under their own names."""
        self._noted |= values

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write one line a step, oldest first, and put their numbers on the board."""
        lines = [*lines[:-1], {**lines[-1], **self._noted}]
        self._noted = {}
        try:
            for line in lines:
                self._file.write(json.dumps(_strict(line), allow_nan=False) + "\n")
                for name, value in line.items():
                    if isinstance(value, int | float) and name not in ("step", "samples"):
                        tag = name if "/" in name else f"train/{name}"
                        self._board.add_scalar(tag, value, line["step"])
            self._file.flush()
        except OSError as error:
            self._warn(error)
        self._progress.show(lines[-1])

    def write_animation(self, tag: str, frames_THWC: np.ndarray, *, step: int, fps: float = 6.0) -> None:
        """Put an animated GIF on the board's image page.

        `SummaryWriter.add_video` is broken with moviepy 2 and silent without it; a GIF inside an image works.

        Args:
            frames_THWC: uint8 RGB.
        """
        height, width = frames_THWC.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif_bytes(frames_THWC, fps=fps)
        )
        try:
            writer = self._board._get_file_writer()
            writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
            self._board.flush()
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        self._progress.close()
        self._file.close()
        self._board.close()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("cannot write metrics (%s); training goes on without them", error)
        self._warned = True


class Progress:
    """A bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, *, first_step: int, steps: int):
        self._steps = steps
        self._last_line_s = 0.0
        self._bar = tqdm(total=steps, initial=first_step, unit="step") if sys.stderr.isatty() else None

    def show(self, line: dict[str, Any]) -> None:
        done = line["step"] + 1
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"loss {line['loss']:.4f}")
        elif log.isEnabledFor(logging.INFO) and self._is_due(done):
            speed = f"  {line['clips_per_s']:.1f} clips/s" if "clips_per_s" in line else ""
            log.info("step %d/%d  loss %.4f  lr %.2e%s", done, self._steps, line["loss"], line["lr"], speed)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_due(self, done: int) -> bool:
        now = time.monotonic()
        if done < self._steps and now - self._last_line_s < _PLAIN_LINE_EVERY_S:
            return False
        self._last_line_s = now
        return True


def gif_bytes(frames_THWC: np.ndarray, *, fps: float) -> bytes:
    """Encode uint8 RGB frames as a GIF that loops for ever."""
    images = [Image.fromarray(frame_HWC) for frame_HWC in frames_THWC]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
    )
    return buffer.getvalue()


def _strict(line: dict[str, Any]) -> dict[str, Any]:
    """A line as strict JSON has it: a loss or a norm that is not finite becomes null."""
    is_lost = {name: isinstance(value, float) and not math.isfinite(value) for name, value in line.items()}
    return {name: None if is_lost[name] else value for name, value in line.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file like `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def drop_lines_from(path: Path, first_step: int) -> None:
    """Take out of a file of one line a step what a killed run wrote past its checkpoint."""
    kept = [line for line in read_metrics(path) if line["step"] < first_step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
