"""Layout jpegs: one JPEG per frame; JPEG files are copied unchanged."""

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kinemae.data_tools.encoding.convert import jpeg_planes
from kinemae.data_tools.layouts.base import EncodedSample, Job
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.layouts.jpegs import Jpegs
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.yuv_planes import luma_weights, yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips, colour_coefficients
from tests.filming import SHIPPED
from tests.filming import encoded as filmed
from tests.sharding import encoded, moving


def jpeg(picture: np.ndarray) -> bytes:
    """One JPEG file."""
    return encoded([picture], kind=("image2pipe", "mjpeg", "yuvj420p"))


@pytest.fixture
def folder(tmp_path: Path) -> SourceVideo:
    names = []
    for number, picture in enumerate(moving(9)):
        names.append(f"frame{number}.jpg")
        (tmp_path / names[-1]).write_bytes(jpeg(picture))
    return SourceVideo(path=tmp_path, name="folder", frames=tuple(names), fps=5.0)


def encode(video: SourceVideo, layout: Jpegs | H264) -> EncodedSample:
    out = video.path.parent / "out"
    out.mkdir(exist_ok=True)
    [sample] = layout.encode(Job(video=video, key="key", folder=out))
    return sample


def packets(sample: EncodedSample) -> list[bytes]:
    with av.open(str(sample.file)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_jpeg_files_are_copied_unchanged(folder: SourceVideo):
    sample = encode(folder, Jpegs())
    assert packets(sample) == [(folder.path / name).read_bytes() for name in folder.frames]
    assert sample.file is not None
    found = probe(sample.file)
    assert (found.frames, found.codec, found.width, found.height) == (9, "mjpeg", 64, 48)
    assert found.duration_s == pytest.approx(sample.info.duration_s) == 9 / 5


def test_the_reader_gets_the_images_at_their_timestamps(folder: SourceVideo):
    sample = encode(folder, Jpegs())
    assert sample.file is not None
    stored = decode_at(sample.file.read_bytes(), [(number + 0.5) / 5 for number in range(9)]).float()
    wanted = np.stack(moving(9)).transpose(0, 3, 1, 2)
    assert np.abs(stored.numpy() - wanted).mean() < 3


@pytest.mark.parametrize("arguments", [{"short_side": 32}, {"fps": 10.0}, {"quality": 5, "fps": 2.5}])
def test_images_are_encoded_again_if_size_rate_or_format_changes(
    folder: SourceVideo, arguments: dict[str, object]
):
    sample = encode(folder, Jpegs(**arguments))  # type: ignore[arg-type]
    assert packets(sample)[0] != (folder.path / folder.frames[0]).read_bytes()
    assert sample.info.duration_s == pytest.approx(9 / 5, abs=0.2)
    assert sample.info.height == arguments.get("short_side", 48)


def test_a_folder_of_images_becomes_a_video(folder: SourceVideo):
    sample = encode(folder, H264(every=1, crf=10))
    assert (sample.info.frames, sample.info.duration_s, sample.info.codec) == (9, 9 / 5, "h264")
    assert sample.file is not None
    stored = decode_at(sample.file.read_bytes(), [(number + 0.5) / 5 for number in range(9)]).float()
    wanted = np.stack(moving(9)).transpose(0, 3, 1, 2)
    assert np.abs(stored.numpy() - wanted).mean() < 3


@pytest.mark.parametrize("layout", [Jpegs(quality=2), H264(every=1, crf=8)])
@pytest.mark.parametrize("orientations", [(6,) * 4, (1, 6, 1, 8), (3, 2, 4, 1)])
def test_images_are_rotated_by_their_exif_orientation(
    layout: Jpegs | H264, orientations: tuple[int, ...], tmp_path: Path
):
    names, upright = [], []
    for number, (picture, orientation) in enumerate(zip(moving(4), orientations, strict=True)):
        image = Image.fromarray(picture if orientation < 5 else np.ascontiguousarray(np.rot90(picture)))
        exif = image.getexif()
        exif[0x0112], exif[0x010F] = orientation, "a camera"
        names.append(f"{number}.jpg")
        image.save(tmp_path / names[-1], exif=exif, quality=95)
        upright.append(np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / names[-1]))))
    sample = encode(SourceVideo(path=tmp_path, name="folder", frames=tuple(names), fps=5.0), layout)
    height, width = upright[0].shape[:2]
    assert (sample.info.width, sample.info.height, sample.info.frames) == (width, height, 4)
    assert sample.file is not None
    stored = decode_at(sample.file.read_bytes(), [(number + 0.5) / 5 for number in range(4)]).float()
    assert np.abs(stored.numpy() - np.stack(upright).transpose(0, 3, 1, 2)).mean() < 4


def test_an_image_of_another_size_raises_bad_video(folder: SourceVideo):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder.path / "frame4.jpg").save(folder.path / "frame4.jpg", exif=exif)
    with pytest.raises(BadVideo, match=r"image frame4\.jpg has 48x64 pixels, frame0\.jpg has 64x48"):
        encode(folder, Jpegs())


def test_png_images_are_read(tmp_path: Path):
    for number, picture in enumerate(moving(3)):
        (tmp_path / f"{number}.png").write_bytes(encoded([picture], kind=("image2pipe", "png", "rgb24")))
    video = SourceVideo(path=tmp_path, name="folder", frames=("0.png", "1.png", "2.png"))
    assert encode(video, Jpegs()).info.duration_s == pytest.approx(3 / 25)  # 25 by default


