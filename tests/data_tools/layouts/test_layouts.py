"""Contract of all layouts, as required by the index and the reader."""

import resource
from pathlib import Path

import numpy as np
import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from tests.sharding import cut_after, encoded, moving

LAYOUTS = component_names("kinemae.data_tools.layouts")
CUTTING = [name for name in LAYOUTS if name not in ("copy", "clips")]


def build(name: str, **arguments: object) -> Layout:
    return build_component("kinemae.data_tools.layouts", Component(name=name, args=arguments), Layout)


def build_full_rate(name: str) -> Layout:
    """A layout that stores every frame of 25 fps."""
    return build(name, **({"every": 1} if name == "h264" else {}))


def encode(layout: Layout, video: SourceVideo, folder: Path, **options: object) -> list[EncodedSample]:
    folder.mkdir(exist_ok=True)
    return list(layout.encode(Job(video=video, key="key", folder=folder, **options)))  # type: ignore[arg-type]


def content(sample: EncodedSample, video: SourceVideo) -> bytes:
    return (sample.file or video.path).read_bytes()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> SourceVideo:
    path = tmp_path_factory.mktemp("clip") / "Clip.MP4"
    path.write_bytes(encoded(moving(75)))
    return SourceVideo(path=path, name="Clip.MP4")


@pytest.mark.parametrize("name", LAYOUTS)
class TestContract:
    def test_the_info_of_a_sample_equals_that_of_the_reader(
        self, name: str, clip: SourceVideo, tmp_path: Path
    ):
        samples = encode(build(name), clip, tmp_path)
        assert samples
        for sample in samples:
            found = probe(content(sample, clip))
            assert found.duration_s == pytest.approx(sample.info.duration_s)
            assert (found.frames, found.width, found.height, found.codec) == (
                sample.info.frames,
                sample.info.width,
                sample.info.height,
                sample.info.codec,
            )
            assert sample.extension == sample.extension.lower() == "mp4"
            assert sample.key.startswith("key")
            assert sample.file is None or sample.file.name == f"{sample.key}.{sample.extension}"

    def test_equal_videos_give_equal_bytes(self, name: str, clip: SourceVideo, tmp_path: Path):
        twice = [encode(build(name), clip, tmp_path / folder) for folder in ("one", "other")]
        assert [content(sample, clip) for sample in twice[0]] == [
            content(sample, clip) for sample in twice[1]
        ]
        assert [sample.start_s for sample in twice[0]] == [sample.start_s for sample in twice[1]]

    def test_only_complete_files_of_samples_remain(self, name: str, clip: SourceVideo, tmp_path: Path):
        samples = encode(build(name), clip, tmp_path)
        stored = {sample.file for sample in samples if sample.file is not None}
        assert set(tmp_path.iterdir()) == stored

    def test_an_unreadable_video_raises_bad_video(self, name: str, tmp_path: Path):
        path = tmp_path / "broken.mp4"
        path.write_bytes(encoded(moving(20))[:-500])
        with pytest.raises(BadVideo):
            encode(build(name), SourceVideo(path=path, name=path.name), tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_frames_keep_their_timestamps(self, name: str, clip: SourceVideo, tmp_path: Path):
        original = clip.path.read_bytes()
        for sample in encode(build(name), clip, tmp_path):
            step_s = sample.info.duration_s / sample.info.frames
            middles_s = [(number + 0.5) * step_s for number in range(sample.info.frames)]
            stored = decode_at(content(sample, clip), middles_s).float().mean(dim=(1, 2, 3))
            wanted = decode_at(original, [sample.start_s + middle_s for middle_s in middles_s])
            # Frames differ by 5 grey levels from their neighbours.
            assert (stored - wanted.float().mean(dim=(1, 2, 3))).abs().max() < 2


@pytest.mark.parametrize("name", CUTTING)
def test_start_s_and_end_s_select_a_part(name: str, clip: SourceVideo, tmp_path: Path):
    part = SourceVideo(path=clip.path, name="part", start_s=1.0, end_s=2.0)
    [sample] = encode(build_full_rate(name), part, tmp_path)
    assert (sample.info.frames, sample.start_s) == (25, 1.0)
    stored = decode_at(content(sample, part), [0.02, 0.98]).float().mean(dim=(1, 2, 3))
    wanted = decode_at(clip.path.read_bytes(), [1.02, 1.98]).float().mean(dim=(1, 2, 3))
    assert (stored - wanted).abs().max() < 2


@pytest.mark.parametrize("name", CUTTING)
def test_a_part_beyond_the_end_raises_bad_video(name: str, clip: SourceVideo, tmp_path: Path):
    part = SourceVideo(path=clip.path, name="part", start_s=9.0, end_s=11.0)
    with pytest.raises(BadVideo, match="it has no frame from second 9 to 11"):
        encode(build_full_rate(name), part, tmp_path)


@pytest.mark.parametrize("name", CUTTING)
def test_segments_have_the_configured_length_and_cover_the_video(
    name: str, clip: SourceVideo, tmp_path: Path
):
    samples = encode(build_full_rate(name), clip, tmp_path, segment_rules=SegmentRules(segment_s=0.8))
    assert [sample.key for sample in samples] == ["key-0000", "key-0001", "key-0002", "key-0003"]
    assert [sample.info.frames for sample in samples] == [20, 20, 20, 15]
    assert [sample.start_s for sample in samples] == pytest.approx([0, 0.8, 1.6, 2.4])
    [long, longer] = encode(build_full_rate(name), clip, tmp_path, segment_rules=SegmentRules(segment_s=1.3))
    assert (long.info.frames, longer.info.frames) == (32, 43)  # 10 frames alone would be less than half
    [whole] = encode(build_full_rate(name), clip, tmp_path, segment_rules=SegmentRules(segment_s=2.1))
    assert (whole.key, whole.info.frames) == ("key", 75)  # not cut


@pytest.mark.parametrize("name", CUTTING)
def test_scene_cuts_follow_the_content(name: str, tmp_path: Path):
    chance = np.random.default_rng(0)
    scenes = [chance.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(3)]
    pictures = [scene for scene, frames in zip(scenes, (30, 40, 10), strict=True) for _ in range(frames)]
    path = tmp_path / "scenes.mp4"
    path.write_bytes(encoded(pictures))
    samples = encode(
        build_full_rate(name),
        SourceVideo(path=path, name="s"),
        tmp_path / "out",
        segment_rules=SegmentRules(scene_cuts=True),
    )
    assert [sample.info.frames for sample in samples] == [30, 50]  # the last scene is shorter than a second
    both = SegmentRules(segment_s=0.6, scene_cuts=True)
    samples = encode(
        build_full_rate(name), SourceVideo(path=path, name="s"), tmp_path / "out", segment_rules=both
    )
    assert [sample.info.frames for sample in samples] == [15, 15, 15, 15, 10, 10]


@pytest.mark.parametrize(
    "name, video, segment_rules, message",
    [
        (
            "copy",
            {},
            SegmentRules(segment_s=1),
            "layout.name=copy: expected no segment_s and scene_cuts, .*; fix: set layout.name",
        ),
        ("copy", {}, SegmentRules(scene_cuts=True), "h264, clips or jpegs"),
        (
            "copy",
            {"start_s": 1.0},
            SegmentRules(),
            r"layout.name=copy: expected whole files, got a.mp4 with start_s or end_s",
        ),
        (
            "copy",
            {"end_s": 1.0},
            SegmentRules(),
            "expected whole files, .*; fix: set layout.name to h264",
        ),
        (
            "copy",
            {"frames": ("1.jpg",)},
            SegmentRules(),
            "expected video files, got the folder of images a.mp4",
        ),
        (
            "clips",
            {},
            SegmentRules(segment_s=1),
            "layout.name=clips: expected no segment_s and scene_cuts",
        ),
    ],
)
def test_unsupported_videos_and_options_are_errors_before_reading(
    name: str, video: dict[str, object], segment_rules: SegmentRules, message: str
):
    with pytest.raises(ValueError, match=message):
        build(name).check(SourceVideo(path=Path("a.mp4"), name="a.mp4", **video), segment_rules)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYOUTS)
