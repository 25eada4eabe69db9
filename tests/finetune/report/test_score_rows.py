"""Rows of the table of scores."""

from kinemae.finetune.report.scores import score_rows

RESULT = {
    "top1": 0.5,
    "mean_class_accuracy": 0.4,
    "balanced_accuracy": 0.4,
    "counting_skipped": {"top1": 0.45},
    "interval": {"confidence": 0.95, "method": "bootstrap of groups"},
    "skipped": [],
}


def test_a_score_has_one_row() -> None:
    assert [row.key for row in score_rows(RESULT)] == ["top1", "mean_class_accuracy"]


def test_scores_with_unreadable_videos_are_shown_if_there_are_any() -> None:
    unreadable = {**RESULT, "skipped": [{"key": "a", "error": "truncated"}]}

    assert "counting_skipped.top1" in [row.key for row in score_rows(unreadable)]


def test_the_second_name_of_a_score_is_shown_alone() -> None:
    assert [row.key for row in score_rows({"balanced_accuracy": 0.4})] == ["balanced_accuracy"]
