"""Make the small videos in `tests/data/videos`: one for each kind of file that decoders get wrong.

    python -m tests.data.make_videos [FOLDER]

Needs `ffmpeg` with libx264, libx265, libvpx, libsvtav1 and libxvid. The pictures are one scene of
`kinemae data synth`; the blocks at the top of each picture are the number of its frame, lowest bit first,
white for 1 (`tests.filming.number_of` reads it); the six colours below show a wrong colour matrix.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

from kinemae.data_tools.randomness import generator
from kinemae.data_tools.synthetic_scenes import SceneConfig, make_scene

VIDEOS = Path(__file__).parent / "videos"
FRAMES, HEIGHT, WIDTH, BLOCKS = 30, 64, 96, 6
BLOCK_HEIGHT, BLOCK_WIDTH = HEIGHT // 4, WIDTH // BLOCKS

COLOURS = [(210, 30, 30), (30, 210, 30), (30, 30, 210), (210, 210, 30), (30, 210, 210), (210, 30, 210)]

X264 = ["-c:v", "libx264", "-crf", "30", "-g", "12", "-pix_fmt", "yuv420p"]
X265 = ["-c:v", "libx265", "-crf", "34", "-g", "12", "-x265-params"]
BT709 = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"]
BT709 += ["-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
PAUSES = "select='not(between(n,5,9)+between(n,20,21)+eq(n,26))'"
PALETTE = "trim=end_frame=16,split[a][b];[a]palettegen=32[p];[b][p]paletteuse=dither=none"
OPTIONS = {
    "h264_b_frames.mp4": [*BT709, *X264, "-bf", "3", "-b_strategy", "0"],
    "hevc_open_gop.mp4": [*X265, "log-level=error:bframes=3:b-adapt=0:open-gop=1", "-pix_fmt", "yuv420p"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-crf", "45", "-b:v", "0", "-g", "12", "-pix_fmt", "yuv420p"],
    "av1.mp4": ["-c:v", "libsvtav1", "-crf", "50", "-g", "12", "-pix_fmt", "yuv420p"],
    "xvid_packed.avi": ["-c:v", "libxvid", "-q:v", "8", "-bf", "2", "-g", "12", "-pix_fmt", "yuv420p"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-q:v", "8", "-bf", "2", "-g", "12", "-f", "vob"],
    "varying_rate.mkv": ["-vf", PAUSES, "-fps_mode", "passthrough", *X264],
    "animated.gif": ["-vf", PALETTE],
    "anamorphic.mp4": ["-vf", "scale=72:64,setsar=4/3", *X264],
    "fragmented.mp4": [*X264, "-bf", "2", "-movflags", "+frag_keyframe+empty_moov+default_base_moof"],
    "ten_bit_odd.mkv": ["-vf", "crop=96:63:0:0:exact=1", *X265, "log-level=error", "-pix_fmt", "yuv444p10le"],
}
INTERLACED = [*X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1:interlaced=1", "-bf", "2"]
SOUND = ["-f", "lavfi", "-t", "1.2", "-i", "sine=frequency=440:sample_rate=8000"]
CAPTION = "1\n00:00:00,200 --> 00:00:00,800\nmotion\n"


def main(folder: Path = VIDEOS) -> None:
    """Make all files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = numbered_pictures()
    for name, options in OPTIONS.items():
        encode(pictures, folder / name, *options)
    encode(fields(pictures), folder / "interlaced.ts", *INTERLACED)
    with tempfile.TemporaryDirectory() as temporary:
        stored, captions = Path(temporary, "stored.mp4"), Path(temporary, "captions.srt")
        captions.write_text(CAPTION, encoding="utf-8")
        more = [*SOUND, "-i", str(captions), "-map", "0:v", "-map", "1:a", "-map", "2:s"]
        streams = [*X264, "-c:a", "aac", "-b:a", "16k", "-c:s", "mov_text"]
        encode(np.rot90(pictures, axes=(2, 1)), stored, *more, *streams)
        turn(stored, folder / "rotated.mp4")


def numbered_pictures() -> np.ndarray:
    """A rotating scene with the number of each frame at its top and colours below, frames_THWC."""
    settings = SceneConfig(frames=FRAMES, size=WIDTH, foreground=(0.05, 0.1), finest_px=12.0)
    frames_THWC = make_scene("rotate_clockwise", settings, generator(0, purpose="test videos")).numpy()
    pictures_THWC = np.ascontiguousarray(frames_THWC[:, :HEIGHT])
    for number, picture_HWC in enumerate(pictures_THWC):
        for block in range(BLOCKS):
            columns = slice(block * BLOCK_WIDTH, (block + 1) * BLOCK_WIDTH)
            picture_HWC[:BLOCK_HEIGHT, columns] = 235 if number >> block & 1 else 20
            picture_HWC[-BLOCK_HEIGHT:, columns] = COLOURS[block]
    return pictures_THWC


def fields(pictures_THWC: np.ndarray) -> np.ndarray:
    """Frames of two fields: the lower one shows the scene half a frame later, and the same number."""
    combed_THWC = pictures_THWC.copy()
    later_THWC = (pictures_THWC[1:].astype(np.uint16) + pictures_THWC[:-1]) // 2
    combed_THWC[:-1, BLOCK_HEIGHT + 1 :: 2] = later_THWC[:, BLOCK_HEIGHT + 1 :: 2]
    return combed_THWC


def encode(pictures_THWC: np.ndarray, path: Path, *options: str) -> None:
    """Encode pictures at 25 frames a second."""
    height, width = pictures_THWC.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i", "-"]
    ffmpeg(*given, *options, str(path), pictures=np.ascontiguousarray(pictures_THWC).tobytes())


def ffmpeg(*arguments: str, pictures: bytes = b"") -> None:
    """Run FFmpeg."""
    *before, path = arguments
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *before, "-threads", "1"]
    environment = {**os.environ, "SVT_LOG": "1"}  # errors alone
    subprocess.run([*command, "-bitexact", path], input=pictures, env=environment, check=True)


def turn(stored: Path, path: Path) -> None:
    """Copy all streams, with a display matrix that turns the picture by a quarter."""
    with av.open(str(stored)) as given, av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        streams = [output.add_stream_from_template(stream) for stream in given.streams]
        streams[0].set_display_rotation(90)
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
