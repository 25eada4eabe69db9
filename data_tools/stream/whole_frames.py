"""The frames of a video before its first damage."""

from collections.abc import Iterator
from itertools import islice

import av
from av.video.frame import VideoFrame

from kinemae.data_tools.stream.container import BadVideo, OpenedVideo
from kinemae.data_tools.stream.sequential import error_text


class IntactFrames:
    """The frames before the first damage, counted.

    Damage at the end of a video, as in a file that was cut or a capture that was stopped, ends the frames;
    `note` says so. Damage that whole frames follow raises BadVideo, as does a first frame that is damaged.

    Args:
        frames: those of `opened`, or some of them.

    Attributes:
        count: the frames given so far.
        note: a line about the damaged end, empty for none.
    """

    def __init__(self, frames: Iterator[VideoFrame], opened: OpenedVideo):
        self.count = 0
        self.note = ""
        self._frames = frames
        self._opened = opened

    def __iter__(self) -> Iterator[VideoFrame]:
        try:
            for frame in self._frames:
                if frame.is_corrupt:
                    self._end()
                    return
                self.count += 1
                yield frame
        except av.FFmpegError as error:
            reason = f"FFmpeg cannot read it after {self.count}{self._claimed()} frames: {error_text(error)}"
            raise BadVideo(reason) from error
        if self._opened.decoding.error is not None:
            self._set_note(error_text(self._opened.decoding.error))

    def _end(self) -> None:
        """Check whether the damaged frame is at the end of the video."""
        depth = max(self._opened.stream.codec_context.reorder_depth, 1)
        later = sum(not frame.is_corrupt for frame in islice(self._frames, 2 * depth + 1))
        if self.count == 0 or later > depth:
            raise BadVideo(f"frame {self.count} is damaged")
        self._set_note("the frame after them is damaged")

    def _set_note(self, reason: str) -> None:
        self.note = f"its end is damaged: {self.count}{self._claimed()} frames are whole ({reason})"

    def missing(self) -> list[str]:
        """Zero or one note on missing frames: damaged end, corrupt packets, more frames claimed."""
        claimed, corrupt = self._opened.stream.frames, self._opened.decoding.corrupt
        if self.note:
            return [self.note]
        if corrupt:
            return [f"{corrupt} packets are marked as corrupt: frames near them may be missing or wrong"]
        return [f"{self.count} of {claimed} frames"] if self.count < claimed else []

    def _claimed(self) -> str:
        claimed = self._opened.stream.frames
        return f" of {claimed}" if claimed else ""
