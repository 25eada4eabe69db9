"""Conditions over the columns of a data set, such as `motion > 0.5 and label in ['left', 'right']`.

A condition is written like a Python expression: columns, numbers, texts, comparisons, `and`, `or`, `not`,
`in [...]`, `is None`, `+ - * /`, `'part' in name`, `name.startswith('part')`, `name.endswith('part')`. It is
parsed and never run as Python. As in SQL, a comparison with a missing value is neither true nor false; a row
is selected if the condition is true. `label` is compared with names of classes. `split` is the name of the
folder of the data set, unless a column has this name.
"""

import ast
import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, ShardIndex
from kinemae.data_tools.unread import UNREAD_COLUMNS, with_nulls

_EXAMPLE = "motion > 0.5 and label != 'still'"
_LABEL = "label"
_SPLIT = "split"
_MAX_CHARACTERS = 10_000  # the stack of the parser is limited
_NAMES = 40  # in an error
_TRUTH, _NUMBER, _TEXT = "a condition", "a number", "a text"
_FUNCTIONS: dict[type[ast.AST], str] = {
    **{ast.Eq: "equal", ast.NotEq: "not_equal", ast.Lt: "less", ast.LtE: "less_equal"},
    **{ast.Gt: "greater", ast.GtE: "greater_equal", ast.And: "and_kleene", ast.Or: "or_kleene"},
    **{ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"},
}
_METHODS = {"startswith": pc.starts_with, "endswith": pc.ends_with}


class _Rows(NamedTuple):
    columns: dict[str, Any]
    classes: tuple[str, ...]


# Computes an Arrow array, or a scalar if no column is involved.
_Term = Callable[[_Rows], Any]


class Condition:
    """A parsed condition.

    Args:
        key: the config key, for errors.

    Raises:
        ValueError: not a condition.
    """

    def __init__(self, text: str, *, key: str):
        self.text, self.key = text, key
        self._columns: set[str] = set()
        try:
            if len(text) > _MAX_CHARACTERS:
                raise SyntaxError(f"more than {_MAX_CHARACTERS} characters")
            self._term = self._typed(ast.parse(text.strip(), mode="eval").body, _TRUTH)
        except SyntaxError as error:
            raise self._error(f"{text[:80]!r} ({error.msg})") from error
        except (MemoryError, RecursionError, OverflowError) as error:
            raise self._error(
                f"{text[:80]!r}, nested too deeply or with a number that is too large"
            ) from error

    def mask(self, index: ShardIndex) -> np.ndarray:
        """Whether the condition is true, for each sample of a data set (not of a view).

        Raises:
            ValueError: an unknown column or class, or a value of the wrong kind.
        """
        stored = self._columns - ({_SPLIT} - {*index.extra})
        check_columns(index, sorted(stored), key=self.key)
        split = pa.scalar(index.folder.name or Path.cwd().name)
        found = [np.empty(0, dtype=bool)]
        frames = {"frames"} if stored & UNREAD_COLUMNS else set()
        for batch in map(with_nulls, index.batches(sorted({*stored, *frames, _LABEL}))):
            columns = {_SPLIT: split, **dict(zip(batch.schema.names, batch.columns, strict=True))}
            try:
                true = self._term(_Rows(columns, index.classes))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise self._error(
                    f"{self.text!r}, which has no result in {index.folder}: {error}",
                    "compare integers beyond 2**53 with integers only, without + - * /",
                ) from error
            if isinstance(true, pa.Scalar):
                true = pa.array([true.as_py()] * len(batch), pa.bool_())
            found.append(true.fill_null(False).to_numpy(zero_copy_only=False))
        return np.concatenate(found)

    def _compile(self, node: ast.AST) -> _Term:
        match node:
            case ast.Constant(value=bool() | str() | int() | float() as value):
                return _constant(value)
            case ast.Name(id=name):
                self._columns.add(name)
                return _label if name == _LABEL else lambda rows: rows.columns[name]
            case ast.BoolOp(op=operator, values=values):
                return _folded(operator, [self._typed(value, _TRUTH) for value in values])
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operator):
                return _folded(operator, [self._typed(side, _NUMBER) for side in (node.left, node.right)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _mapped(pc.invert, self._typed(operand, _TRUTH))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _mapped(pc.negate, self._typed(operand, _NUMBER))
            case ast.Compare(left=left, ops=operators, comparators=others):
                pairs = zip([left, *others], operators, others, strict=False)
                return _folded(ast.And(), [self._comparison(*pair) for pair in pairs])
            case ast.Call(
                func=ast.Attribute(value=text, attr="startswith" | "endswith" as method),
                args=[ast.Constant(value=str() as part)],
                keywords=[],
            ):
                return _mapped(partial(_METHODS[method], pattern=part), self._typed(text, _TEXT))
        raise self._error(repr(ast.unparse(node)))

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> _Term:
        match operator, right:
            case ((ast.Is() | ast.IsNot()), ast.Constant(value=None)):
                check = pc.is_null if isinstance(operator, ast.Is) else pc.is_valid
                return _mapped(check, self._compile(left))
            case ((ast.In() | ast.NotIn()), _):
                found = self._membership(left, right)
                return found if isinstance(operator, ast.In) else _mapped(pc.invert, found)
        written = ast.unparse(ast.Compare(left, [operator], [right]))
        if type(operator) not in _FUNCTIONS or "None" in (ast.unparse(left), ast.unparse(right)):
            raise self._error(repr(written), "write `is None` or `is not None` for missing values")
        one = self._class_number(left) if _is_label(right) else self._compile(left)
        other = self._class_number(right) if _is_label(left) else self._compile(right)

        def compared(rows: _Rows) -> Any:
            sides = [one(rows), other(rows)]
            if _kind(sides[0]) != _kind(sides[1]):
                raise self._error(
                    f"{_kind(sides[0])} and {_kind(sides[1])} in {written!r}", "compare two of a kind"
                )
            return pc.call_function(_FUNCTIONS[type(operator)], sides)

        return compared

    def _membership(self, left: ast.expr, right: ast.expr) -> _Term:
        """`column in [...]`, or `'part' in column`."""
        match left, right:
            case _, ast.List(elts=values) | ast.Tuple(elts=values) | ast.Set(elts=values):
                term = self._compile(left)
                entries = [self._class_number(v) if _is_label(left) else self._compile(v) for v in values]

                def is_among(rows: _Rows) -> Any:
                    value, given = term(rows), [entry(rows) for entry in entries]
                    if not all(isinstance(each, pa.Scalar) and _kind(each) == _kind(value) for each in given):
                        raise self._error(
                            f"`in {ast.unparse(right)}`", f"list constants, each {_kind(value)}"
                        )
                    among = pa.array([each.as_py() for each in given], value.type if not given else None)
                    return pc.if_else(pc.is_valid(value), pc.is_in(value, value_set=among), None)

                return is_among
            case ast.Constant(value=str() as part), _:
                return _mapped(partial(pc.match_substring, pattern=part), self._typed(right, _TEXT))
        raise self._error(f"`in {ast.unparse(right)}`", "write `in ['one', 'two']` or `'part' in name`")

    def _class_number(self, node: ast.expr) -> _Term:
        """A value to compare with `label`: the name of a class becomes its number."""
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return self._compile(node)
        name = node.value

        def number(rows: _Rows) -> Any:
            if name not in rows.classes:
                raise _unknown(self.key, name, rows.classes, "names of classes")
            return pa.scalar(rows.classes.index(name))

        return number

    def _typed(self, node: ast.AST, kind: str) -> _Term:
        """A term whose value must be of a kind; numbers are computed as floats."""
        term = self._compile(node)

        def checked(rows: _Rows) -> Any:
            value = term(rows)
            if _kind(value) != kind:
                raise self._error(f"{_kind(value)}: {ast.unparse(node)!r}", f"write {kind}, as in {_EXAMPLE}")
            return value.cast(pa.float64()) if kind == _NUMBER else value

        return checked

    def _error(self, given: str, fix: str = f"write it like {_EXAMPLE}") -> ValueError:
        return ValueError(f"{self.key}: expected a condition over columns, got {given}; fix: {fix}")


def select_rows(index: ShardIndex, where: str | None, *, key: str = "data.where") -> ShardIndex:
    """The samples of a data set that match a condition; None keeps all.

    Raises:
        ValueError: not a condition, or one of other columns.
        DataError: no sample matches.
    """
    if where is None:
        return index
    mask_R = Condition(where, key=key).mask(index)
    if not mask_R.any():
        raise DataError(
            f"{key}={where}: expected at least one sample of {index.folder}, got none of {len(index)}"
        )
    return index.filter(mask_R)


def check_columns(index: ShardIndex, names: Iterable[str], *, key: str) -> None:
    """Reject a name that is no column of a data set.

    Raises:
        ValueError: as above; it suggests a column.
    """
    known = (*COLUMNS.names, *index.extra)
    for name in names:
        if name not in known:
            raise _unknown(key, name, known, f"columns of {index.folder}")


def _unknown(key: str, name: str, known: Sequence[str], what: str) -> ValueError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"{key}: expected {what}, got {name!r}; {hint}fix: use {', '.join(known[:_NAMES])}")


def _constant(value: bool | str | int | float) -> _Term:
    scalar = pa.scalar(value)
    return lambda rows: scalar


def _label(rows: _Rows) -> Any:
    """Class numbers; missing if a sample has no label."""
    label_R = rows.columns[_LABEL]
    return pc.if_else(pc.greater_equal(label_R, 0), label_R, None)


def _folded(operator: ast.AST, terms: Sequence[_Term]) -> _Term:
    """Combine terms from left to right."""
    name = _FUNCTIONS[type(operator)]
    return lambda rows: reduce(lambda a, b: pc.call_function(name, [a, b]), [term(rows) for term in terms])


def _mapped(function: Callable[[Any], Any], term: _Term) -> _Term:
    return lambda rows: function(term(rows))


def _is_label(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == _LABEL


def _kind(value: Any) -> str:
    if pa.types.is_boolean(value.type):
        return _TRUTH
    return _TEXT if pa.types.is_string(value.type) else _NUMBER
