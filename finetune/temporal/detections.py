"""Detected segments of videos: from the outputs of a pyramid head to scored segments in seconds."""

from typing import NamedTuple

import numpy as np

from kinemae.finetune.metrics.localization import Detections, intersection_over_union

_CANDIDATES = 2000  # of a video before suppression, as in ActionFormer


class ClipTimes(NamedTuple):
    """Times of a clip: a piecewise linear map between fractions of the clip and seconds.

    Fraction 0 is the start of the first frame, 1 the end of the last. The repeated frames with which a short
    video is padded all have the time of its end.
    """

    fraction_X: np.ndarray
    time_X: np.ndarray

    @staticmethod
    def of(time_T: np.ndarray) -> "ClipTimes":
        """Build the map from the times of the frames, in order."""
        unique_X, frame_X = np.unique(time_T, return_index=True)
        steps = np.diff(unique_X)
        half_s = float(np.median(steps)) / 2 if len(steps) else 0.0
        time_X = np.concatenate([[unique_X[0] - half_s], unique_X, [unique_X[-1] + half_s]])
        frame_X = np.concatenate([[frame_X[0] - 0.5], frame_X, [frame_X[-1] + 0.5]])
        return ClipTimes((frame_X + 0.5) / len(time_T), time_X)

    def seconds(self, fraction: np.ndarray) -> np.ndarray:
        """Convert fractions of the clip, limited to the clip."""
        return np.interp(fraction, self.fraction_X, self.time_X)

    def fractions(self, time_s: np.ndarray) -> np.ndarray:
        """Convert seconds, limited to the clip."""
        return np.interp(time_s, self.time_X, self.fraction_X)


def decode(prediction_PX: np.ndarray, times: ClipTimes, *, min_score: float) -> Detections:
    """Convert the predictions of one clip, with probabilities in place of the logits, to detections.

    Args:
        prediction_PX: see `PyramidHead`.
        min_score: detections below are dropped.
    """
    probability_PY, distance_P2 = prediction_PX[:, :-4], prediction_PX[:, -4:-2]
    centre_P = prediction_PX[:, -2]
    start_P = times.seconds(centre_P - distance_P2[:, 0])
    end_P = times.seconds(centre_P + distance_P2[:, 1])
    position_N, class_N = np.nonzero(probability_PY > min_score)
    is_segment_N = end_P[position_N] > start_P[position_N]
    position_N, class_N = position_N[is_segment_N], class_N[is_segment_N]
    time_N2 = np.stack([start_P[position_N].clip(min=0), end_P[position_N]], axis=1)
    return Detections(time_N2, probability_PY[position_N, class_N], class_N)


def soft_nms(found: Detections, *, sigma: float, min_score: float, most: int) -> Detections:
    """Gaussian soft-NMS of each class (arXiv 1704.04503): overlap with a better segment lowers the score.

    The score of a segment is multiplied by exp(-iou ** 2 / sigma) for each better segment of its class.

    Args:
        min_score: segments with a lower final score are dropped.
        most: number of segments to return.

    Returns:
        The best segments of all classes, best first.
    """
    best_N = np.argsort(-found.score_N, kind="stable")[:_CANDIDATES]
    kept = [
        _soft_nms_of_class(found.take(best_N[found.class_N[best_N] == number]), sigma, min_score)
        for number in np.unique(found.class_N)
    ]
    joined = Detections.join(kept)
    return joined.take(np.argsort(-joined.score_N, kind="stable")[:most])


def _soft_nms_of_class(found: Detections, sigma: float, min_score: float) -> Detections:
    score_N, left_N = found.score_N.copy(), np.arange(len(found.score_N))
    order, scores = [], []
    while len(left_N):
        best = left_N[np.argmax(score_N[left_N])]
        if score_N[best] < min_score:
            break
        order.append(best)
        scores.append(score_N[best])
        left_N = left_N[left_N != best]
        iou_N = intersection_over_union(found.time_N2[[best]], found.time_N2[left_N])[0]
        score_N[left_N] *= np.exp(-(iou_N**2) / sigma)
    return found.take(np.array(order, dtype=np.int64))._replace(score_N=np.array(scores, dtype=np.float64))
