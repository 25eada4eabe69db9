"""Aligned tables and short numbers for a terminal."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Align columns.

    Args:
        left: indices of left-aligned columns; the others are right-aligned.
    """
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    formats = ["<" if column in set(left) else ">" for column in range(len(head))]
    return [
        "  " + "  ".join(map(format, line, map("{}{}".format, formats, widths))).rstrip() for line in lines
    ]


def short(count: float) -> str:
    """A number with a unit, as in `86.2 M`."""
    value, unit = with_unit(count)
    return f"{value:.3g} {unit}"


def with_unit(count: float) -> tuple[float, str]:
    """A number below 1000 and its unit: none, k, M, G or T."""
    unit = ""
    for larger in "kMGT":
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return count, unit
