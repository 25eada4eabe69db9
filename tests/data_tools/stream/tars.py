"""Small WebDatasets without an index."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.sharding import write_clip
from tests.source_collections import write_tar

SAMPLES = 5  # of a tar


@cache
def clip(number: int, *, frames: int = 6) -> bytes:
    """Return the bytes of a video; the number is the seed."""
    with TemporaryDirectory() as folder:
        write_clip(Path(folder) / "x.mp4", number, frames=frames, height=32, width=32)
        return (Path(folder) / "x.mp4").read_bytes()


def key(tar: int, sample: int) -> str:
    """Return the key of a sample in the run."""
    return f"x-{tar:03d}.tar/{tar:03d}{sample:02d}"


def write_tars(folder: Path, tars: int = 4) -> str:
    """Write tars of five samples: mp4, txt, cls and a pickle; return their pattern."""
    for tar in range(tars):
        members: list[tuple[str, bytes]] = []
        for sample in range(SAMPLES):
            name = f"{tar:03d}{sample:02d}"
            members += [
                (f"{name}.cls", b"%d" % (sample % 2)),
                (f"{name}.mp4", clip(sample)),
                (f"{name}.pkl", b"cos\nsystem\n(S'false'\ntR."),
                (f"{name}.txt", b"caption %d" % sample),
            ]
        write_tar(folder / f"x-{tar:03d}.tar", members)
    return str(folder / f"x-{{000..{tars - 1:03d}}}.tar")
