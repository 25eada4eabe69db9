"""Frames at timestamps: bit-identical to a full decode; other frames are not decoded if possible."""

import io
from contextlib import suppress

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.stream import frame_decoder
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_decoder import frames_at
from tests.filming import ALIGNED, REAL, all_planes, encoded, planes_of, same_planes, scene, video_files
from tests.seeds import examples

CODINGS = {
    "aligned": ALIGNED,
    "x264's own": {"g": "250"},
    "pyramid": {"g": "24", "x264-params": "bframes=5:b-pyramid=normal:b-adapt=0"},
    "open groups": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
    "intra refresh": {"x264-params": "intra-refresh=1:keyint=12"},
    "interlaced": {"g": "16", "bf": "2", "flags": "+ildct+ilme", "x264-params": "interlaced=1"},
    "no B frames": {"g": "10", "bf": "0"},
}
FRAMES = 100
VIDEOS = {name: encoded(scene(FRAMES), **options) for name, options in CODINGS.items()}
WHOLE = {name: all_planes(video) for name, video in VIDEOS.items()}


def picked(video, timestamps_s, **options):
    """The planes at each timestamp."""
    found = {}
    for frame, places, _ in frames_at(video, timestamps_s, **options):
        found.update(dict.fromkeys(places, planes_of(frame)))
    assert sorted(found) == list(range(len(timestamps_s)))
    return [found[place] for place in range(len(timestamps_s))]


def assert_exact(video, whole, numbers):
    times, pixels = whole
    period_s = times[-1] / (len(times) - 1)
    got = picked(video, [times[number] + period_s / 2 for number in numbers])
    for planes, number in zip(got, numbers, strict=True):
        assert same_planes(planes, pixels[number]), number


def without_disposable_pictures(video):
    """The video with noise in the slices of all pictures that no other refers to."""
    broken, damaged = bytearray(video), 0
    with av.open(io.BytesIO(video)) as container:
        for packet in container.demux(video=0):
            data, at = bytes(packet), 0
            while at + 4 < len(data):
                length = int.from_bytes(data[at : at + 4], "big")
                head = data[at + 4]
                if 1 <= head & 31 <= 5 and head >> 5 == 0:
                    begin = packet.pos + at + 5
                    broken[begin : begin + length - 1] = np.random.default_rng(at).bytes(length - 1)
                    damaged += 1
                at += 4 + length
    return bytes(broken), damaged


@pytest.mark.parametrize("name", CODINGS)
def test_every_start_gives_the_frames_of_a_full_decode(name):
    for start in range(0, FRAMES - 60):
        assert_exact(VIDEOS[name], WHOLE[name], range(start, start + 61, 4))


@pytest.mark.parametrize("name", CODINGS)
@examples(25)
@given(numbers=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=6))
def test_any_frames_in_any_order_are_those_of_a_full_decode(name, numbers):
    assert_exact(VIDEOS[name], WHOLE[name], numbers)


@pytest.mark.parametrize("path", video_files(REAL / "surveillance" / "fight", most=8))
def test_real_clips_give_the_frames_of_a_full_decode(path):
    video = path.read_bytes()
    whole = all_planes(video)
    last = len(whole[0]) - 1
    for start in range(0, max(last - 60, 1), 7):
        assert_exact(video, whole, [min(start + 4 * number, last) for number in range(16)])


