"""Keys of `adapt` that the chosen method does not use are refused."""

import pytest

from kinemae.data_tools.config import load_config
from kinemae.finetune.adapt.config import AdaptConfig
from kinemae.finetune.config import FinetuneConfig, resolve_layer_decay

REQUIRED = ["run_dir=r", "data.train=t", "data.validation=v", "epochs=1"]


@pytest.mark.parametrize(
    ("method", "key", "value", "error"),
    [
        ("full", "blocks", 2, "adapt.blocks must stay unset with adapt.method=full"),
        ("last_blocks", "blocks", None, "adapt.blocks must be at least 1, got None"),
        ("last_blocks", "blocks", 0, "adapt.blocks must be at least 1, got 0"),
        ("frozen", "rank", 8, "adapt.rank must stay unset .* it is only for lora and dora"),
        ("ia3", "rank", 8, "adapt.rank must stay unset"),
        ("ia3", "dropout", 0.1, "adapt.dropout must stay unset"),
        ("full", "rslora", True, "adapt.rslora must stay unset"),
        ("full", "alpha", 2.0, "adapt.alpha must stay unset"),
        ("full", "save_adapter", True, "adapt.save_adapter must stay unset"),
        ("full", "targets", ["qkv"], "adapt.targets must stay unset"),
        ("lora", "targets", ["qkv", "q"], "adapt.targets must name some of qkv, proj, fc1, fc2"),
        ("lora", "targets", ["qkv", "qkv"], "each once"),
        ("lora", "rank", 0, "adapt.rank must be at least 1"),
        ("lora", "alpha", 0.0, "adapt.alpha must be above 0"),
        ("lora", "dropout", 1.0, r"adapt.dropout must lie in \[0, 1\)"),
    ],
)
def test_a_wrong_value_is_refused(method, key, value, error):
    with pytest.raises(ValueError, match=error):
        AdaptConfig(**{"method": method, "blocks": 1 if method == "last_blocks" else None, key: value})


@pytest.mark.parametrize(
    ("method", "layers"), [("lora", ("qkv", "proj", "fc1", "fc2")), ("ia3", ("qkv", "fc2"))]
)
def test_no_targets_select_the_layers_of_the_method(method, layers):
    assert AdaptConfig(method=method).adapted_layers == layers
    assert AdaptConfig(method=method, targets=["fc1"]).adapted_layers == ("fc1",)


@pytest.mark.parametrize(
    ("overrides", "decay"),
    [
        (["encoder=e"], 0.75),
        (["encoder=e", "adapt.method=lora"], 1.0),
        (["encoder=e", "adapt.method=lora", "optim.layer_decay=0.9"], 0.9),
        (["encoder=e", "weights=random"], 1.0),
    ],
)
def test_the_layer_decay_of_adapters_is_one(overrides, decay):
    config = load_config(FinetuneConfig, None, [*REQUIRED, *overrides])
    assert resolve_layer_decay(config).optim.layer_decay == decay
