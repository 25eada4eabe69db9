"""Attention patterns against a loop over pairs of coordinates; errors of invalid arguments."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.pretrain.model.attention.base import Tokens, build_attention
from kinemae.pretrain.model.attention_backends import group_batches
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid
from tests.token_positions import CPU, grids, layouts, positions_of


def brute_force(sees, positions):
    """A loop over pairs, allowed_BNN; `sees` gets two (slice, row, column), their clip's tokens, the grid."""
    grid, found = positions.grid, []
    rows = positions.indices(CPU).tolist()
    clips = [[0] * len(rows[0])] * len(rows) if positions.lengths is None else positions.clips(CPU).tolist()
    at = {
        index: (index // (grid.h * grid.w), index // grid.w % grid.h, index % grid.w)
        for index in range(grid.tokens)
    }
    for row, clip in zip(rows, clips, strict=True):
        for query, own in zip(row, clip, strict=True):
            there = [
                at[index]
                for index, other in zip(row, clip, strict=True)
                if other == own and index != REGISTER
            ]
            for key, other in zip(row, clip, strict=True):
                free = REGISTER in (query, key)
                found.append(own == other and (free or sees(at[query], at[key], there, grid)))
    return torch.tensor(found).view(len(rows), len(rows[0]), len(rows[0]))


def window_sees(window, is_shifted=False):
    def box(place, side, length):
        # The number of a window is the number of borders up to the position.
        first = side // 2 if is_shifted and side < length else 0
        return sum(border <= place for border in range(first, length, side) if border > 0)

    def sees(query, key, there, grid):
        axes = zip(query, key, window, (grid.t, grid.h, grid.w), strict=True)
        return all(box(q, side, length) == box(k, side, length) for q, k, side, length in axes)

    return sees


def sparse_sees(reach, stride=None, top_k=None):
    def sees(query, key, there, grid):
        if all(abs(q - k) <= most for q, k, most in zip(query, key, reach, strict=True)):
            return True
        if query[1:] != key[1:]:
            return False
        if stride:
            return abs(query[0] - key[0]) % stride == 0
        others = {token[0] for token in there if token[1:] == query[1:]} - {query[0]}
        nearest = sorted(others, key=lambda other: (abs(other - query[0]), other))
        return key[0] in nearest[:top_k]

    return sees


@grids
@layouts
@pytest.mark.parametrize(
    "part, block, attention, sees",
    [
        (Component(name="joint"), 0, 0, lambda query, key, there, grid: True),
        (Component(name="divided"), 0, 0, lambda query, key, there, grid: query[1:] == key[1:]),
        (Component(name="divided"), 1, 1, lambda query, key, there, grid: query[0] == key[0]),
        (Component(name="windowed", args={"window": [3, 2, 1]}), 0, 0, window_sees((3, 2, 1))),
        (Component(name="windowed", args={"window": [3, 2, 1]}), 1, 0, window_sees((3, 2, 1), True)),
        (Component(name="windowed", args={"window": [2, 3, 4]}), 3, 0, window_sees((2, 3, 4), True)),
        (
            Component(name="windowed", args={"window": [2, 3, 4], "shifted": False}),
            3,
            0,
            window_sees((2, 3, 4)),
        ),
        (Component(name="sparse"), 0, 0, sparse_sees((1, 1, 1), stride=1)),
        (Component(name="sparse", args={"window": [3, 1, 3], "stride": 3}), 1, 0, sparse_sees((1, 0, 1), 3)),
        (
            Component(name="sparse", args={"window": [1, 1, 1], "top_k": 1}),
            0,
            0,
            sparse_sees((0, 0, 0), top_k=1),
        ),
        (
            Component(name="sparse", args={"window": [1, 3, 5], "top_k": 2}),
            0,
            0,
            sparse_sees((0, 1, 2), top_k=2),
        ),
    ],
)
def test_a_pattern_equals_a_loop_over_coordinates(part, block, attention, sees, grid, layout):
    pattern = build_attention(part).patterns(block)[attention]
    for seed in range(3):
        positions = positions_of(layout, grid, seed)
        assert pattern.allowed(Tokens.at(positions, CPU)).equal(brute_force(sees, positions))


@pytest.mark.parametrize(
    "part, message",
    [
        (Component(name="windows"), "attention.name: no attention named 'windows'; did you mean 'windowed'"),
        (
            Component(name="windowed", args={"window": [2, 7]}),
            r"args.window must be three whole numbers .*got \[2, 7\]",
        ),
        (
            Component(name="windowed", args={"window": [2, 0, 7]}),
            r"args.window must be three .*got \[2, 0, 7\]",
        ),
        (Component(name="windowed", args={"window": 7}), "args.window must be three .*got 7"),
        (
            Component(name="sparse", args={"window": [3, 4, 3]}),
            r"args.window must hold odd numbers, got \[3, 4, 3\]",
        ),
        (
            Component(name="sparse", args={"top_k": 0}),
            "args.top_k must be null or a whole number of at least 1, got 0",
        ),
        (
            Component(name="sparse", args={"stride": True}),
            "args.stride must be null or a whole number .*got True",
        ),
        (
            Component(name="sparse", args={"stride": 2, "top_k": 2}),
            "args.top_k must be null if stride is set, got 2",
        ),
    ],
)
@pytest.mark.parametrize("key", ["attention", "decoder_attention"])
def test_an_invalid_config_names_the_key_and_the_fix(part, message, key):
    with pytest.raises(ValueError, match=rf"^model\.{key}\.{message.removeprefix('attention.')}"):
        ModelConfig(decoder="self", **{key: part})


def test_groups_compute_their_own_pairs_only():
    positions, chosen = positions_of("registers", TokenGrid(8, 6, 6)), ("divided", "windowed")
    for pattern in [each for name in chosen for each in build_attention(Component(name=name)).patterns(1)]:
        tokens = Tokens.at(positions, CPU)
        batches = group_batches(
            pattern.sort_key(tokens), tokens.clip_BN, tokens.is_register_BN, clips=tokens.clips
        )
        assert pairs_of(batches) == pattern.allowed(Tokens.at(positions, CPU)).sum()


@pytest.mark.parametrize("args", [{}, {"stride": 2}, {"top_k": 2}])
def test_chunks_of_a_long_clip_cost_a_fraction_of_its_pairs(args):
    positions = TokenPositions(grid=TokenGrid(8, 14, 14))
    (pattern,) = build_attention(Component(name="sparse", args=args)).patterns(0)
    assert pairs_of(pattern.batches(Tokens.at(positions, CPU))) < 0.15 * positions.grid.tokens**2


def pairs_of(batches):
    return sum(batch.query_UM.numel() * batch.key_UN.shape[1] for batch in batches)
