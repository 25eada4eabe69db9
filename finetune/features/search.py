"""`kinemae finetune search FEATURES QUERY`: nearest neighbours by cosine, and near duplicates."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from kinemae.data_tools.command import DataError, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.features.files import SUFFIXES, FeatureTable, read_features
from kinemae.pretrain.representation import unit_rows

_COSINES_AT_ONCE = 1 << 25
_SHOWN = ("video", "start_s", "end_s", "label", "group")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        k: number of neighbours of a query.
        per: "video": the best row of each other video; "row": all rows, also of the query's own video.
        standardize: scale each channel by its mean and deviation over all features first; cosines of raw
            features are all nearly 1.
        threshold: smallest cosine of near duplicates, and of a neighbour that covers a query.
        keys: with --duplicates, file for the keys to remove, one per line, for `kinemae data remove`.
        most: number of pairs that are listed, those with the largest cosines first; groups cover all.
        encoder: for a video as query, the encoder of the features if it has moved; null: as in FEATURES.
        device: for a video as query; "auto" uses CUDA if it is available.
    """

    k: int = 10
    per: Literal["video", "row"] = "video"
    standardize: bool = True
    threshold: float = 0.95
    most: int = 1000
    keys: str | None = None
    encoder: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require(self.k >= 1, "k", "be at least 1", self.k)
        require(-1 <= self.threshold <= 1, "threshold", "lie between -1 and 1", self.threshold)
        require(self.most >= 1, "most", "be at least 1", self.most)


