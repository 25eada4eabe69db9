"""The contract of every head in finetune/heads, and tests of each head."""

import pytest
import torch
from torch.nn import functional

from kinemae.data_tools.components import Component, component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, build_head

HEADS = component_names("kinemae.finetune.heads")
PARTS = [
    *(Component(name=name) for name in HEADS),
    Component(name="linear", args={"pool": "statistics", "norm": "standardize", "init_std": 0.1}),
    Component(name="linear", args={"pool": "slices", "slices": 2, "norm": "standardize", "init_std": 0.1}),
    Component(name="mlp", args={"pool": "statistics", "hidden_layers": 2, "hidden_width": 24}),
    Component(name="mlp", args={"dropout": 0.5, "norm": "standardize"}),
    Component(name="attentive", args={"norm": "standardize"}),
    Component(name="attentive", args={"depth": 3, "queries": 4, "query_depth": 1, "head_width": 16}),
    Component(name="attentive", args={"depth": 2, "queries": "per_column", "norm": "standardize"}),
    Component(name="multilayer", args={"layers": [0, -1], "norm": "standardize"}),
    Component(name="temporal", args={"block": "attention", "pool": "attention", "norm": "standardize"}),
    Component(name="temporal", args={"depth": 0, "dropout": 0.5}),
    Component(
        name="pyramid", args={"levels": 2, "block": "attention", "hidden_width": 64, "pool": "attention"}
    ),
]
SLICES = 4


def clip_random(clips):
    return ClipRandom(3, torch.arange(clips))


def build(part, outputs=5, width=32, groups=None):
    """Build a head of any kind."""
    for output in ("clip", "sequence", "pyramid"):
        try:
            return build_head(part, width=width, outputs=outputs, output=output, groups=groups)
        except ValueError as error:
            if "with one output per" not in str(error):
                raise
    raise AssertionError(f"{part.name} has another kind of output")


def features_of(head, tokens_BND, weight_BN=None):
    """Tokens of 4 slices, also as those of the head's layers."""
    layers = tuple(tokens_BND * (1 + number) for number, _ in enumerate(head.layers))
    return Features(tokens_BND, weight_BN, slices=0 if weight_BN is not None else SLICES, layers=layers)


def tensors(output):
    """The tensors of an output: one, or several of a localization head."""
    return (
        [output] if isinstance(output, torch.Tensor) else [each for part in output for each in tensors(part)]
    )


def test_the_folder_contains_the_heads():
    assert {"linear", "mlp", "attentive", "multilayer"} <= set(HEADS)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("outputs", [1, 7])
