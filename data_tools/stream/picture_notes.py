"""Notes about frames that are read in place: interlaced, non-square pixels, several sizes."""

from collections.abc import Iterator

from av.video.frame import VideoFrame

from kinemae.data_tools.stream.container import OpenedVideo
from kinemae.data_tools.stream.geometry import pixel_aspect


class FrameNotes:
    """Collects anomalies of the frames of a video that is read in place."""

    def __init__(self, opened: OpenedVideo):
        self._opened = opened
        self._frames = self._interlaced = 0
        self._sizes: dict[tuple[int, int], None] = {}

    def watched(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """The same frames."""
        for frame in frames:
            self._frames += 1
            self._interlaced += frame.interlaced_frame
            self._sizes[frame.width, frame.height] = None
            yield frame

    def lines(self) -> list[str]:
        """The notes on the frames so far."""
        lines, aspect = [], pixel_aspect(self._opened.stream)
        if self._interlaced:
            what = f"{self._interlaced} of {self._frames} frames are interlaced"
            lines.append(f"{what}: read combed; a layout of `shard` that encodes deinterlaces")
        if aspect != 1:
            lines.append(f"pixels of {aspect} are made square when it is read")
        if len(self._sizes) > 1:
            sizes = ", ".join(f"{width}x{height}" for width, height in self._sizes)
            lines.append(f"its size changes on the way ({sizes}): clips get black borders")
        return lines
