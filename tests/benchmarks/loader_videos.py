"""Videos for `loader.py`: real ones, and generated ones with a realistic bit rate."""

import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from kinemae.data_tools.index import ShardIndex, open_index

REPO = Path(__file__).resolve().parents[2]
_FPS, _FRAMES, _HEIGHT, _WIDTH = 30, 300, 256, 340
_VIDEOS = 6
_NOISE = 9.0  # of 255; gives about 500 kbit/s with the settings of x264, as in Kinetics at this size


@dataclass(frozen=True)
class Collection:
    """Videos as files, optionally also with a key frame every 30 frames, and their shards."""

    name: str
    files: dict[str, Path]
    files_30: dict[str, Path]
    originals: ShardIndex
    aligned: ShardIndex


def real(folder: Path, videos: int, cache: Path) -> Collection:
    """Link evenly spaced videos of a folder into the cache, and shard them."""
    files = sorted(folder.rglob("*.mp4"))
    place = cache / f"real-{videos}"
    place.mkdir(exist_ok=True)
    for file in files[:: max(len(files) // videos, 1)][:videos]:
        link = place / f"{file.parent.name}-{file.name}"
        if not link.exists():
            link.symlink_to(file.resolve())
    return _sharded("real", place, None)


def generated(cache: Path) -> Collection:
    """Generate moving textured scenes with noise: 10 s of 30 fps at 256x340."""
    places = {gop: cache / f"generated-gop{gop}" for gop in (250, 30)}
    for place in places.values():
        place.mkdir(exist_ok=True)
    for number in range(_VIDEOS):
        missing = {
            gop: place / f"{number}.mp4"
            for gop, place in places.items()
            if not (place / f"{number}.mp4").exists()
        }
        frames = _scene(number) if missing else []
        for gop, path in missing.items():
            _encode(path, frames, gop)
    return _sharded("generated", places[250], places[30])


def _sharded(name: str, folder: Path, folder_30: Path | None) -> Collection:
    """Make shards of both layouts with the command."""
    indexes = {}
    for layout in ("copy", "h264"):
        out = folder.with_name(f"{folder.name}-{layout}")
        command = [
            sys.executable,
            "-m",
            "kinemae",
            "data",
            "shard",
            str(folder),
            str(out),
            f"layout.name={layout}",
        ]
        subprocess.run([*command, "validation_fraction=0"], cwd=REPO, check=True, capture_output=True)
        indexes[layout] = open_index(out / "train")
    return Collection(
        name=name,
        files={path.name: path for path in folder.glob("*.mp4")},
        files_30={path.name: path for path in folder_30.glob("*.mp4")} if folder_30 else {},
        originals=indexes["copy"],
        aligned=indexes["h264"],
    )


def _scene(seed: int) -> list[np.ndarray]:
    """Render a texture under a camera that pans, rotates and zooms, with new noise in each frame."""
    chance = np.random.default_rng(seed)
    height, width = 3 * _HEIGHT, 3 * _WIDTH
    texture = np.zeros((height, width, 3))
    for scale in (4, 8, 16, 32, 64):
        grain = chance.normal(0, 1, (height // scale, width // scale, 3))
        texture += cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC) * scale**0.7
    texture = texture / texture.std() * 50 + 120
    phase = chance.uniform(0, 6)
    frames = []
    for number in range(_FRAMES):
        at = number / _FPS + phase
        left, top = _WIDTH * (1 + 0.8 * np.cos(0.37 * at)), _HEIGHT * (1 + 0.8 * np.sin(0.5 * at))
        centre = (left + _WIDTH / 2, top + _HEIGHT / 2)
        turn = cv2.getRotationMatrix2D(centre, 10 * np.sin(at), 1 + 0.1 * np.sin(0.8 * at))
        turn[:, 2] -= (left, top)
        frame = cv2.warpAffine(texture, turn, (_WIDTH, _HEIGHT), borderMode=cv2.BORDER_REFLECT)
        frame += chance.normal(0, _NOISE, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


def _encode(path: Path, frames: list[np.ndarray], gop: int) -> None:
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(_FPS))
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.gop_size = gop
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)
