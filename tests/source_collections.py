"""Tiny collections for every kind of source, with real H.264 files."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.randomness import generator

Facts = tuple[str | None, str | None]  # label and split


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A collection, its expected listing, and a mistake to insert into one of its lists.

    Attributes:
        root: SOURCE.
        expected: label and split by name, in the order of the listing.
        broken: a file, the text to replace, its replacement, and the expected error.
    """

    root: Path
    expected: dict[str, Facts]
    broken: tuple[Path, str, str, str]
    args: dict[str, Any] = field(default_factory=dict)


def write_clip(path: Path, number: int = 0) -> bytes:
    """Write three frames of 16 x 16 pixels; the content depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = generator(number, purpose="test")
    frames_THWC = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=chance)
    write_video(path, frames_THWC, EncodeConfig(crf=40))
    return path.read_bytes()


def write_clips(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        write_clip(root / "clip.mp4", number)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "clip.mp4").replace(root / name)  # an mp4 under any extension


def write_picture(path: Path, number: int) -> None:
    """Write a picture of 16 x 16 pixels; the content depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = generator(number, purpose="picture")
    pixels_HWC = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=chance)
    Image.fromarray(pixels_HWC.numpy()).save(path)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _folder(root: Path) -> Collection:
    write_clips(root, "a b/1.mp4", "c/2.mp4")
    return Collection(
        root=root,
        expected={"a b/1.mp4": ("a b", None), "c/2.mp4": ("c", None)},
        broken=(
            root / "loose.mp4",
            "",
            "",
            r"expected one folder per class, or videos only, got both folders and loose.mp4",
        ),
    )


def _csv(root: Path) -> Collection:
    write_clips(root, "clips/a, b.mp4", "clips/c.mp4")
    text = 'path,label,split,score\n"clips/a, b.mp4",run,train,1\nclips/c.mp4,walk,val,0.5\n'
    return Collection(
        root=write_text(root / "list.csv", text),
        expected={"clips/a, b.mp4": ("run", "train"), "clips/c.mp4": ("walk", "validation")},
        broken=(
            root / "list.csv",
            ",val,",
            ",vall,",
            r"list.csv, line 3: expected one of the splits train, validation, test, unlabelled, got 'vall'",
        ),
    )


def _jsonl(root: Path) -> Collection:
    write_clips(root, "a.mp4", "b.mp4")
    text = '{"path": "a.mp4", "label": 3}\n\n{"path": "b.mp4", "label": "4"}\n'
    return Collection(
        root=write_text(root / "list.jsonl", text),
        expected={"a.mp4": ("3", None), "b.mp4": ("4", None)},
        broken=(root / "list.jsonl", '"4"}', '"4"', r"list.jsonl, line 3: expected one json object, got"),
    )


def _parquet(root: Path) -> Collection:
    write_clips(root, "a.mp4", "b.mp4")
    columns = {
        "path": ["a.mp4", "b.mp4"],
        "label": ["x", "y"],
        "sure": [True, None],
        "vector": [[1.0], [2.0]],
    }
    pq.write_table(pa.table(columns), root / "list.parquet")
    return Collection(
        root=root / "list.parquet",
        expected={"a.mp4": ("x", None), "b.mp4": ("y", None)},
        broken=(
            root / "list.parquet",
            "PAR1",
            "XXXX",
            r"list.parquet: expected a parquet file, got an error",
        ),
    )


def _path_label(root: Path) -> Collection:
    write_clips(root, "with space/a.mp4", "b.mp4")
    write_text(root / "val.csv", "b.mp4 1\n")
    write_text(root / "train.csv", "with space/a.mp4 0\n")
    return Collection(
        root=root,
        expected={"with space/a.mp4": ("0", "train"), "b.mp4": ("1", "validation")},
        broken=(root / "val.csv", " 1", " one", r"val.csv, line 1: expected a label that is a whole number"),
    )


def _mmaction2(root: Path) -> Collection:
    for number in range(3):
        write_picture(root / "data" / "v one" / f"img_{number + 1:05}.jpg", number)
        write_picture(root / "data" / "v2" / f"img_{number + 1:05}.jpg", 10 + number)
    write_text(root / "x_train_list_rawframes.txt", "v one 3 0\n")
    write_text(root / "x_val_list_rawframes.txt", "v2 2 5\n")
    return Collection(
        root=root,
        args={"rawframes": True, "videos": "data"},
        expected={"v one": ("0", "train"), "v2": ("5", "validation")},
        broken=(
            root / "x_val_list_rawframes.txt",
            "2 5",
            "4 5",
            r"val_list_rawframes.txt, line 1: expected the image",
        ),
    )


