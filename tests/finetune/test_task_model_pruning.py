"""Pruning in the classifier, compared with a plain implementation for one clip."""

import pytest
import torch

from kinemae.data_tools.components import Component, component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips, colour_coefficients, to_luma
from kinemae.finetune.heads.base import Features, build_head
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, normalize, patchify
from tests.task_models import classification

SHAPE = EncoderShape(width=24, depth=2, heads=2, mlp_width=48, patch=(2, 4, 4))
GRID = TokenGrid.of(8, 16, SHAPE.patch)
CLIPS = 4
FRACTION, PER_CLIP = 0.4, None

PRUNINGS = [
    Component(name="run_length", args={"keep": FRACTION}),
    Component(name="run_length", args={"keep": PER_CLIP}),
    Component(name="motion", args={"keep": FRACTION}),
    Component(name="motion", args={"threshold": 30.0}),
    Component(name="learned", args={"keep": FRACTION}),
    Component(name="learned", args={"keep": PER_CLIP}),
    Component(name="none"),
]
prunings = pytest.mark.parametrize("part", PRUNINGS, ids=lambda part: f"{part.name}-{part.args}")


def make(part, *, head="attentive", drop_path=0.0, registers=0, merge_per_block=0, **settings):
    torch.manual_seed(0)
    shape = EncoderShape(**{**vars(SHAPE), "registers": registers})
    token_reduction = TokenReduction(pruning=part, merge_per_block=merge_per_block)
    pruning = token_reduction.build_pruning(shape)
    encoder = token_reduction.apply(Encoder(shape, GRID, drop_path=drop_path), pruning)
    if encoder.shape.run_lengths:
        torch.nn.init.normal_(encoder.run_length_embed)
    if encoder.shape.scorer:
        torch.nn.init.normal_(encoder.scorer.fc2.weight)
    args = {"head_width": 8} if head == "attentive" else {"init_std": 0.5}
    built = build_head(Component(name=head, args=args), width=24, outputs=5)
    return TaskModel(encoder, built, classification(5), pruning=pruning, **settings)


def make_batch():
    """Make clips with a growing static part; the last clip is fully static."""
    generator = torch.Generator().manual_seed(1)
    clip_BCTHW = torch.randint(256, (CLIPS, 3, 8, 16, 16), generator=generator, dtype=torch.uint8)
    for row, still in enumerate((0, 4, 12, 16)):
        clip_BCTHW[row, :, :, :, :still] = clip_BCTHW[row, :, :1, :, :still]
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(CLIPS),
        label_B=torch.arange(CLIPS),
        targets={"label": torch.arange(CLIPS)},
        weight_B=torch.ones(CLIPS),
    )


def chosen_by_hand(classifier, clip_1CTHW):
    """Return the kept tokens of a clip as a list, and their run lengths."""
    pruning, encoder = classifier.pruning, classifier.encoder
    patches_1NP = normalize(patchify(clip_1CTHW, SHAPE.patch))
    everything = list(range(GRID.tokens))
    if pruning.is_learned:
        score_N = encoder.scorer(encoder.embed(patches_1NP, None))[0]
        is_kept_N, run_N = score_N > encoder.scorer.threshold, None
    else:
        worth = pruning.score_tokens(to_luma(clip_1CTHW), SHAPE.patch)
        score_N, is_kept_N = worth.score_BN[0], worth.is_kept_BN[0]
        run_N = None if worth.run_length_BN is None else worth.run_length_BN[0]
    if pruning.keep is None:
        kept = [token for token in everything if is_kept_N[token]]
    else:
        best = sorted(everything, key=lambda token: (-score_N[token].item(), token))
        kept = sorted(best[: round(GRID.tokens * pruning.keep)])
    return patches_1NP, kept, run_N, score_N


def features_by_hand(classifier, clip_1CTHW):
    """Encode one clip with the encoder's embed and encode only."""
    encoder = classifier.encoder
    patches_1NP, kept, run_N, score_N = chosen_by_hand(classifier, clip_1CTHW)
    index_1K = torch.tensor([kept])
    run_1K = None if run_N is None else run_N[index_1K]
    x_1KD = encoder.embed(patches_1NP[:, kept], index_1K, run_1K)
    if classifier.pruning.is_learned:
        x_1KD = x_1KD * 2 * torch.sigmoid(score_N[kept] - encoder.scorer.threshold)[None, :, None]
    return encoder.encode(x_1KD, index_1K)


