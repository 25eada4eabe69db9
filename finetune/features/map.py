"""`kinemae finetune map FEATURES OUT`: a map of features as a page, or a folder for TensorBoard's projector.

The page is self-contained: thumbnails and script are embedded, and a browser requests nothing else.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.report.render import data_uri, render, script_hash, write_page
from kinemae.data_tools.storage.location import local_out
from kinemae.finetune.features.files import FeatureTable, read_features
from kinemae.finetune.features.projector import write_projector
from kinemae.finetune.features.search import check_values
from kinemae.finetune.features.sprite import make_sprite

_FOLDER = Path(__file__).parent
_SIZE, _MARGIN = 1000, 30  # of the drawing
_COLOURS, _SHAPES = 6, 2


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """Settings of a map.

    Attributes:
        method: "pca": the two principal components; "umap": UMAP by cosine (pip install 'kinemae[maps]').
        standardize: scale each channel by its mean and deviation first.
        rows: largest number of rows; more are sampled at random.
        colour: column whose values are coloured; null: label, if there is one.
        neighbours, min_distance: of UMAP.
        seed: of the sample and of UMAP.
    """

    method: Literal["pca", "umap"] = "pca"
    standardize: bool = True
    rows: int = 4000
    colour: str | None = None
    neighbours: int = 15
    min_distance: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.rows >= 3, "rows", "be at least 3", self.rows)
        require(self.neighbours >= 2, "neighbours", "be at least 2", self.neighbours)
        require(0 <= self.min_distance <= 1, "min_distance", "lie between 0 and 1", self.min_distance)


def run_map(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = load_config(MapConfig, None, arguments.overrides)
    out, name = local_out(arguments.out), str(arguments.features)
    table = read_features(Path(name))
    check_values(table, name)
    check_colour(table, settings.colour)
    rows = sample_rows(len(table), settings)
    result = {"out": str(out), "rows": len(rows), "of": len(table)}
    if out.suffix == ".html":
        content = gather_map(table, rows, settings, name=name)
        result |= {"method": settings.method, "axes": content["axes"]}
        script = (_FOLDER / "map.js").read_text(encoding="utf-8")
        page = {**content, "script": script, "script_hash": script_hash(script)}
        write_page(out, render(_FOLDER / "map.html", page))
    else:
        write_projector(out, table, rows, colour=settings.colour)
        log.info("to look at it: tensorboard --logdir %s, tab PROJECTOR", out)
    log.info("%s: %d of %d rows", out, len(rows), len(table))
    if arguments.json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def check_colour(table: FeatureTable, colour: str | None) -> None:
    """Reject a column that is not there.

    Raises:
        ValueError: names the columns.
    """
    if colour is not None and colour not in table.columns:
        known = ", ".join(name for name in table.columns if name != "thumbnail")
        raise ValueError(
            f"colour: expected one of the columns {known}, got {colour}; fix: choose one of these"
        )


def sample_rows(count: int, settings: MapConfig) -> np.ndarray:
    """Rows of the map, in ascending order."""
    if count <= settings.rows:
        return np.arange(count)
    return np.sort(np.random.default_rng(settings.seed).choice(count, settings.rows, replace=False))


def place_rows(vectors_RD: np.ndarray, settings: MapConfig) -> tuple[np.ndarray, list[str]]:
    """Place rows in a plane.

    Returns:
        place_R2, and the names of the axes; none for UMAP, whose axes have no meaning.

    Raises:
        ValueError: UMAP is not installed, or there are too few rows for it.
    """
    x_RD = vectors_RD.astype(np.float64) - vectors_RD.mean(axis=0, dtype=np.float64)
    if settings.standardize:
        deviation_D = x_RD.std(axis=0)
        x_RD /= np.where(deviation_D > 1e-5, deviation_D, 1)
    return _pca(x_RD) if settings.method == "pca" else (_umap(x_RD, settings), [])


def _pca(x_RD: np.ndarray) -> tuple[np.ndarray, list[str]]:
    rows, width = x_RD.shape
    gram = x_RD @ x_RD.T if rows < width else x_RD.T @ x_RD
    values, vectors = np.linalg.eigh(gram)
    axes = vectors[:, :-3:-1]
    place_R2 = axes * np.sqrt(np.maximum(values[:-3:-1], 0)) if rows < width else x_RD @ axes
    # The sign of an axis is arbitrary: its largest value is positive.
    place_R2 = place_R2 * np.sign(place_R2[np.abs(place_R2).argmax(axis=0), range(place_R2.shape[1])])
    missing = 2 - place_R2.shape[1]  # of a single row, or of features of one value
    place_R2 = np.pad(place_R2, ((0, 0), (0, missing)))
    shares = (100 * values[:-3:-1] / max(values.sum(), 1e-12)).tolist() + [0.0] * missing
    return place_R2, [f"component {at}: {share:.1f} % of variance" for at, share in enumerate(shares, 1)]


def _umap(x_RD: np.ndarray, settings: MapConfig) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise ValueError(
            "method=umap: expected the package umap-learn, got none; fix: pip install 'kinemae[maps]', or "
            "set method=pca"
        ) from error
    if len(x_RD) < 4:
        raise ValueError(
            f"method=umap: expected at least 4 rows, got {len(x_RD)}; fix: set method=pca, or add videos"
        )
    if len(x_RD) <= settings.neighbours + 1:
        raise ValueError(
            f"neighbours: expected at most {len(x_RD) - 2} for {len(x_RD)} rows, got {settings.neighbours}; "
            "fix: lower it, or set method=pca"
        )
    reducer = umap.UMAP(
        n_neighbors=settings.neighbours,
        min_dist=settings.min_distance,
        metric="cosine",
        random_state=settings.seed,
        n_jobs=1,
    )
    return np.asarray(reducer.fit_transform(x_RD.astype(np.float32)), dtype=np.float64)


def gather_map(table: FeatureTable, rows: np.ndarray, settings: MapConfig, *, name: str) -> dict[str, Any]:
    """The content of the page."""
    place_R2, axes = place_rows(table.vectors_RD[rows], settings)
    low_2, high_2 = place_R2.min(axis=0), place_R2.max(axis=0)
    scale = (_SIZE - 2 * _MARGIN) / max(float((high_2 - low_2).max()), 1e-12)
    middle_2 = (low_2 + high_2) / 2
    drawn_R2 = (place_R2 - middle_2) * scale * [1, -1] + _SIZE / 2
    colour = settings.colour or ("label" if any(table.columns.get("label", ())) else None)
    groups = group_values([table.columns[colour][row] for row in rows] if colour else [None] * len(rows))
    sprite = make_sprite([table.thumbnails[row] for row in rows]) if table.thumbnails else None
    points = [_point(table, int(row), group) for row, group in zip(rows, groups.numbers, strict=True)]
    height = (high_2[1] - low_2[1]) * scale + 2 * _MARGIN
    return {
        "title": Path(name).name,
        "method": {"pca": "PCA", "umap": "UMAP"}[settings.method],
        "summary": _summary(table, len(rows)),
        "axes": axes,
        "height": round(max(height, 300)),
        "size": _SIZE,
        "colour": colour,
        "groups": groups.legend,
        "circles": [(round(x, 1), round(y, 1), group)
                    for (x, y), group in zip(drawn_R2.tolist(), groups.numbers, strict=True)],
        "points": points,
        "sprite": None if sprite is None else {
            "uri": data_uri(sprite.encoded("JPEG"), "image/jpeg"),
            "columns": sprite.columns, "lines": sprite.lines, "size": sprite.size,
        },
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of rows by a value.

    Attributes:
        legend: name, number of rows and class of the drawing; the most frequent first.
        numbers: place of each row in the legend.
    """

    legend: list[tuple[str, int, str]]
    numbers: list[int]


