"""The contract of position embeddings; a new file in the folder is tested automatically."""

import pytest
import torch

from kinemae.data_tools.components import Component, component_names
from kinemae.pretrain.model.decoder import DECODERS
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.positions.base import axis, build_positions
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.token_positions import REGISTER
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.optimizer import parameter_groups

NAMES = component_names("kinemae.pretrain.model.positions")
GRID, ODD, LONGER = TokenGrid(3, 4, 4), TokenGrid(1, 3, 5), TokenGrid(6, 4, 4)
WIDTH, HEADS = 32, 4


def built(name, grid=GRID, reference=None, **args):
    torch.manual_seed(0)
    part = Component(name=name, args=args)
    return build_positions(part, width=WIDTH, heads=HEADS, grid=grid, reference=reference or grid)


def shape(name, registers=0):
    return EncoderShape(
        width=WIDTH,
        depth=2,
        heads=HEADS,
        mlp_width=64,
        patch=(2, 4, 4),
        positions=Component(name=name),
        registers=registers,
    )


def encoder(name, grid=GRID, *, registers=0, reference=None):
    torch.manual_seed(1)
    return Encoder(shape(name, registers), grid, reference=reference)


def outputs(positions):
    """Added vectors of all tokens, and an equal query rotated at all positions."""
    added = positions(None)
    index_1N = torch.arange(positions.grid.tokens)[None]
    rotate = positions.rotation(index_1N)
    torch.manual_seed(2)
    query_11NF = torch.randn(1, 1, 1, WIDTH // HEADS).expand(-1, -1, positions.grid.tokens, -1)
    parts = [] if added is None else [added]
    return torch.cat(parts if rotate is None else [*parts, rotate(query_11NF)[0, 0]], dim=1).detach()


@pytest.mark.parametrize("grid", [GRID, ODD], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_of_a_grid_have_different_embeddings(name, grid):
    output_ND = outputs(built(name, grid))

    assert output_ND.shape[0] == grid.tokens and output_ND.dtype == torch.float32
    apart_NN = torch.cdist(output_ND, output_ND) + torch.eye(grid.tokens)
    assert apart_NN.min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_does_not_depend_on_other_tokens(name):
    positions, index_BN = built(name), torch.tensor([[5, 0, 47], [9, 46, 9]])
    added = positions(index_BN)
    if added is not None:
        assert torch.equal(added, positions(None)[index_BN])
    rotate = positions.rotation(index_BN)
    if rotate is not None:
        query_B1NF = torch.randn(2, 2, 3, WIDTH // HEADS)
        single = positions.rotation(index_BN[1:, 1:2])
        assert torch.equal(rotate(query_B1NF)[1:, :, 1:2], single(query_B1NF[1:, :, 1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_function_of_the_seed(name):
    assert torch.equal(outputs(built(name)), outputs(built(name)))


@pytest.mark.parametrize("name", NAMES)
def test_saved_tables_have_the_size_of_the_reference(name):
    own, resampled = built(name), built(name, LONGER, GRID)

    assert own.state_dict().keys() == {parameter for parameter, _ in own.named_parameters()}
    resampled.load_state_dict(own.state_dict())
    assert outputs(resampled).shape[0] == LONGER.tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_device_builds_the_same_and_takes_no_memory(name):
    for reference in (GRID, LONGER):
        with torch.device("meta"):
            counted = built(name, GRID, reference)
        own = {key: value.shape for key, value in built(name, GRID, reference).named_parameters()}
        assert {key: value.shape for key, value in counted.named_parameters()} == own
        assert all(value.is_meta for value in [*counted.parameters(), *counted.buffers()])


@pytest.mark.parametrize("name", NAMES)
def test_at_the_reference_nothing_is_resampled(name):
    assert torch.equal(outputs(built(name)), outputs(built(name, GRID, TokenGrid(3, 4, 4))))


@pytest.mark.parametrize("name", ["sine", "learned", "flat_sine"])
def test_of_a_doubled_grid_each_token_lies_between_its_neighbours_in_the_reference(name):
    """Slices of a doubled grid have the coordinates -1/4, 1/4, 3/4, ..., between those of the reference."""
    reference, doubled = TokenGrid(5, 2, 2), TokenGrid(10, 2, 2)
    one_tD = outputs(built(name, reference))[::4]
    two_tD = outputs(built(name, doubled, reference))[::4]
    # Low frequencies only: a high one has maxima between the slices.
    slow = (one_tD[1:] - one_tD[:-1]).abs().amax(dim=0) < 0.5
    assert slow.sum() >= 4
    for i in range(1, 9):
        low, high = one_tD[(i - 1) // 2], one_tD[(i + 1) // 2]
        inside = two_tD[i] - torch.minimum(low, high) > -0.04
        assert (inside & (two_tD[i] - torch.maximum(low, high) < 0.04))[slow].all()
        nearer = (two_tD[i] - one_tD[i // 2]).norm() < (two_tD[i] - one_tD[(i // 2 + 2) % 5]).norm()
        assert nearer


def test_coordinates_are_centres_of_the_covered_intervals():
    assert axis(4, 2).tolist() == [-0.25, 0.25, 0.75, 1.25]
    assert axis(2, 4).tolist() == [0.5, 2.5]
    assert axis(3, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_depends_on_positions_and_not_on_the_order_of_tokens(name, registers):
    model = encoder(name, registers=registers)
    patches_BKP = torch.randn(2, 5, 96)
    visible_BK = torch.tensor([[3, 8, 21, 30, 47], [0, 1, 16, 17, 40]])
    order = torch.tensor([4, 0, 3, 1, 2])

    out_BKD = model(patches_BKP, visible_BK)

    again_BKD = model(patches_BKP[:, order], visible_BK[:, order])
    assert torch.allclose(again_BKD, out_BKD[:, order], atol=1e-5)
    assert (model(patches_BKP, visible_BK[:, order]) - out_BKD).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_no_index_equals_the_index_of_all_tokens(name):
    model, patches_BNP = encoder(name), torch.randn(2, GRID.tokens, 96)
    index_BN = torch.arange(GRID.tokens).expand(2, -1)
    assert torch.allclose(model(patches_BNP, None), model(patches_BNP, index_BN), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_predicts_by_position(kind, name):
    torch.manual_seed(3)
    decoder_shape = DecoderShape(width=WIDTH, depth=2, heads=HEADS, positions=Component(name=name))
    decoder = DECODERS[kind](decoder_shape, GRID, memory_width=WIDTH, values=7)
    memory_BKD, visible_BK = torch.randn(1, 3, WIDTH), torch.tensor([[0, 20, 41]])
    target_BM = torch.tensor([[5, 6, 30, 22]])

    said_BMP = decoder(memory_BKD, visible_BK, target_BM)

    flipped_BMP = decoder(memory_BKD, visible_BK, target_BM.flip(1))
    assert torch.allclose(flipped_BMP.flip(1), said_BMP, atol=1e-5)
    assert torch.cdist(said_BMP[0], said_BMP[0]).add(torch.eye(4)).min() > 1e-4
    moved_BMP = decoder(memory_BKD, visible_BK.flip(1), target_BM)
    assert (moved_BMP - said_BMP).abs().max() > 1e-5


@pytest.mark.parametrize("grid", [GRID, LONGER], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_all_parameters(name, grid):
    model = encoder(name, grid, reference=GRID)
    visible_BK = torch.arange(grid.tokens)[None, ::2]
    model(torch.randn(1, visible_BK.shape[1], 96), visible_BK).square().sum().backward()
    for key, value in model.pos_embed.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_learned_positions_have_no_weight_decay(name):
    model = encoder(name)
    decayed = {id(p) for g in parameter_groups(model, 0.05) if g["weight_decay"] for p in g["params"]}
    assert id(model.patch_embed.weight) in decayed
    assert not decayed & {id(parameter) for parameter in model.pos_embed.parameters()}


@pytest.mark.parametrize("grid", [GRID, LONGER], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_features_are_close_to_float32(name, grid):
    model = encoder(name, grid, reference=GRID)
    patches_BNP = torch.randn(2, grid.tokens, 96)
    exact = model(patches_BNP, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(patches_BNP, None)
        added = model.pos_embed(None)
    assert (rounded - exact).abs().mean() < 0.02
    assert added is None or added.dtype == torch.float32
    if added is not None:
        assert torch.equal(added, model.pos_embed(None)), "autocast has rounded the positions"


@pytest.mark.parametrize("name", NAMES)
def test_registers_are_not_rotated(name):
    rotate = built(name).rotation(torch.tensor([[REGISTER, 47, REGISTER]]))
    if rotate is not None:
        query_BANF = torch.randn(1, HEADS, 3, WIDTH // HEADS)
        turned_BANF = rotate(query_BANF)
        assert torch.equal(turned_BANF[:, :, 0::2], query_BANF[:, :, 0::2])
        assert not torch.equal(turned_BANF[:, :, 1], query_BANF[:, :, 1])


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_model_are_no_config_arguments(name):
    with pytest.raises(ValueError, match=r"model.positions.args.width comes from the model: remove it"):
        built(name, **{"width": 8})