def test_a_head_gives_every_output_of_every_clip(part, outputs):
    head = build(part, outputs)

    output = head(features_of(head, torch.randn(3, 20, 32)), clip_random(3))

    assert all(len(each) == 3 and torch.isfinite(each).all() for each in tensors(output))
    expected = {"clip": (3, outputs), "sequence": (3, SLICES, outputs)}
    assert head.output == "pyramid" or output.shape == expected[head.output]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_parameter_of_a_head_learns(part):
    torch.manual_seed(0)
    head = build(part, groups=(2, 3))
    # A second step: a head with zero initial weights passes no gradient to the encoder in the first.
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = head(features_of(head, torch.randn(8, 20, 32)), None)
        sum((each * torch.randn_like(each)).sum() for each in tensors(output)).backward()
        optimizer.step()

    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_clips_output_does_not_depend_on_its_neighbours(part):
    head = build(part)
    tokens_BND = torch.randn(4, 20, 32)

    together = tensors(head(features_of(head, tokens_BND), clip_random(4)))

    alone = tensors(head(features_of(head, tokens_BND[2:3]), ClipRandom(3, torch.tensor([2]))))
    for of_all, of_one in zip(together, alone, strict=True):
        assert torch.allclose(of_all[2:3], of_one, atol=1e-6)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_evaluation_is_deterministic(part):
    head = build(part)
    tokens_BND = torch.randn(2, 20, 32)

    first, second = (tensors(head(features_of(head, tokens_BND), None)) for _ in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_head_builds_on_the_meta_device(part):
    with torch.device("meta"):
        head = build(part, width=1408, outputs=400)

    assert all(parameter.is_meta for parameter in head.parameters())


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_padding_does_not_affect_the_scores(part):
    torch.manual_seed(0)
    head = build(part)
    if head.output != "clip" or head.needs_slices:
        pytest.skip("pruning removes the slices that this head needs")
    lengths = (20, 7, 1)
    clips = [torch.randn(1, length, 32) for length in lengths]
    padded_BND, weight_BN = 9 * torch.randn(3, 20, 32), torch.zeros(3, 20)
    for row, clip_1ND in enumerate(clips):
        padded_BND[row, : lengths[row]], weight_BN[row, : lengths[row]] = clip_1ND, 1
    head.calibrate(features_of(head, padded_BND, weight_BN))

    padded_BY = head(features_of(head, padded_BND, weight_BN), None)

    alone_BY = torch.cat([head(features_of(head, clip_1ND), None) for clip_1ND in clips])
    assert torch.allclose(padded_BY, alone_BY, atol=1e-5)
    unpadded_BY = head(features_of(head, padded_BND), None)
    assert torch.allclose(
        head(features_of(head, padded_BND, torch.ones(3, 20)), None), unpadded_BY, atol=1e-5
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"pool": "slices"}, "head.args.slices must be at least 1 with pool=slices"),
        ({"slices": 2}, "head.args.slices must be .* 0 without it, got 2"),
        ({"pool": "slices", "slices": 3}, "head.args.slices must divide the 4 time slices of a clip, got 3"),
    ],
)
def test_a_wrong_number_of_slices_is_named(args, message):
    with pytest.raises(ValueError, match=message):
        head = build(Component(name="linear", args=args))
        head(features_of(head, torch.randn(2, 20, 32)), None)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_head_for_another_kind_of_output_is_rejected(part):
    other = "sequence" if build(part).output == "clip" else "clip"

    with pytest.raises(ValueError, match=f"head.name: expected a head with one output per {other}"):
        build_head(part, width=32, outputs=3, output=other)


def test_concatenated_features_keep_padding_slices_and_layers():
    first = Features(torch.ones(2, 3, 4), slices=1, layers=(torch.ones(2, 3, 4),))
    second = Features(torch.zeros(2, 5, 4), torch.zeros(2, 5), slices=2, layers=(torch.zeros(2, 5, 4),))

    both = Features.concatenate([first, second])

    assert both.tokens_BND.shape == (2, 8, 4) and both.slices == 3 and both.layers[0].shape == (2, 8, 4)
    assert both.weight_BN.tolist() == [[1.0] * 3 + [0.0] * 5] * 2
    assert Features.concatenate([first]) is first


def test_a_query_per_column_gives_the_outputs_of_its_column():
    torch.manual_seed(0)
    part = Component(name="attentive", args={"queries": "per_column"})
    head = build_head(part, width=32, outputs=5, groups=(2, 3))
    features = Features(torch.randn(3, 20, 32))
    before_BY = head(features, None)

    with torch.no_grad():
        head.query_QD[1] = torch.randn(32)
    after_BY = head(features, None)

    assert torch.equal(after_BY[:, :2], before_BY[:, :2])
    assert ((after_BY[:, 2:] - before_BY[:, 2:]).abs() > 1e-4).all()


def test_several_queries_are_averaged():
    torch.manual_seed(0)
    one = build_head(Component(name="attentive"), width=32, outputs=5)
    two = build_head(Component(name="attentive", args={"queries": 2}), width=32, outputs=5)
    state = one.state_dict()
    two.load_state_dict(state | {"query_QD": state["query_QD"].expand(2, -1)})
    features = Features(torch.randn(3, 20, 32))

    assert torch.allclose(two(features, None), one(features, None), atol=1e-6)


