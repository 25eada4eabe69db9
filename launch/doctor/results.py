"""Results of the doctor's checks, each with its fix, as text or JSON."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

Level = Literal["ok", "warning", "error"]
Value = TypeVar("Value")

_WIDTH = 110
_MOST_NAMES = 6


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of one check.

    Attributes:
        level: an error prevents a run or makes it wrong; a warning makes it slow or fragile.
        check: name of the check.
        text: the observation, with node names and numbers.
        fix: what to do; empty for ok.
        nodes: affected nodes; empty for all.
    """

    level: Level
    check: str
    text: str
    fix: str = ""
    nodes: tuple[str, ...] = ()


def ok(check: str, text: str) -> CheckResult:
    """A passed check."""
    return CheckResult(level="ok", check=check, text=text)


def warning(check: str, text: str, fix: str, nodes: Iterable[str] = ()) -> CheckResult:
    """A problem that makes runs slow or fragile."""
    return CheckResult(level="warning", check=check, text=text, fix=fix, nodes=tuple(nodes))


def error(check: str, text: str, fix: str, nodes: Iterable[str] = ()) -> CheckResult:
    """A problem that prevents runs or makes them wrong."""
    return CheckResult(level="error", check=check, text=text, fix=fix, nodes=tuple(nodes))


def or_ok(results: list[CheckResult], check: str, text: str) -> list[CheckResult]:
    """The results, or a passed check if there are none."""
    return results or [ok(check, text)]


def join_names(nodes: Sequence[str]) -> str:
    """Node names for a sentence; only the first few of many."""
    rest = len(nodes) - _MOST_NAMES
    return ", ".join(nodes[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def count(number: int, noun: str) -> str:
    """A number and its noun, as in "1 node" and "2 processes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def odd_ones(values: Mapping[str, Value]) -> tuple[Value, dict[Value, list[str]]]:
    """The most common value, and the nodes of every other value; the first node breaks a tie."""
    counts = Counter(values.values())
    usual = max(counts, key=lambda value: counts[value])
    others: dict[Value, list[str]] = {}
    for name, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(name)
    return usual, others


def as_text(results: Sequence[CheckResult], nodes: int, seconds: float) -> str:
    """A paragraph for each result with its fix, and the number of errors and warnings."""
    lines = []
    for result in results:
        lines += _wrap(f"{result.level:<8} {result.check:<9} ", result.text)
        lines += _wrap(f"{'':<19}fix: ", result.fix) if result.fix else []
    counts = Counter(result.level for result in results)
    errors, warnings = count(counts["error"], "error"), count(counts["warning"], "warning")
    lines.append(f"{errors}, {warnings} on {count(nodes, 'node')} in {seconds:.0f} s")
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[CheckResult], reports: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """All results and the nodes' reports."""
    return {
        "errors": sum(result.level == "error" for result in results),
        "warnings": sum(result.level == "warning" for result in results),
        "seconds": round(seconds, 1),
        "results": [asdict(result) for result in results],
        "nodes": dict(reports),
    }


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
