"""The page that compares runs: groups of seeds, paired differences, one-sided samples."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.report.command import render_page
from kinemae.finetune.report.comparison import gather_comparison
from kinemae.finetune.report.run_files import RunFiles, read_run
from tests.finetune.report.conftest import MakeRun


@pytest.fixture(scope="module")
def runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a bad config, and a run of a better one."""
    folder = tmp_path_factory.mktemp("compared")
    return [
        make_run(folder / "bad-0", right=0.2),
        make_run(folder / "bad-1", right=0.2, seed=1),
        make_run(folder / "good", right=0.95, overrides=("optim.lr=0.5",)),
    ]


def compared(runs: list[Path]) -> dict[str, Any]:
    return gather_comparison([read_run(folder) for folder in runs])


def test_runs_that_differ_only_in_the_seed_are_a_group(runs: list[Path]) -> None:
    content = compared(runs)
    assert [group.name for group in content["groups"]] == ["bad (2 seeds)", "good"]
    [(name, count, mean, spread, ends)] = content["seeds"]
    assert spread.endswith(" %") and " to " in ends
    scores = [json.loads((folder / "result.json").read_text())["top1"] for folder in runs[:2]]
    assert (name, count, mean) == ("bad (2 seeds)", 2, f"{50 * sum(scores):.1f} %")
    keys = dict(content["keys"])
    assert set(keys) == {"seed", "optim.lr"} and keys["seed"] == ["0", "1", "0"]


def test_a_better_run_has_a_positive_difference_with_an_interval(runs: list[Path]) -> None:
    [row] = compared(runs)["differences"]
    assert row.change == "up" and row.verdict == "better" and row.difference.startswith("+")
    assert row.p_value == "< 0.001" and row.mcnemar == "", "a group has no McNemar test"
    [single] = compared([runs[0], runs[2]])["differences"]
    assert " videos, p " in single.mcnemar


def test_a_run_does_not_differ_from_itself(runs: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("drop_path: 0.1", "drop_path: 0.2"))
    content = compared([runs[0], copy])
    [row] = content["differences"]
    assert row.verdict == "no clear difference" and row.p_value == "1.000"
    assert all(side.count == 0 for found in content["sides"].values() for side in found)


def test_samples_of_one_side_are_right_there_and_wrong_on_the_other(runs: list[Path]) -> None:
    content = compared([runs[0], runs[2]])
    first, second = read_run(runs[0]), read_run(runs[2])
    [only_first, only_second] = content["sides"][""]
    assert only_second.count > only_first.count
    for side, right, wrong in ((only_first, first, second), (only_second, second, first)):
        for key in side.keys:
            assert is_right(right, key) and not is_right(wrong, key)
            assert content["thumbnails"][key].animation


def is_right(run: RunFiles, key: str) -> bool:
    samples = run.samples
    assert samples is not None
    row = samples.keys.index(key)
    probability = samples.columns["prediction"][row]
    return bool(probability.index(max(probability)) == samples.columns["label"][row])


def test_the_page_names_all_runs(runs: list[Path]) -> None:
    page = render_page("compare.html", compared(runs))
    for name in ("bad-0", "bad-1", "good", "bad (2 seeds)", "Paired differences", "Spread over seeds"):
        assert name in page
    assert "<script>alert(1)" not in page


def test_runs_without_predictions_still_have_a_page(runs: list[Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in (runs[0], runs[2])]
    for folder in copies:
        (folder / "predictions.parquet").unlink()
    content = compared(copies)
    assert content["differences"] == [] and content["classes"][""]
    assert "that needs two runs with predictions" in render_page("compare.html", content)


def test_compare_writes_a_page_with_html(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    names = [str(folder) for folder in runs]
    assert run_program(PROGRAM, ["compare", *names, "--html", str(out)]) == 0
    assert out.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")


def test_another_suffix_is_refused(runs: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAM, ["compare", str(runs[0]), "--html", "page.txt"]) == 2
    assert "--html page.txt: expected the name of a page, as in page.html" in capfd.readouterr().err