@pytest.mark.parametrize("path", video_files())
def test_edge_cases_give_the_frames_of_a_full_decode(path):
    video = path.read_bytes()
    whole = all_planes(video)
    if len(whole[0]) == 1:
        assert same_planes(picked(video, [0.0])[0], whole[1][0])
        return
    last = len(whole[0]) - 1
    for start in {0, last // 3, last // 2, last}:
        assert_exact(video, whole, [min(start + 4 * number, last) for number in range(8)])


def test_frames_between_reference_frames_are_never_decoded():
    broken, damaged = without_disposable_pictures(VIDEOS["aligned"])
    assert damaged > FRAMES // 2
    for start in range(0, FRAMES - 60, 4):
        assert_exact(broken, WHOLE["aligned"], range(start, start + 61, 4))


def test_requested_non_reference_frames_are_decoded():
    broken, _ = without_disposable_pictures(VIDEOS["aligned"])
    with pytest.raises((BadVideo, AssertionError)):
        assert_exact(broken, WHOLE["aligned"], [1, 2, 3])


def test_a_closed_group_without_a_requested_frame_is_skipped(monkeypatch):
    video, sent = encoded(scene(60), g="10", bf="0"), []
    needed = frame_decoder._needed
    monkeypatch.setattr(frame_decoder, "_needed", lambda *args: sent.extend(needed(*args)) or iter(sent))
    # Close together, so that there is no seek between them.
    assert_exact(video, all_planes(video), [3, 15, 38])
    tick = sent[1].pts - sent[0].pts
    assert [packet.pts // tick for packet in sent] == [*range(4), *range(10, 16), *range(30, 39)]


@pytest.mark.parametrize("options", [{"g": "250", "bf": "0"}, {"x264-params": "intra-refresh=1:keyint=12"}])
def test_wrong_key_frame_flags_change_no_frame(options):
    video, file = encoded(scene(80), **options), io.BytesIO()
    with av.open(io.BytesIO(video)) as given, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream, packet.is_keyframe = stream, number % 10 == 0
            output.mux(packet)
    whole = all_planes(video)
    for start in range(0, 70, 3):
        assert_exact(file.getvalue(), whole, range(start, start + 8, 4))


def test_timestamps_far_apart_are_reached_by_seeking(monkeypatch):
    video = encoded(scene(400), g="20")
    whole = all_planes(video)
    looked_at = []
    look = frame_decoder._packets_until
    monkeypatch.setattr(
        frame_decoder, "_packets_until", lambda *args: looked_at.append(look(*args)) or looked_at[-1]
    )
    assert_exact(video, whole, [10, 200, 390])
    assert sum(len(packets) for packets, _ in looked_at) < 120


@pytest.mark.parametrize("name", ["aligned", "x264's own", "pyramid", "no B frames", "interlaced"])
def test_every_start_is_decoded_by_packets(name, monkeypatch):
    ways = []
    for known in ("_by_packets", "_after_seek", "_from_start"):
        way = getattr(frame_decoder, known)
        monkeypatch.setattr(
            frame_decoder, known, lambda *args, way=way: ways.append(way.__name__) or way(*args)
        )
    for start in range(0, FRAMES - 60):
        assert_exact(VIDEOS[name], WHOLE[name], range(start, start + 61, 4))
    assert set(ways) == {"_by_packets"}


@pytest.mark.parametrize("name", CODINGS)
def test_a_video_that_ends_early_is_refused(name):
    times, _ = WHOLE[name]
    beyond_s = times[-1] + 1
    with pytest.raises(BadVideo, match=f"last frame is at {times[-1]:.3f} s, the index has one at"):
        picked(VIDEOS[name], [times[-20], beyond_s], last_frame_s=beyond_s)
    assert len(picked(VIDEOS[name], [times[-20], times[-9]], last_frame_s=beyond_s)) == 2


def test_a_damaged_requested_frame_is_an_error():
    video = bytearray(VIDEOS["x264's own"])
    middle = len(video) // 2
    video[middle : middle + 512] = np.random.default_rng(1).bytes(512)
    with pytest.raises(BadVideo, match=r"FFmpeg cannot read it|a frame of it is damaged"):
        picked(bytes(video), [number / 25 + 0.01 for number in range(FRAMES)])


def test_frames_of_a_variable_rate_stay_until_the_next_one():
    ticks = [0, 1, 5, 6, 20, 21]
    video = encoded(scene(6), ticks=ticks)
    _, pixels = all_planes(video)
    got = picked(video, [tick / 25 + 0.001 for tick in (20, 0, 3, 4, 5, 19)])
    for planes, number in zip(got, [4, 0, 1, 1, 2, 3], strict=True):
        assert same_planes(planes, pixels[number])


@pytest.mark.parametrize("name", ["aligned", "open groups"])
@examples(150)
@given(data=st.data())
def test_a_damaged_video_gives_frames_or_bad_video(name, data):
    video = bytearray(VIDEOS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the changed bytes are in the last 3 kB, which hold the index of the container.
        place = data.draw(st.integers(0, len(video) - 1) | st.integers(len(video) - 3000, len(video) - 1))
        video[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del video[data.draw(st.integers(0, len(video) - 1)) :]
    with suppress(BadVideo):
        picked(bytes(video), [0.3, 1.1, 3.0], last_frame_s=3.96)