def test_the_multilayer_head_reads_every_layer_and_not_the_final_tokens():
    torch.manual_seed(0)
    head = build_head(Component(name="multilayer", args={"layers": [1, 3]}), width=32, outputs=5)
    layers = tuple(torch.randn(2, 20, 32) for _ in range(2))
    base_BY = head(Features(torch.zeros(2, 20, 32), layers=layers), None)

    assert torch.equal(head(Features(torch.ones(2, 20, 32), layers=layers), None), base_BY)
    for number in range(2):
        changed = [each.roll(1, dims=0) if number == i else each for i, each in enumerate(layers)]
        assert not torch.allclose(head(Features(layers[0], layers=tuple(changed)), None), base_BY)


def test_standardize_is_measured_without_the_padding():
    head = build_head(Component(name="linear", args={"norm": "standardize"}), width=8, outputs=3)
    tokens_BND = torch.randn(6, 9, 8)
    tokens_BND[:, 4:] = 100

    head.calibrate(Features(tokens_BND, (torch.arange(9) < 4).float().expand(6, -1)))

    assert torch.allclose(head.norm.mean_D, tokens_BND[:, :4].mean(dim=(0, 1)), atol=1e-5)


def test_the_linear_head_is_a_norm_and_a_layer_on_the_mean():
    head = build_head(Component(name="linear", args={"init_std": 0.02}), width=16, outputs=3)
    tokens_BND = torch.randn(2, 10, 16)

    mean_BD = functional.layer_norm(tokens_BND.mean(1), (16,), eps=1e-6)

    assert torch.allclose(head(Features(tokens_BND), None), mean_BD @ head.linear.weight.T, atol=1e-6)


@pytest.mark.slow
def test_dropout_zeroes_the_configured_fraction_and_keeps_the_mean():
    head = build_head(Component(name="linear", args={"dropout": 0.5}), width=4096, outputs=4096)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(4096))
    tokens_BND = torch.full((1, 2, 4096), 1.0)
    head.norm = torch.nn.Identity()

    dropped_D = head(Features(tokens_BND), clip_random(1))[0]

    assert 0.45 < (dropped_D == 0).float().mean() < 0.55
    assert set(dropped_D.tolist()) == {0.0, 2.0}


def test_the_attentive_head_equals_plain_attention():
    torch.manual_seed(0)
    head = build_head(Component(name="attentive", args={"head_width": 8}), width=16, outputs=3)
    tokens_ND = torch.randn(10, 16)

    key_value_NX = head.pool.kv(head.norm1(tokens_ND))
    query_D = head.pool.q(head.query_QD[0])
    seen = []
    for first in (0, 8):
        key_NF, value_NF = key_value_NX[:, first : first + 8], key_value_NX[:, 16 + first : 24 + first]
        weight_N = torch.softmax(key_NF @ query_D[first : first + 8] / 8**0.5, dim=0)
        seen.append(weight_N @ value_NF)
    pooled_D = head.query_QD[0] + head.pool.proj(torch.cat(seen))
    pooled_D = pooled_D + head.pool.mlp(head.pool.norm2(pooled_D))

    assert torch.allclose(
        head(Features(tokens_ND[None]), None)[0], head.linear(head.norm(pooled_D)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Component(name="liner"), "head.name: no head named 'liner'; did you mean 'linear'"),
        (
            Component(name="linear", args={"dropuot": 0.1}),
            "head.args: linear has no argument 'dropuot'; did you mean 'dropout'",
        ),
        (Component(name="linear", args={"dropout": 1.0}), r"head.args.dropout must lie in \[0, 1\), got 1.0"),
        (Component(name="linear", args={"init_std": -1.0}), "head.args.init_std must be 0 or more"),
        (
            Component(name="linear", args={"outputs": 3}),
            "head.args.outputs: expected no such key, since the encoder and the task",
        ),
        (
            Component(name="attentive", args={"head_width": 24}),
            "head_width must divide the encoder's width 32, got 24",
        ),
        (Component(name="attentive", args={"depth": 0}), "head.args.depth must be at least 1, got 0"),
        (Component(name="attentive", args={"queries": 0}), "queries must be a number from 1, or per_column"),
        (Component(name="attentive", args={"queries": "all"}), "queries must be a number from 1, or per_"),
        (Component(name="attentive", args={"groups": [3]}), "head.args.groups: expected no such key"),
        (Component(name="mlp", args={"hidden_layers": 0}), "hidden_layers must be at least 1, got 0"),
        (Component(name="mlp", args={"hidden_width": "wide"}), "hidden_width must be null or at least 1"),
        (Component(name="multilayer", args={"layers": []}), "layers must be a list of block numbers or"),
        (Component(name="multilayer", args={"layers": [0.0, 1.5]}), "layers must be a list of block numb"),
        (Component(name="attentive", args={"mlp_ratio": 0}), "head.args.mlp_ratio must be above 0"),
        (Component(name="attentive", args={"norm": "batch"}), "head.args.norm must be layer or standardize"),
    ],
)
def test_an_invalid_head_is_rejected_with_a_fix(part, message):
    with pytest.raises(ValueError, match=message):
        build_head(part, width=32, outputs=3)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_head_accepts_calibration(part):
    head = build(part)

    head.calibrate(features_of(head, torch.randn(6, 20, 32)))

    output = head(features_of(head, torch.randn(2, 20, 32)), None)
    assert all(torch.isfinite(each).all() for each in tensors(output))


