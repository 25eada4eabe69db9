"""Read the text of a list: its encoding, its lines and its comments."""

import codecs
import re
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import VIDEO_ENDINGS

# The byte order mark of UTF-32 begins with that of UTF-16, so it is tested first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_LISTS = {
    b"version https://git-lfs": "a pointer of Git LFS; fix: fetch the file with `git lfs pull`",
    b"<!DOCTYPE": "a web page; fix: download the file itself",
    b"<html": "a web page; fix: download the file itself",
    b"PK\x03\x04": "a zip file or a workbook; fix: save the table as CSV UTF-8",
}
_SHOWN = 80  # characters of a line in a message
_VIDEO = re.compile(rf"\.({'|'.join(sorted(VIDEO_ENDINGS))})\b", re.IGNORECASE)


def read_text(file: Path, encoding: str | None = None) -> str:
    """Read a list in UTF-8, in UTF-16 or in the user's encoding.

    Args:
        encoding: source.args.encoding, "" where it is not set, None where the source has no such argument.

    Raises:
        DataError: the file cannot be read, or it is in another encoding; the message names the line.
        ValueError: no such encoding exists.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; fix: check the path") from error
    for begin, what in _NO_LISTS.items():
        if content.startswith(begin):
            raise DataError(f"{file}: expected a list as text, got {what}")
    try:
        return content.decode(encoding or _encoding_of(content))
    except LookupError as error:
        raise ValueError(
            f"source.args.encoding must name an encoding, such as cp1252, got {encoding!r}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(file, content, error, encoding)) from error


def check_encoding(encoding: str) -> None:
    """Reject an unknown encoding.

    Raises:
        ValueError: the encoding is unknown.
    """
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(
            f"source.args.encoding must name an encoding, such as cp1252, got {encoding!r}"
        ) from error


def lines_of(text: str) -> list[str]:
    """Split a text at line ends only: a name may hold a rarer Unicode separator."""
    return re.split(r"\r\n|\r|\n", text)


def is_comment(line: str) -> bool:
    """Whether a line is a comment: it begins with # and is not the name of a video."""
    line = line.strip()
    return line.startswith("#") and (line[1:2].isspace() or len(line) == 1 or not names_video(line))


def names_video(text: str) -> bool:
    """Whether a text holds the name of a video file."""
    return _VIDEO.search(text) is not None


def _encoding_of(content: bytes) -> str:
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    begin = content[:64]
    if len(begin) > 3 and not any(begin[1::2]):
        return "utf-16-le"
    if len(begin) > 3 and not any(begin[0::2]):
        return "utf-16-be"
    return "utf-8"


def _undecodable(file: Path, content: bytes, error: UnicodeDecodeError, encoding: str | None) -> str:
    before = content[: error.start]
    number = before.count(b"\n") + 1
    line = content.split(b"\n")[number - 1].rstrip(b"\r")
    where = f"byte 0x{content[error.start]:02x} in line {number}"
    if encoding:
        return f"{file}: expected text in {encoding}, got {where}; fix: correct source.args.encoding"
    if encoding is None:
        return f"{file}: expected text in UTF-8, got {where}; fix: save it as UTF-8"
    return (
        f"{file}: expected text in UTF-8, got {where}; fix: save it as UTF-8, or set "
        "source.args.encoding=cp1252 (Windows in Western Europe), in which the line is "
        f"{line.decode('cp1252', 'replace')[:_SHOWN]!r}"
    )
