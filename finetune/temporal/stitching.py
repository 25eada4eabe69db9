"""Join the predictions of overlapping clips of a video along time."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_DECIMALS = 6  # of times in seconds: clips that show the same frame agree on its time


def slice_times(time_VT: Tensor, slices: int) -> np.ndarray:
    """Return the time of each slice in seconds, (V, slices): the mean of its frames' times.

    Args:
        time_VT: times of the frames; their number is a multiple of `slices`.
    """
    return time_VT.unflatten(1, (slices, -1)).double().mean(dim=2).numpy()


def resample(time_N: np.ndarray, values_NY: np.ndarray, at_M: np.ndarray) -> np.ndarray:
    """Interpolate rows linearly at other times; the first and the last row are held outside."""
    return np.stack([np.interp(at_M, time_N, column_N) for column_N in values_NY.T], axis=1)


def stitch(times: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Average the predictions of clips, which may overlap and have different times.

    The result has the times of all clips. A clip counts at the times that it covers, interpolated, with a
    weight that decreases linearly from its centre to its ends, where it lacks context on one side.

    Args:
        times: of each clip, shape (n,), in any order; repeated times are the padding of short videos and
            count once.
        values: of each clip, shape (n, Y).

    Returns:
        Times in seconds, sorted, and the values there.
    """
    clips = []
    for time_N, values_NY in zip(times, values, strict=True):
        unique_N, first_N = np.unique(time_N.round(_DECIMALS), return_index=True)
        clips.append((unique_N, values_NY[first_N]))
    time_M = np.unique(np.concatenate([time_N for time_N, _ in clips]))
    total_MY = np.zeros((len(time_M), clips[0][1].shape[1]))
    weight_M1 = np.zeros((len(time_M), 1))
    for time_N, values_NY in clips:
        begin, end = np.searchsorted(time_M, time_N[0]), np.searchsorted(time_M, time_N[-1], side="right")
        at_X = time_M[begin:end]
        weight_X1 = _weights(time_N, at_X)[:, None]
        total_MY[begin:end] += weight_X1 * resample(time_N, values_NY, at_X)
        weight_M1[begin:end] += weight_X1
    return time_M, total_MY / weight_M1


def _weights(time_N: np.ndarray, at_X: np.ndarray) -> np.ndarray:
    """Weights of a clip at times that it covers, above 0 everywhere."""
    margin = (time_N[-1] - time_N[0]) / (2 * len(time_N)) or 1.0
    from_end_X = np.minimum(at_X - time_N[0], time_N[-1] - at_X)
    return from_end_X + margin
