import pytest
import torch

from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.frame import FrameMasking
from kinemae.pretrain.masking.future import FutureMasking
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.token_selection import TokenSelection

GRID = TokenGrid(16, 3, 4)


def split(masking, grid=GRID, sample=0):
    return masking.split(grid, generator(0, purpose="masking", sample=sample))


def slices(index_K, grid=GRID):
    """The slices with listed tokens; each must have all its positions."""
    whole = index_K.sort().values.view(-1, grid.per_slice)
    assert torch.equal(whole % grid.per_slice, torch.arange(grid.per_slice).expand(len(whole), -1))
    return (whole[:, 0] // grid.per_slice).tolist()


@pytest.mark.parametrize(
    ("context", "gap", "first", "last"),
    [
        (0.375, 0.25, 6, 10),
        (6, 4, 6, 10),
        (1, 0, 1, 1),
        (0.99, 0, 15, 15),
        (3.0, 0.5, 3, 11),
        (0.1, 14, 1, 15),
    ],
)
def test_the_context_is_visible_and_the_slices_after_the_gap_are_hidden(context, gap, first, last):
    masking = FutureMasking(context=context, gap=gap)
    visible_K, hidden_M = split(masking)
    assert slices(visible_K) == list(range(first)) and slices(hidden_M) == list(range(last, 16))
    assert masking.counts(GRID) == (12 * first, 12 * (16 - last))


def test_without_a_gap_it_is_a_causal_frame_mask():
    visible_K, hidden_M = split(FutureMasking(context=0.25, gap=0))
    causal_K, later_M = split(FrameMasking(ratio=0.75, order="causal"))
    assert torch.equal(visible_K, causal_K)
    assert torch.equal(hidden_M.sort().values, later_M.sort().values)


def test_the_ratio_hides_random_tokens_of_the_context_that_are_not_predicted():
    masking = FutureMasking(context=6, gap=4, ratio=0.9)
    often = torch.zeros(GRID.tokens)
    for sample in range(600):
        visible_K, hidden_M = split(masking, sample=sample)
        assert len(visible_K) == 72 - 64 == masking.counts(GRID)[0] and slices(hidden_M) == list(
            range(10, 16)
        )
        often[visible_K] += 1 / 600
    assert not often[72:].any()
    assert ((often[:72] - 8 / 72).abs() < 5 * (8 / 72 * 64 / 72 / 600) ** 0.5).all()


@pytest.mark.parametrize("predict", ["random", "running_cell"])
def test_a_part_of_the_future_may_be_predicted(predict):
    selection = TokenSelection(
        masking=FutureMasking(), grid=GRID, patch=(1, 2, 2), seed=0, predict_ratio=0.25, predict=predict
    )
    tokens = [selection(None, clip)["target"] for clip in range(3)]
    assert {len(target_M) for target_M in tokens} == {18} == {selection.counts()[1]}
    assert min(int(target_M.min()) for target_M in tokens) >= 10 * GRID.per_slice
    assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize(
    ("args", "grid"),
    [({}, TokenGrid(2, 3, 4)), ({"context": 10, "gap": 6}, GRID), ({"context": 0.5, "gap": 0.5}, GRID)],
)
def test_a_clip_without_context_or_without_future_is_refused(args, grid):
    message = r"masking.args: expected at least 1 slice of context and 1 slice after the gap, got context="
    with pytest.raises(
        ValueError, match=message + r".* on a grid of \d+ slices; fix: change context, gap or"
    ):
        FutureMasking(**args).counts(grid)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"context": 0},
            r"masking.args.context must be a fraction above 0 and below 1, or a whole .*, got 0",
        ),
        ({"context": 1.5}, "masking.args.context must be a fraction above 0"),
        ({"context": float("nan")}, "masking.args.context must be a fraction above 0"),
        (
            {"gap": -1},
            "masking.args.gap must be a fraction of 0 or above and below 1, or a whole number of slices",
        ),
        ({"gap": float("inf")}, "masking.args.gap must be a fraction of 0"),
        ({"ratio": 1.0}, r"masking.args.ratio must lie in \[0, 1\), got 1.0"),
    ],
)
def test_a_wrong_argument_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        FutureMasking(**args)
