"""`kinemae.read_clip`: the frames on screen at the times of a clip, as training and evaluation read them."""

import http.server
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

import kinemae
from kinemae.data_tools.command import DataError
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.video_files import open_video_files

VIDEOS = Path(__file__).resolve().parents[2] / "data" / "videos"
VIDEO = VIDEOS / "h264_b_frames.mp4"


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "vp9.webm", "rotated.mp4", "xvid_packed.avi"])
def test_frames_of_their_own_size_are_those_of_a_full_decode(name):
    info = probe(VIDEOS / name)
    period_s = info.duration_s / info.frames
    every_TCHW = decode_at((VIDEOS / name).read_bytes(), [(i + 0.5) * period_s for i in range(info.frames)])
    first = info.frames // 3
    clip_CTHW = kinemae.read_clip(VIDEOS / name, start_s=first * period_s, frames=4, stride=2)
    assert clip_CTHW.equal(every_TCHW[first : first + 8 : 2].transpose(0, 1))
    by_rate = kinemae.read_clip(
        str(VIDEOS / name), start_s=(first + 0.9) * period_s, frames=4, fps=0.5 / period_s
    )
    assert by_rate.equal(clip_CTHW)


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_a_clip_of_a_model_is_the_one_of_evaluation(tmp_path, sampling):
    clip = ClipConfig(
        frames=4, size=32, **({"sampling": "uniform"} if sampling == "uniform" else {"stride": 2})
    )
    index = open_video_files(VIDEO, tmp_path, workers=1).index
    videos = EvaluationVideos(index, [0], clip=clip, temporal_clips=1, spatial_crops=1)
    item = videos.read(0, quarantined={}, on_sample=lambda key: None)
    start_s = 0.0 if sampling == "uniform" else item.time_VT[0, 0].item()
    assert kinemae.read_clip(VIDEO, clip, start_s=start_s).equal(item.pixels.rgb()[0])


def test_a_url_is_read_like_a_file():
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(VIDEOS))
    handler.log_message = lambda *words: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{VIDEO.name}"
        assert kinemae.read_clip(url, frames=2).equal(kinemae.read_clip(VIDEO, frames=2))
        with pytest.raises(DataError, match=r"absent.mp4"):
            kinemae.read_clip(f"{url}.absent.mp4")
        server.shutdown()


def test_a_short_video_repeats_its_last_frame_and_says_so(caplog):
    info = probe(VIDEO)
    clip_CTHW = kinemae.read_clip(VIDEO, frames=info.frames, stride=2, size=16)
    assert clip_CTHW[:, -1].equal(clip_CTHW[:, -2]) and "its last frame is repeated" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start_s": 999},
            r"start_s, end_s: expected a time span in .*h264_b_frames.mp4, .*, got 999",
        ),
        ({"start_s": -1}, "start_s, end_s: expected a time span"),
        ({"start_s": float("nan")}, "start_s, end_s: expected a time span"),
        ({"start_s": 0.5, "frames": 500}, r"start_s: expected at most 0.000, so that a clip of .* s ends"),
        ({"end_s": 0.5}, "end_s: expected none for a clip with a stride or a frame rate, got 0.5"),
        ({"frames": 0}, "clip.frames must be at least 1, got 0"),
        ({"stride": 2, "fps": 3.0}, r"clip.stride must be omitted with clip.fps=3"),
        ({"step": 2}, "step: expected one of frames, stride, fps"),
    ],
)
def test_a_clip_outside_the_video_or_wrong_settings_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        kinemae.read_clip(VIDEO, **{"frames": 2, **settings})


def test_an_unreadable_video_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(VIDEO.read_bytes()[:400])
    with pytest.raises(
        DataError, match=r"broken.mp4: expected a video, got an unreadable one: .*; fix: choose"
    ):
        kinemae.read_clip(tmp_path / "broken.mp4")
    with pytest.raises(DataError, match=r"absent.mp4: expected a video, got"):
        kinemae.read_clip(tmp_path / "absent.mp4")


def test_a_new_way_of_sampling_replaces_the_one_of_the_clip():
    clip = ClipConfig(frames=4, fps=5.0, size=16)
    strided = kinemae.read_clip(VIDEO, clip, stride=3)
    assert strided.equal(kinemae.read_clip(VIDEO, frames=4, stride=3, size=16))
    assert strided.dtype == torch.uint8 and strided.shape == (3, 4, 16, 16)
