"""Contract of all sources, each on a tiny collection; the folder source."""

import json
import re
from collections import Counter
from pathlib import Path

import av
import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.index import DATASET_NAME, open_index
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.sources.folder import FolderSource
from kinemae.data_tools.storage.location import location
from tests.source_collections import COLLECTIONS, Collection


def place(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(source: Source, root: Path) -> list[tuple[str, str | None, str | None]]:
    return [(video.name, video.label, video.split) for video in source.list_videos(root).videos]


@pytest.fixture(params=component_names("kinemae.data_tools.sources"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def collection(name: str, tmp_path: Path) -> Collection:
    return COLLECTIONS[name](tmp_path / "collection")


def built(name: str, collection: Collection) -> Source:
    return build_component("kinemae.data_tools.sources", Component(name=name, args=collection.args), Source)


class TestContract:
    def test_it_lists_names_labels_and_splits(self, name: str, collection: Collection):
        listing = built(name, collection).list_videos(collection.root)
        assert {video.name: (video.label, video.split) for video in listing.videos} == collection.expected
        assert [video.name for video in listing.videos] == list(collection.expected)

    def test_names_are_unique_and_values_are_of_their_types(self, name: str, collection: Collection):
        listing = built(name, collection).list_videos(location(collection.root))
        assert len({video.name for video in listing.videos}) == len(listing.videos)
        assert len({video.split is None for video in listing.videos}) == 1
        assert {video.split for video in listing.videos} <= {None, *SPLITS}
        for video in listing.videos:
            assert video.label is None or (isinstance(video.label, str) and video.label)
            assert video.label is None or not listing.classes or video.label in listing.classes
            assert all(isinstance(value, str | int | float) for value in video.extra.values())
            assert video.fps is None or video.frames

    def test_its_videos_can_be_read(self, name: str, collection: Collection):
        for video in built(name, collection).list_videos(collection.root).videos:
            if video.frames:
                assert all((video.path / picture).is_file() for picture in video.frames)
            else:
                assert b"ftyp" in video.place.read(*(video.member or (0, None)))[:16]

    def test_no_video_is_opened(self, name: str, collection: Collection, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delattr(av, "open")
        assert built(name, collection).list_videos(collection.root).videos

    def test_it_is_sharded_with_its_labels_and_splits(
        self, name: str, collection: Collection, tmp_path: Path
    ):
        listing = built(name, collection).list_videos(collection.root)
        layout = "h264" if listing.videos[0].frames else "copy"
        source = json.dumps({"name": name, "args": collection.args})
        options = [f"source={source}", f"layout.name={layout}", "validation_fraction=0", "workers=1"]
        out = tmp_path / "out"
        assert run_program(PROGRAM, ["shard", str(collection.root), str(out), *options]) == 0
        found = {}
        for folder in out.iterdir():
            if (folder / DATASET_NAME).is_file():
                index = open_index(folder)
                for row in (index.sample(position) for position in range(len(index))):
                    found[row.name] = (None if row.label < 0 else index.classes[row.label], folder.name)
        assert found == {
            path: (label, split or "train") for path, (label, split) in collection.expected.items()
        }

    def test_an_error_in_the_source_is_located(self, name: str, collection: Collection):
        file, old, new, message = collection.broken
        content = file.read_bytes() if file.exists() else b""
        assert old.encode() in content
        file.write_bytes(content.replace(old.encode(), new.encode()))
        with pytest.raises(DataError, match=message):
            built(name, collection).list_videos(collection.root)

    def test_a_missing_source_is_named(self, name: str, collection: Collection, tmp_path: Path):
        with pytest.raises((DataError, ValueError), match="lost"):
            built(name, Collection(root=tmp_path, expected={}, broken=collection.broken)).list_videos(
                tmp_path / "lost"
            )

    def test_only_tars_can_be_remote(self, name: str, collection: Collection):
        if name != "webdataset":
            with pytest.raises(
                DataError,
                match=r"s3://bucket/x: expected a local path, got a URL; fix: set source.name=webdataset",
            ):
                built(name, collection).list_videos(location("s3://bucket/x"))


def test_a_misspelt_source_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"no source named 'ucf01'; did you mean 'ucf101'\?"):
        build_component("kinemae.data_tools.sources", Component(name="ucf01"), Source)


def test_a_folder_for_each_class(tmp_path: Path):
    place(tmp_path, "b/2.mp4", "b/deep/1.MKV", "a/3.webm")
    assert listed(FolderSource(), tmp_path) == [
        ("a/3.webm", "a", None),
        ("b/2.mp4", "b", None),
        ("b/deep/1.MKV", "b", None),
    ]


def test_videos_without_class_folders_have_no_labels(tmp_path: Path):
    place(tmp_path, "2.mp4", "1.mp4")
    assert listed(FolderSource(), tmp_path) == [("1.mp4", None, None), ("2.mp4", None, None)]


def test_folders_for_splits(tmp_path: Path):
    place(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "test/3.mp4", "unlabelled/x/4.mp4", "about.json")
    assert listed(FolderSource(), tmp_path) == [
        ("test/3.mp4", None, "test"),
        ("train/a/1.mp4", "a", "train"),
        ("unlabelled/x/4.mp4", None, "unlabelled"),
        ("val/a/2.mp4", "a", "validation"),
    ]


def test_a_split_name_next_to_class_folders_is_a_class(tmp_path: Path):
    place(tmp_path, "train/1.mp4", "bus/2.mp4")
    assert listed(FolderSource(), tmp_path) == [("bus/2.mp4", "bus", None), ("train/1.mp4", "train", None)]


def test_other_and_hidden_files_are_ignored_and_counted(tmp_path: Path):
    place(tmp_path, "a/1.mp4", "a/notes.txt", "a/._1.mp4", "LICENSE", ".cache/2.mp4")
    listing = FolderSource().list_videos(tmp_path)
    assert [video.name for video in listing.videos] == ["a/1.mp4"]
    assert listing.ignored == 3


def test_a_name_that_is_no_utf8_is_escaped(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "\udcff.mp4").touch()
    assert listed(FolderSource(), tmp_path) == [("a/\\xff.mp4", "a", None)]


@pytest.mark.parametrize(
    "names, message",
    [
        (["a/1.mp4", "2.mp4"], r"expected one folder per class, or videos only, got both folders and 2.mp4"),
        (
            ["train/a/1.mp4", "train/2.mp4"],
            r"train: expected one folder per class, or videos only, got both folders and 2.mp4",
        ),
        (["train/1.mp4", "val/2.mp4", "3.mp4"], "expected split folders only, got videos next to them"),
    ],
)
def test_an_ambiguous_folder_is_an_error(tmp_path: Path, names: list[str], message: str):
    with pytest.raises(DataError, match=re.escape(message)):
        FolderSource().list_videos(place(tmp_path, *names))


def test_real_clips_are_listed_by_class(videos: Path):
    listing = FolderSource().list_videos(videos / "surveillance")
    assert Counter(video.label for video in listing.videos) == {"fight": 150, "no_fight": 150}


def test_a_missing_source_folder_is_named(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"nothing: expected a folder that can be listed, got an error .No such file"
    ):
        FolderSource().list_videos(tmp_path / "nothing")
