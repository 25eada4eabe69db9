"""Training clips of tars that are read in sequence, without an index.

A clip's crop and start depend on the seed and its position in the run, as with an index. Its video is the
next one of the stream.
"""

import copy
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import NO_LABEL, Sample
from kinemae.data_tools.indexing.field_rules import StoredRow, read_stored_row
from kinemae.data_tools.indexing.tar_members import is_video_extension
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import is_too_small_a_stride
from kinemae.data_tools.stream.mixture import FoundSample
from kinemae.data_tools.stream.tar_list import TarList, TarsDone, TarSlice
from kinemae.data_tools.stream.tar_reader import Hook, RawSample, TarReader, video_members
from kinemae.data_tools.stream.training_clips import Frames, RunClips
from kinemae.data_tools.stream.video_reader import decode_video
from kinemae.data_tools.stream.views import View
from kinemae.data_tools.stream.yuv_to_rgb import Pixels

BUFFER = 100
"""Samples of the shuffle buffer of each reader."""

_DECODED: dict[str, Callable[[bytes], Any]] = {"json": json.loads, "txt": bytes.decode, "cls": int}


@dataclass(frozen=True, kw_only=True)
class StreamedSample(FoundSample):
    """A sample of a stream.

    Attributes:
        sample: without properties of the video until they are known, see `StreamedClips`.
        key: name of the tar and key of the sample.
        video: the bytes.
        problem: the reason why it cannot be used; empty for none.
        label: the class in a KEY.json of `kinemae data shard`.
    """

    video: bytes
    problem: str = ""
    label: str | None = None


