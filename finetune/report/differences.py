"""Paired differences between groups of runs: means, classes, and samples that only one gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinemae.data_tools.report.figures import short
from kinemae.finetune.metrics.paired import mcnemar, paired_bootstrap
from kinemae.finetune.report.groups import Group, SampleScores, sample_scores
from kinemae.finetune.report.outputs import ClassOutput, Output

_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of a group to the first one on the samples of both.

    Attributes:
        change: "up" or "down" in quality if the interval excludes 0, else "".
        p_value, mcnemar: texts; "" if undefined.
    """

    output: str
    name: str
    what: str
    samples: int
    first: str
    second: str
    difference: str
    interval: str
    p_value: str
    mcnemar: str
    change: str
    verdict: str


def differences(groups: Sequence[Group]) -> list[Difference]:
    """All groups against the first one, for each output that both have."""
    if len(groups) < 2:
        return []
    first = groups[0].outputs()
    rows = []
    for group in groups[1:]:
        for name, outputs in group.outputs().items():
            if name in first:
                row = _difference(group.name, name, first[name], outputs)
                rows += [] if row is None else [row]
    return rows


def _difference(
    group: str, name: str, first: Sequence[Output], second: Sequence[Output]
) -> Difference | None:
    a, b = sample_scores(first), sample_scores(second)
    keys = [] if a is None or b is None else common_keys(a, b)
    if a is None or b is None or not keys or a.what != b.what:
        return None
    a_R, b_R = (np.array([each.scores[key] for key in keys]) for each in (a, b))
    samples = [a.groups[key] for key in keys]
    found = paired_bootstrap(a_R, b_R, samples)
    interval, delta = found["ci95"], found["difference"]
    better = delta if a.is_fraction else -delta
    is_clear = interval is not None and (interval[0] > 0 or interval[1] < 0)
    change = "" if not is_clear else "up" if better > 0 else "down"
    is_single = isinstance(first[0], ClassOutput) and len(first) == len(second) == 1
    exact = mcnemar(a_R > 0.5, b_R > 0.5) if is_single else None
    return Difference(
        output=name,
        name=group,
        what=a.what,
        samples=len(keys),
        first=_text(a, float(a_R.mean())),
        second=_text(a, float(b_R.mean())),
        difference=_text(a, delta, signed=True),
        interval="" if interval is None else " to ".join(_text(a, end, signed=True) for end in interval),
        p_value=_p_text(found["p_value"]),
        mcnemar=""
        if exact is None
        else f"{exact['only_second']:,} and {exact['only_first']:,} videos, p {_p_text(exact['p_value'])}",
        change=change,
        verdict={"up": "better", "down": "worse", "": "no clear difference"}[change],
    )


def common_keys(a: SampleScores, b: SampleScores) -> list[str]:
    """Samples that both have, in the order of the first."""
    return [key for key in a.scores if key in b.scores]


def _text(about: SampleScores, value: float, *, signed: bool = False) -> str:
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{100 * value:.1f} %" if about.is_fraction else f"{sign}{short(value)}"


def _p_text(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Accuracy of one class in each group; None without samples. `change` is the last minus the first."""

    name: str
    samples: int
    accuracies: tuple[float | None, ...]
    change: float | None


def class_differences(groups: Sequence[Group], name: str) -> list[ClassDifference]:
    """Classes that all groups have, by the change from the first to the last group, largest loss first."""
    by_group = []
    for group in groups:
        outputs = [each for each in group.outputs().get(name, []) if isinstance(each, ClassOutput)]
        counts = [each.confusion_YY for each in outputs]
        known = [counts_YY for counts_YY in counts if counts_YY is not None]
        if not known:
            return []
        total_YY = np.sum(known, axis=0)
        by_group.append((outputs[0].classes, total_YY, len(known)))
    rows = []
    for label in by_group[0][0]:
        accuracies, samples = [], 0
        for classes, counts_YY, runs in by_group:
            at = classes.index(label) if label in classes else None
            total = 0 if at is None else int(counts_YY[at].sum())
            accuracies.append(float(counts_YY[at, at] / total) if total else None)
            samples = total // runs if classes is by_group[0][0] else samples
        ends = accuracies[0], accuracies[-1]
        change = None if ends[0] is None or ends[1] is None else ends[1] - ends[0]
        rows.append(ClassDifference(name=label, samples=samples, accuracies=tuple(accuracies), change=change))
    return sorted(rows, key=lambda row: 2.0 if row.change is None else row.change)


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """Samples that all runs of one group get right, and all of another get wrong."""

    title: str
    count: int
    keys: tuple[str, ...]
    truths: tuple[str, ...]
    guesses: tuple[str, ...]


def one_sided(groups: Sequence[Group], name: str, *, most: int) -> list[OneSided]:
    """Both directions between the first group and each other one, for single-label outputs."""
    found = []
    first = groups[0].outputs().get(name, [])
    for group in groups[1:]:
        second = group.outputs().get(name, [])
        sides = (
            (f"only {groups[0].name} is right, {group.name} is wrong", first, second),
            (f"only {group.name} is right, {groups[0].name} is wrong", second, first),
        )
        for title, right, wrong in sides:
            side = _one_sided(title, right, wrong, most)
            if side is not None:
                found.append(side)
    return found


def _one_sided(title: str, right: Sequence[Output], wrong: Sequence[Output], most: int) -> OneSided | None:
    a, b = sample_scores(right), sample_scores(wrong)
    if a is None or b is None or not isinstance(wrong[0], ClassOutput):
        return None
    keys = [key for key in common_keys(a, b) if a.scores[key] == 1 and b.scores[key] == 0]
    place = {key: at for at, key in enumerate(wrong[0].keys)}
    confidence_R = wrong[0].probability_RY.max(axis=1)
    keys.sort(key=lambda key: -float(confidence_R[place[key]]))
    shown = [place[key] for key in keys[:most]]
    return OneSided(
        title=title,
        count=len(keys),
        keys=tuple(keys[:most]),
        truths=tuple(wrong[0].classes[wrong[0].label_R[at]] for at in shown),
        guesses=tuple(wrong[0].classes[wrong[0].guess_R[at]] for at in shown),
    )
