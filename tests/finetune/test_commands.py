"""Errors of the finetune commands state the kind of a folder and the fix."""

import json
from pathlib import Path

import pytest

from kinemae.data_tools.command import CheckpointError, run_program
from kinemae.finetune.__main__ import PROGRAM, check_finished_run

FILES: dict[str, dict[str, str]] = {
    "pretraining": {"config.yaml": "masking: {name: tube}"},
    "finetuning": {"config.yaml": "head: {name: linear}"},
    "finished": {"config.yaml": "head: {name: linear}", "model/head.json": "{}"},
    "imported": {"head.json": "{}", "encoder.json": "{}"},
    "encoder": {"encoder.json": "{}"},
    "transformers": {"config.json": "{}"},
    "set": {"dataset.json": "{}"},
    "sets": {"train/dataset.json": "{}"},
    "empty": {},
    "other": {"thesis.tex": ""},
    "broken": {"config.yaml": "a: ["},
}


def made(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / f"{name} of me"
    folder.mkdir()
    for file, text in FILES[name].items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["finished", "imported"])
def test_a_folder_that_can_be_scored_is_accepted(tmp_path: Path, name: str) -> None:
    check_finished_run(made(tmp_path, name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pretraining",
            "got a pretraining run; fix: fine-tune it first, "
            "kinemae finetune train CONFIG 'encoder=FOLDER/encoder'",
        ),
        (
            "encoder",
            "got an exported encoder; fix: fine-tune it first, "
            "kinemae finetune train CONFIG 'encoder=FOLDER'",
        ),
        ("finetuning", "got a fine-tuning run without a model; fix: repeat its `finetune train`"),
        (
            "transformers",
            "got a model of transformers; fix: import it first, kinemae finetune import 'FOLDER' OUT",
        ),
        ("set", "got a data set; fix: give the run_dir of a `finetune train`"),
        ("sets", "got a data set; fix"),
        ("empty", "got an empty folder; fix"),
        ("other", "got no run; fix"),
        ("broken", "got no run; fix"),
    ],
)
def test_other_folders_are_named_with_the_fix(tmp_path: Path, name: str, message: str) -> None:
    folder = made(tmp_path, name)
    with pytest.raises(CheckpointError) as caught:
        check_finished_run(folder)
    expected = f"FOLDER: expected a fine-tuning run, {message}".replace("FOLDER", str(folder))
    assert str(caught.value).startswith(expected), json.dumps(str(caught.value))


def test_a_missing_folder_exits_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_program(PROGRAM, ["evaluate", str(tmp_path / "none")]) == 4
    assert (
        "none: expected a fine-tuning run, got no such folder; fix: give the run_dir"
        in capsys.readouterr().err
    )
    assert run_program(PROGRAM, ["evaluate", str(tmp_path / "file")]) == 4
    assert "file: expected a fine-tuning run, got a file; fix: give the run_dir" in capsys.readouterr().err


def test_the_error_of_compare_states_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAM, ["compare", str(tmp_path)]) == 4
    assert "got an empty folder; fix: give the run_dir of a `finetune train`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["encoder", "finished"])
def test_import_of_kinemaes_own_encoder_states_that_none_is_needed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path, name)
    assert run_program(PROGRAM, ["import", str(folder), str(tmp_path / "out")]) == 4
    assert f"got one of KineMAE; fix: use it directly, 'encoder={folder}" in capsys.readouterr().err


def test_import_errors_omit_pytorchs_advice_to_load_unsafely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.pth").write_text("garbage")
    assert run_program(PROGRAM, ["import", str(tmp_path / "bad.pth"), str(tmp_path / "out")]) == 4
    errors = capsys.readouterr().err
    assert "bad.pth: expected a checkpoint file" in errors and "weights_only" not in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            [],
            "--to: expected one of kinemae, videomae, huggingface, onnx, ",
        ),
        (["to=huggingface"], "got to=huggingface; fix: write --to huggingface"),
    ],
)
def test_export_names_its_option(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAM, ["export", "runs/a", "out", *more]) == 2
    assert message in capsys.readouterr().err
