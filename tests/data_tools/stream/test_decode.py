"""Exact frames: golden frames, random access equal to sequential decoding, one-line errors."""

import io
import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from kinemae.data_tools.stream import container as container_module
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.frame_sampling import last_frame_s
from tests.filming import FORMATS, encoded, middle_s, scene, sequential, turned, video_files

GOLDEN = [
    *(("nasa_13013.mp4", 3, frame) for frame in (0, 15, 35, 180, 389)),
    ("av1_video.mkv", 0, 10),
    ("h265_video.mp4", 0, 5),
]


@pytest.mark.parametrize("path", video_files())
def test_every_real_file_gives_the_frames_of_a_sequential_decode(path):
    video = path.read_bytes()
    info = probe(video)
    times, frames_TCHW = sequential(video)
    assert info.frames == len(times)
    chosen = sorted({0, info.frames // 3, info.frames // 2, info.frames - 1})
    ends = [*times[1:], info.duration_s]
    middles_s = [(times[frame] + ends[frame]) / 2 for frame in chosen]
    got = decode_at(video, middles_s, last_frame_s=last_frame_s(info.frames, info.duration_s))
    assert got.dtype == torch.uint8 and got.shape == (len(chosen), 3, info.height, info.width)
    if got.shape[1:] == frames_TCHW.shape[1:]:  # neither rotated nor of pixels that are not square
        assert torch.equal(got, frames_TCHW[chosen])
    one = torch.cat([decode_at(video, [timestamp_s]) for timestamp_s in middles_s])
    assert torch.equal(one, got)


@pytest.mark.parametrize("name, stream, frame", GOLDEN)
def test_golden_frames_match_and_their_neighbours_do_not(videos, name, stream, frame):
    video = (videos / "formats" / name).read_bytes()
    golden_HWC = torch.load(FORMATS / f"{name}.stream{stream}.frame{frame:06d}.pt", weights_only=True)
    last = probe(video).frames - 1
    near = [n for n in (frame - 1, frame, frame + 1) if 0 <= n <= last]
    frames_TCHW = decode_at(video, middle_s(video, *near))
    errors = (frames_TCHW.float() - golden_HWC.permute(2, 0, 1).float()).abs().mean(dim=(1, 2, 3)).tolist()
    assert errors[near.index(frame)] < 1
    assert all(error > errors[near.index(frame)] for n, error in zip(near, errors, strict=True) if n != frame)


def test_a_frame_is_on_screen_from_its_own_time_stamp_on(videos):
    video = (videos / "formats" / "nasa_13013.mp4").read_bytes()
    listed = json.loads((FORMATS / "nasa_13013.mp4.stream3.all_frames_info.json").read_text())
    assert probe(video).frames == len(listed)
    chosen = [0, 1, 100, 249, 250, 389]
    starts = decode_at(video, [float(listed[frame]["pts_time"]) for frame in chosen])
    assert torch.equal(starts, decode_at(video, middle_s(video, *chosen)))


@pytest.mark.parametrize(
    "options",
    [
        {"g": "12"},
        {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
        {"x264-params": "intra-refresh=1:keyint=12"},
        {"g": "250", "container": "matroska"},
        {"g": "10", "container": "matroska"},
        {"g": "10", "bf": "2", "container": "mpegts"},
        {"g": "10", "bf": "0", "container": "avi"},
    ],
)
def test_random_access_equals_sequential_decoding(options):
    video = encoded(scene(70), **options)
    times, frames_TCHW = sequential(video)
    period = times[-1] / (len(times) - 1)
    for frame in range(0, len(times), 3):
        assert torch.equal(decode_at(video, [times[frame] + period / 2])[0], frames_TCHW[frame])


def test_frames_of_a_variable_rate_stay_until_the_next_one():
    ticks = [0, 1, 5, 6, 20, 21]
    video = encoded(scene(6), ticks=ticks)
    _, frames_TCHW = sequential(video)
    got = decode_at(video, [tick / 25 + 0.001 for tick in (0, 3, 4, 5, 19, 20)])
    assert torch.equal(got, frames_TCHW[[0, 1, 1, 2, 3, 4]])


def test_timestamps_may_be_in_any_order_and_repeat():
    video = encoded(scene(20))
    _, frames_TCHW = sequential(video)
    chosen = [7, 3, 3, 19, 0]
    assert torch.equal(decode_at(video, middle_s(video, *chosen)), frames_TCHW[chosen])


def test_a_rotated_video_is_upright(videos):
    file = videos / "formats" / "nasa_13013_rotated.mp4"
    info = probe(file)
    assert (info.width, info.height) == (270, 480)
    _, stored_TCHW = sequential(file.read_bytes())
    upright = decode_at(file.read_bytes(), middle_s(file.read_bytes(), 4))
    assert torch.equal(upright[0], torch.rot90(stored_TCHW[4], dims=(1, 2)))


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_matrices_rotate_and_flip(angle, mirrored):
    source = encoded(scene(3))
    stored = sequential(source)[1][0]
    upright = torch.rot90(stored, k=angle // 90, dims=(1, 2))
    expected = upright.flip(2) if mirrored else upright
    assert torch.equal(decode_at(turned(source, angle, mirrored=mirrored), [0.0])[0], expected)


@pytest.mark.parametrize(
    "video, reason",
    [
        (b"", "FFmpeg cannot read it: Invalid data"),
        (b"no video at all\n" * 1000, "FFmpeg cannot read it: Invalid data"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "FFmpeg cannot read it"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n", "FFmpeg cannot read it"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n", "FFmpeg cannot read it"),
    ],
)
def test_other_files_give_a_one_line_error(video, reason):
    for read in (probe, lambda video: decode_at(video, [0.0])):
        with pytest.raises(BadVideo, match=reason) as refused:
            read(video)
        assert "\n" not in str(refused.value)


def test_a_truncated_video_is_refused():
    video = encoded(scene(30))
    with pytest.raises(BadVideo, match="FFmpeg cannot read it"):
        probe(video[: len(video) // 2])


def test_a_video_damaged_in_the_middle_is_refused():
    video = bytearray(encoded(scene(40), g="10"))
    middle = len(video) // 2
    video[middle : middle + 4096] = np.random.default_rng(1).bytes(4096)
    with pytest.raises(BadVideo, match=r"FFmpeg cannot read it|is damaged"):
        probe(bytes(video))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadVideo, match="No such file"):
        probe(tmp_path / "gone.mp4")


def test_a_file_with_sound_only_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    with pytest.raises(BadVideo, match="holds no video stream"):
        probe(file.getvalue())


def test_a_video_shorter_than_in_the_index_is_refused():
    video = encoded(scene(10))
    with pytest.raises(BadVideo, match=r"last frame is at 0.360 s, the index has one at 0.760 s"):
        decode_at(video, [0.1, 0.78], last_frame_s=0.76)
    assert len(decode_at(video, [0.1, 0.2], last_frame_s=0.76)) == 2


def test_the_header_gives_the_same_properties_as_a_full_decode():
    video = encoded(scene(30))
    assert probe(video, full=False) == probe(video)


def test_a_frame_of_too_many_pixels_is_refused(monkeypatch):
    video = encoded(scene(3))
    monkeypatch.setattr(container_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadVideo, match="frames of 64x48 are larger than 3071 pixels"):
        probe(video)


def test_a_frame_that_becomes_too_large_within_the_video_is_refused(monkeypatch):
    small, large = encoded(scene(8), container="h264"), encoded(scene(8, 240, 320), container="h264")
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(small + large), format="h264") as given,
        av.open(file, "w", format="mpegts") as output,
    ):
        stream = output.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 25)
            output.mux(packet)
    monkeypatch.setattr(container_module, "MAX_PIXELS", 320 * 240 - 1)
    with pytest.raises(BadVideo, match="FFmpeg cannot read it"):
        probe(file.getvalue())


@pytest.mark.nightly
@pytest.mark.slow
def test_a_small_file_of_many_large_frames_stays_small_in_memory(repo):
    program = """
import io, sys, av, torch, numpy as np
from fractions import Fraction
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.pretrain.runtime.train_step import peak_memory_bytes
small, large = io.BytesIO(), io.BytesIO()
with av.open(small, "w", format="mp4") as output:
    stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
    stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
    stream.thread_count = 1
    for _ in range(6):
        black = av.VideoFrame(1920, 1080, "yuv420p")
        [plane.update(bytes(plane.buffer_size)) for plane in black.planes]
        output.mux(stream.encode(black))
    output.mux(stream.encode())
with av.open(io.BytesIO(small.getvalue())) as given, av.open(large, "w", format="mp4") as output:
    stream = output.add_stream_from_template(given.streams.video[0])
    packets = [packet for packet in given.demux(video=0) if packet.dts is not None]
    data = [(bytes(packet), packet.is_keyframe) for packet in packets]
    for number in range(600):
        content, is_key = data[number % 6]
        packet = av.Packet(content)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, is_key
        packet.time_base = Fraction(1, 25)
        output.mux(packet)
before = peak_memory_bytes(torch.device("cpu"))
info = probe(large.getvalue())
assert (info.frames, info.width) == (600, 1920), info
assert decode_at(large.getvalue(), [0.5, 23.0]).shape == (2, 3, 1080, 1920)
everywhere = [frame / 25 + 0.01 for frame in range(600)]
clips = YuvClips.empty(1, 600, 16)
crop_views(yuv_frames_at(large.getvalue(), everywhere), lambda *size: evaluation_views(*size, 1), clips)
sys.stdout.write(str((peak_memory_bytes(torch.device("cpu")) - before) >> 20))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200  # MiB; the frames together are 3,500 as RGB
