"""Windows of videos in order: short videos by loader workers, long plain files decoded once from the start.

The items are those of `evaluation_loader`, for any number of workers. Its random access reads the bytes of a
long video again for every part of it. Here, a long video that is a whole file is decoded sequentially, and
memory holds only the windows in progress.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.loader import READ_AHEAD, TIMEOUT_S, read_items
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.video_reader import is_whole_file


def read_windows(
    videos: EvaluationVideos,
    numbers: Sequence[int] | None = None,
    *,
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[EvaluationItem]:
    """Read items of some videos in order; an unreadable video has items with a reason instead of pixels.

    Args:
        videos: with sliding clips, a long video has several items, see `EvaluationItem.part`.
        numbers: of the items, in ascending order; all by default.
        workers: loader processes for the short videos; 0 reads in this process.

    Raises:
        StorageUnavailable: a storage did not respond in time.
    """
    chosen = range(len(videos)) if numbers is None else numbers
    short = [number for number in chosen if not _is_long(videos, number)]
    reader = _Chosen(videos, short)
    loaded = read_items(reader, workers, timeout_s, preload=[__name__], read_ahead=READ_AHEAD)
    for _, group in groupby(chosen, key=lambda number: videos.locate(number)[0]):
        of_video = list(group)
        if _is_long(videos, of_video[0]):
            yield from videos.read_in_sequence(of_video)
        else:
            for _ in of_video:
                yield next(loaded)


def _is_long(videos: EvaluationVideos, number: int) -> bool:
    """Check whether a video has several items and is a whole file."""
    position, _, parts = videos.locate(number)
    return parts > 1 and is_whole_file(videos.index, videos.index.sample(position))


class _Chosen:
    """Some items of a reader, see `worker.ItemReader`."""

    def __init__(self, videos: EvaluationVideos, numbers: Sequence[int]):
        self._videos = videos
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> EvaluationItem:
        return self._videos.read(self._numbers[number], quarantined=quarantined, on_sample=on_sample)

    def upcoming(self, number: int) -> list[Request]:
        return self._videos.upcoming(self._numbers[number])