class StreamedClips(RunClips[StreamedSample]):
    """The clips of a run over tars, to be read in ascending order; a step back starts the stream again.

    The number of frames and the duration come from the KEY.json of `kinemae data shard`, else from the
    container, as for a row of an index whose video was not read.

    Args:
        tars: the tars of the run.
        buffer: samples of the shuffle buffer.
        hooks: functions that change or drop samples before their video is decoded.
        columns: members to add to a batch, by extension, or values that a hook has added. A json, txt or cls
            member is decoded, other members are bytes; None for a sample without the member.
        uses_labels: check that each class has one number in all tars.
        settings: those of `RunClips`.
    """

    def __init__(
        self,
        tars: TarList,
        *,
        buffer: int = BUFFER,
        hooks: tuple[Hook, ...] = (),
        columns: Sequence[str] = (),
        uses_labels: bool = True,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.tars = tars
        self.own = TarSlice()
        self._buffer = buffer
        self._hooks = hooks
        self._columns = tuple(columns)
        self._uses_labels = uses_labels
        self._reader: TarReader | None = None
        self._next_clip = 0
        self._numbers: dict[str, int] = {}  # class numbers
        self._labels: dict[int, str] = {}
        # Of the current batch.
        self._raw: list[RawSample] = []
        self._on_sample: Callable[[str], None] = _ignore

    def of_slice(self, own: TarSlice) -> "StreamedClips":
        """The clips of one reader of the run."""
        clips = copy.copy(self)
        clips.own, clips._reader = own, None
        return clips

    def with_hook(self, hook: Hook) -> "StreamedClips":
        """The clips with another hook after the others."""
        clips = self.of_slice(self.own)
        clips._hooks = (*self._hooks, hook)
        return clips

    def with_buffer(self, buffer: int) -> "StreamedClips":
        """The clips with another size of the shuffle buffer."""
        clips = self.of_slice(self.own)
        clips._buffer = buffer
        return clips

    def batch(
        self,
        clips: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> ClipBatch:
        """Read the next clips, see `RunClips.batch`."""
        if self._reader is None or clips.start < self._next_clip:
            self._reader = TarReader(
                self.tars,
                self.own,
                seed=self.seed,
                buffer=self._buffer,
                hooks=self._hooks,
                keeps=self._keeps,
            )
        self._next_clip = clips.stop
        self._raw, self._on_sample = [], on_sample
        batch = super().batch(clips, quarantined=quarantined, on_sample=on_sample)
        columns = {name: [_decoded(raw, name) for raw in self._raw] for name in self._columns}
        repeated = {
            name: [values[row // self.views] for row in range(len(clips))] for name, values in columns.items()
        }
        self._raw, self._on_sample = [], _ignore
        return replace(batch, columns=repeated, tars_done=self._reader.take_done())

    def locate(self, position: int) -> StreamedSample:
        """The next sample of the stream."""
        assert self._reader is not None
        self._on_sample("")  # if the process dies or hangs in a tar or a hook, the error has no sample
        self._raw.append(next(self._reader))
        found = _streamed_sample(self._raw[-1])
        if self._uses_labels:
            self._check_class(found)
        return found

    def read(self, found: StreamedSample) -> bytes:
        """See `RunClips.read`."""
        return found.video

    def decode(self, found: StreamedSample, timestamps_s: list[float]) -> Frames:
        """See `RunClips.decode`."""
        return decode_video(found.video, found.sample, timestamps_s)

    def _check_class(self, found: StreamedSample) -> None:
        """Check that each class has one number in all tars of `kinemae data shard`.

        Raises:
            DataError: the tars come from data sets with different classes.
        """
        label, number = found.label, found.sample.label
        if label is None:
            return
        first = self._numbers.setdefault(label, number), self._labels.setdefault(number, label)
        if first != (number, label):
            raise DataError(
                f"{found.key}: expected one number for each class, got {label!r} as {number} after "
                f"{first[1]!r} as {first[0] if first[1] == label else number}; fix: join the data sets with "
                "`kinemae data merge`, then write new tars with `kinemae data reshard`"
            )

    def _decode_views(
        self, pixels: Pixels, first_clip: int, found: StreamedSample
    ) -> tuple[list[float], list[View]]:
        if found.problem:
            raise BadVideo(found.problem)
        step, stride = found.sample.frame_step, self.clip.stride
        if is_too_small_a_stride(self.clip, step):
            raise BadVideo(
                f"one of {step} frames of its source is stored, and clip.stride={stride} is smaller"
            )
        return super()._decode_views(pixels, first_clip, found)

    def _keeps(self, extension: str) -> bool:
        is_needed = is_video_extension(extension) or extension in ("json", "cls", *self._columns)
        return is_needed or bool(self._hooks)


def _ignore(key: str) -> None:
    """The default of `on_sample`, which can be pickled."""


def _streamed_sample(raw: RawSample) -> StreamedSample:
    videos = video_members(raw)
    key, video = f"{raw['__tar__']}/{raw['__key__']}", raw[videos[0]]
    stored = _stored_row(raw, key)
    own: dict[str, Any] = {"frames": 0, "duration_s": 0.0, "width": 0, "height": 0, "codec": ""}
    problem = ""
    if len(videos) > 1:
        problem = f"expected one video, got {' and '.join(videos)}"
    elif not isinstance(video, bytes):
        problem = f"expected bytes as {videos[0]}, got {type(video).__name__}"
    if stored is not None and not problem:
        own = asdict(stored.info)
        names = ("reference_stride", "reference_phase", "frame_step")
        own |= {name: getattr(stored, name) for name in names}
        if zlib.crc32(video) != stored.crc32:
            problem = "it was changed after it was written: its checksum differs from the one in its .json"
    sample = Sample(
        key=key,
        shard=-1,
        offset=0,
        length=len(video),
        crc32=0,
        label=_label(raw) if stored is None else stored.label_index,
        name=f"{raw['__key__']}.{videos[0]}",
        **own,
    )
    return StreamedSample(
        sample=sample,
        key=key,
        video=video,
        problem=problem,
        label=None if stored is None else stored.label,
    )


def _stored_row(raw: RawSample, key: str) -> StoredRow | None:
    """The row that `kinemae data shard` wrote; None for another sample."""
    try:
        return read_stored_row(json.loads(raw.get("json", b"")), key)
    except (ValueError, TypeError):
        return None


def _label(raw: RawSample) -> int:
    try:
        number = int(raw.get("cls", b""))
    except (ValueError, TypeError, OverflowError):  # a hook may set any object
        return NO_LABEL
    return number if 0 <= number < 1 << 63 else NO_LABEL


def _decoded(raw: RawSample, name: str) -> Any:
    value = raw.get(name)
    decoder = _DECODED.get(name.rpartition(".")[2])
    if not isinstance(value, bytes) or decoder is None:
        return value
    try:
        return decoder(value)
    except ValueError as error:
        raise DataError(
            f"{raw['__tar__']}/{raw['__key__']}: expected a valid .{name}, got {value[:40]!r} ({error}); "
            "fix: correct it, or decode it in a function given to map"
        ) from error


def resumed(clips: RunClips[Any], state: Mapping[str, Any]) -> RunClips[Any]:
    """The clips of a run that continues; those with an index need no state."""
    if not isinstance(clips, StreamedClips):
        return clips
    return clips.of_slice(TarSlice(done=TarsDone.of_json(state)))


def merged_state(clips: StreamedClips, state: Mapping[str, Any], done: Iterable[int]) -> dict[str, Any]:
    """The state of a run, after the tars that all its processes have done since an earlier state."""
    return TarsDone.of_json(state).plus(done).as_json(clips.seed, len(clips.tars))
