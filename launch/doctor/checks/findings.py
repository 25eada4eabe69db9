"""What the doctor says: findings, each with its mend, as text or as JSON."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

Level = Literal["ok", "warning", "error"]
Value = TypeVar("Value")

_WIDTH = 110
_MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: an error keeps a run from starting or makes it wrong; a warning makes it slow or fragile.
        check: which part of the doctor's round it belongs to.
        text: what was found, on which node, with numbers.
        mend: what to do about it; empty where nothing is.
        nodes: whom it concerns; empty means all.
    """

    level: Level
    check: str
    text: str
    mend: str = ""
    nodes: tuple[str, ...] = ()


def ok(check: str, text: str) -> Finding:
    """A check that found nothing to mend."""
    return Finding(level="ok", check=check, text=text)


def warning(check: str, text: str, mend: str, nodes: Iterable[str] = ()) -> Finding:
    """Something that will make runs slow or fragile."""
    return Finding(level="warning", check=check, text=text, mend=mend, nodes=tuple(nodes))


def error(check: str, text: str, mend: str, nodes: Iterable[str] = ()) -> Finding:
    """Something that will keep runs from starting, or make them wrong."""
    return Finding(level="error", check=check, text=text, mend=mend, nodes=tuple(nodes))


def or_ok(findings: list[Finding], check: str, text: str) -> list[Finding]:
    """The findings, or that all is well where there are none."""
    return findings or [ok(check, text)]


def named(nodes: Sequence[str]) -> str:
    """Names of nodes for a sentence, the first few of many."""
    rest = len(nodes) - _MOST_NAMED
    return ", ".join(nodes[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, what: str) -> str:
    """A number and what it counts, as in "1 node" and "2 processes"."""
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def odd_ones(values: Mapping[str, Value]) -> tuple[Value, dict[Value, list[str]]]:
    """The value that most nodes have, and every other value with its nodes; the first node breaks a tie."""
    counts = Counter(values.values())
    usual = max(counts, key=lambda value: counts[value])
    others: dict[Value, list[str]] = {}
    for name, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(name)
    return usual, others


def as_text(findings: Sequence[Finding], nodes: int, seconds: float) -> str:
    """A line for each finding, its mend below, and how many there were."""
    lines = []
    for finding in findings:
        lines += _wrapped(f"{finding.level:<8} {finding.check:<9} ", finding.text)
        lines += _wrapped(f"{'':<19}mend: ", finding.mend) if finding.mend else []
    counts = Counter(finding.level for finding in findings)
    errors, warnings = counted(counts["error"], "error"), counted(counts["warning"], "warning")
    lines.append(f"{errors}, {warnings} on {counted(nodes, 'node')} in {seconds:.0f} s")
    return "\n".join(lines) + "\n"


def as_json(findings: Sequence[Finding], reports: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The same for programs, with everything that the nodes reported."""
    return {
        "errors": sum(finding.level == "error" for finding in findings),
        "warnings": sum(finding.level == "warning" for finding in findings),
        "seconds": round(seconds, 1),
        "findings": [asdict(finding) for finding in findings],
        "nodes": dict(reports),
    }


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
