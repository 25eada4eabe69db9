"""Check and unify the labels of a list: spellings of one number, texts for missing values."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kinemae.data_tools.command import DataError, log

_WHOLE = re.compile(r"(-?[0-9]+)(\.0*)?")
_NO_LABEL = frozenset(("nan", "<na>", "nat", "null", "#n/a", "n/a"))
_PERHAPS_NO_LABEL = frozenset(("none", "na", "-", "?", "-1", "unknown"))
_MOST_NAMED = 5  # in a log line


def check_label(where: str, label: str) -> str:
    """Reject a text that means a missing value.

    Raises:
        DataError: the text is such a value; the message states the line.
    """
    if label.casefold() in _NO_LABEL:
        raise DataError(
            f"{where}: expected a label, got {label!r}, that stands for a missing value; fix: give the video "
            "a label, or the split unlabelled"
        )
    return label


def label_text(value: object) -> str | None:
    """A label from JSON as text: text, a whole number, or a float without a fraction; None for others."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def one_spelling(labels: Iterable[str]) -> Mapping[str, str]:
    """One spelling for each whole number, where all labels are whole numbers.

    1.0 becomes 1. Leading zeros stay, unless a column holds one number with and without them.

    Returns:
        The label to use for each label given; empty where they are not all whole numbers.
    """
    distinct = set(labels)
    short = {label: match[1] for label in distinct if (match := _WHOLE.fullmatch(label)) is not None}
    if len(short) != len(distinct):
        return {}
    spellings: dict[int, set[str]] = defaultdict(set)
    for text in short.values():
        spellings[int(text)].add(text)
    is_ambiguous = any(len(texts) > 1 for texts in spellings.values())
    return {label: str(int(text)) if is_ambiguous else text for label, text in short.items()}


def warn_of_labels(classes: Sequence[str]) -> None:
    """Log labels that are probably one class, and labels that probably mean a missing value."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        plain = " ".join(re.split(r"[\s_]+", unicodedata.normalize("NFC", label).casefold().strip()))
        alike[plain].append(label)
    for labels in [labels for labels in alike.values() if len(labels) > 1][:_MOST_NAMED]:
        log.warning(
            "the labels %s are %d classes: they differ only in case, spaces or underscores",
            *(" and ".join(map(repr, labels)), len(labels)),
        )
    strange = [label for label in classes if label.casefold() in _PERHAPS_NO_LABEL]
    if strange:
        log.warning(
            "the label %r is a class like any other; for videos without a class use the split unlabelled",
            strange[0],
        )
    numbers = [int(label) for label in classes if re.fullmatch(r"[0-9]+", label)]
    if len(numbers) > 1 and len(numbers) == len(classes) and numbers != list(range(len(classes))):
        log.info(
            "the labels are whole numbers, but not 0 to %d: their order gives class numbers, label %s is 0",
            *(len(classes) - 1, classes[0]),
        )