def _kinetics(root: Path) -> Collection:
    first, second = "-_a1b2c3d4e_000010_000020.mp4", "zz_y1b2c3d4e_000003_000013.mp4"
    write_clips(root, f"videos/train/playing chess/{first}", f"videos/{second}", "videos/other.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    write_text(root / "annotations" / "train.csv", f"{header}playing chess,-_a1b2c3d4e,10,20,train\n")
    write_text(root / "annotations" / "val.csv", f"{header}yoga,zz_y1b2c3d4e,3,13,validate\n")
    return Collection(
        root=root,
        expected={
            f"train/playing chess/{first}": ("playing chess", "train"),
            second: ("yoga", "validation"),
        },
        broken=(
            root / "annotations" / "val.csv",
            ",3,13",
            ",three,13",
            r"val.csv, line 2: expected seconds in time_start",
        ),
    )


def _ssv2(root: Path) -> Collection:
    write_clips(root, "videos/1.webm", "videos/20.webm", "videos/3.webm")
    write_text(root / "labels" / "labels.json", '{"Holding something": "1", "Dropping something": "0"}')
    described = [{"id": "1", "label": "holding a cup", "template": "Holding [something]"}]
    write_text(root / "labels" / "train.json", json.dumps(described))
    described = [
        {"id": "20", "label": "dropping it", "template": "Dropping [something]", "placeholders": ["it"]}
    ]
    write_text(root / "labels" / "validation.json", json.dumps(described))
    write_text(root / "labels" / "test.json", '[{"id": "3"}]')
    return Collection(
        root=root,
        expected={
            "1.webm": ("Holding something", "train"),
            "20.webm": ("Dropping something", "validation"),
            "3.webm": (None, "test"),
        },
        broken=(
            root / "labels" / "validation.json",
            "Dropping",
            "Droping",
            r"validation.json, entry 1: expected one of the 2 classes",
        ),
    )


def _ucf101(root: Path) -> Collection:
    names = "Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g08_c02.avi", "YoYo/v_YoYo_g01_c01.avi"
    write_clips(root, *(f"UCF-101/{name}" for name in names))
    lists = root / "ucfTrainTestlist"
    write_text(lists / "classInd.txt", "1 Archery\r\n2 YoYo\r\n")
    write_text(lists / "trainlist01.txt", f"{names[1]} 2\n")
    write_text(lists / "testlist01.txt", f"{names[0]}\n{names[2]}\n")
    return Collection(
        root=root,
        expected={names[1]: ("YoYo", "train"), names[0]: ("Archery", "test"), names[2]: ("YoYo", "test")},
        broken=(
            lists / "trainlist01.txt",
            " 2",
            " 1",
            r"trainlist01.txt, line 1: expected number 2 for class YoYo",
        ),
    )


def _hmdb51(root: Path) -> Collection:
    write_clips(root, "wave/#a (1)_wave.avi", "wave/b.avi", "run/c.avi")
    write_text(root / "splits" / "wave_test_split1.txt", "#a (1)_wave.avi 1 \nb.avi 2 \n")
    write_text(root / "splits" / "run_test_split1.txt", "c.avi 1 \nunused.avi 0 \n")
    return Collection(
        root=root,
        expected={
            "run/c.avi": ("run", "train"),
            "wave/#a (1)_wave.avi": ("wave", "train"),
            "wave/b.avi": ("wave", "test"),
        },
        broken=(
            root / "splits" / "wave_test_split1.txt",
            "b.avi 2",
            "b.avi 3",
            r"split1.txt, line 2: expected NAME.avi",
        ),
    )


def _frames(root: Path) -> Collection:
    for number in (1, 2, 10):
        write_picture(root / "train" / "a" / "v1" / f"frame{number}.jpg", number)
        write_picture(root / "val" / "b" / "v2" / f"frame{number}.jpg", 20 + number)
    write_text(root / "val" / "b" / "v2" / "about.txt", "")
    return Collection(
        root=root,
        expected={"train/a/v1": ("a", "train"), "val/b/v2": ("b", "validation")},
        broken=(root / "val" / "b" / "v2" / "flow1.jpg", "", "", "v2: expected images of one kind"),
    )


def _webdataset(root: Path) -> Collection:
    first, second = (write_clip(root.parent / "clip.mp4", number) for number in (1, 2))
    write_tar(root / "data" / "train-0.tar", [("sub/k1.mp4", first), ("sub/k1.cls", b"0")])
    write_tar(root / "data" / "test-0.tar", [("k2.v1.mp4", second), ("k2.cls", b"1\n")])
    return Collection(
        root=root,
        expected={
            "data/test-0.tar/k2.v1.mp4": ("1", "test"),
            "data/train-0.tar/sub/k1.mp4": ("0", "train"),
        },
        broken=(
            root / "data" / "train-0.tar",
            "k1.cls\0",
            "k9.cls\0",
            r"train-0.tar: expected a header, got damaged bytes after sub/k1",
        ),
    )


# The contract test requires a collection for each source.
COLLECTIONS: dict[str, Callable[[Path], Collection]] = {
    "csv": _csv,
    "folder": _folder,
    "frames": _frames,
    "hmdb51": _hmdb51,
    "jsonl": _jsonl,
    "kinetics": _kinetics,
    "mmaction2": _mmaction2,
    "parquet": _parquet,
    "path_label": _path_label,
    "ssv2": _ssv2,
    "ucf101": _ucf101,
    "webdataset": _webdataset,
}
