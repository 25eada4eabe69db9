"""Label columns of an index: class names, class numbers and numbers, checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex

MISSING_CLASS = -1
_UNKNOWN = -2


def classes_of(index: ShardIndex, column: str, *, key: str) -> tuple[str, ...]:
    """The classes of a column: those of the data set for "label", else the sorted distinct values.

    Raises:
        DataError: no such column, numbers with fractions, or no value in it.
    """
    if column == "label":
        if not index.classes or (index.column("label") < 0).all():
            raise DataError(
                f"{key}: expected labelled videos, got no labels; "
                "fix: shard a source with one folder per class, or a csv with the columns path,label"
            )
        return index.classes
    values = {value for value in _class_values(index, column, key=key) if value is not None}
    if not values:
        raise DataError(
            f"{key}: expected labels in the column {column}, got none; fix: choose another column"
        )
    return tuple(str(value) for value in sorted(values))


def class_names(index: ShardIndex, column: str, *, key: str) -> list[str | None]:
    """The class of every sample by name; None for a missing label.

    Raises:
        DataError: no such column, or numbers with fractions.
    """
    if column == "label":
        known = dict(enumerate(index.classes))
        numbers = index.column("label").tolist()
        return [None if number < 0 else known.get(number, f"number {number}") for number in numbers]
    return [None if value is None else str(value) for value in _class_values(index, column, key=key)]


def class_numbers(
    index: ShardIndex,
    column: str,
    classes: Sequence[str],
    *,
    key: str,
    may_miss: bool = False,
    same_classes: bool = True,
) -> np.ndarray:
    """The class of every sample as its number in `classes`, int64.

    Args:
        may_miss: give samples without a label MISSING_CLASS; otherwise they are an error.
        same_classes: for the column "label", require these classes in this order.

    Raises:
        DataError: a sample without a label, or with a class other than these.
    """
    if column == "label" and same_classes:
        _check_same_classes(index, classes, key=key)
    names = class_names(index, column, key=key)
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = [MISSING_CLASS if name is None else number_of.get(name, _UNKNOWN) for name in names]
    number_R = np.array(numbers, dtype=np.int64)
    is_bad_R = (number_R == _UNKNOWN) | ((number_R == MISSING_CLASS) & (not may_miss))
    if is_bad_R.any():
        bad = int(is_bad_R.argmax())
        expected = f"one of the {len(classes)} classes in the column {column}"
        raise _bad_samples(index, is_bad_R, key=key, expected=expected, got=names[bad] or "no label")
    return number_R


def column_numbers(index: ShardIndex, column: str, *, key: str, may_miss: bool = False) -> np.ndarray:
    """The number of every sample, float64; NaN for a missing one.

    Args:
        may_miss: accept samples without a number; otherwise they are an error.

    Raises:
        DataError: no such column, text, infinite or missing numbers.
    """
    values = _values(index, column, key=key).to_pylist()
    text = next((value for value in values if isinstance(value, str)), None)
    if text is not None:
        raise DataError(
            f"{key}: expected numbers in the column {column}, got text such as {text!r}; "
            "fix: choose a column of numbers, or the task classification"
        )
    number_R = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    is_bad_R = np.isinf(number_R) | (np.isnan(number_R) & (not may_miss))
    if is_bad_R.any():
        got = str(number_R[is_bad_R.argmax()])
        raise _bad_samples(index, is_bad_R, key=key, expected=f"a number in the column {column}", got=got)
    return number_R


def column_texts(index: ShardIndex, column: str, *, key: str, may_miss: bool = False) -> list[str | None]:
    """The text of every sample; None for a missing one.

    Args:
        may_miss: accept samples without a text; otherwise they are an error.

    Raises:
        DataError: no such column, numbers, or missing texts.
    """
    values = class_names(index, column, key=key) if column == "label" else None
    values = _values(index, column, key=key).to_pylist() if values is None else values
    number = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if number is not None:
        raise DataError(
            f"{key}: expected text in the column {column}, got numbers such as {number}; "
            "fix: choose a column of text"
        )
    is_missing_R = np.array([value is None for value in values], dtype=bool)
    if is_missing_R.any() and not may_miss:
        expected = f"a text in the column {column}"
        raise _bad_samples(index, is_missing_R, key=key, expected=expected, got="none")
    return values


def column_kind(index: ShardIndex, column: str, *, key: str) -> type:
    """The type of a column's values: str, int or float.

    Raises:
        DataError: no such column, or no value in it.
    """
    if column == "label":
        return str
    values = (value for value in _values(index, column, key=key).to_pylist() if value is not None)
    first = next(values, None)
    if first is None:
        raise DataError(
            f"{key}: expected labels in the column {column}, got none; fix: choose another column"
        )
    return type(first)


def _class_values(index: ShardIndex, column: str, *, key: str) -> list[Any]:
    values = _values(index, column, key=key).to_pylist()
    fraction = next((value for value in values if isinstance(value, float)), None)
    if fraction is not None:
        raise DataError(
            f"{key}: expected text or integers in the column {column} for classes, got numbers such as "
            f"{fraction}; fix: choose another column, or the task regression"
        )
    return values


def _values(index: ShardIndex, column: str, *, key: str) -> Any:
    if column not in index.extra:
        known = ", ".join(("label", *index.extra))
        raise DataError(f"{key}: expected a column {column}, got none; fix: choose one of {known}")
    return index.arrow_column(column)


def _bad_samples(index: ShardIndex, is_bad_R: np.ndarray, *, key: str, expected: str, got: str) -> DataError:
    sample = index.sample(int(is_bad_R.argmax()))
    return DataError(
        f"{key}: expected {expected}, got another value in {int(is_bad_R.sum())} of {len(index)} videos, "
        f"first {sample.key} ({sample.name}) with {got}; fix: label or remove them, and shard again"
    )


def _check_same_classes(index: ShardIndex, classes: Sequence[str], *, key: str) -> None:
    if index.classes == tuple(classes):
        return
    if not index.classes:
        classes_of(index, "label", key=key)
    unknown = [name for name in index.classes if name not in classes]
    missing = [name for name in classes if name not in index.classes]
    if unknown:
        difference = f"{unknown[0]!r}, which is not one of them"
    elif missing:
        difference = f"none called {missing[0]!r}"
    else:
        difference = "the same classes in another order"
    raise DataError(
        f"{key}: expected the {len(classes)} classes of the training data, got {difference}; "
        "fix: shard both splits with one command"
    )