def group_values(values: Sequence[Any]) -> Groups:
    """Group rows by value. Values after the twelve most frequent ones, and missing ones, share a group."""
    texts = ["" if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text)
    named = [text for text, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]
    most = _COLOURS * _SHAPES
    shown = named if len(named) <= most else named[: most - 1]
    shown.sort()
    number_of = {text: number for number, text in enumerate(shown)}
    numbers = [number_of.get(text, len(shown)) for text in texts]
    found = Counter(numbers)
    legend = [
        (text, found[number], f"c{number % _COLOURS} shape{number // _COLOURS}")
        for text, number in number_of.items()
    ]
    if found[len(shown)]:
        rest = f"{len(named) - len(shown)} other values" if len(named) > len(shown) else "no value"
        legend.append((rest if shown else "all", found[len(shown)], "other" if shown else "c0 shape0"))
    return Groups(legend=legend, numbers=numbers)


def _point(table: FeatureTable, row: int, group: int) -> dict[str, Any]:
    """The text of a row."""
    found: dict[str, Any] = {"key": table.keys[row], "video": table.videos[row], "group": group}
    columns = table.columns
    if {"start_s", "end_s"} <= columns.keys():
        found["time"] = f"{columns['start_s'][row]:.2f} to {columns['end_s'][row]:.2f} s"
    label = columns["label"][row] if "label" in columns else None
    return {**found, **({"label": str(label)} if label else {})}


def _summary(table: FeatureTable, rows: int) -> str:
    kinds = {"clip": "windows", "slices": "time slices", "tokens": "windows", "pooled": "videos"}
    what = kinds.get(table.provenance.get("kind", ""), "rows")
    shown = (
        f"{rows:,} {what}" if rows == len(table) else f"{rows:,} of {len(table):,} {what}, drawn at random"
    )
    videos = f" of {len(set(table.videos)):,} videos" if what not in ("videos", "rows") else ""
    encoder = f"; encoder {table.provenance['encoder']}" if "encoder" in table.provenance else ""
    return f"{shown}{videos}, {table.vectors_RD.shape[1]:,} values each{encoder}"
