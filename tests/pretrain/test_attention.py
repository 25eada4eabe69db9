"""Attention kinds: each pattern against a loop over coordinates, each backend against the dense one."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinemae.data_tools.components import Component, component_names
from kinemae.pretrain.model import attention_backends
from kinemae.pretrain.model.attention.base import AttentionCache, AttentionPattern, Tokens, build_attention
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid
from tests.token_positions import CPU, GRIDS, LAYOUTS, grids, layouts, positions_of

FOLDER = "kinemae.pretrain.model.attention"
KINDS = [Component(name=name) for name in component_names(FOLDER)] + [
    Component(name="windowed", args={"window": [2, 2, 3]}),
    Component(name="windowed", args={"window": [3, 2, 1], "shifted": False}),
    Component(name="sparse", args={"window": [1, 1, 1], "stride": 2}),
    Component(name="sparse", args={"window": [1, 3, 1], "top_k": 2}),
]
kinds = pytest.mark.parametrize("part", KINDS, ids=lambda part: f"{part.name}{list(part.args.values())}")


def patterns_of(part):
    kind = build_attention(part)
    return list(dict.fromkeys(kind.patterns(0) + kind.patterns(1)))


def random_heads(positions, clips=3, heads=2, width=16, device=CPU):
    chance = torch.Generator().manual_seed(0)
    clips = 1 if positions.lengths else clips
    shape = (clips, heads, positions.indices(device).shape[1], width)
    return [torch.randn(shape, generator=chance).to(device).requires_grad_() for _ in range(3)]


def on(device, positions):
    return replace(positions, index_BN=None if positions.index_BN is None else positions.index_BN.to(device))


def with_gradients(attention_fn, heads):
    seen = attention_fn(*heads)
    weights = torch.arange(seen.numel(), device=seen.device).view(seen.shape).sin()
    return seen, *torch.autograd.grad((seen * weights).sum(), heads)


def plain(allowed_BNN, query, key, value):
    scores = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).masked_fill(
        ~allowed_BNN[:, None], -torch.inf
    )
    return scores.softmax(dim=3) @ value


@kinds
@grids
@layouts
class TestContract:
    """The contract of every kind; a new file in the folder is tested automatically."""

    def test_every_token_attends_to_itself_and_registers_to_their_whole_clip_only(self, part, grid, layout):
        positions = positions_of(layout, grid)
        index_BN, clip_1N = positions.indices(CPU), positions.clips(CPU)
        for pattern in patterns_of(part):
            allowed_BNN = pattern.allowed(Tokens.at(positions, CPU))
            assert allowed_BNN.shape == (*index_BN.shape, index_BN.shape[1])
            assert allowed_BNN.diagonal(dim1=1, dim2=2).all()
            is_register_BN = index_BN == REGISTER
            same = True if clip_1N is None else clip_1N[:, :, None] == clip_1N[:, None, :]
            assert (allowed_BNN & same).equal(allowed_BNN)
            free_BNN = (is_register_BN[:, :, None] | is_register_BN[:, None, :]) & same
            assert (allowed_BNN | free_BNN).equal(allowed_BNN)

    def test_outputs_and_gradients_equal_the_dense_reference(self, part, grid, layout):
        positions = positions_of(layout, grid)
        heads = random_heads(positions)
        for pattern in patterns_of(part):
            allowed_BNN = pattern.allowed(Tokens.at(positions, CPU))
            found = with_gradients(pattern.attention_fn(positions, CPU), heads)
            expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
            again = with_gradients(pattern.attention_fn(positions, CPU), heads)
            assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))

    def test_bfloat16_inputs_are_accepted(self, part, grid, layout):
        positions = positions_of(layout, grid)
        heads = [x.detach().bfloat16() for x in random_heads(positions)]
        for pattern in patterns_of(part):
            seen = pattern.attention_fn(positions, CPU)(*heads)
            exact = plain(pattern.allowed(Tokens.at(positions, CPU)), *(x.float() for x in heads))
            assert seen.dtype == torch.bfloat16
            torch.testing.assert_close(seen.float(), exact, atol=0.05, rtol=0.05)


@kinds
def test_every_block_has_as_many_attentions_and_equal_patterns_share_a_function(part):
    kind = build_attention(part)
    assert len({len(kind.patterns(block)) for block in range(4)}) == 1
    assert kind.patterns(0) == kind.patterns(2) and kind.patterns(1) == kind.patterns(3)
    attention_fns = AttentionCache(positions_of("subset", GRIDS[0]), CPU)
    assert attention_fns[kind.patterns(0)[0]] is attention_fns[build_attention(part).patterns(2)[0]]


@kinds
@layouts
class TestBackendsOfLongRows:
    """Backends for rows that are too long for the other tests, with several chunks or blocks each."""

    GRID = TokenGrid(6, 5, 7)

    def test_chunks_and_their_gradients_equal_the_dense_reference(self, part, layout):
        positions = positions_of(layout, self.GRID)
        heads = random_heads(positions, width=8)
        for pattern in patterns_of(part):
            allowed_BNN = pattern.allowed(Tokens.at(positions, CPU))
            tokens = Tokens.at(positions, CPU)
            chunks = attention_backends.grouped(
                AttentionPattern.batches(pattern, tokens), tokens.shape[0], CPU
            )
            found = with_gradients(chunks, heads)
            expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)

    @pytest.mark.filterwarnings("ignore:flex_attention called without")
    @torch.no_grad()  # FlexAttention has no gradients on the CPU
    @pytest.mark.slow
    def test_block_masks_equal_the_dense_reference(self, part, layout):
        positions = positions_of(layout, self.GRID)
        heads = random_heads(positions)
        for pattern in patterns_of(part):
            expected = plain(pattern.allowed(Tokens.at(positions, CPU)), *heads)
            seen = pattern.block_sparse(Tokens.at(positions, CPU))(*heads)
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)

    def test_chunks_of_queries_equal_the_dense_reference_and_so_do_their_gradients(
        self, part, layout, monkeypatch
    ):
        monkeypatch.setattr(attention_backends, "QUERY_CHUNK", 50)
        positions = positions_of(layout, self.GRID)
        heads, tokens = random_heads(positions, width=8), Tokens.at(positions, CPU)
        for pattern in patterns_of(part):
            allowed_BNN = pattern.allowed(Tokens.at(positions, CPU))
            attention_fn = attention_backends.chunked_queries(pattern.mask_mod(tokens), *tokens.shape, CPU)
            found = with_gradients(attention_fn, heads)
            expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in values."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            self.values = max(self.values, tensor.numel())
        return made


@pytest.mark.slow
def test_uncompiled_flex_attention_does_not_materialise_all_scores():
    """Simulate PyTorch's limit of compiled variants."""
    tokens, heads = 1024, [torch.randn(1, 4, 1024, 16, requires_grad=True) for _ in range(3)]
    attention_fn = attention_backends.chunked_queries(
        lambda row, query, key: query // 4 == key // 4, 1, tokens, CPU
    )
    flex = attention_backends._flex(is_compiled=True)
    with Largest() as largest, torch.compiler.set_stance("force_eager"):
        with pytest.warns(UserWarning, match="FlexAttention is not compiled here"):
            seen = flex(*heads, None, attention_fn)
        seen.sum().backward()
    assert largest.values < 4 * tokens * tokens / 2
    allowed_1NN = attention_backends.mask_table(
        lambda row, query, key: query // 4 == key // 4, 1, tokens, CPU
    )
    torch.testing.assert_close(seen, plain(allowed_1NN, *heads), atol=2e-5, rtol=2e-5)


