"""Parts of a collection, for many machines: `part=3/100` stores the videos whose names hash to 3 of 0 to 99.

    OUT/train/part-00003-of-00100-000000.tar ...   the shards of part 3
    OUT/parts/part-00003-of-00100/                 its other files: train/dataset.json, shard.json, ...

Parts share nothing while they run; each lists the whole source, or reads a list, see `video_list.py`.
`kinemae data merge OUT/parts OUT` joins their indexes, see `kinemae.data_tools.editing.parts`.
"""

import hashlib
import re
from dataclasses import dataclass

from kinemae.data_tools.config import require
from kinemae.data_tools.storage.location import Location

PARTS_NAME = "parts"
STATE_NAME = "shard.json"
_FOLDER = re.compile(r"part-([0-9]{5,})-of-([0-9]{5,})")


@dataclass(frozen=True, order=True)
class Part:
    """One of `count` parts; the first one is 0."""

    number: int
    count: int

    @property
    def prefix(self) -> str:
        """The name of its folder, and the start of the names of its shards."""
        return f"part-{self.number:05d}-of-{self.count:05d}"

    def folder(self, root: Location) -> Location:
        """The folder of its files in OUT, except for the shards."""
        return root / PARTS_NAME / self.prefix

    def holds(self, name: str) -> bool:
        """Check whether the video of this name belongs to the part."""
        return name_hash(name) % self.count == self.number


def name_hash(name: str) -> int:
    """64-bit hash of the name of a video, which selects its part."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def parse_part(text: str) -> Part:
    """Parse the config key `part`.

    Raises:
        ValueError: it is not NUMBER/COUNT.
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    is_part = match is not None and int(match[1]) < int(match[2])
    require(is_part, "part", "be NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 3/100", text)
    assert match is not None
    return Part(int(match[1]), int(match[2]))


def part_in(folder: str) -> Part | None:
    """The part with this folder; None for another folder."""
    match = _FOLDER.fullmatch(folder)
    return None if match is None else Part(int(match[1]), int(match[2]))