def test_standardize_brings_pooled_tokens_to_mean_0_and_deviation_1():
    head = build_head(Component(name="linear", args={"norm": "standardize"}), width=8, outputs=3)
    tokens_BND = 100 + torch.arange(8) + 0.01 * torch.randn(64, 5, 8)

    head.calibrate(Features(tokens_BND))
    pooled_BD = head.norm(tokens_BND.mean(dim=1))

    assert torch.allclose(pooled_BD.mean(dim=0), torch.zeros(8), atol=1e-2)
    assert torch.allclose(pooled_BD.std(dim=0, unbiased=False), torch.ones(8), atol=1e-2)


def test_standardize_brings_tokens_of_the_attentive_head_to_mean_0_and_deviation_1():
    head = build_head(Component(name="attentive", args={"norm": "standardize"}), width=32, outputs=3)
    tokens_BND = 100 + 0.01 * torch.randn(16, 20, 32)
    weight_BN = (torch.arange(20) < 15).float().expand(16, -1)

    head.calibrate(Features(tokens_BND.where(weight_BN[..., None] > 0, 0.0), weight_BN))

    normed_XD = head.norm1(tokens_BND[:, :15]).flatten(0, 1)
    assert torch.allclose(normed_XD.mean(dim=0), torch.zeros(32), atol=1e-3)
    assert torch.allclose(normed_XD.std(dim=0, unbiased=False), torch.ones(32), atol=1e-3)


def test_standardize_handles_a_constant_value_and_is_saved():
    head = build_head(Component(name="linear", args={"norm": "standardize"}), width=8, outputs=3)
    head.calibrate(Features(torch.full((4, 5, 8), 7.0)))
    copy = build_head(Component(name="linear", args={"norm": "standardize"}), width=8, outputs=3)

    copy.load_state_dict(head.state_dict())

    assert torch.equal(copy.norm(torch.full((1, 8), 7.0)), torch.zeros(1, 8))


def test_statistics_pooling_is_mean_and_deviation_of_the_tokens():
    args = {"pool": "statistics", "norm": "standardize", "init_std": 0.02}
    head = build_head(Component(name="linear", args=args), width=8, outputs=3)
    tokens_BND = torch.randn(4, 50, 8)

    both_BD = torch.cat([tokens_BND.mean(1), tokens_BND.std(1, unbiased=False)], dim=1)

    assert torch.allclose(head(Features(tokens_BND), None), both_BD @ head.linear.weight.T, atol=1e-4)


def test_statistics_pooling_has_a_finite_gradient_for_equal_tokens():
    head = build_head(Component(name="linear", args={"pool": "statistics"}), width=8, outputs=3)
    tokens_BND = torch.ones(2, 5, 8, requires_grad=True)

    head(Features(tokens_BND), None).sum().backward()

    assert torch.isfinite(tokens_BND.grad).all()