@prunings
@pytest.mark.parametrize("registers", [0, 2])
@torch.no_grad()
def test_features_are_the_kept_tokens_of_each_clip(part, registers):
    classifier, clip_BCTHW = make(part, registers=registers).eval(), make_batch().clip_BCTHW

    features = classifier.features(clip_BCTHW)
    logits_BY = classifier.output(clip_BCTHW)[0]

    for row in range(CLIPS):
        expected_1KD = features_by_hand(classifier, clip_BCTHW[row : row + 1])
        kept = expected_1KD.shape[1]
        assert features.kept_B[row] == kept
        assert torch.allclose(features.tokens_BND[row, :kept], expected_1KD[0], atol=1e-5)
        assert torch.allclose(logits_BY[row], classifier.head(Features(expected_1KD), None)[0], atol=1e-5)


def test_a_static_clip_keeps_its_first_slice_and_a_moving_clip_keeps_all_tokens():
    classifier = make(Component(name="run_length"))

    kept_B = classifier.features(make_batch().clip_BCTHW).kept_B

    assert kept_B.tolist() == [64, 4 * 12 + 4, 4 * 4 + 12, 16]


@pytest.mark.parametrize("weights", [(0.299, 0.114), (0.2126, 0.0722)])
def test_a_threshold_keeps_the_same_tokens_on_yuv_planes_and_on_rgb(weights):
    """The clip is grey, in limited range, with noise that increases from left to right."""
    noise = torch.randn(CLIPS, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor(colour_coefficients(*weights, is_full_range=False), dtype=torch.int32)
    planes = YuvClips(
        luma_BTHW=(120 + noise * torch.linspace(0.3, 4.0, 16)).round().to(torch.uint8),
        chroma_BCTHW=torch.full((CLIPS, 2, 8, 8, 8), 128, dtype=torch.uint8),
        colour_BX=colour.repeat(CLIPS, 1),
    )
    classifier = make(Component(name="run_length", args={"threshold": 2.0}))
    in_pretraining_B = classifier.pruning.score_tokens(to_luma(planes), SHAPE.patch).is_kept_BN.sum(dim=1)
    assert 20 < in_pretraining_B.float().mean() < 55
    assert classifier.features(planes.rgb()).kept_B.tolist() == in_pretraining_B.tolist()


@pytest.mark.parametrize("part", [Component(name="none"), Component(name="motion", args={"keep": 0.5})])
def test_clips_of_another_grid_are_rejected_even_with_equally_many_tokens(part):
    clip_BCTHW = torch.zeros(1, 3, 4, 32, 16, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"clip: expected 8 frames of 16x16 pixels, got 4 of 32x16; fix: cut"
    ):
        make(part).features(clip_BCTHW)


@prunings
def test_all_used_weights_are_trained_and_no_others(part):
    classifier, batch = make(part, head="linear"), make_batch()

    classifier(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean().backward()

    idle = {name for name, value in classifier.named_parameters() if not value.requires_grad}
    is_per_clip = part.name == "learned" and part.args["keep"] is None
    assert idle == ({"encoder.scorer.threshold"} if is_per_clip else set())
    for name, parameter in classifier.named_parameters():
        assert name in idle or parameter.grad.abs().sum() > 0, name


def test_an_unused_scorer_is_frozen():
    encoder = make(Component(name="learned")).encoder

    classifier = TaskModel(
        encoder, build_head(Component(name="linear"), width=24, outputs=5), classification(5)
    )

    assert not any(value.requires_grad for value in classifier.encoder.scorer.parameters())
    assert classifier.encoder.patch_embed.weight.requires_grad


@prunings
def test_drop_path_depends_only_on_the_clip_with_every_pruning(part):
    classifier, batch = make(part, drop_path=0.8, head="linear").train(), make_batch()

    first_B = classifier(batch, ClipRandom(0, batch.clip_index_B))["loss"]

    assert torch.equal(first_B, classifier(batch, ClipRandom(0, batch.clip_index_B))["loss"])
    assert not torch.allclose(first_B, classifier.eval()(batch, ClipRandom(0, batch.clip_index_B))["loss"])


def test_pruning_reports_the_kept_fraction():
    batch = make_batch()
    draws = ClipRandom(0, batch.clip_index_B)

    values = make(Component(name="run_length"))(batch, draws)

    assert values["kept_fraction"].tolist() == [1, 52 / 64, 28 / 64, 0.25]
    assert "kept_fraction" not in make(Component(name="none"))(batch, draws)


def test_without_pruning_all_run_lengths_are_one():
    encoder = make(Component(name="run_length")).encoder
    classifier = TaskModel(
        encoder, build_head(Component(name="linear"), width=24, outputs=5), classification(5)
    ).eval()
    clip_BCTHW = make_batch().clip_BCTHW

    before_BND = classifier.features(clip_BCTHW).tokens_BND
    with torch.no_grad():
        encoder.run_length_embed[1:] += 1
    unchanged_BND = classifier.features(clip_BCTHW).tokens_BND
    with torch.no_grad():
        encoder.run_length_embed[0] += torch.randn(24)

    assert torch.equal(unchanged_BND, before_BND)
    assert not torch.allclose(classifier.features(clip_BCTHW).tokens_BND, before_BND, atol=1e-3)


@pytest.mark.parametrize(
    "part", [Component(name="none"), Component(name="motion", args={"keep": 0.5})], ids=str
)
def test_merging_works_with_all_tokens_and_with_a_fixed_fraction(part):
    classifier, clip_BCTHW = make(part, merge_per_block=3).eval(), make_batch().clip_BCTHW
    merged_BND = classifier.features(clip_BCTHW).tokens_BND
    classifier.encoder.merge_tokens(0)

    plain_BND = classifier.features(clip_BCTHW).tokens_BND

    assert merged_BND.shape == plain_BND.shape
    assert not torch.allclose(merged_BND, plain_BND, atol=1e-4)
    assert all(len(tokens_ND.unique(dim=0)) == len(tokens_ND) - 6 for tokens_ND in merged_BND)


def test_batches_of_different_lengths_are_joined_with_padding():
    parts = [Features(torch.ones(1, 3, 2), torch.ones(1, 3)), Features(torch.ones(2, 5, 2), torch.ones(2, 5))]

    tokens_BND, weight_BN, *_ = Features.join(parts)

    assert tokens_BND.shape == (3, 5, 2)
    assert torch.equal(weight_BN, torch.tensor([[1.0, 1, 1, 0, 0], [1] * 5, [1] * 5]))
    assert torch.equal(tokens_BND.sum(dim=2), 2 * weight_BN)


def test_every_pruning_is_tested():
    assert {part.name for part in PRUNINGS} == set(component_names("kinemae.pretrain.pruning"))


def test_pruning_keeps_the_encoders_weights_and_adds_missing_ones():
    encoder = Encoder(SHAPE, GRID)
    token_reduction = TokenReduction(pruning=Component(name="run_length", args={"run_lengths": 3}))

    grown = token_reduction.apply(encoder, token_reduction.build_pruning(SHAPE))

    assert not grown.run_length_embed.any() and len(grown.run_length_embed) == 3
    for name, value in encoder.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value)
    again = token_reduction.apply(grown, token_reduction.build_pruning(grown.shape))
    assert again is grown


@pytest.mark.parametrize(
    ("part", "merge", "options", "message"),
    [
        (Component(name="run_lenght"), 0, {}, "no pruning named 'run_lenght'; did you mean 'run_length'"),
        (
            Component(name="run_length"),
            4,
            {},
            r"merge\.per_block: expected 0 with a pruning that keeps a different number .*, got 4; fix",
        ),
        (
            Component(name="none"),
            4,
            {"attention": Component(name="divided")},
            r"merge\.per_block must be 0 where model\.attention is divided, not joint, got 4",
        ),
        (
            Component(name="learned"),
            0,
            {},
            r"pruning\.name: expected a pruning that needs no trained scorer, got learned",
        ),
    ],
)
def test_unsupported_combinations_are_rejected(part, merge, options, message):
    shape = EncoderShape(**{**vars(SHAPE), **options})

    with pytest.raises(ValueError, match=message):
        TokenReduction(pruning=part, merge_per_block=merge).build_pruning(shape, may_learn=False)
