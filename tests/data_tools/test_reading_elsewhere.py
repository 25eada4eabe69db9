"""Shards read by webdataset and Hugging Face datasets; unusual file names from end to end."""

import hashlib
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import webdataset

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.video_reader import read_video
from tests.forked import run_forked
from tests.source_collections import write_clip, write_clips, write_text

# A script without imports from this project; it prints one line per sample.
_HUGGING_FACE = """
import hashlib, json, sys
from datasets import Video, load_dataset
samples = load_dataset("webdataset", data_files={"train": sys.argv[1:]}, split="train")
samples = samples.cast_column("mp4", Video(decode=False))
for sample in samples:
    digest = hashlib.sha256(sample["mp4"]["bytes"]).hexdigest()
    print(json.dumps([sample["__key__"], sample["json"], digest]))
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos in a csv with a label, a second label, a number, and groups for some."""
    root = tmp_path_factory.mktemp("collection")
    rows = ["path,label,group,second label,score"]
    for number in range(12):
        write_clip(root / "clips" / f"{number}.mp4", number)
        group = "camera 1" if number == 11 else ""
        rows.append(f"clips/{number}.mp4,{'walk' if number % 2 else 'run'},{group},b{number},{number / 4}")
    write_text(root / "list.csv", "\n".join(rows))
    return root


@pytest.fixture(scope="module")
def shards(collection: Path) -> Path:
    out = collection / "shards"
    options = ["layout.name=copy", "validation_fraction=0", "samples_per_shard=7", "workers=1"]
    run_forked("-m", "data_tools", "shard", str(collection / "list.csv"), str(out), *options)
    return out / "train"


def check(shards: Path, collection: Path, read: list[tuple[str, dict[str, Any], str]]) -> None:
    """Compare the read samples with the index and the source videos."""
    index = open_index(shards)
    assert [key for key, _, _ in read] == index.column("key").tolist()
    assert len(read) == 12
    for position, (_, about, digest) in enumerate(read):
        number = int(Path(about["name"]).stem)
        assert digest == hashlib.sha256((collection / about["name"]).read_bytes()).hexdigest()
        assert about["label"] == ("walk" if number % 2 else "run") == index.classes[about["label_index"]]
        assert (about["second label"], about["score"]) == (f"b{number}", number / 4)
        assert about["group"] == ("camera 1" if number == 11 else "")
        assert (about["frames"], about["codec"], about["start_s"]) == (3, "h264", 0.0)
        row = index.sample(position)
        for name in ("label_index", "name", "group", "frames", "duration_s", "width", "height", "codec"):
            assert about[name] == getattr(row, "label" if name == "label_index" else name)


def test_webdataset_alone_reads_bytes_and_labels(shards: Path, collection: Path):
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    read = [
        (sample["__key__"], json.loads(sample["json"]), hashlib.sha256(sample["mp4"]).hexdigest())
        for sample in samples
    ]
    check(shards, collection, read)


@pytest.mark.nightly
@pytest.mark.slow
def test_hugging_face_datasets_reads_bytes_and_labels(
    shards: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    result = subprocess.run(
        [sys.executable, "-c", _HUGGING_FACE, *urls], capture_output=True, text=True, check=True, timeout=300
    )
    check(shards, collection, [tuple(json.loads(line)) for line in result.stdout.splitlines()])


NAMES = [
    "clips of mine/b\u00e4r im Wald.mp4",
    'say "hi", twice.mp4',
    "two\nlines.mp4",
    "\u6253\u7403/\U0001f3c0 v1.2.final.mp4",
    unicodedata.normalize("NFD", "caf\u00e9.mp4"),
    unicodedata.normalize("NFC", "caf\u00e9.mp4"),
    "caf\u00c9.mp4",
    "..mp4",
    "tab\there;semi'colon.mp4",
]


@pytest.mark.slow
def test_a_csv_with_unusual_names_works_from_end_to_end(tmp_path: Path):
    """Spaces, quotes, line breaks, dots, and names that differ in case or Unicode normalization only."""
    write_clips(tmp_path / "my videos", *NAMES)
    cells = ['"' + f"my videos/{name}".replace('"', '""') + '"' for name in NAMES]
    labels = ["\u00fcben, laut", "ruhig"]
    text = "\n".join(f'{cell},"{labels[row % 2]}",{row}' for row, cell in enumerate(cells))
    table = write_text(tmp_path / "my list.csv", f"\ufeffpath,label,n\n{text}\n")
    out = tmp_path / "my shards"
    options = ["layout.name=copy", "validation_fraction=0", "workers=1"]
    run_forked("-m", "data_tools", "shard", str(table), str(out), *options)
    index = open_index(out / "train")
    samples = [index.sample(position) for position in range(len(index))]
    assert {sample.name for sample in samples} == {f"my videos/{name}" for name in NAMES}
    for sample, number in zip(samples, index.column("n").tolist(), strict=True):
        assert sample.name == f"my videos/{NAMES[number]}"
        assert index.classes[sample.label] == labels[number % 2]
        assert read_video(index, sample) == (tmp_path / sample.name).read_bytes()
        assert set(sample.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    urls = [str(path) for path in sorted((out / "train").glob("*.tar"))]
    read = {
        json.loads(sample["json"])["name"]: sample["mp4"]
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    }
    assert read == {f"my videos/{name}": (tmp_path / "my videos" / name).read_bytes() for name in NAMES}
    shown = run_forked("-m", "data_tools", "show", str(out / "train")).stdout
    assert "\u00fcben, laut" in shown