def run_search(arguments: argparse.Namespace) -> None:
    """Run the command."""
    query, config = arguments.query, load_config(SearchConfig, None, arguments.overrides)
    if (query is None) != arguments.duplicates:
        given = "neither" if query is None else f"both, QUERY {query}"
        raise ValueError(f"expected QUERY or --duplicates, got {given}; fix: give one of them")
    if config.keys is not None and query is not None:
        raise ValueError(f"keys: expected no file with a QUERY, got {config.keys}; fix: leave it out")
    table = read_features(Path(arguments.features))
    check_values(table, arguments.features)
    if query is None:
        result = find_duplicates(table, config)
        if config.keys is not None:
            with writing_to(Path(config.keys).parent):
                atomic_write_text(Path(config.keys), "".join(f"{key}\n" for key in result["remove"]))
    else:
        nearest = find_nearest(table, read_query(table, query, config), config)
        result = {"queries": nearest, "coverage": coverage(nearest, config.threshold)}
    result = {"features": arguments.features, "standardize": config.standardize, **result}
    text = json.dumps(result, ensure_ascii=False) if arguments.json else "\n".join(_lines(result))
    sys.stdout.write(text + "\n")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Rows to search for.

    Attributes:
        name: of the video or the key.
        vectors_QD: one or more rows; the nearest one counts.
        columns: places of the rows, for the result.
        own: the rows of FEATURES that are this query.
    """

    name: str
    vectors_QD: np.ndarray
    columns: dict[str, list[Any]] = field(default_factory=dict)
    own: frozenset[int] = frozenset()


def check_values(table: FeatureTable, named: str) -> None:
    """Reject features with NaN or infinity.

    Raises:
        DataError: names the first row.
    """
    bad = np.flatnonzero(~np.isfinite(table.features).reshape(len(table), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{named}: expected finite features, got NaN or infinity in {table.keys[bad[0]]}; fix: check the "
            "encoder's weights and the dtype of the features"
        )


def read_query(table: FeatureTable, query: str, config: SearchConfig) -> list[Query]:
    """The queries that a key, a file of features or a video means.

    Raises:
        DataError: nothing of these, or other features.
    """
    rows = [row for row, pair in enumerate(zip(table.keys, table.videos, strict=True)) if query in pair]
    if rows:
        return [_of_rows(table, query, rows, own=frozenset(rows))]
    if query.endswith(SUFFIXES):
        other = read_features(Path(query))
        check_values(other, query)
    else:
        other = _encode(table, query, config)
    if other.vectors_RD.shape[1] != table.vectors_RD.shape[1]:
        raise DataError(
            f"QUERY {query}: expected vectors of {table.vectors_RD.shape[1]} values as in FEATURES, got "
            f"{other.vectors_RD.shape[1]}; fix: write both with one encoder and config"
        )
    of_video: dict[str, list[int]] = {}
    for row, video in enumerate(other.videos):
        of_video.setdefault(video, []).append(row)
    return [_of_rows(other, video, rows) for video, rows in of_video.items()]


def _of_rows(table: FeatureTable, name: str, rows: list[int], own: frozenset[int] = frozenset()) -> Query:
    columns = {
        name: [column[row] for row in rows] for name, column in table.columns.items() if name in _SHOWN
    }
    return Query(name=name, vectors_QD=table.vectors_RD[rows], columns=columns, own=own)


def _encode(table: FeatureTable, query: str, config: SearchConfig) -> FeatureTable:
    """Encode a video with the encoder and the settings of the features."""
    from kinemae.finetune.features.query import encode_query  # decoders and models: slow to import

    path = Path(query)
    if not path.exists() and "://" not in query:
        near = get_close_matches(query, [*dict.fromkeys([*table.videos, *table.keys])], n=1)
        fix = f"did you mean {near[0]}?" if near else "fix: correct it"
        raise DataError(
            f"QUERY {query}: expected a key of FEATURES, a file of features or a video, got none; {fix}"
        )
    return encode_query(table.provenance, query, encoder=config.encoder, device=config.device)


class Vectors:
    """Unit vectors of a file, whose products are cosines."""

    def __init__(self, table: FeatureTable, *, standardize: bool):
        self._reference_RD = torch.from_numpy(table.vectors_RD)
        self._standardize = standardize
        self.unit_RD = self.unit(table.vectors_RD)

    def unit(self, vectors_RD: np.ndarray) -> Tensor:
        """Rows of length 1.

        A row without a direction, such as the mean of all rows, gets one of its own. So equal rows have the
        cosine 1.
        """
        given_RD = torch.from_numpy(vectors_RD)
        if self._standardize:
            unit_RD = unit_rows(given_RD, self._reference_RD)
        else:
            unit_RD = F.normalize(given_RD, dim=1)
        is_zero_R1 = (unit_RD.norm(dim=1, keepdim=True) < 0.5).to(unit_RD.dtype)
        return torch.cat([unit_RD, is_zero_R1], dim=1)

    def best(self, vectors_QD: np.ndarray) -> tuple[Tensor, Tensor]:
        """The largest cosine of each row with some vectors, and the number of that vector."""
        best_R, nearest_R = (
            torch.full((len(self.unit_RD),), -2.0),
            torch.zeros(len(self.unit_RD), dtype=torch.int64),
        )
        at_once = rows_at_once(self.unit_RD)
        for first, part_BD in enumerate(self.unit(vectors_QD).split(at_once)):
            cosine_R, number_R = (part_BD @ self.unit_RD.T).max(dim=0)
            nearest_R = torch.where(cosine_R > best_R, first * at_once + number_R, nearest_R)
            best_R = torch.maximum(cosine_R, best_R)
        return best_R, nearest_R


def rows_at_once(unit_RD: Tensor) -> int:
    """Number of rows that are compared with all rows at once, in 128 MB."""
    return max(_COSINES_AT_ONCE // len(unit_RD), 1)


def find_nearest(table: FeatureTable, queries: list[Query], config: SearchConfig) -> list[dict[str, Any]]:
    """The nearest rows of each query, nearest first.

    A query with several rows has the largest of their cosines. Rows of the query itself are left out.
    """
    vectors, videos = Vectors(table, standardize=config.standardize), table.videos
    found = []
    for query in queries:
        best_R, nearest_R = vectors.best(query.vectors_QD)
        left_out = {videos[row] for row in query.own} if config.per == "video" else set()
        neighbours: list[dict[str, Any]] = []
        for row in best_R.argsort(descending=True, stable=True).tolist():
            if row in query.own or videos[row] in left_out:
                continue
            cosine, place = round(float(best_R[row]), 6), {"key": table.keys[row], **_place(table, row)}
            times = _times(query, int(nearest_R[row]))
            neighbours.append({"rank": len(neighbours) + 1, "cosine": cosine, **place, **times})
            if config.per == "video":
                left_out.add(videos[row])
            if len(neighbours) == config.k:
                break
        found.append({"query": query.name, "neighbours": neighbours})
    return found


def coverage(queries: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Count the queries whose nearest neighbour has at least this cosine."""
    cosines = [query["neighbours"][0]["cosine"] for query in queries if query["neighbours"]]
    median = round(float(np.median(cosines)), 6) if cosines else None
    covered = sum(cosine >= threshold for cosine in cosines)
    return {"threshold": threshold, "queries": len(queries), "covered": covered, "median_cosine": median}


def _times(query: Query, row: int) -> dict[str, Any]:
    """Start and end of the row of a query that is nearest, if it has several."""
    names = [name for name in ("start_s", "end_s") if name in query.columns and len(query.vectors_QD) > 1]
    return {f"query_{name}": query.columns[name][row] for name in names}


