"""Loss of a pyramid head: targets of its positions, focal loss of classes, IoU loss of distances.

All times are fractions of the clip, see `PyramidHead`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.finetune.losses import binary_losses

# A position learns segments whose farther end is 2 to 4 of its sizes away, as in ActionFormer; those of the
# finest level also shorter ones, those of the coarsest also longer ones.
_REACH = (2.0, 4.0)
NO_SEGMENT = -1  # class of rows that pad the table of a clip
IGNORED = -2  # class of segments of which the clip shows too little


class Assigned(NamedTuple):
    """Targets of positions.

    Attributes:
        is_positive_BP: whether a position has a segment.
        is_counted_BP: whether it has a loss of classes; false inside segments that are ignored.
        class_BP: class of its segment, 0 without one.
        distance_BP2: distances to the start and the end of its segment.
    """

    is_positive_BP: Tensor
    is_counted_BP: Tensor
    class_BP: Tensor
    distance_BP2: Tensor


def assign_positions(
    centre_BP: Tensor, size_BP: Tensor, segment_BE2: Tensor, class_BE: Tensor, *, radius: float
) -> Assigned:
    """Assign a segment to each position: the shortest of those that it lies in and may learn.

    Args:
        segment_BE2, class_BE: the segments of each clip; negative classes are padding or ignored.
        radius: largest distance from the centre of a segment, in sizes of the position.
    """
    distance_BPE2 = torch.stack(
        [
            centre_BP[:, :, None] - segment_BE2[:, None, :, 0],
            segment_BE2[:, None, :, 1] - centre_BP[:, :, None],
        ],
        dim=3,
    )
    size_BP1 = size_BP[:, :, None]
    is_inside_BPE = (distance_BPE2 > 0).all(dim=3)
    is_near_BPE = distance_BPE2.diff(dim=3)[..., 0].abs() / 2 <= radius * size_BP1
    reach_BPE = distance_BPE2.amax(dim=3) / size_BP1
    is_finest_BP1 = size_BP1 == size_BP.amin(dim=1)[:, None, None]
    is_coarsest_BP1 = size_BP1 == size_BP.amax(dim=1)[:, None, None]
    is_in_range_BPE = (is_finest_BP1 | (reach_BPE >= _REACH[0])) & (is_coarsest_BP1 | (reach_BPE < _REACH[1]))
    class_B1E = class_BE[:, None]
    may_learn_BPE = is_inside_BPE & is_near_BPE & is_in_range_BPE & (class_B1E >= 0)
    length_BPE = distance_BPE2.sum(dim=3).masked_fill(~may_learn_BPE, torch.inf)
    length_BP, number_BP = length_BPE.min(dim=2)
    is_positive_BP = length_BP.isfinite()
    is_ignored_BP = (is_inside_BPE & (class_B1E == IGNORED)).any(dim=2) & ~is_positive_BP
    number_BP12 = number_BP[..., None, None].expand(-1, -1, 1, 2)
    return Assigned(
        is_positive_BP=is_positive_BP,
        is_counted_BP=~is_ignored_BP,
        class_BP=class_BE.gather(1, number_BP).clamp(min=0),
        distance_BP2=distance_BPE2.gather(2, number_BP12)[:, :, 0],
    )


def sigmoid_focal_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes (arXiv 1708.02002), elementwise.

    Args:
        target: 0 or 1.
        alpha: weight of the positives; negatives have 1 - alpha.
    """
    target = target.to(logits.dtype)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return weight * binary_losses(logits, target, gamma_positive=gamma, gamma_negative=gamma)


def distance_iou_loss(distance_X2: Tensor, target_X2: Tensor) -> Tensor:
    """Distance-IoU loss (arXiv 1911.08287) of segments that share a point, in one dimension.

    Args:
        distance_X2: predicted distances from the point to start and end, 0 or more; any leading dims.
        target_X2: true distances.

    Returns:
        1 - IoU + (distance of the centres / length of the smallest enclosing segment) ** 2, from 0 to 2.
    """
    target_X2 = target_X2.clamp(min=0)
    smallest = torch.finfo(distance_X2.dtype).eps
    intersection_X = torch.minimum(distance_X2, target_X2).sum(dim=-1)
    enclosing_X = torch.maximum(distance_X2, target_X2).sum(dim=-1).clamp(min=smallest)
    shift_X = (distance_X2.diff(dim=-1) - target_X2.diff(dim=-1))[..., 0] / 2
    # The segments share a point, so their union is the enclosing segment.
    return 1 - intersection_X / enclosing_X + (shift_X / enclosing_X).square()