def test_supported_videos_pass_the_check(name: str):
    build(name).check(SourceVideo(path=Path("a.mp4"), name="a.mp4", member=(0, 10)), SegmentRules())


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("h264", {"every": 0}, r"layout.args.every must lie in \[1, 4\], or be null, got 0"),
        ("h264", {"every": 5}, r"layout.args.every must lie in \[1, 4\], or be null, got 5"),
        ("h264", {"b_frames": 17}, r"layout.args.b_frames must lie in \[0, 16\], got 17"),
        ("h264", {"gop": 15}, "layout.args.gop must be a multiple of b_frames \\+ 1 = 2, got 15"),
        ("h264", {"gop": 0}, "layout.args.gop must be a multiple of b_frames \\+ 1 = 2, got 0"),
        ("h264", {"gop": "x"}, "gop"),
        ("h264", {"short_side": 1}, "layout.args.short_side must be a whole number from 2 on"),
        ("h264", {"fps": 0}, r"layout.args.fps must lie in \[0.001, 1000\], or be null, got 0"),
        ("h264", {"fps": "x"}, r"layout.args.fps must lie in \[0.001, 1000\], or be null, got 'x'"),
        ("h264", {"crf": 52}, r"layout.args.crf must lie in \[0, 51\], got 52"),
        (
            "h264",
            {"preset": "quick"},
            "layout.args.preset must be one of ultrafast, .*, got 'quick'",
        ),
        ("h264", {"evry": 4}, "did you mean 'every'"),
        ("clips", {"frames": 0}, "layout.args.frames must be at least 1"),
        ("clips", {"stride": 0}, "layout.args.stride must be at least 1"),
        ("clips", {"clips": 0}, "layout.args.clips must be at least 1, or null, got 0"),
        ("jpegs", {"quality": 1}, r"layout.args.quality must lie in \[2, 31\], got 1"),
        ("jpegs", {"short_side": 3.5}, "layout.args.short_side must be a whole number from 2 on, or null"),
        ("h265", {}, "no layout named 'h265'; did you mean 'h264'"),
    ],
)
def test_a_wrong_argument_names_the_fix(name: str, arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "copy"])
def test_a_full_disk_raises_a_data_error(name: str, clip: SourceVideo, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(
            DataError, match=f"cannot write to {tmp_path}: File too large; fix that"
        ) as raised:
            encode(build(name), clip, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(raised.value, BadVideo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_truncated_video_is_noted(name: str, tmp_path: Path):
    path = tmp_path / "tail.mp4"
    path.write_bytes(cut_after(encoded(moving(50), is_index_first=True), 40))
    job = Job(video=SourceVideo(path=path, name=path.name), key="key", folder=tmp_path)
    samples = list(build_full_rate(name).encode(job))
    assert job.notes == ["40 of 50 frames"]
    # The last displayed frame is decoded before the previous one, which is cut off.
    stored = {"copy": 40, "clips": 10}.get(name, 41)
    assert sum(sample.info.frames for sample in samples) == stored
