"""Metrics are complete, continue after an interruption, and can be displayed."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinemae.data_tools.command import log
from kinemae.pretrain.runtime.metrics import MetricsWriter, gif_bytes, read_metrics
from tests.conftest import REPO
from tests.full_disk import no_file_above


def line(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1.0 / (step + 1), "lr": 1e-3, "grad_norm": 0.5, "samples": 7}


def write(run_dir: Path, steps: range, *, of: int = 10) -> None:
    writer = MetricsWriter(run_dir, first_step=steps[0], steps=of)
    writer.write([line(step) for step in steps])
    writer.close()


def test_a_continued_run_drops_lines_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    write(tmp_path, range(4, 10))
    assert read_metrics(tmp_path / "metrics.jsonl") == [line(step) for step in range(10)]


def test_an_incomplete_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(0)) + "\n" + json.dumps(line(1))[:9])
    assert read_metrics(path) == [line(0)]
    write(tmp_path, range(1, 3))
    assert read_metrics(path) == [line(0), line(1), line(2)]


def test_tensorboard_shows_every_number_once_after_a_continued_run(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    write(tmp_path, range(4, 10))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert "train/samples" not in board.Tags()["scalars"]
    assert [event.step for event in board.Scalars("train/loss")] == list(range(10))


def test_added_values_are_on_the_last_of_the_next_lines_only(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, first_step=0, steps=4)
    writer.add({"monitor/cosine": 0.5})
    writer.add({"monitor/rank": 3.0})
    writer.write([line(0), line(1)])
    writer.write([line(2), line(3)])
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        line(0),
        {**line(1), "monitor/cosine": 0.5, "monitor/rank": 3.0},
        line(2),
        line(3),
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("monitor/cosine")] == [(1, 0.5)]


def test_tensorboard_serves_an_animation_as_an_animated_gif(tmp_path: Path) -> None:
    frames_THWC = np.zeros((3, 8, 12, 3), np.uint8)
    frames_THWC[1] = 255
    writer = MetricsWriter(tmp_path, first_step=0, steps=1)
    writer.write_animation("clip", frames_THWC, step=0)
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Images("clip")
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.width, event.height, image.n_frames) == (12, 8, 3)


def test_a_gif_has_the_given_speed_and_loops() -> None:
    image = Image.open(
        io.BytesIO(gif_bytes(np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), np.uint8), fps=5))
    )
    assert image.info["duration"] == 200
    assert image.info["loop"] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
@pytest.mark.slow
def test_a_full_disk_drops_metrics_until_there_is_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    writer = MetricsWriter(tmp_path, first_step=0, steps=600)
    writer.write([line(0)])
    with no_file_above(1000):
        for step in range(1, 500):
            writer.write([line(step)])
        writer.write_animation("clip", np.zeros((3, 64, 64, 3), np.uint8), step=500)
    time.sleep(1)  # TensorBoard reads its files in the order of their names, which begin with a second
    writer.write([line(500)])
    writer.write([line(501)])
    writer.close()
    warnings = sorted(text.split(" (")[0] for text in caplog.messages if "cannot write" in text)
    assert warnings == ["cannot write metrics", "cannot write to TensorBoard"]
    steps = [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps[0] == 0 and steps[-2:] == [500, 501] and len(steps) < 100
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")][-2:] == [500, 501]


@pytest.mark.processes
def test_the_memory_of_a_process_is_not_that_of_its_parent() -> None:
    held = bytearray(b"x") * (
        1 << 30
    )  # written to, so that it is there; a child begins with ru_maxrss above it
    program = (
        "import torch; from kinemae.pretrain.runtime.train_step import peak_memory_bytes as peak\n"
        "import sys\n"
        "sys.stdout.write(f'{peak(torch.device(\"cpu\"))} ')\n"
        "held = bytearray(b'x') * (1 << 28)\n"
        "sys.stdout.write(f'{peak(torch.device(\"cpu\"))}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before < len(held)
    assert after - before > 0.9 * (1 << 28)
