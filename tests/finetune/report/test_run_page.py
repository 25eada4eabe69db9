"""The page of a run: its sections, missing files, hostile names, and the command."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.report.command import ReportConfig, write_report
from kinemae.finetune.report.content import gather
from kinemae.finetune.report.run_files import read_run
from tests.finetune.report.conftest import HOSTILE

FILES = (
    *("result.json", "predictions.parquet", "metrics.jsonl", "validation.jsonl", "config.yaml"),
    *("environment.json", "inputs.json"),
)


def text_of(page: Path) -> str:
    """The visible text of a page, without tags."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", body))


def test_the_page_has_every_section(page: Path) -> None:
    text = text_of(page)
    for heading in ("Scores", "Training curves", "Confusion matrix", "Most confused pairs", "Classes"):
        assert heading in text
    for heading in ("Calibration", "Most confident mistakes", "Cost", "Unreadable videos", "Config"):
        assert heading in text
    assert "1 of" in text and "unreadable" in text


def test_names_of_classes_and_files_are_escaped(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in source and "<img src=x" not in source
    assert html.escape(HOSTILE[0]) in source
    assert len(re.findall(r"<script>", source)) == 1, "the page's own script"


def test_the_best_validation_and_the_early_stop_are_marked(run_folder: Path) -> None:
    content = gather(read_run(run_folder), pictures=0, validation=None)
    rules = {text: fraction for chart in content["curves"] for fraction, text in chart.rules}
    assert rules == {"best": pytest.approx(149 / 249), "early stop": pytest.approx(1)}
    assert any("best validation was after 150 steps (80.0 %)" in check.text for check in content["checks"])


def test_curves_join_training_and_validation(run_folder: Path) -> None:
    content = gather(read_run(run_folder), pictures=0, validation=None)
    charts = {chart.title: [each.name for each in chart.series] for chart in content["curves"]}
    assert charts["Loss"] == charts["Accuracy"] == ["training", "validation"]
    assert charts["Learning rate"] == ["training"]
    assert [chart.title for chart in content["more_curves"]] == ["F1", "Gradient norm"]


def test_mistakes_are_wrong_and_sorted_by_confidence(run_folder: Path) -> None:
    content = gather(read_run(run_folder), pictures=5, validation=None)
    [part] = content["parts"]
    confidence = [float(re.search(r"with ([\d.]+) %", each.facts)[1]) for each in part.mistakes]  # type: ignore[index]
    assert 0 < len(part.mistakes) <= 5 and confidence == sorted(confidence, reverse=True)
    assert all(each.truth != each.guess for each in part.mistakes)
    thumbnails = [content["thumbnails"][each.key] for each in part.mistakes]
    assert all(
        each.animation.startswith("data:image/webp") and "4 frames" in each.text for each in thumbnails
    )


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_a_sentence_on_the_page(name: str, run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / name).unlink()
    if name == "config.yaml":  # then the model marks the run
        shutil.copy(folder / "model/head.json", folder)
    content = write_report(folder, tmp_path / "page.html", ReportConfig(pictures=1))
    assert content["missing"] == [name]
    assert name in text_of(tmp_path / "page.html")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_counts_as_missing(name: str, run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / name).write_bytes(b"\x00{")
    if name == "config.yaml":
        shutil.copy(folder / "model/head.json", folder)
    assert write_report(folder, tmp_path / "page.html", ReportConfig(pictures=0))["missing"] == [name]


def test_without_shards_the_page_says_why_there_are_no_clips(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result["data"]["validation"] = str(tmp_path / "gone")
    (folder / "result.json").write_text(json.dumps(result))
    write_report(folder, tmp_path / "page.html", ReportConfig())
    assert re.search(r"Clips cannot be shown: .*gone", text_of(tmp_path / "page.html"))


def test_shards_that_changed_are_not_shown(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result["data"]["fingerprint"] = "other"
    (folder / "result.json").write_text(json.dumps(result))
    write_report(folder, tmp_path / "page.html", ReportConfig())
    assert "changed after the run was scored" in text_of(tmp_path / "page.html")


def test_moved_shards_are_found_by_their_new_place(
    run_folder: Path, synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result["data"]["validation"] = str(tmp_path / "gone")
    (folder / "result.json").write_text(json.dumps(result))
    place = f"validation={synth_shards / 'validation'}"
    assert run_program(PROGRAM, ["report", str(folder), place, "pictures=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(folder / "report.html")
    assert (folder / "report.html").read_text().count("data:image/webp") == 2 * 2


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["pictures=-1"], 2, "pictures"),
        (["page.txt"], 2, "expected the name of a page, as in page.html"),
        (["absent/page.html"], 3, "cannot write to absent"),
    ],
)
def test_wrong_arguments_give_one_line(
    arguments: list[str], code: int, message: str, run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, ["report", str(run_folder), *arguments]) == code
    assert message in capfd.readouterr().err


def test_another_folder_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAM, ["report", str(tmp_path)]) == 4
    assert "expected a fine-tuning run, got an empty folder" in capfd.readouterr().err


def test_equal_runs_give_equal_pages(run_folder: Path, tmp_path: Path) -> None:
    pages = [tmp_path / "first.html", tmp_path / "second.html"]
    for path in pages:
        write_report(run_folder, path, ReportConfig(pictures=2))
    assert pages[0].read_bytes() == pages[1].read_bytes()
