"""Damaged and unusual files in `shard`, with and without re-encoding.

docs/faults.md lists all faults with their tests; this file tests the faults of single files.
"""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.training_clips import TrainingClips

LAYOUTS = ("copy", "h264")
GOOD = "tail broken_off one_frame one_pixel odd alpha cover two_streams ten_hours joined".split()  # noqa: SIM905
BAD = {
    "empty": "FFmpeg cannot read it",
    "text": "Invalid data found",
    "cut": "Invalid data found",
    "middle": "FFmpeg cannot read it",
    "sound": "it holds no video stream",
    "cover_only": "it holds no video stream",
    "huge": "frames of 8192x8192 are larger than 33554432 pixels",
    "concat": "FFmpeg cannot read it",
    "session": "FFmpeg cannot read it",
    "playlist": "FFmpeg cannot read it",
}


def film(frames: int, *, size: tuple[int, int] = (48, 64), **options: str) -> bytes:
    """Encode an H.264 video of a moving texture, mp4 by default."""
    height, width = size
    texture = np.random.default_rng(7).integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
    header = {key: options.pop(key) for key in ("movflags",) if key in options}
    container = options.pop("container", "mp4")
    with (
        TemporaryDirectory() as folder,
        av.open(f"{folder}/video", "w", format=container, options=header) as output,
    ):
        stream = output.add_stream("libx264", rate=25, options={"g": "10", **options})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = height, width, "yuv420p", 1
        for at in range(frames):
            shown = np.ascontiguousarray(texture[at % height :][:height, at % width :][:, :width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        output.mux(stream.encode())
        output.close()
        return Path(folder, "video").read_bytes()


def with_streams(video: bytes, *, cover: bool = False, second: bytes = b"", sound: bool = False) -> bytes:
    """Mux the stream of a video (none if it is empty) after other streams."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 640, 480, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        tracks = [(av.open(io.BytesIO(data)), data) for data in (second, video) if data]
        streams = [output.add_stream_from_template(given.streams.video[0]) for given, _ in tracks]
        if sound:
            audio = output.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 16000
            output.mux([*audio.encode(silence), *audio.encode()])
        if cover:
            grey = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 90, np.uint8), format="rgb24")
            output.mux(picture.encode(grey.reformat(format="yuvj420p")))
        for (given, _), stream in zip(tracks, streams, strict=True):
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
            given.close()
    return file.getvalue()


def repeated(video: bytes, frames: int, *, every: Fraction) -> bytes:
    """Repeat the packets of a short video to make a long one."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as given, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        stream.time_base = Fraction(1, 12800)
        packets = [(bytes(p), p.is_keyframe) for p in given.demux(video=0) if p.dts is not None]
        for number in range(frames):
            content, is_key = packets[number % len(packets)]
            packet = av.Packet(content)
            packet.stream, packet.is_keyframe, packet.time_base = stream, is_key, every
            packet.pts = packet.dts = number
            output.mux(packet)
    return file.getvalue()


def gif(size: tuple[int, int], frames: int, mode: str = "P") -> bytes:
    file = io.BytesIO()
    pictures = [Image.new(mode, size, at if mode == "P" else (200, 10 * at, 30, 128)) for at in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A web server that records every request and serves a video."""
    asked: list[str] = []
    video = film(5)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            self.wfile.write(video)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()


def playlist(port: int) -> bytes:
    """An HLS playlist of segments on a web server."""
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n"
    return f"{head}http://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n".encode()


def ends_of_frames(video: bytes) -> list[int]:
    """The byte offsets at which the frames end."""
    with av.open(io.BytesIO(video)) as container:
        return [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]


def write_all(folder: Path, port: int) -> None:
    whole, tail = film(40), film(40, movflags="+faststart", bf="0")
    middle = bytearray(whole)
    half = len(whole) // 2
    middle[half : half + 2048] = np.random.default_rng(1).bytes(2048)
    (folder / "secret").mkdir(parents=True)
    (folder / "secret" / ".target.mp4").write_bytes(whole)
    files = {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 500,
        "cut.mp4": whole[:half],
        "middle.mp4": bytes(middle),
        "sound.mp4": with_streams(b"", sound=True),
        "cover_only.mp4": with_streams(b"", cover=True, sound=True),
        "huge.gif": gif((8192, 8192), 1),
        "concat.mp4": f"ffconcat version 1.0\nfile {folder}/secret/.target.mp4\n".encode(),
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "playlist.mp4": playlist(port),
        "tail.mp4": tail[: ends_of_frames(tail)[29]],
        "broken_off.mp4": tail[: ends_of_frames(tail)[29] + 50],
        "one_frame.mp4": film(1),
        "one_pixel.gif": gif((1, 1), 3),
        "odd.gif": gif((321, 241), 4),
        "alpha.gif": gif((64, 48), 3, "RGBA"),
        "cover.mp4": with_streams(whole, cover=True),
        "two_streams.mp4": with_streams(film(30, size=(96, 128)), second=whole),
        "ten_hours.mp4": repeated(film(20, size=(16, 16), bf="0"), 3_600, every=Fraction(10, 1)),
    }
    files["joined.ts"] = 2 * film(40, container="mpegts", bf="0")  # the timestamps restart in the middle
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """The files, and the requests to the web server that one of them names."""
    folder = tmp_path_factory.mktemp("strange") / "videos"
    with listening() as (port, asked):
        write_all(folder, port)
        yield folder, asked


@pytest.fixture(scope="module", params=LAYOUTS)
def sharded(request: pytest.FixtureRequest, strange: tuple[Path, list[str]]) -> Path:
    out = strange[0].parent / request.param
    arguments = ["shard", str(strange[0]), str(out), "workers=1", f"layout.name={request.param}"]
    if request.param == "h264":
        arguments += ["layout.args.every=1", "segment_s=null"]
    assert run_program(PROGRAM, arguments) == 0
    return out


def samples(out: Path) -> dict[str, Sample]:
    index = open_index(out / "train")
    return {Path(sample.name).stem: sample for sample in map(index.sample, range(len(index)))}


def lines(path: Path, key: str) -> dict[str, str]:
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {Path(entry["path"]).stem: entry[key] for entry in entries}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_rejected_with_its_reason(sharded: Path, name: str) -> None:
    rejected = lines(sharded / "rejected.jsonl", "reason")
    assert BAD[name] in rejected[name] and rejected[name]
    assert name not in samples(sharded)


def test_all_other_files_are_stored(sharded: Path) -> None:
    assert lines(sharded / "rejected.jsonl", "reason").keys() == BAD.keys()
    assert sorted(samples(sharded)) == sorted(GOOD)


def test_a_cut_tail_is_noted_and_the_decoded_frames_count(sharded: Path, strange: tuple[Path, list[str]]):
    with av.open(str(strange[0] / "tail.mp4")) as container:
        assert container.streams.video[0].frames == 40, "number of frames in the container"
        assert sum(1 for _ in container.decode(video=0)) == 30
    assert samples(sharded)["tail"].frames == samples(sharded)["broken_off"].frames == 30
    notes = lines(sharded / "notes.jsonl", "note")
    assert notes["tail"] == "30 of 40 frames"
    assert notes["broken_off"].startswith("its end is damaged: 30 of 40 frames are whole (Invalid data")


def test_training_reads_every_stored_video(sharded: Path) -> None:
    """No clip is skipped or empty, even of ten hours, one frame or one pixel."""
    clips = training(open_index(sharded / "train"))
    batch = clips.batch(range(2 * len(GOOD)))
    assert batch.skipped == () and sorted({*batch.keys}) == sorted(GOOD)
    shown = dict(zip(batch.keys, batch.clip_BCTHW, strict=True))
    assert shown["two_streams"].float().std() > 20
    for key in set(GOOD) - {"one_pixel", "odd"}:
        assert shown[key].any(), key


def training(index: ShardIndex) -> TrainingClips:
    return TrainingClips(index, clip=ClipConfig(frames=4, size=32), augment=AugmentConfig(), seed=0)


def test_the_video_stream_is_stored_and_not_the_cover(sharded: Path, strange: tuple[Path, list[str]]) -> None:
    found = samples(sharded)
    assert (found["cover"].width, found["cover"].height, found["cover"].frames) == (64, 48, 40)
    two = found["two_streams"]
    assert (two.width, two.height, two.frames) in {(64, 48, 40), (128, 96, 30)}, "one of the two streams"


def test_a_video_of_ten_hours_keeps_its_length(sharded: Path) -> None:
    sample = samples(sharded)["ten_hours"]
    assert (sample.frames, sample.duration_s) == (3_600, pytest.approx(36_000))


def test_timestamps_that_restart_do_not_mix_frames(sharded: Path) -> None:
    """The second half follows the first or is dropped; the halves do not mix."""
    duration_s = samples(sharded)["joined"].duration_s
    assert min(abs(duration_s - 1.6), abs(duration_s - 3.2)) < 0.05


def test_odd_sizes_stay_or_lose_one_row_or_column(sharded: Path) -> None:
    found = samples(sharded)
    assert (found["odd"].width, found["odd"].height) in {(321, 241), (320, 240)}
    assert found["one_pixel"].width * found["one_pixel"].height in (1, 4)


def test_playlists_with_a_video_suffix_open_no_file_and_no_connection(
    sharded: Path, strange: tuple[Path, list[str]]
):
    folder, asked = strange
    assert asked == []
    # Without the list of allowed formats FFmpeg follows both, so the files are valid playlists.
    with av.open(io.BytesIO((folder / "concat.mp4").read_bytes()), options={"safe": "0"}) as opened:
        assert len(opened.streams.video) == 1
    with listening() as (port, asked_now), suppress(av.FFmpegError):
        av.open(io.BytesIO(playlist(port)), format="hls", options={"extension_picky": "0"}).close()
    assert asked_now


def test_videos_with_alpha_become_rgb(sharded: Path) -> None:
    clips = training(open_index(sharded / "train"))
    batch = clips.batch(range(len(GOOD)))
    shown = dict(zip(batch.keys, batch.clip_BCTHW, strict=True))["alpha"]
    assert shown.dtype == torch.uint8 and shown.shape[0] == 3
