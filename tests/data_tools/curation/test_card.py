"""The data card states the facts of the index, and calls all others unknown."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kinemae.data_tools.__main__ import main
from tests.label_index import label_index
from tests.sharding import shard, write_clip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    rows = [
        "path,label,split,license,source_url,note",
        "0.mp4,run,train,CC-BY-4.0,https://example.org/a,a|b",
        "1.mp4,<b>walk,train,CC-BY-4.0,https://example.org/b,",
        "2.mp4,run,val,CC-BY-4.0,,",
    ]
    (root / "list.csv").write_text("\n".join(rows))
    for number in range(3):
        write_clip(root / f"{number}.mp4", number)
    assert shard(root / "list.csv", root / "shards") == 0
    return root / "shards"


def test_the_card_has_metadata_contents_provenance_and_statistics(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "card.md"
    texts = ["title=Runs", "contact=data@example.org", "description=People who run."]
    assert main(["card", str(shards), str(out), *texts]) == 0
    _, front, body = out.read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "pretty_name": "Runs",
        "license": "cc-by-4.0",
        "task_categories": ["video-classification"],
        "size_categories": ["n<1K"],
        "tags": ["video", "webdataset", "kinemae"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train/*.tar"},
                    {"split": "validation", "path": "validation/*.tar"},
                ],
            }
        ],
    }
    for line in (
        "| license | CC-BY-4.0 | 3 |",
        "| source_url | example.org | 2 |",
        "| source_url | unknown | 1 |",
        "| consent | unknown: no column | 3 |",
        "| run | 1 | 1 |",
        "| &lt;b>walk | 1 | 0 |",
        "- 0 groups of exact duplicates",
        "- 0 files in more than one split",
        "| `note` | train | text | 1 of 2 | a\\|b (1) |",
        "data@example.org",
        "People who run.",
    ):
        assert line in body.splitlines(), line
    assert "| `motion` |" in body and "| `scene_cuts` |" in body


def test_it_names_no_tars_with_removed_samples_or_of_other_folders_and_no_missing_licence(
    shards: Path, tmp_path: Path
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "card.md"
    assert main(["subset", str(shards), str(reference), "where=source_url is None"]) == 0
    assert main(["card", str(reference), str(out)]) == 0
    assert "data_files" not in out.read_text() and "load_dataset" not in out.read_text()
    label_index(tmp_path / "own", labels=[0, 1], extra={"license": [None, ""]})
    assert main(["card", str(tmp_path / "own"), str(out)]) == 0
    assert "path: '*.tar'" in out.read_text() and "\nlicense" not in out.read_text()
    (tmp_path / "own" / "old.tar").touch()
    assert main(["card", str(tmp_path / "own"), str(out)]) == 0
    assert '"train": ["shard-000000.tar"]' in out.read_text()
    assert main(["remove", str(tmp_path / "own"), "where=label == 'left'"]) == 0
    assert main(["card", str(tmp_path / "own"), str(out)]) == 0
    assert "data_files" not in out.read_text() and "`kinemae data reshard` writes" in out.read_text()


def test_the_example_opens_the_videos(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["card", str(shards), str(tmp_path / "card.md")]) == 0
    example = (tmp_path / "card.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(shards)
    exec(example, names)
    assert len(names["clips"].reader.clips.index) == 2


def test_it_is_the_readme_of_the_folder_and_replaces_no_other(
    shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(shards)]) == 0
    assert main(["card", str(shards), "license=mit"]) == 0  # its own file
    readme = shards / "README.md"
    assert "license: mit" in readme.read_text() and "Contact: unknown." in readme.read_text()
    readme.write_text("mine")
    assert main(["card", str(shards)]) == 2
    assert "expected no file or one written by `card`" in capfd.readouterr().err
    assert main(["card", str(shards), "card.html"]) == 2
    assert "expected the name of a markdown file" in capfd.readouterr().err
