"""Decoded frames are upright, of one size, with square pixels, for any storage."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.container import open_video
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.geometry import fitted_size, pixel_aspect, square_size
from kinemae.data_tools.stream.views import crop_views, evaluation_views, training_view
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips
from tests.data_tools.stream.matrix import FRAMES, number_of, numbered, videos
from tests.filming import REAL, SHIPPED

SPATIAL = sorted((REAL.parent / "cases" / "spatial_video").glob("*.m*"))


def motion_jpeg(orientation):
    """A video of JPEG files that carry EXIF, side data of a type unknown to PyAV; and its picture."""
    picture = Image.fromarray(
        np.kron(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10, np.ones((16, 16), np.uint8))
    )
    exif, jpeg, file = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = orientation
    picture.convert("RGB").save(jpeg, "JPEG", quality=95, exif=exif)
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuvj420p"
        for number in range(2):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            output.mux(packet)
    return file.getvalue(), ImageOps.exif_transpose(Image.open(jpeg))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_with_side_data_of_unknown_types_are_read_upright(orientation):
    video, upright = motion_jpeg(orientation)
    info = probe(video)
    assert (info.width, info.height) == upright.size
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float()
    assert (decode_at(video, [0.0])[0].float() - expected).abs().mean() < 3


@pytest.mark.skipif(not SPATIAL, reason="no spatial videos here")
@pytest.mark.parametrize("path", SPATIAL, ids=lambda path: path.name)
def test_spatial_videos_are_read(path):
    info = probe(path)
    [(picture, _)] = list(yuv_frames_at(path.read_bytes(), [info.duration_s / 2]))
    assert picture.size == (info.height, info.width)


def to_luma(video, timestamps_s, choose, size=64):
    """Clips of square views, as training cuts them."""
    clips = YuvClips.empty(1, len(timestamps_s), size)
    crop_views(yuv_frames_at(video, timestamps_s), choose, clips)
    return clips.luma_BTHW[0].numpy()


def test_pixels_that_are_not_square_become_square():
    video = (SHIPPED / "anamorphic.mp4").read_bytes()
    with open_video(video) as opened:
        stored, aspect = opened.first.width, pixel_aspect(opened.stream)
    info = probe(video)
    assert aspect != 1 and info.width == round(stored * aspect)
    assert decode_at(video, [0.0]).shape[2:] == (info.height, info.width)
    seen = []
    luma = to_luma(video, [0.0], lambda *size: seen.append(size) or evaluation_views(*size, 1))
    assert seen == [(info.height, info.width)]
    # The middle square of the picture with square pixels, for both kinds of crop.
    square = decode_at(video, [0.0])[0].float().mean(0)
    left = (info.width - info.height) // 2
    middle = square[:, left : left + info.height][None, None]
    expected = torch.nn.functional.interpolate(middle, size=(64, 64), mode="bilinear")[0, 0]
    assert np.corrcoef(expected.flatten(), luma.flatten())[0, 1] > 0.93


def test_training_crops_are_inside_stored_frames_of_any_aspect():
    video = (SHIPPED / "anamorphic.mp4").read_bytes()
    for seed in range(50):
        draw = generator(seed, purpose="augment")
        to_luma(video, [0.0], lambda *size: [training_view(*size, AugmentConfig(), draw)], size=16)  # noqa: B023


def test_the_aspect_is_kept_if_the_size_changes():
    video = dict(videos())["mpegts/resized"]()
    notes = []
    info = probe(video, notes=notes)
    assert (info.frames, info.width, info.height) == (FRAMES, 96, 64)
    assert notes == ["its size changes within the video (96x64, 192x128, 64x96): clips get black borders"]
    frames = decode_at(video, [(number + 0.5) / 25 for number in (5, 25, 45)])
    wide = fitted_size(64, 96, (96, 64))
    border = (96 - wide[0]) // 2
    assert [number_of(frame.float().mean(0).numpy()) for frame in frames[:2]] == [5, 25]
    upright = frames[2].float().mean(0)
    assert number_of(upright[:, border : border + wide[0]].numpy()) == 45
    assert upright[:, : border - 1].max() < 8 and upright[:, border + wide[0] + 1 :].max() < 8


def test_sizes():
    assert square_size(720, 576, Fraction(64, 45)) == (1024, 576)
    assert square_size(720, 480, Fraction(8, 9)) == (640, 480)
    assert fitted_size(64, 96, (96, 64)) == (43, 64)
    assert fitted_size(192, 128, (96, 64)) == (96, 64)
    assert numbered(1)[0].shape == (64, 96, 3)
