import re

import pytest
import torch

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.blocks import BlockMasking
from kinemae.pretrain.model.tokens import TokenGrid

GRID = TokenGrid(8, 14, 14)


def hidden_map(masking, sample, grid=GRID):
    """Hidden positions, (h, w); the same in all slices."""
    _, hidden_M = masking.split(grid, generator(0, purpose="masking", sample=sample))
    is_hidden = torch.zeros(grid.tokens, dtype=torch.bool)
    is_hidden[hidden_M] = True
    is_hidden = is_hidden.view(grid.t, grid.h, grid.w)
    assert (is_hidden == is_hidden[0]).all()
    return is_hidden[0]


def block_sides(scale, grid=GRID):
    """All heights and widths of a block of a scale."""
    area = int(scale * grid.per_slice)
    aspects = torch.linspace(0.75, 1.5, 2001, dtype=torch.float64).tolist()
    return {(min(round((area * a) ** 0.5), grid.h), min(round((area / a) ** 0.5), grid.w)) for a in aspects}


def covered_by_whole_blocks(is_hidden, sides):
    """Positions inside a completely hidden rectangle of such a size, by brute force."""
    covered = torch.zeros_like(is_hidden)
    for height, width in sides:
        for top in range(is_hidden.shape[0] - height + 1):
            for left in range(is_hidden.shape[1] - width + 1):
                window = (slice(top, top + height), slice(left, left + width))
                if is_hidden[window].all():
                    covered[window] = True
    return covered


@pytest.mark.parametrize(("scale", "ratio"), [(0.15, 0.5), (0.15, 0.9), (0.7, 0.9)])
def test_the_hidden_positions_are_a_union_of_blocks_with_the_last_one_cut(scale, ratio):
    masking, sides = BlockMasking(ratio=ratio, scales=[scale]), block_sides(scale)
    for sample in range(10):
        is_hidden = hidden_map(masking, sample)
        rest = int((is_hidden & ~covered_by_whole_blocks(is_hidden, sides)).sum())
        assert rest < max(height * width for height, width in sides)
        assert int(is_hidden.sum()) == int(ratio * 196)


def test_a_block_that_is_too_large_is_cut_by_rows_or_columns():
    for sample in range(20):
        rows, columns = hidden_map(BlockMasking(ratio=0.4, scales=[0.7]), sample).nonzero().unbind(1)
        height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
        assert height * width - int(0.4 * 196) < max(height, width)  # a rectangle but for its last line


def test_each_clip_has_blocks_of_one_scale_and_clips_differ():
    masking = BlockMasking(ratio=0.5, scales=[0.05, 0.7])
    large = sum(
        bool(covered_by_whole_blocks(hidden_map(masking, sample), {(7, 7)}).any()) for sample in range(100)
    )
    assert 30 <= large <= 70


def test_every_position_is_hidden_sometimes_including_the_corners():
    masking = BlockMasking(ratio=0.5)
    often = torch.stack([hidden_map(masking, sample) for sample in range(300)]).float().mean(0)
    assert often.min() > 0.01 and often.max() < 0.99
    # Neither side of the clip is preferred.
    assert abs(float(often[:7].mean() - often[7:].mean())) < 0.05
    assert abs(float(often[:, :7].mean() - often[:, 7:].mean())) < 0.05


@pytest.mark.parametrize(
    "scales", [[], [0.0], [1.0], [0.15, 1.5], ["large"], 0.15, "0.15", [float("nan")], [1]]
)
def test_invalid_scales_are_refused(scales):
    message = f"masking.args.scales must be a list of fractions strictly between 0 and 1, got {scales!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_component(
            "kinemae.pretrain.masking", Component(name="blocks", args={"scales": scales}), Masking
        )
