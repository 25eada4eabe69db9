"""The comparison table and its errors."""

import json

import pytest

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.compare import read_results, table


def write_result(folder, *, top1, encoder=None, adapt="full", lr=1e-3):
    folder.mkdir()
    result = {
        "top1": top1,
        "top1_ci95": [top1 - 0.05, top1 + 0.05],
        "videos": 200,
        "run": {"encoder": encoder, "adapt": adapt, "head": "linear", "lr": lr},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_table_has_differences_to_the_first_run(tmp_path):
    scratch = write_result(tmp_path / "scratch", top1=0.21)
    tuned = write_result(tmp_path / "tuned", top1=0.575, encoder="runs/demo/encoder", adapt="frozen", lr=3e-4)

    lines = table(read_results([scratch, tuned])).splitlines()

    words = [" ".join(line.split()) for line in lines[2:]]
    assert words == [
        "scratch from scratch full linear 0.001 200 21.0 16.0 - 26.0 +0.0",
        "tuned runs/demo/encoder frozen linear 0.0003 200 57.5 52.5 - 62.5 +36.5",
    ]


def test_the_columns_are_aligned(tmp_path):
    folders = [
        write_result(tmp_path / "a", top1=1.0, encoder="a/long/path/to/an/encoder"),
        write_result(tmp_path / "a-long-name", top1=0.05),
    ]

    lines = table(read_results(folders)).splitlines()

    assert len({len(line) for line in lines}) == 1
    assert lines[0].index("encoder") == lines[2].index("a/long") == lines[3].index("from scratch")


def test_a_run_without_a_result_is_named_with_the_fix(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").write_text("head: {name: linear}")
    with pytest.raises(CheckpointError, match=rf"expected a result, got .*finetune evaluate '{run}'`"):
        read_results([run])


def test_other_folders_are_rejected(tmp_path):
    (tmp_path / "config.yaml").write_text("masking: {name: tube}")
    with pytest.raises(
        CheckpointError, match="expected a fine-tuning run with its result, got a pretraining run"
    ):
        read_results([tmp_path])
    (tmp_path / "probe").mkdir()
    method = write_result(tmp_path / "probe" / "logistic", top1=0.5)
    with pytest.raises(CheckpointError, match=f"/probe: expected a fine-tuning run .*; fix: give {method}"):
        read_results([tmp_path / "probe"])
    with pytest.raises(CheckpointError, match=r"/nowhere: expected a fine-tuning run .*, got no such folder"):
        read_results(["/nowhere"])


@pytest.mark.parametrize("text", ["{", "[]", '{"top1": 0.5}'])
def test_an_invalid_result_is_rejected(tmp_path, text):
    (tmp_path / "result.json").write_text(text)

    with pytest.raises(CheckpointError, match="expected a result of this version"):
        read_results([tmp_path])