def test_bt709_colours_are_converted_for_jpeg(tmp_path: Path):
    video = (SHIPPED / "h264_b_frames.mp4").read_bytes()  # tagged BT.709, which JPEG has no tag for
    (tmp_path / "in").write_bytes(video)
    sample = encode(SourceVideo(path=tmp_path / "in", name="in"), Jpegs(short_side=None, quality=2))
    assert sample.file is not None
    stored, wanted = (decode_at(file, [1.0]).float() for file in (sample.file.read_bytes(), video))
    off = torch.nn.functional.avg_pool2d((stored - wanted)[..., -16:, :], 8)  # six colours
    assert off.abs().max() < 10  # 30 with the wrong matrix


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("is_full_range", [False, True])
def test_converted_colours_have_no_bias(matrix: int, is_full_range: bool):
    draw = np.random.default_rng(0)
    luma, *differences = draw.integers(100, 140, (3, 40, 40)).astype(np.uint8)
    planes = [luma.repeat(2, 0).repeat(2, 1), *differences]
    stored = jpeg_planes(planes, matrix, is_full_range=is_full_range)
    before = as_rgb(planes, matrix, is_full_range=is_full_range)
    off = as_rgb(stored, 6, is_full_range=True) - before
    assert off.abs().max() <= 3
    assert off.mean((0, 2, 3, 4)).abs().max() < 0.1  # 2.9 by swscale's conversion of BT.709


def as_rgb(planes: Sequence[np.ndarray], matrix: int, *, is_full_range: bool) -> torch.Tensor:
    """Convert planes of one frame to clip_BCTHW."""
    luma, *differences = (torch.from_numpy(plane) for plane in planes)
    colour = colour_coefficients(*luma_weights(matrix), is_full_range=is_full_range)
    clips = YuvClips(
        luma_BTHW=luma[None, None],
        chroma_BCTHW=torch.stack(differences)[None, :, None],
        colour_BX=torch.tensor([colour], dtype=torch.int32),
    )
    return clips.rgb().float()


def test_a_stored_bt709_video_has_the_brightness_of_its_source(tmp_path: Path):
    levels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8)
    picture = levels.repeat(8, axis=0).repeat(8, axis=1)
    video = filmed([picture] * 2, codec="ffv1", container="matroska", colorspace="1", color_range="1")
    (tmp_path / "in").write_bytes(video)
    sample = encode(SourceVideo(path=tmp_path / "in", name="in"), Jpegs(quality=2))
    assert sample.file is not None
    stored, wanted = (rgb_of(content) for content in (sample.file.read_bytes(), video))
    assert (stored - wanted).mean((0, 2, 3, 4)).abs().max() < 0.6


def rgb_of(video: bytes) -> torch.Tensor:
    """Read the first frame like in training."""
    picture, _ = next(yuv_frames_at(video, [0.0]))
    assert picture.colour is not None
    luma, *differences = (torch.from_numpy(plane.copy()) for plane in picture.planes)
    clips = YuvClips(
        luma_BTHW=luma[None, None],
        chroma_BCTHW=torch.stack(differences)[None, :, None],
        colour_BX=torch.tensor([picture.colour], dtype=torch.int32),
    )
    return clips.rgb().float()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "image frame4.jpg cannot be read: "),
        (b"no picture at all", "image frame4.jpg cannot be read: Invalid data"),
        (None, "image frame4.jpg cannot be read: No such file"),
        (jpeg(moving(1, 32, 64)[0]), "image frame4.jpg has 64x32 pixels, frame0.jpg has 64x48"),
    ],
)
@pytest.mark.parametrize("layout", [Jpegs(), H264(every=1)])
def test_an_unreadable_image_raises_bad_video(
    folder: SourceVideo, layout: Jpegs | H264, content: bytes | None, message: str
):
    (folder.path / "frame4.jpg").unlink()
    if content is not None:
        (folder.path / "frame4.jpg").write_bytes(content)
    with pytest.raises(BadVideo, match=message):
        encode(folder, layout)


def test_an_image_that_is_a_playlist_opens_no_file(folder: SourceVideo):
    (folder.path / "frame4.jpg").write_text("ffconcat version 1.0\nfile frame0.jpg\n")
    with pytest.raises(BadVideo, match=r"image frame4\.jpg cannot be read"):
        encode(folder, Jpegs())


def test_start_s_and_end_s_select_images(folder: SourceVideo):
    part = SourceVideo(path=folder.path, name="part", frames=folder.frames, fps=5.0, start_s=0.4, end_s=1.0)
    sample = encode(part, Jpegs())
    assert (sample.info.frames, sample.start_s) == (3, 0.4)


def test_encoding_is_the_same_through_the_file_or_its_bytes(tmp_path: Path):
    content = encoded(moving(12))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(b"header" + content + b"more")
    (tmp_path / "in" / "a.mp4").write_bytes(content)
    member = SourceVideo(path=tmp_path / "in" / "a.tar", name="a", member=(6, len(content)))
    made = []
    for video in (member, SourceVideo(path=tmp_path / "in" / "a.mp4", name="a")):
        sample = encode(video, H264(every=1))
        assert sample.file is not None
        made.append(sample.file.read_bytes())
    assert made[0] == made[1]
    assert io.BytesIO(made[0]).getbuffer().nbytes == len(made[0])
