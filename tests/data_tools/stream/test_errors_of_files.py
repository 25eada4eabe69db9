"""Any exception of FFmpeg or PyAV for one file becomes one line about that file."""

import errno
from pathlib import Path

import av
import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.storage.retries import StorageUnavailable
from kinemae.data_tools.stream.container import BadVideo, ffmpeg_errors
from kinemae.data_tools.stream.decode import probe


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("29 is not a valid Type"), "ValueError: 29 is not a valid Type"),
        (KeyError("x"), "KeyError: 'x'"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "UnicodeDecodeError: 'utf-8'",
        ),
        (MemoryError(), "MemoryError"),
        (OverflowError("too large"), "OverflowError: too large"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (TypeError("no integer"), "TypeError: no integer"),
        (av.InvalidDataError(1, "Invalid data"), "Invalid data"),
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),
    ],
)
def test_every_error_of_a_file_becomes_bad_video(error, line):
    with pytest.raises(BadVideo, match="FFmpeg cannot read it: ") as refused, ffmpeg_errors():
        raise error
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_bad_video_error_is_not_changed():
    with pytest.raises(DataError, match=r"^the store is down$"), ffmpeg_errors():
        raise DataError("the store is down")


def test_a_disk_error_is_an_outage():
    with pytest.raises(StorageUnavailable, match="Input/output error"), ffmpeg_errors():
        raise OSError(errno.EIO, "Input/output error")


def test_a_read_error_is_not_the_end_of_the_video():
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        probe(Path("/proc/self/mem"))  # the first page of memory can never be read
