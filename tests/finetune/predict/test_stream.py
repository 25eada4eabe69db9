"""Predictions of streams: pipes, network streams that break, bounded latency."""

import json
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.decode import decode_at
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.inference.load import load
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.predict import predict_file
from kinemae.finetune.predict.stream import Window, newest, predict_frames, predict_live, windows_of
from tests.faulty_server import faulty_server
from tests.finetune.predict.test_predict import save_random_model
from tests.forked import ForkedPython
from tests.sharding import encoded, moving

CONFIG = PredictConfig(overlap=0.5)
FRAMES, FPS = 63, 25  # the windows of the stream are those of the file: 7 + 14 x 4 frames


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    component = Component(name="classification")
    return load(save_random_model(tmp_path_factory.mktemp("m"), component, {"classes": ["a", "b"]}, "linear"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("v") / "video.ts"
    file.write_bytes(encoded(moving(FRAMES), rate=Fraction(FPS), kind=("mpegts", "mpeg2video", "yuv420p")))
    return file


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "stream.jsonl").read_text().splitlines()]


def test_a_pipe_has_the_scores_of_the_file(model, video: Path, tmp_path: Path) -> None:
    whole = predict_file(model, video, CONFIG)
    command = ["-m", "kinemae", "finetune", "predict", model.source, "-", str(tmp_path)]
    with subprocess.Popen(["cat", str(video)], stdout=subprocess.PIPE) as sender:
        files = {"stdin": sender.stdout, "stderr": subprocess.PIPE}
        reader = ForkedPython(*command, "overlap=0.5", "device=cpu", environment={}, **files)
        _, errors = reader.communicate(timeout=300)
    assert reader.returncode == 0, errors
    lines = lines_of(tmp_path)
    assert len(lines) == len(whole.score_RX) == 15
    np.testing.assert_allclose([list(line["scores"].values()) for line in lines], whole.score_RX, atol=1e-6)
    assert all(line["skipped"] == 0 and line["latency_s"] >= 0 for line in lines)


def test_frames_from_python_have_almost_the_scores_of_the_file(model, video: Path) -> None:
    times = [(number + 0.5) / FPS for number in range(FRAMES)]
    frames = decode_at(video.read_bytes(), times).permute(0, 2, 3, 1).numpy()
    found = list(predict_frames(model, iter(frames), fps=FPS, config=CONFIG))
    whole = predict_file(model, video, CONFIG)
    assert len(found) == len(whole.score_RX)
    scores = [list(each.scores.values()) for each in found]
    np.testing.assert_allclose(scores, whole.score_RX, atol=0.1)  # RGB and planes are resized differently


@pytest.mark.parametrize(
    ("frame", "fps", "settings", "message"),
    [
        (
            np.zeros((9, 8, 3)),
            25,
            {},
            r"frame 0: expected uint8 RGB of shape \(H, W, 3\), got float64 of shape",
        ),
        (
            np.zeros((3, 9, 8), np.uint8),
            25,
            {},
            r"frame 0: expected uint8 .* got uint8 of shape \(3, 9, 8\); fix",
        ),
        (None, 0, {}, "stream_fps must be above 0, got 0"),
        (None, 25, {"temporal_clips": 2}, "temporal_clips must be omitted for a stream"),
        (None, 25, {"spatial_crops": 3}, "spatial_crops must be 1 for a stream"),
    ],
)
def test_wrong_frames_and_settings_of_a_stream_are_errors(model, frame, fps, settings, message) -> None:
    with pytest.raises(ValueError, match=message):  # wrong settings before the first frame
        next(predict_frames(model, [frame], fps=fps, config=PredictConfig(**settings)))


def test_an_output_that_is_not_finite_ends_a_stream(model) -> None:
    frames = np.zeros((FRAMES, 16, 16, 3), np.uint8)
    bias = model.with_head().head.linear.bias
    kept = bias.detach().clone()
    torch.nn.init.constant_(bias, torch.nan)
    try:
        with pytest.raises(DataError, match="expected finite outputs, got NaN or infinity; fix"):
            list(predict_frames(model, iter(frames), fps=FPS, config=CONFIG))
    finally:
        bias.data.copy_(kept)


def test_a_stream_that_breaks_keeps_its_windows(model, video: Path, tmp_path: Path) -> None:
    with faulty_server(video.parent) as server:
        server.fault = lambda method, path: "cut"
        with pytest.raises(DataError, match=r"video.ts: expected a video stream, got an error: .*"):
            predict_live(model, f"{server.url}/video.ts", tmp_path, PredictConfig(overlap=0.5, live=False))
    lines = lines_of(tmp_path)
    whole = predict_file(model, video, CONFIG)
    assert 0 < len(lines) < len(whole.score_RX)
    scores = [list(line["scores"].values()) for line in lines]
    np.testing.assert_allclose(scores, whole.score_RX[: len(lines)], atol=1e-6)


def test_a_stream_shorter_than_a_window_is_an_error(model, video: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least the frames of one window"):
        predict_live(model, str(video), tmp_path, PredictConfig(stride=50))
    predict_live(model, str(video), tmp_path, PredictConfig(seconds=1.0))
    assert [round(line["end_s"], 2) for line in lines_of(tmp_path)] == [0.28, 0.6, 0.92]


def test_a_slow_model_skips_windows_and_gets_the_newest() -> None:
    def windows():
        for number in range(5):
            yield Window(torch.tensor([number]), torch.zeros(1, 1), 0.0)
        read.set()

    read = threading.Event()
    found = newest(windows(), keeps_all=False)
    assert [int(window.pixels) for window, _ in newest(windows(), keeps_all=True)] == [0, 1, 2, 3, 4]
    read.clear()
    first, _ = next(found)
    assert read.wait(60)
    rest = [(int(window.pixels), skipped) for window, skipped in found]
    number = int(first.pixels)
    assert rest == ([(4, 3 - number)] if number < 4 else [])


def test_frames_by_rate_are_those_on_screen() -> None:
    times = [0.0, 0.1, 0.25, 0.3, 0.71, 0.72, 1.2]
    frames = ((time_s, torch.full((1, 3, 1, 2, 2), number)) for number, time_s in enumerate(times))
    clip = ClipConfig(frames=2, fps=5, size=2)
    shown = [window.pixels[0, 0, :, 0, 0].tolist() for window in windows_of(frames, clip, hop=2)]
    assert shown == [[0, 1], [3, 3], [5, 5]]  # at 0, 0.2, 0.4, 0.6, 0.8 and 1 s
