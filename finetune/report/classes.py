"""Sections about classes: confusion matrix, most confused pairs, table of classes, confident mistakes."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kinemae.data_tools.report.render import data_uri
from kinemae.finetune.metrics.classification import class_metrics
from kinemae.finetune.report.outputs import ClassOutput

MATRIX_CLASSES = 24  # more are shown as a picture
_PAIRS = 15
_COLOURS = ((47, 111, 181), (217, 130, 43))  # right, wrong: readable on a light and on a dark page


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix, as cells for few classes or as a picture for many.

    Attributes:
        rows: (class, samples, cells); a cell is (count, fraction of the row, whether it is right, tooltip).
        picture: PNG as a data URI, one pixel per pair of classes.
        pairs: (true class, predicted class, count, fraction of the true class), most frequent first.
        pair_count: number of pairs that occur.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[tuple[int, float, bool, str], ...]], ...]
    picture: str
    pairs: tuple[tuple[str, str, int, float], ...]
    pair_count: int


def confusion(output: ClassOutput) -> Confusion | None:
    """Prepare the confusion matrix of an output; None if it is unknown."""
    counts_YY = output.confusion_YY
    if counts_YY is None:
        return None
    names, total_Y = output.classes, counts_YY.sum(axis=1)
    share_YY = counts_YY / np.maximum(total_Y, 1)[:, None]
    wrong_YY = counts_YY.copy()
    np.fill_diagonal(wrong_YY, 0)
    order = [divmod(int(at), len(names)) for at in np.argsort(-wrong_YY, axis=None, kind="stable")[:_PAIRS]]
    pairs = [
        (names[true], names[guess], int(wrong_YY[true, guess]), float(share_YY[true, guess]))
        for true, guess in order
        if wrong_YY[true, guess]
    ]
    is_small = len(names) <= MATRIX_CLASSES
    return Confusion(
        classes=names,
        rows=tuple(_row(output, counts_YY, true) for true in range(len(names))) if is_small else (),
        picture="" if is_small else _picture(share_YY),
        pairs=tuple(pairs),
        pair_count=int((wrong_YY > 0).sum()),
    )


def _row(
    output: ClassOutput, counts_YY: np.ndarray, true: int
) -> tuple[str, int, tuple[tuple[int, float, bool, str], ...]]:
    total = int(counts_YY[true].sum())
    cells = []
    for guess, count in enumerate(counts_YY[true].tolist()):
        share = count / max(total, 1)
        text = (
            f"{count:,} of {total:,} {output.classes[true]} are predicted as {output.classes[guess]} "
            f"({100 * share:.0f} %)"
        )
        cells.append((count, share, guess == true, text))
    return output.classes[true], total, tuple(cells)


def _picture(share_YY: np.ndarray) -> str:
    """A PNG of one pixel per pair; opacity is the fraction of the true class."""
    size = len(share_YY)
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[..., :3] = _COLOURS[1]
    pixels[np.arange(size), np.arange(size), :3] = _COLOURS[0]
    # The square root makes rare confusions visible.
    pixels[..., 3] = np.round(255 * np.sqrt(share_YY))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return data_uri(file.getvalue(), "image/png")


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A row of the table of classes; None where a value is undefined."""

    name: str
    samples: int
    recall: float | None
    precision: float | None
    f1: float | None
    confused_with: str
    confused_share: float


def class_rows(output: ClassOutput) -> tuple[ClassRow, ...]:
    """The table of classes, least accurate first; classes without samples are last."""
    counts_YY = output.confusion_YY
    if counts_YY is None:
        return ()
    metrics = class_metrics(counts_YY)
    rows = []
    for number, name in enumerate(output.classes):
        others_Y, total = counts_YY[number].copy(), int(counts_YY[number].sum())
        others_Y[number] = 0
        most = int(others_Y.argmax())
        values = {
            key: None if np.isnan(metrics[key][number]) else float(metrics[key][number]) for key in metrics
        }
        rows.append(
            ClassRow(
                name=name,
                samples=total,
                confused_with=output.classes[most] if others_Y[most] else "",
                confused_share=float(others_Y[most] / max(total, 1)),
                **values,
            )
        )
    return tuple(sorted(rows, key=lambda row: 2.0 if row.recall is None else row.recall))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample to show with its clip: title, tags and lines of text."""

    key: str
    truth: str
    guess: str
    facts: str


def confident_mistakes(output: ClassOutput, *, most: int) -> list[Shown]:
    """Wrong samples by the probability of the predicted class, highest first."""
    if not len(output.keys):
        return []
    wrong = np.flatnonzero(~output.is_right_R)
    confidence_R = output.probability_RY.max(axis=1)
    order = wrong[np.argsort(-confidence_R[wrong], kind="stable")][:most]
    return [
        Shown(
            key=output.keys[at],
            truth=output.classes[output.label_R[at]],
            guess=output.classes[output.guess_R[at]],
            facts=f"predicted with {100 * confidence_R[at]:.1f} %; true class "
            f"{100 * output.probability_RY[at, output.label_R[at]]:.1f} %",
        )
        for at in order.tolist()
    ]


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Accuracies without looking at a video: a random class, and always the most frequent one."""

    chance: float
    majority: float
    majority_class: str


def floors(output: ClassOutput) -> Floors | None:
    """Accuracies without a model; None without samples."""
    counts_YY = output.confusion_YY
    if counts_YY is None or not counts_YY.sum():
        return None
    total_Y = counts_YY.sum(axis=1)
    most = int(total_Y.argmax())
    return Floors(
        chance=1 / len(output.classes),
        majority=float(total_Y[most] / total_Y.sum()),
        majority_class=output.classes[most],
    )
