"""Small videos of a virtual camera that moves over real clips in one of eight ways.

The classes differ only in motion. The real clip plays at its own speed while a window of 32 x 32 px
slides, rotates or zooms over it, from almost still to fast, as in `kinemae data synth`. All windows start
at a random angle, so a single frame does not show the class.
"""

import csv
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIDE_PX = 32
FRAMES = 8
SHORT_SIDE_PX = 128
"""Real clips are resized to this first, so that a window has content."""

UNLABELLED, LABELLED = 8, 4
"""Windows per real clip."""

SPEED = (0.3, 2.5)
"""Minimum and maximum, in px per frame at the edge of the window."""

FLAT = 6.0
"""Minimum standard deviation of the grey levels; a flatter window shows no motion and is drawn again."""

# (x, y, clockwise rotation, zoom in)
MOVES = {
    "left": (-1, 0, 0, 0),
    "right": (1, 0, 0, 0),
    "up": (0, -1, 0, 0),
    "down": (0, 1, 0, 0),
    "turn_clockwise": (0, 0, 1, 0),
    "turn_counterclockwise": (0, 0, -1, 0),
    "zoom_in": (0, 0, 0, 1),
    "zoom_out": (0, 0, 0, -1),
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A video: its file, the index of the real clip, its number and its class."""

    path: Path
    original: int
    number: int
    label: str


def cut_windows(originals: list[Path], out: Path) -> list[Window]:
    """Write the videos of all real clips that do not exist yet; every call gives the same videos."""
    out.mkdir(parents=True, exist_ok=True)
    cuts = []
    for index, original in enumerate(originals):
        mine = [
            Window(
                path=out / f"{index:04d}-{number:02d}.mp4",
                original=index,
                number=number,
                label=list(MOVES)[(index * LABELLED + number) % len(MOVES)],
            )
            for number in range(UNLABELLED + LABELLED)
        ]
        cuts += mine
        if all(cut.path.exists() for cut in mine):
            continue
        frames = _decode(original)
        for cut in mine:
            _write(cut.path, _window(frames, cut.label, np.random.default_rng([index, cut.number])))
    return cuts


def write_table(path: Path, cuts: list[Window], held_out: set[int], labels: int) -> None:
    """Write a csv for `kinemae data shard`.

    Windows of held-out clips are for validation; `labels` of the others have a label, the rest is unlabelled.
    """
    training = [cut for cut in cuts if cut.original not in held_out]
    with_label = [cut for cut in training if cut.number < LABELLED]
    chosen = np.random.default_rng(len(held_out)).permutation(len(with_label))
    each = {move: 0 for move in MOVES}
    rows = []
    for place in chosen:
        cut = with_label[place]
        if each[cut.label] < labels // len(MOVES):
            each[cut.label] += 1
            rows.append((cut.path, cut.label, "train"))
    rows += [(cut.path, "", "unlabelled") for cut in training if cut.number >= LABELLED]
    rows += [
        (cut.path, cut.label, "validation")
        for cut in cuts
        if cut.original in held_out and cut.number < LABELLED
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(rows)


def _decode(path: Path) -> np.ndarray:
    """Decode and resize a clip to frames_THWC, uint8."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    scale = SHORT_SIDE_PX / min(frames[0].shape[:2])
    size = (round(frames[0].shape[1] * scale), round(frames[0].shape[0] * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _window(frames_THWC: np.ndarray, label: str, chance: np.random.Generator) -> np.ndarray:
    """Cut a moving window that is not flat, as frames_THWC, uint8."""
    x, y, turn, zoom = MOVES[label]
    half = SIDE_PX / 2
    speed = chance.uniform(*SPEED)
    height, width = frames_THWC.shape[1:3]
    for _ in range(20):
        margin = half * 1.5 + FRAMES * SPEED[1] / 2
        centre = chance.uniform([margin, margin], [width - margin, height - margin])
        first = chance.integers(max(1, len(frames_THWC) - FRAMES + 1))
        angle = chance.uniform(0, 2 * math.pi)
        window = []
        for frame in range(FRAMES):
            moved = speed * (frame - (FRAMES - 1) / 2)
            scale = math.exp(-zoom * moved / half)
            cos, sin = (scale * f(angle - turn * moved / half) for f in (math.cos, math.sin))
            matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
            matrix[:, 2] = centre - matrix[:, :2] @ (np.array([x, y]) * moved + half - 0.5)
            picture = frames_THWC[min(first + frame, len(frames_THWC) - 1)]
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            window.append(
                cv2.warpAffine(
                    picture, matrix, (SIDE_PX, SIDE_PX), flags=flags, borderMode=cv2.BORDER_REFLECT
                )
            )
        if window[0].std() > FLAT:
            break
    return np.stack(window)


def _write(path: Path, frames_THWC: np.ndarray) -> None:
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "threads": "1"})
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    partial.rename(path)
