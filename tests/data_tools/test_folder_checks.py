"""Errors for tars given instead of a data set folder."""

from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_data_sets, open_index
from kinemae.data_tools.storage.location import location
from tests.sharding import shard, write_clip
from tests.source_collections import write_tar


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ours")
    write_clip(root / "videos" / "a" / "1.mp4", 0)
    assert shard(root / "videos", root / "my out", "layout.name=copy") == 0
    return root / "my out"


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000007.tar", "shard-{0..9}.tar", "*.tar"])
def test_a_tar_of_a_data_set_names_the_folder(ours: Path, name: str):
    with pytest.raises(
        DataError, match=r"expected the folder of a data set, got tars; fix: give .*out/train$"
    ):
        open_index(ours / "train" / name)
    with pytest.raises(
        DataError, match=r"expected the folder of a data set, got tars; fix: give .*out/train$"
    ):
        open_data_sets(location(ours / "train" / name))


@pytest.mark.parametrize("name", ["x-{000..999}.tar", "x-000.tar", "lost/*.tar"])
def test_tars_without_an_index_name_the_command(tmp_path: Path, name: str):
    write_tar(tmp_path / "x y" / "x-000.tar", [])
    place = tmp_path / "x y" / name
    message = rf"got tars; fix: make an index with `kinemae data index '{place}' INDEXES` and give INDEXES"
    message += "; only data.shards of pretraining and kinemae.clips read tars without an index"
    with pytest.raises(DataError) as caught:
        open_index(place)
    assert str(caught.value).endswith(message)
    with pytest.raises(
        DataError,
        match=r"got a folder without dataset.json; fix: make an index of its tars with `kinemae data index",
    ):
        open_index(tmp_path / "x y")


def test_remote_tars_without_an_index_name_the_command(bucket: str):
    with pytest.raises(
        DataError, match=rf"{bucket}/\{{000..999\}}.tar: expected the folder .*kinemae data index '"
    ):
        open_index(f"{bucket}/{{000..999}}.tar")


def test_a_folder_of_videos_names_the_command_and_a_parent_folder_its_splits(ours: Path):
    videos = ours.parent / "videos"
    with pytest.raises(
        DataError, match=rf"fix: make a data set of its videos with `kinemae data shard {videos} OUT`"
    ):
        open_index(videos)
    (ours / "validation").mkdir(exist_ok=True)
    (ours / "validation" / "dataset.json").touch()
    with pytest.raises(DataError, match=r"did you mean .*out/train or .*out/validation\?"):
        open_index(ours)
