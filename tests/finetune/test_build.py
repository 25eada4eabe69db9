"""Encoder and clip of a run come from an exported encoder, or from the config."""

import pytest
import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import load_config
from kinemae.finetune.build import build_model, clip_config, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.task_models import classification

SHAPE = EncoderShape(width=24, depth=2, heads=2, mlp_width=48, patch=(2, 8, 8))
SCRATCH = ["model.size=tiny", "clip.frames=4", "clip.stride=2", "clip.size=16", "model.patch_size=8"]


def load(*overrides):
    needed = [
        "run_dir=r",
        "epochs=1",
        "data.train=t",
        "data.validation=v",
        "batch.global_clips=8",
        "optim.lr=1",
    ]
    return load_config(FinetuneConfig, None, [*needed, *overrides])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    grid = TokenGrid.of(4, 16, SHAPE.patch)
    description = EncoderDescription(
        shape=SHAPE,
        grid=grid,
        reference=grid,
        frames=4,
        stride=3,
        size=16,
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
    )
    torch.manual_seed(7)
    save_encoder(folder, Encoder(SHAPE, grid), description)
    return folder


def test_the_clip_comes_from_the_encoder(encoder):
    config = load(f"encoder={encoder}", "clip.short_video=loop")

    clip = clip_config(config, describe_encoder(config))

    assert (clip.frames, clip.stride, clip.size, clip.short_video) == (4, 3, 16, "loop")


def test_the_config_overrides_the_stride(encoder):
    assert describe_encoder(load(f"encoder={encoder}", "clip.stride=5")).stride == 5


@pytest.mark.parametrize(
    "overrides, stride, fps, sampling",
    [
        ([], 3, None, "dense"),
        (["clip.sampling=dense"], 3, None, "dense"),
        (["clip.fps=4"], 4, 4.0, "dense"),
        (["clip.sampling=uniform"], 4, None, "uniform"),
        (["clip.stride=2", "clip.sampling=dense"], 2, None, "dense"),
    ],
)
def test_the_config_overrides_the_selection_of_frames(encoder, overrides, stride, fps, sampling):
    config = load(f"encoder={encoder}", *overrides)

    clip = clip_config(config, describe_encoder(config))

    assert (clip.stride, clip.fps, clip.sampling) == (stride, fps, sampling)


@pytest.mark.parametrize("frames", ["clip.fps=4", "clip.sampling=uniform"])
def test_fps_and_sampling_come_from_the_encoder_by_default(tmp_path, frames):
    from_scratch = [override for override in SCRATCH if "stride" not in override] + [frames]
    described = describe_encoder(load(*from_scratch))
    save_encoder(tmp_path, Encoder(described.shape, described.grid), described)

    own, other = load(f"encoder={tmp_path}"), load(f"encoder={tmp_path}", "clip.stride=2")

    kept = clip_config(own, describe_encoder(own))
    assert (kept.fps, kept.sampling) == (described.fps, described.sampling) != (None, "dense")
    assert clip_config(other, describe_encoder(other)).stride == 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["clip.fps=4", "clip.stride=2"], "clip.stride must be null if clip.fps is set, got 2"),
        (["clip.sampling=uniform", "clip.stride=2"], "clip.stride must be null if clip.sampling=uniform"),
        (["clip.sampling=uniform", "clip.fps=2"], "clip.fps must be null if clip.sampling=uniform"),
        (["clip.sampling=tsn"], "clip.sampling"),
    ],
)
def test_contradictory_selections_of_frames_are_rejected(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(*overrides)


def test_the_classifier_has_the_encoders_weights_and_normalization(encoder):
    config = load(f"encoder={encoder}")

    classifier = build_model(config, describe_encoder(config), classification(3))

    torch.manual_seed(7)
    exported = Encoder(SHAPE, TokenGrid.of(4, 16, SHAPE.patch)).state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in classifier.encoder.state_dict().items())
    assert classifier.mean == (0.45,) * 3


def test_keys_equal_to_the_encoders_are_accepted(encoder):
    describe_encoder(load(f"encoder={encoder}", "clip.frames=4", "clip.size=16", "model.width=24"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.patch_size=16", "model.patch_size: config 16, encoder 8"),
        ("model.patch_frames=1", "model.patch_frames: config 1, encoder 2"),
        ("model.depth=12", "model.depth: config 12, encoder 2"),
        ("model.size=tiny", "size=tiny, width: config 96, encoder 24; .*, depth: config 4, encoder 2"),
    ],
)
def test_an_encoder_that_differs_from_the_config_is_rejected(encoder, override, message):
    with pytest.raises(CheckpointError, match=message):
        describe_encoder(load(f"encoder={encoder}", override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip.frames=7", "a clip of 7 frames at 16x16 cannot be cut into patches of 2 frames at 8x8"),
        ("clip.frames=0", "a clip of 0 frames"),
        ("clip.size=20", "clip.size of model.patch_size"),
    ],
)
def test_clips_with_partial_patches_are_rejected(encoder, override, message):
    with pytest.raises(ValueError, match=message):
        describe_encoder(load(f"encoder={encoder}", override))


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        describe_encoder(load(f"encoder={tmp_path}"))


def test_from_scratch_everything_comes_from_the_config():
    config = load(*SCRATCH, "model.width=48", "model.depth=1")

    description = describe_encoder(config)

    assert (description.shape.width, description.shape.depth, description.shape.patch) == (48, 1, (2, 8, 8))
    assert description.grid == TokenGrid(2, 2, 2)


@pytest.mark.parametrize("lacking", ["model.size", "clip.frames", "clip.stride", "clip.size"])
def test_from_scratch_a_missing_key_is_named(lacking):
    given = [override for override in SCRATCH if not override.startswith(f"{lacking}=")]

    with pytest.raises(ValueError, match=f"expected a folder, or null with {lacking}"):
        describe_encoder(load(*given))


@pytest.mark.parametrize(
    ("override", "message"),
    [("clip.frames=3", "clip.frames must be a multiple"), ("model.size=vast", "model.size must be one of")],
)
def test_from_scratch_an_invalid_encoder_is_rejected(override, message):
    with pytest.raises(ValueError, match=message):
        describe_encoder(load(*SCRATCH, override))


def test_new_weights_depend_only_on_the_seed():
    def weights(seed):
        config = load(*SCRATCH, f"seed={seed}", "head.name=attentive")
        classifier = build_model(config, describe_encoder(config), classification(3))
        return torch.cat([parameter.flatten() for parameter in classifier.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
