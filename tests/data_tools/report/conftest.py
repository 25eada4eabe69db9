"""A small collection with every problem that a report shows."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.index import open_index
from kinemae.data_tools.randomness import generator

# A class folder that ends in "<" and a file that begins with "script>": the name is a whole element.
SCRIPT = "<script>alert(1)</script>.mp4"
IMAGE = 'walk/"><img src=x onerror=alert(2)>.mp4'
TURNED = "walk/\u202efdp.tnemucod\u2069.mp4"
SINGLE = EncodeConfig(fps=8, crf=20)


def moving(seed: int, *, size: int = 64, speed: int = 3, frames: int = 16) -> Tensor:
    """frames_THWC of a smooth random texture that moves to the left."""
    coarse = torch.rand((1, 3, 8, 16), generator=generator(seed, purpose="test"))
    texture = functional.interpolate(coarse, size=(64, 128), mode="bicubic").clamp(0, 1)
    shown = torch.cat([texture[..., speed * frame : speed * frame + 64] for frame in range(frames)])
    shown = functional.interpolate(shown, size=(size, size), mode="bilinear", antialias=True)
    return (255 * shown).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def put(path: Path, frames_THWC: Tensor, settings: EncodeConfig = SINGLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames_THWC, settings)
    return path


@pytest.fixture(scope="session")
def odd_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strange names, a static and a blank video, a re-encoded and a copied one in validation, a text file."""
    root = tmp_path_factory.mktemp("odd") / "videos"
    train, validation = root / "train", root / "validation"
    for number in range(4):
        put(train / f"walk/{number}.mp4", moving(number))
        put(train / f"run/{number}.mp4", moving(number + 10, speed=4))
    for number, name in enumerate((SCRIPT, IMAGE, TURNED)):
        put(train / name, moving(number + 20))
    put(train / "walk/static.mp4", moving(30, speed=0))
    put(train / "walk/blank.mp4", torch.full((16, 64, 64, 3), 40, dtype=torch.uint8))
    (train / "walk/text.mp4").write_text("<b>no video</b>")
    put(validation / "walk/again.mp4", moving(0, size=48), EncodeConfig(fps=8, crf=30))
    put(validation / "walk/other.mp4", moving(40))
    put(validation / "run/other.mp4", moving(41))
    shutil.copy(train / "run/1.mp4", validation / "run/copy.mp4")
    return root


@pytest.fixture(scope="session")
def odd_shards(odd_videos: Path) -> Path:
    """The sharded collection, with one video damaged inside its shard."""
    out = odd_videos.parent / "shards"
    assert (
        run_program(
            PROGRAM, ["shard", str(odd_videos), str(out), "layout.name=copy", "leaks=warn", "workers=1"]
        )
        == 0
    )
    damage(out / "train", "walk/3.mp4")
    return out


@pytest.fixture(scope="session")
def page(odd_shards: Path) -> Iterator[Path]:
    path = odd_shards.parent / "report.html"
    assert run_program(PROGRAM, ["report", str(odd_shards), str(path), "workers=2"]) == 0
    yield path


def damage(folder: Path, name: str) -> None:
    """Flip one bit in the middle of a video inside its shard."""
    index = open_index(folder)
    [sample] = [index.sample(at) for at in range(len(index)) if index.sample(at).name.endswith(name)]
    with index.shard_location(sample).path.open("r+b") as file:
        file.seek(sample.offset + sample.length // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
