"""Parts of a collection: twenty merged parts hold the samples of one run, and wrong parts are errors."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.index import COLUMNS, ShardIndex, open_index
from kinemae.data_tools.sharding.parts import Part, parse_part, part_in
from kinemae.data_tools.sharding.plan import ShardConfig
from tests.sharding import encoded, moving, shard, video_bytes, write_clip

COUNT = 20
TEXTS = ("classes.json", "rejected.jsonl", "notes.jsonl", "shard.json")
ARGUMENTS = ("segment_s=0.5", "samples_per_shard=3", "validation_fraction=0.3")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of two classes with groups, copies, a caption that some lack, and unreadable files."""
    root = tmp_path_factory.mktemp("parts")
    lines = ["path,label,group,caption,rank"]
    for number in range(30):
        video = (
            encoded(moving(12 + number % 7, 32 + 2 * (number % 29 // 7))) if number % 11 != 5 else b"no video"
        )
        (root / f"{number}.mp4").write_bytes(video)
        caption = f"text {number}" if number == 3 else ""
        lines.append(
            f"{number}.mp4,{'ab'[number % 2]},g{number // 4},{caption},{number / 2 if number > 8 else ''}"
        )
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


@pytest.fixture(scope="module")
def whole(collection: Path) -> Path:
    out = collection.parent / "whole"
    assert shard(collection, out, *ARGUMENTS) == 0
    return out


@pytest.fixture(scope="module")
def parts(collection: Path) -> Path:
    out = collection.parent / "parts"
    for number in reversed(range(COUNT)):  # no part depends on another one
        assert shard(collection, out, *ARGUMENTS, f"part={number}/{COUNT}") == 0
    return out


@pytest.fixture(scope="module")
def three(collection: Path) -> Path:
    out = collection.parent / "three"
    for number in range(3):
        assert shard(collection, out, "layout.name=copy", f"part={number}/3") == 0
    return out


def merge(parts: Path, out: Path) -> int:
    return run_program(PROGRAM, ["merge", str(parts), str(out)])


def rows(index: ShardIndex) -> dict[str, dict[str, object]]:
    """All columns of each sample by key, except for its place, and its bytes."""
    columns = [name for name in (*COLUMNS.names, *index.extra) if name not in ("shard", "offset")]
    values = [index.arrow_column(name).to_pylist() for name in columns]
    bytes_of = video_bytes(index)
    found = (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
    return {str(row["key"]): {**row, "bytes": bytes_of[str(row["key"])]} for row in found}


def test_twenty_merged_parts_hold_the_samples_of_one_run(whole: Path, parts: Path):
    assert merge(parts / "parts", parts) == 0
    for split in ("train", "validation"):
        one, merged = open_index(whole / split), open_index(parts / split)
        assert rows(merged) == rows(one)
        assert (merged.classes, merged.extra) == (one.classes, one.extra)
        assert {"caption", "rank"} <= set(merged.extra)
        assert sorted(shard.name for shard in merged.shards) == sorted(
            path.name for path in (parts / split).glob("part-*.tar")
        )
        assert (parts / split / "rejected.jsonl").read_text() == (
            whole / split / "rejected.jsonl"
        ).read_text()
    for name in TEXTS:
        assert (parts / name).read_text() == (whole / name).read_text(), name
    assert merge(parts / "parts", parts) == 0  # nothing left to do


def test_only_the_merge_warns_of_classes_without_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, name in enumerate(["train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4", "val/b/4.mp4"]):
        write_clip(tmp_path / "videos" / name, number)
    for number in range(2):
        assert shard(tmp_path / "videos", tmp_path / "out", f"part={number}/2") == 0
    assert "has no video of" not in capsys.readouterr().err
    assert merge(tmp_path / "out" / "parts", tmp_path / "out") == 0
    errors = capsys.readouterr().err
    assert (
        errors.count("has no video of") == errors.count("validation has no video of 1 classes, first a") == 1
    )


def test_a_part_is_a_data_set_and_its_rerun_changes_nothing(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for _ in range(2):
        assert shard(collection, tmp_path, "layout.name=copy", "part=0/2") == 0
    assert "part-00000-of-00002 is complete already" in capsys.readouterr().err
    index = open_index(tmp_path / "parts" / "part-00000-of-00002" / "train")
    assert len(rows(index)) == len(index) > 0
    assert shard(collection, tmp_path, "layout.name=copy") == 2
    expected = f"OUT {tmp_path}: expected no parts without the key part, got parts; fix: run `kinemae data "
    assert expected in capsys.readouterr().err


def _remove(part: Path) -> None:
    shutil.rmtree(part)


def _stop(part: Path) -> None:
    state = json.loads((part / "shard.json").read_text())
    (part / "shard.json").write_text(json.dumps({**state, "complete": False}))


def _other_config(part: Path) -> None:
    state = json.loads((part / "shard.json").read_text())
    (part / "shard.json").write_text(json.dumps({**state, "config": {**state["config"], "seed": 1}}))


def _other_count(part: Path) -> None:
    part.rename(part.parent / "part-00001-of-00007")


def _overlap(part: Path) -> None:
    shutil.rmtree(part)
    shutil.copytree(part.parent / "part-00000-of-00003", part)


def _cut_shard(part: Path) -> None:
    next((part.parents[1] / "train").glob("part-00001-*.tar")).write_bytes(b"cut")


def _low_limit(part: Path) -> None:
    for file in part.parent.glob("*/shard.json"):
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "limits": {"max_bad_fraction": 0.01, "leaks": "error"}}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            _remove,
            r"expected 3 complete parts, got 2; missing: 1; fix: run `kinemae data shard` with part=1/3",
        ),
        (_stop, r"expected 3 complete parts, got 2; incomplete: 1; fix: .* with part=1/3"),
        (
            _other_config,
            r"part-00001-of-00003: expected the config of .*part-00000-of-00003, got another one",
        ),
        (_other_count, r"expected parts of one run, got 3 and 7 as the number of parts"),
        (_overlap, r"expected unique keys, got [0-9]+ that occur twice"),
        (
            _cut_shard,
            r"the shard .*/train/part-00001-of-00003-000000.tar of [0-9]+ bytes, got 3: .*; fix: remove",
        ),
        (
            _low_limit,
            r"max_bad_fraction=0.01: expected at most this fraction of unreadable videos, got 3 of 30",
        ),
    ],
)
def test_wrong_parts_are_errors(
    damage: Callable[[Path], None],
    message: str,
    three: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    shutil.copytree(three, out)
    damage(out / "parts" / "part-00001-of-00003")
    assert merge(out / "parts", out) == 3
    assert re.search(message, capsys.readouterr().err)
    assert not (out / "train" / "dataset.json").exists()


def test_a_part_is_repaired_after_a_failed_and_after_a_complete_merge(
    three: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    shutil.copytree(three, out)
    words = (collection, out, "layout.name=copy")
    assert shard(*words, "part=1/3", "max_bad_fraction=0.01") == 0  # only stores the limit
    assert merge(out / "parts", out) == EXIT_DATA
    assert "part-00001-of-00003: expected the limits of " in capsys.readouterr().err
    for number in (0, 2):
        assert shard(*words, f"part={number}/3", "max_bad_fraction=0.01") == 0
    assert merge(out / "parts", out) == EXIT_DATA
    assert "max_bad_fraction=0.01" in capsys.readouterr().err
    for number in range(3):
        assert shard(*words, f"part={number}/3", "max_bad_fraction=0.2", "retry_rejected=true") == 0
    assert merge(out / "parts", out) == 0
    keys = set(rows(open_index(out / "train")))
    capsys.readouterr()
    again = (*words, "part=0/3", "retry_rejected=true", "max_bad_fraction=0.2")
    assert shard(*again) == EXIT_CONFIG
    found = re.search(r"to repair this part, remove (.*), run it again", capsys.readouterr().err)
    assert found is not None and str(out / "train" / "dataset.json") in found[1].split()
    for file in found[1].split():
        Path(file).unlink()
    assert shard(*again) == 0 and merge(out / "parts", out) == 0
    assert set(rows(open_index(out / "train"))) == keys


def test_a_part_holds_each_name_once():
    parts = [Part(number, 7) for number in range(7)]
    for number in range(200):
        assert sum(part.holds(f"videos/{number}.mp4") for part in parts) == 1
    assert part_in(parts[3].prefix) == parts[3] == parse_part("3/7")
    assert part_in("train") is None


def test_a_part_refuses_an_output_with_other_files(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "notes.txt").touch()
    assert shard(collection, tmp_path, "part=0/3") == 2
    expected = "part=0/3: expected an empty OUT or one with parts only, got notes.txt"
    assert expected in capsys.readouterr().err


def blocks(repo: Path, kind: str) -> list[str]:
    page = (repo / "docs" / "preparing.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def run_script(script: str, folder: Path, **environment: str) -> list[str]:
    """Run a shell script in which `kinemae` prints its arguments."""
    (folder / "kinemae").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "kinemae").chmod(0o755)
    given = {"PATH": f"{folder}:/usr/bin:/bin", **environment}
    ran = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, check=True)
    return ran.stdout.split("\n")[:-1]


def test_the_slurm_array_of_the_documents_runs_its_part(repo: Path, tmp_path: Path):
    [script] = blocks(repo, "bash")
    assert re.search(r"^#SBATCH --array=0-99$", script, re.MULTILINE)
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "100", "SLURM_CPUS_PER_TASK": "32"}
    words = run_script(script, tmp_path, SOURCE="a b.csv", OUT="s3://bucket/set", **slurm)
    assert words == ["data", "shard", "a b.csv", "s3://bucket/set", "part=3/100", "workers=32"]


def test_the_kubernetes_job_of_the_documents_runs_its_part(repo: Path, tmp_path: Path):
    [manifest] = blocks(repo, "yaml")
    spec = yaml.safe_load(manifest)["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 100)
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [EXIT_CONFIG, EXIT_DATA]
    [container] = spec["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/sh", "-c"]
    words = run_script(*container["args"], tmp_path, JOB_COMPLETION_INDEX="99")
    config = load_config(ShardConfig, None, words[4:])
    assert (words[:2], config.part, config.work_dir) == (["data", "shard"], "99/100", "/work")
