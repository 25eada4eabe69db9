"""Conversion of arguments and results: numpy arrays or torch tensors in, JSON out."""

import math
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor


def as_floats(values: Array) -> np.ndarray:
    """Convert to a float64 array on the CPU."""
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return np.asarray(array, dtype=np.float64)


def as_integers(values: Array) -> np.ndarray:
    """Convert to an int64 array on the CPU."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(array).astype(np.int64)


def as_number(value: Any) -> float | None:
    """Convert to a JSON number; None for NaN and infinite values, which JSON cannot hold."""
    number = float(value)
    return number if math.isfinite(number) else None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) != 0)


def mean(values: np.ndarray) -> float | None:
    """Average the values that are not NaN; None without any."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else None
