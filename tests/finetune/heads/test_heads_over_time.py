"""Heads of outputs over time: reach of their blocks, positions of the pyramid."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.finetune.heads.base import Features, build_head

SLICES = 16


def build(name, outputs=3, **args):
    torch.manual_seed(0)
    output = "sequence" if name == "temporal" else "pyramid"
    return build_head(Component(name=name, args=args), width=32, outputs=outputs, output=output)


def changed_slices(head):
    """Slices whose output changes with the tokens of slice 8."""
    tokens_BND = torch.randn(1, 2 * SLICES, 32)
    other_BND = tokens_BND.clone()
    other_BND[:, 16:18] = torch.randn(2, 32)
    with torch.no_grad():
        first, second = (head(Features(each, slices=SLICES), None)[0] for each in (tokens_BND, other_BND))
    return (first - second).abs().amax(dim=1).gt(1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"depth": 0}, [8]),
        ({"depth": 1}, [7, 8, 9]),
        ({"depth": 2}, list(range(5, 12))),
        ({"depth": 1, "kernel": 5}, list(range(6, 11))),
        ({"depth": 2, "block": "attention"}, list(range(5, 12))),
    ],
)
def test_the_reach_of_a_slice_grows_with_depth_and_kernel(args, expected):
    assert changed_slices(build("temporal", **args)) == expected


def test_attention_pooling_begins_as_the_mean():
    features = Features(torch.randn(2, 2 * SLICES, 32), slices=SLICES)
    mean, attention = (build("temporal", pool=pool, depth=0) for pool in ("mean", "attention"))
    attention.load_state_dict(mean.state_dict(), strict=False)

    assert torch.allclose(mean(features, None), attention(features, None), atol=1e-6)


def test_the_pyramid_has_positions_of_all_levels_in_order():
    head = build("pyramid", levels=3)

    with torch.no_grad():
        output_BPX = head(Features(torch.randn(2, 2 * 6, 32), slices=6), None)

    assert output_BPX.shape == (2, 6 + 3 + 2, 3 + 4)
    centre_P, size_P = output_BPX[0, :, -2], output_BPX[0, :, -1]
    assert (6 * size_P).tolist() == pytest.approx([1] * 6 + [2] * 3 + [4] * 2)
    assert (6 * centre_P).tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 1, 3, 5, 2, 6])
    assert (output_BPX[..., -4:-2] > 0).all()
    assert output_BPX[..., :3].sigmoid().mean() == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("temporal", {"pool": "max"}, "head.args.pool must be mean or attention"),
        ("temporal", {"norm": "batch"}, "head.args.norm must be layer or standardize"),
        ("temporal", {"block": "lstm"}, "head.args.block must be convolution or attention"),
        ("temporal", {"kernel": 4}, "head.args.kernel must be an odd number of at least 3, got 4"),
        ("temporal", {"depth": -1}, "head.args.depth must be 0 or more"),
        ("temporal", {"dropout": 1.0}, "head.args.dropout must lie in"),
        ("temporal", {"hidden_width": 0}, "head.args.hidden_width must be null or above 0"),
        ("pyramid", {"levels": 0}, "head.args.levels must be at least 1"),
        ("pyramid", {"block": "attention", "hidden_width": 40}, "must be a multiple of 32 for attention"),
    ],
)
def test_invalid_arguments_are_errors(name, args, message):
    with pytest.raises(ValueError, match=message):
        build(name, **args)
