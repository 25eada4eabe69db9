"""Checks of a run: a summary for readers, problems first."""

from collections.abc import Sequence

from kinemae.data_tools.report.checks import LEVELS, Check
from kinemae.finetune.report.classes import Floors, class_rows, floors
from kinemae.finetune.report.curves import best_validation, selection_metric
from kinemae.finetune.report.metric_names import metric
from kinemae.finetune.report.outputs import ClassOutput, Output
from kinemae.finetune.report.run_files import RunFiles

_FEW_SAMPLES = 100
_LARGE_GAP = 0.15  # of training and validation accuracy
_LARGE_ECE = 0.1
_LAST_FRACTION = 0.1  # of the steps


def run_checks(run: RunFiles, outputs: Sequence[Output]) -> list[Check]:
    """Check a run's scores, predictions and curves."""
    checks = [*_check_files(run), *_check_unreadable(run), *_check_selection(run), *_check_curves(run)]
    for output in outputs:
        if isinstance(output, ClassOutput):
            checks += _check_classes(output)
    return sorted(checks, key=lambda check: LEVELS.index(check.level))


def _check_files(run: RunFiles) -> list[Check]:
    return [
        Check(level="problem" if name == "result.json" else "warning", text=text, section="files")
        for name, text in run.notes.items()
    ]


def _check_selection(run: RunFiles) -> list[Check]:
    selection = run.result.get("selection") or {}
    if not selection.get("is_optimistic"):
        return []
    text = "the model or the end of the training was selected on the scored videos: the score is optimistic"
    return [Check(level="warning", text=text, section="scores")]


def _check_unreadable(run: RunFiles) -> list[Check]:
    if not run.result:
        return []
    count = len(run.result.get("skipped", ()))
    if not count:
        return [Check(level="passed", text="all videos were readable", section="unreadable")]
    total = count + int(run.result.get("videos", 0))
    text = f"{count:,} of {total:,} videos were unreadable and do not count"
    return [Check(level="warning", text=text, section="unreadable")]


def _check_curves(run: RunFiles) -> list[Check]:
    checks = []
    skipped = sum(int(line.get("skipped_clips") or 0) for line in run.metrics)
    if skipped:
        text = f"training skipped {skipped:,} clips that could not be read"
        checks.append(Check(level="warning", text=text, section="curves"))
    best = best_validation(run)
    if best is not None and len(run.validation) > 2:
        key = selection_metric(run)
        last = run.validation[-1].get(key)
        about = metric(key)
        worse = isinstance(last, int | float) and (
            last > best[key] if about.maximize is False else last < best[key]
        )
        if worse and best["step"] < run.validation[-1]["step"]:
            text = (
                f"the best validation was after {best['step'] + 1:,} steps ({about.text(best[key])}), the "
                f"last one after {run.validation[-1]['step'] + 1:,} ({about.text(last)})"
            )
            checks.append(Check(level="warning", text=text, section="curves"))
    return [*checks, *_check_overfitting(run)]


def _check_overfitting(run: RunFiles) -> list[Check]:
    """Compare the accuracy of the last training clips with the score."""
    lines = [line["accuracy"] for line in run.metrics if isinstance(line.get("accuracy"), int | float)]
    top1 = run.result.get("top1")
    if len(lines) < 10 or not isinstance(top1, int | float):
        return []
    last = lines[-max(1, round(len(lines) * _LAST_FRACTION)) :]
    accuracy = sum(last) / len(last)
    text = f"accuracy {100 * accuracy:.0f} % on the last training clips, {100 * top1:.0f} % on validation"
    if accuracy - top1 > _LARGE_GAP:
        return [Check(level="warning", text=f"overfitting: {text}", section="curves")]
    return [Check(level="passed", text=f"no large gap: {text}", section="curves")]


def _check_classes(output: ClassOutput) -> list[Check]:
    of = f"{output.name}: " if output.name else ""
    checks = []
    found = floors(output)
    interval = output.result.get("top1_ci95")
    if found is not None and isinstance(interval, list) and len(interval) == 2:
        checks.append(_check_floor(of, found, interval))
    counts_YY = output.confusion_YY
    if counts_YY is not None and counts_YY.sum() < _FEW_SAMPLES:
        text = f"{of}only {counts_YY.sum():,} samples: a difference of a few points can be chance"
        checks.append(Check(level="warning", text=text, section="scores"))
    rows = class_rows(output)
    for what, names in {
        "without a sample in the validation data": [row.name for row in rows if not row.samples],
        "never predicted right": [row.name for row in rows if row.samples and not row.recall],
    }.items():
        if names:
            counted = f"{len(names):,} {'class' if len(names) == 1 else 'classes'}"
            text = f"{of}{counted} {what}, first {names[0]}"
            checks.append(Check(level="warning", text=text, section="classes"))
    error = output.result.get("ece")
    if isinstance(error, int | float):
        level = "warning" if error > _LARGE_ECE else "passed"
        text = f"{of}calibration error {100 * error:.1f} %"
        checks.append(Check(level=level, text=text, section="calibration"))
    return checks


def _check_floor(of: str, found: Floors, interval: Sequence[float]) -> Check:
    floor = max(found.chance, found.majority)
    measured = f"the interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
    if interval[0] > floor:
        text = f"{of}better than the majority class: {measured} lies above {100 * floor:.1f} %"
        return Check(level="passed", text=text, section="scores")
    text = f"{of}not better than the majority class: {measured} includes {100 * floor:.1f} %"
    return Check(level="problem", text=text, section="scores")
