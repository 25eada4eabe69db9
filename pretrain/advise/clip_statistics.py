"""Motion and redundancy of clips as the model gets them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.pretrain.advise.overview import read_luma
from kinemae.pretrain.model.motion_energy import change
from kinemae.pretrain.model.tokens import Patch

STRIDES = (1, 2, 4)
STATIC_TOKEN = 2.0  # grey levels; `threshold` of run-length pruning


@dataclass(frozen=True, kw_only=True)
class ClipStatistics:
    """Means over clips.

    Attributes:
        clips: number of clips.
        motion: mean absolute difference of successive frames, in grey levels of 0 to 255.
        static_tokens: fraction of the tokens that repeat the one before them at the same position.
        temporal: correlation of each pixel with the same pixel one tubelet later.
        spatial: correlation of each pixel with the pixels one patch to the right and one patch below.
    """

    clips: int
    motion: float
    static_tokens: float
    temporal: float
    spatial: float


def measure_clips(
    index: ShardIndex, positions: Sequence[int], clip: ClipConfig, patch: Patch
) -> ClipStatistics | None:
    """Measure one clip of each video; None if no video is readable."""
    found = [
        statistics_of(luma_THW, patch)
        for _, luma_THW in read_luma(index, positions, clip, what="measure clips")
    ]
    if not found:
        return None
    motion, static, temporal, spatial = torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist()
    return ClipStatistics(
        clips=len(found), motion=motion, static_tokens=static, temporal=temporal, spatial=spatial
    )


def correlations_by_stride(index: ShardIndex, positions: Sequence[int]) -> dict[int, float]:
    """Correlation of each pixel with the same pixel some frames later, the mean over videos, by stride.

    The smallest stride is the distance of the stored frames.
    """
    step = index.largest_frame_step
    clip = ClipConfig(frames=STRIDES[-1] + 1, stride=step, size=64)
    found = [
        [_correlation(luma_THW.double(), stride, dim=0) for stride in STRIDES]
        for _, luma_THW in read_luma(index, positions, clip, what="measure motion")
    ]
    strides = [step * stride for stride in STRIDES]
    return dict(zip(strides, torch.tensor(found).mean(dim=0).tolist(), strict=True)) if found else {}


def statistics_of(luma_THW: Tensor, patch: Patch) -> list[float]:
    """Motion, static tokens, temporal and spatial correlation of one clip; see `ClipStatistics`."""
    frames, side = patch[:2]
    x_THW = luma_THW.double()
    motion = float(x_THW.diff(dim=0).abs().mean()) if len(x_THW) > 1 else 0.0
    slices = len(x_THW) // frames
    change_N = change(luma_THW[None], patch)[0].view(slices, -1)[1:]
    static = float((change_N <= STATIC_TOKEN).double().mean()) if slices > 1 else 0.0
    spatial = (_correlation(x_THW, side, dim=1) + _correlation(x_THW, side, dim=2)) / 2
    return [motion, static, _correlation(x_THW, frames, dim=0), spatial]


def _correlation(x_THW: Tensor, lag: int, *, dim: int) -> float:
    """1 - d / (2 v), with the mean square difference d at a lag and the variance v; 1 for a constant clip."""
    length = x_THW.shape[dim] - lag
    variance = float(x_THW.var(correction=0))
    if length < 1 or variance == 0:
        return 1.0
    difference = x_THW.narrow(dim, lag, length) - x_THW.narrow(dim, 0, length)
    return 1 - float(difference.square().mean()) / (2 * variance)