def _place(table: FeatureTable, row: int) -> dict[str, Any]:
    values = {name: table.columns[name][row] for name in _SHOWN if name in table.columns}
    return {name: value for name, value in values.items() if value not in (None, "")}


def find_duplicates(table: FeatureTable, config: SearchConfig) -> dict[str, Any]:
    """Pairs of rows with a cosine of at least the threshold, and their groups.

    With `per=video`, only pairs of different videos count, each with its most similar rows, and groups have
    videos instead of rows.
    """
    names = table.videos if config.per == "video" else table.keys
    numbers: dict[str, int] = {}
    number_R = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    unit_RD = Vectors(table, standardize=config.standardize).unit_RD
    for one, other, cosine in _similar(unit_RD, number_R, config.threshold):
        pair = (int(number_R[one]), int(number_R[other]))
        pair = (min(pair), max(pair))
        if cosine > best.get(pair, (-2.0, 0, 0))[0]:
            best[pair] = (cosine, one, other)
    ranked = sorted(best.values(), key=lambda each: (-each[0], each[1:]))
    pairs = [
        {"cosine": round(cosine, 6), "first": _named(table, one), "second": _named(table, other)}
        for cosine, one, other in ranked[: config.most]
    ]
    groups = _groups(list(best), list(numbers))
    remove = _to_remove(list(best), list(numbers))
    found = {"threshold": config.threshold, "pair_count": len(best), "pairs": pairs, "groups": groups}
    return {**found, "remove": remove}


def _to_remove(pairs: list[tuple[int, int]], names: list[str]) -> list[str]:
    """Names that are similar to a kept one; of similar names the first one is kept."""
    later: dict[int, list[int]] = {}
    for first, second in pairs:
        later.setdefault(first, []).append(second)
    removed: set[int] = set()
    for number in range(len(names)):
        if number not in removed:
            removed.update(later.get(number, ()))
    return [names[number] for number in sorted(removed)]


def _named(table: FeatureTable, row: int) -> dict[str, Any]:
    return {"key": table.keys[row], **_place(table, row)}


def _similar(unit_RD: Tensor, number_R: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Rows and cosine of pairs at or above the threshold whose numbers differ.

    Of the pairs of two numbers, each block of rows yields the most similar one.
    """
    at_once = rows_at_once(unit_RD)
    for first in range(0, len(unit_RD), at_once):
        cosine_BR = unit_RD[first : first + at_once] @ unit_RD[first:].T
        one_E, other_E = np.nonzero(np.triu(cosine_BR.numpy() >= threshold, 1))
        cosine_E, one_E, other_E = cosine_BR.numpy()[one_E, other_E], one_E + first, other_E + first
        ends_2E = np.sort([number_R[one_E], number_R[other_E]], axis=0)
        order = np.lexsort((-cosine_E, ends_2E[1], ends_2E[0]))
        order = order[ends_2E[0, order] != ends_2E[1, order]]
        _, chosen = np.unique(ends_2E[:, order], axis=1, return_index=True)
        for at in order[chosen]:
            yield int(one_E[at]), int(other_E[at]), float(cosine_E[at])


def _groups(pairs: list[tuple[int, int]], names: list[str]) -> list[list[str]]:
    """Connected components of the pairs, largest first."""
    ends_2E = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(pairs), bool), tuple(ends_2E)), shape=(len(names), len(names)))
    _, component_R = connected_components(graph, directed=False)
    members: dict[int, list[str]] = {}
    for name, component in zip(names, component_R.tolist(), strict=True):
        members.setdefault(component, []).append(name)
    return sorted((group for group in members.values() if len(group) > 1), key=lambda group: -len(group))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as text."""
    for query in result.get("queries", ()):
        yield f"query {query['query']}"
        for each in query["neighbours"]:
            yield f"  {each['rank']:3}  {each['cosine']:.4f}  {_described(each)}"
    if len(result.get("queries", ())) > 1:
        found = result["coverage"]
        yield (
            f"{found['covered']} of {found['queries']} queries have a neighbour with a cosine of at least "
            f"{found['threshold']:g}; median {found['median_cosine']}"
        )
    if "pairs" in result:
        yield f"{result['pair_count']} pairs with a cosine of at least {result['threshold']:g}"
        for each in result["pairs"]:
            yield f"  {each['cosine']:.4f}  {_described(each['first'])}  {_described(each['second'])}"
        for number, group in enumerate(result["groups"], start=1):
            yield f"group {number}: {', '.join(group)}"


def _described(each: dict[str, Any]) -> str:
    times = f" {each['start_s']:.2f}-{each['end_s']:.2f} s" if "start_s" in each else ""
    label = f" ({each['label']})" if "label" in each else ""
    return f"{each.get('video', each['key'])}{times}{label}"
