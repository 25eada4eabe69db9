"""Attention kinds: each relation against a loop over coordinates, each fast way against the dense one."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinemae.data_tools.components import Component, component_names
from kinemae.pretrain.model import attention_backends
from kinemae.pretrain.model.attention.base import Looks, Tokens, build_attention
from kinemae.pretrain.model.token_positions import REGISTER, Places
from kinemae.pretrain.model.tokens import TokenGrid
from tests.token_places import CPU, GRIDS, LAYOUTS, grids, layouts, places_of

FOLDER = "kinemae.pretrain.model.attention"
KINDS = [Component(name=name) for name in component_names(FOLDER)] + [
    Component(name="windowed", args={"window": [2, 2, 3]}),
    Component(name="windowed", args={"window": [3, 2, 1], "shifted": False}),
    Component(name="sparse", args={"window": [1, 1, 1], "stride": 2}),
    Component(name="sparse", args={"window": [1, 3, 1], "top_k": 2}),
]
kinds = pytest.mark.parametrize("part", KINDS, ids=lambda part: f"{part.name}{list(part.args.values())}")


def relations_of(part):
    kind = build_attention(part)
    return list(dict.fromkeys(kind.relations(0) + kind.relations(1)))


def random_heads(places, clips=3, heads=2, width=16, device=CPU):
    chance = torch.Generator().manual_seed(0)
    clips = 1 if places.lengths else clips
    shape = (clips, heads, places.indices(device).shape[1], width)
    return [torch.randn(shape, generator=chance).to(device).requires_grad_() for _ in range(3)]


def on(device, places):
    return replace(places, index_BN=None if places.index_BN is None else places.index_BN.to(device))


def with_gradients(look, heads):
    seen = look(*heads)
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
    """What every kind promises; a new file in the folder is tested without a line here."""

    def test_every_token_sees_itself_and_registers_see_all_of_their_clip_alone(self, part, grid, layout):
        places = places_of(layout, grid)
        index_BN, clip_1N = places.indices(CPU), places.clips(CPU)
        for relation in relations_of(part):
            allowed_BNN = relation.allowed(places, CPU)
            assert allowed_BNN.shape == (*index_BN.shape, index_BN.shape[1])
            assert allowed_BNN.diagonal(dim1=1, dim2=2).all()
            is_register_BN = index_BN == REGISTER
            same = True if clip_1N is None else clip_1N[:, :, None] == clip_1N[:, None, :]
            assert (allowed_BNN & same).equal(allowed_BNN)
            free_BNN = (is_register_BN[:, :, None] | is_register_BN[:, None, :]) & same
            assert (allowed_BNN | free_BNN).equal(allowed_BNN)

    def test_looking_equals_the_dense_reference_and_so_do_its_gradients(self, part, grid, layout):
        places = places_of(layout, grid)
        heads = random_heads(places)
        for relation in relations_of(part):
            allowed_BNN = relation.allowed(places, CPU)
            found = with_gradients(relation.look(places, CPU), heads)
            expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
            again = with_gradients(relation.look(places, CPU), heads)
            assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))

    def test_it_takes_bfloat16(self, part, grid, layout):
        places = places_of(layout, grid)
        heads = [x.detach().bfloat16() for x in random_heads(places)]
        for relation in relations_of(part):
            seen = relation.look(places, CPU)(*heads)
            exact = plain(relation.allowed(places, CPU), *(x.float() for x in heads))
            assert seen.dtype == torch.bfloat16
            torch.testing.assert_close(seen.float(), exact, atol=0.05, rtol=0.05)


@kinds
def test_every_block_has_equally_many_attentions_and_equal_relations_are_looked_up_once(part):
    kind = build_attention(part)
    assert len({len(kind.relations(block)) for block in range(4)}) == 1
    assert kind.relations(0) == kind.relations(2) and kind.relations(1) == kind.relations(3)
    looks = Looks(places_of("subset", GRIDS[0]), CPU)
    assert looks[kind.relations(0)[0]] is looks[build_attention(part).relations(2)[0]]


@kinds
@layouts
class TestWaysOfLongRows:
    """What `look` takes for rows too long for these tests; of several chunks or blocks each."""

    GRID = TokenGrid(6, 5, 7)

    def test_chunks_equal_the_dense_reference_and_so_do_their_gradients(self, part, layout):
        places = places_of(layout, self.GRID)
        heads = random_heads(places, width=8)
        for relation in relations_of(part):
            allowed_BNN = relation.allowed(places, CPU)
            found = with_gradients(relation.look_in_chunks(Tokens.at(places, CPU)), heads)
            expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)

    @pytest.mark.filterwarnings("ignore:flex_attention called without")
    @torch.no_grad()  # FlexAttention has no gradients on the CPU
    @pytest.mark.slow
    def test_block_masks_equal_the_dense_reference(self, part, layout):
        places = places_of(layout, self.GRID)
        heads = random_heads(places)
        for relation in relations_of(part):
            expected = plain(relation.allowed(places, CPU), *heads)
            seen = relation.look_blockwise(Tokens.at(places, CPU))(*heads)
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)

    def test_chunks_of_queries_equal_the_dense_reference_and_so_do_their_gradients(
        self, part, layout, monkeypatch
    ):
        monkeypatch.setattr(attention_backends, "QUERIES_AT_ONCE", 50)
        places = places_of(layout, self.GRID)
        heads, tokens = random_heads(places, width=8), Tokens.at(places, CPU)
        for relation in relations_of(part):
            allowed_BNN = relation.allowed(places, CPU)
            look = attention_backends.query_by_query(relation.rule(tokens), *tokens.shape, CPU)
            found = with_gradients(look, heads)
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
def test_where_flex_attention_is_not_compiled_no_table_of_all_scores_is_made():
    """Simulate PyTorch's limit of compiled variants."""
    tokens, heads = 1024, [torch.randn(1, 4, 1024, 16, requires_grad=True) for _ in range(3)]
    look = attention_backends.query_by_query(lambda row, query, key: query // 4 == key // 4, 1, tokens, CPU)
    flex = attention_backends._flex(is_compiled=True)
    with Largest() as largest, torch.compiler.set_stance("force_eager"):
        with pytest.warns(UserWarning, match="FlexAttention is not compiled here"):
            seen = flex(*heads, None, look)
        seen.sum().backward()
    assert largest.values < 4 * tokens * tokens / 2
    allowed_1NN = attention_backends.table(lambda row, query, key: query // 4 == key // 4, 1, tokens, CPU)
    torch.testing.assert_close(seen, plain(allowed_1NN, *heads), atol=2e-5, rtol=2e-5)


@kinds
def test_a_long_row_is_seen_as_the_dense_reference_sees_it(part):
    places = Places(grid=TokenGrid(8, 8, 9))
    heads = random_heads(places, clips=2, width=8)
    for relation in relations_of(part):
        allowed_BNN = relation.allowed(places, CPU)
        found = with_gradients(relation.look(places, CPU), heads)
        expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.gpu
@kinds
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
def test_on_a_gpu_long_rows_and_their_gradients_equal_the_dense_reference(part, dtype, tolerance):
    torch.compiler.reset()  # it compiles for a few relations only, then goes on uncompiled
    device = torch.device("cuda")
    for layout, relation in itertools.product(LAYOUTS, relations_of(part)):
        places = on(device, places_of(layout, TokenGrid(8, 12, 14)))
        heads = random_heads(places, width=32, device=device)
        allowed_BNN = relation.allowed(places, device)
        found = with_gradients(relation.look(places, device), [x.to(dtype) for x in heads])
        expected = with_gradients(lambda *h, allowed=allowed_BNN: plain(allowed, *h), heads)
        found = [x.float() for x in found]
        torch.testing.assert_close(found, list(expected), atol=tolerance, rtol=tolerance)


def test_what_is_kept_of_an_evaluation_can_be_trained_with():
    (relation,) = build_attention(Component(name="sparse", args={"window": [3, 1, 1]})).relations(0)
    places = Places(grid=TokenGrid(8, 8, 9))
    heads = random_heads(places, clips=1, width=8)
    with torch.inference_mode():
        relation.look(places, CPU)(*heads)
    assert with_gradients(relation.look(places, CPU), heads)[1].isfinite().all()