@kinds
def test_a_long_row_equals_the_dense_reference(part):
    positions = TokenPositions(grid=TokenGrid(8, 8, 9))
    heads = random_heads(positions, clips=2, width=8)
    for pattern in patterns_of(part):
        allowed_BNN = pattern.allowed(Tokens.at(positions, CPU))
        found = with_gradients(pattern.attention_fn(positions, CPU), heads)
        expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.gpu
@kinds
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
def test_on_a_gpu_long_rows_and_their_gradients_equal_the_dense_reference(part, dtype, tolerance):
    torch.compiler.reset()  # PyTorch compiles a limited number of variants
    device = torch.device("cuda")
    for layout, pattern in itertools.product(LAYOUTS, patterns_of(part)):
        positions = on(device, positions_of(layout, TokenGrid(8, 12, 14)))
        heads = random_heads(positions, width=32, device=device)
        allowed_BNN = pattern.allowed(Tokens.at(positions, device))
        found = with_gradients(pattern.attention_fn(positions, device), [x.to(dtype) for x in heads])
        expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
        found = [x.float() for x in found]
        torch.testing.assert_close(found, list(expected), atol=tolerance, rtol=tolerance)


def test_tensors_cached_in_inference_mode_can_be_used_in_training():
    (pattern,) = build_attention(Component(name="sparse", args={"window": [3, 1, 1]})).patterns(0)
    positions = TokenPositions(grid=TokenGrid(8, 8, 9))
    heads = random_heads(positions, clips=1, width=8)
    with torch.inference_mode():
        pattern.attention_fn(positions, CPU)(*heads)
    assert with_gradients(pattern.attention_fn(positions, CPU), heads)[1].isfinite().all()
