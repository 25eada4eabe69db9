import pytest
import torch

from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import SIZES, DecoderShape, EncoderShape, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.pixels import PixelTarget


def build_on_meta(config):
    grid = TokenGrid.of(16, 224, config.shape().encoder.patch)
    with torch.device("meta"):
        return build_autoencoder(config, grid, target=PixelTarget(), noise=NoNoise())


@pytest.mark.parametrize("decoder", ["cross", "self"])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_on_the_meta_device(size, decoder):
    model = build_on_meta(ModelConfig(size=size, decoder=decoder))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    "size, millions", [("small", 21.88), ("base", 86.23), ("large", 303.9), ("huge", 631.6), ("giant", 1011)]
)
def test_encoders_have_as_many_parameters_as_published(size, millions):
    encoder = build_on_meta(ModelConfig(size=size)).encoder
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(
        millions, rel=0.01
    )


def test_overrides_keep_the_proportions_of_a_size():
    shape = ModelConfig(
        size="base", width=128, depth=3, decoder_width=64, decoder_depth=1, patch_size=8
    ).shape()
    assert shape.encoder == EncoderShape(width=128, depth=3, heads=2, mlp_width=512, patch=(2, 8, 8))
    assert shape.decoder == DecoderShape(width=64, depth=1, heads=1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": "medium"}, "model.size must be one of tiny, small, .*got 'medium'"),
        ({"predict_ratio": 0.0}, "model.predict_ratio must lie above 0 .*got 0.0"),
        ({"drop_path": 1.0}, r"model.drop_path must lie in \[0, 1\), got 1.0"),
        ({"width": 200}, "model.width must be .*heads divide, got 200 for 3 heads"),
        ({"width": 4}, "model.width must be an even number of at least 6"),
        ({"depth": 0}, "model.depth.* must be at least 1"),
        ({"patch_size": 0}, "every side of a patch must be at least 1"),
        ({"decoder_width": 7}, "model.decoder_width must be an even number"),
        ({"decoder_depth": 0}, "model.decoder_depth must be at least 1, got 0"),
    ],
)
def test_an_invalid_model_is_refused_by_the_config(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**arguments)
