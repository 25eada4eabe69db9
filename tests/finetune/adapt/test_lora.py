"""Adapters: initial output, dropout, merging, peft's format."""

import importlib.util

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.adapt.config import AdaptConfig
from kinemae.finetune.adapt.freezing import train_last_blocks
from kinemae.finetune.adapt.lora import (
    ClipDropout,
    add_adapters,
    check_adapters,
    clip_dropouts,
    merged,
    merged_encoder,
    save_adapter,
)
from kinemae.pretrain.model.blocks import set_up_blocks
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.optimizer import parameter_groups

peft = pytest.importorskip("peft")
GRID = TokenGrid(2, 2, 2)
METHODS = [
    AdaptConfig(method="lora", rank=4),
    AdaptConfig(method="lora", rank=4, alpha=8.0, rslora=True, targets=["qkv", "proj"]),
    AdaptConfig(method="dora", rank=4),
    AdaptConfig(method="ia3"),
    AdaptConfig(method="ia3", targets=["proj", "fc1"]),
]
methods = pytest.mark.parametrize("config", METHODS, ids=lambda config: f"{config.method} {config.targets}")


def make_encoder(attention="joint"):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=32, depth=2, heads=2, mlp_width=64, patch=(2, 4, 4), attention=Component(name=attention)
    )
    return Encoder(shape, GRID)


def train_a_little(encoder):
    """Move every trained weight away from its initial value."""
    torch.manual_seed(1)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def adapted(config, seed=0):
    encoder = make_encoder()
    add_adapters(encoder, config, seed=seed)
    return encoder


def patches():
    return torch.randn(3, GRID.tokens, 96, generator=torch.Generator().manual_seed(0))


@methods
def test_new_adapters_do_not_change_the_output(config):
    plain, encoder = make_encoder().eval(), adapted(config).eval()
    torch.testing.assert_close(encoder(patches(), None), plain(patches(), None), atol=1e-6, rtol=0)


@methods
def test_merged_equals_unmerged_and_has_the_ordinary_format(config):
    encoder = adapted(config).eval()
    before = encoder(patches(), None)
    train_a_little(encoder)
    with torch.no_grad():
        unmerged, plain = encoder(patches(), None), merged_encoder(encoder).eval()

        assert (unmerged - before).abs().max() > 0.01
        assert list(plain.state_dict()) == list(make_encoder().state_dict())
        torch.testing.assert_close(plain(patches(), None), unmerged, atol=1e-5, rtol=0)
        with merged(encoder):
            assert torch.equal(encoder(patches(), None), plain(patches(), None))
        assert torch.equal(encoder(patches(), None), unmerged), "the weights are restored exactly"


@methods
def test_only_adapters_are_trained_and_all_blocks_have_them(config):
    encoder = adapted(config)
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]

    assert all("lora_" in name or "ia3_" in name for name in trained)
    for block in range(2):
        for layer in config.adapted_layers:
            assert any(name.startswith(f"blocks.{block}.") and f".{layer}." in name for name in trained)
    grouped = [parameter for group in parameter_groups(encoder, 0.05) for parameter in group["params"]]
    assert len(grouped) == len(trained)


def test_extra_attentions_have_adapters_too():
    encoder = make_encoder("divided")
    add_adapters(encoder, AdaptConfig(method="lora", targets=["qkv"]), seed=0)
    names = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert "blocks.0.extra_attns.0.qkv.lora_A.default.weight" in names and len(names) == 2 * 2 * 2


def test_the_initial_adapters_depend_on_the_seed_alone():
    config = METHODS[0]
    torch.manual_seed(5)
    first = adapted(config, seed=1).state_dict()
    state = torch.get_rng_state()
    same, other = adapted(config, seed=1).state_dict(), adapted(config, seed=2).state_dict()

    name = "blocks.0.attn.qkv.lora_A.default.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])
    torch.manual_seed(5)
    make_encoder()
    assert torch.equal(torch.get_rng_state(), state), "PyTorch's generator is left as it was"


def test_dropout_depends_on_the_clip_and_not_on_its_batch():
    encoder = adapted(AdaptConfig(method="lora", rank=4, dropout=0.5)).train()
    train_a_little(encoder)

    def encode(clips):
        for dropout in clip_dropouts(encoder):
            dropout.draws = ClipRandom(0, torch.tensor(clips))
        return encoder(patches()[: len(clips)], None)

    with torch.no_grad():
        both, second = encode([7, 8]), encode([9, 8])
        torch.testing.assert_close(both[1], second[1])
        assert not torch.allclose(both[0], second[0])
        assert torch.equal(encoder.eval()(patches(), None), encoder(patches(), None))


def test_dropout_keeps_the_mean():
    dropout = ClipDropout(0.25, "test").train()
    dropout.draws = ClipRandom(0, torch.arange(4))
    values = dropout(torch.ones(4, 100, 50))

    assert values.unique().tolist() == pytest.approx([0, 4 / 3])
    assert values.mean() == pytest.approx(1, abs=0.02)


def test_layers_with_dropout_draw_different_numbers():
    dropouts = clip_dropouts(adapted(AdaptConfig(method="lora", dropout=0.5)))
    assert len({dropout.purpose for dropout in dropouts}) == len(dropouts) == 2 * 4


@methods
def test_peft_loads_the_saved_adapter(config, tmp_path):
    encoder = adapted(config).eval()
    train_a_little(encoder)
    save_adapter(encoder, tmp_path)

    base = make_encoder()
    peft.PeftModel.from_pretrained(base, str(tmp_path))

    torch.testing.assert_close(base.eval()(patches(), None), encoder(patches(), None))


def test_without_peft_the_error_names_the_installation(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = {"zero_stage": 0, "is_packed": False}
    with pytest.raises(
        ValueError, match=r"adapt.method=lora: .* got none; fix: pip install 'kinemae\[lora\]'"
    ):
        check_adapters(AdaptConfig(method="lora"), **settings)
    check_adapters(AdaptConfig(method="frozen"), **settings)


@pytest.mark.parametrize(
    ("config", "setting", "error"),
    [
        (AdaptConfig(method="dora"), {"zero_stage": 3}, "engine.zero_stage must be below 3"),
        (AdaptConfig(method="lora", dropout=0.1), {"is_packed": True}, "adapt.dropout must be 0"),
    ],
)
def test_an_unsupported_setting_is_refused(config, setting, error):
    supported = {"zero_stage": 0, "is_packed": False}
    check_adapters(config, **supported)
    with pytest.raises(ValueError, match=error):
        check_adapters(config, **{**supported, **setting})


def test_the_last_blocks_and_the_norm_are_trained():
    encoder = make_encoder()
    train_last_blocks(encoder, 1)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}

    assert trained == {name for name in encoder.state_dict() if name.startswith(("blocks.1.", "norm."))}
    with pytest.raises(ValueError, match=r"adapt\.blocks must be at most 2, the encoder's blocks, got 3"):
        train_last_blocks(encoder, 3)


def loss_and_gradients(encoder, **blocks):
    set_up_blocks(encoder, **blocks)
    for dropout in clip_dropouts(encoder):
        dropout.draws = ClipRandom(0, torch.arange(3))
    encoder(patches(), None).square().mean().backward()
    return {name: weight.grad for name, weight in encoder.named_parameters() if weight.requires_grad}


def test_activation_checkpointing_repeats_the_dropout():
    config = AdaptConfig(method="lora", rank=4, dropout=0.5)
    plain, recomputed = adapted(config).train(), adapted(config).train()
    for encoder in (plain, recomputed):
        train_a_little(encoder)

    expected = loss_and_gradients(plain, recompute=False, compiled=False)
    found = loss_and_gradients(recomputed, recompute=True, compiled=False)

    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("config", [METHODS[0], METHODS[3]], ids=lambda config: config.method)
def test_compiled_blocks_have_the_same_gradients(config):
    plain, compiled = adapted(config).train(), adapted(config).train()
    for encoder in (plain, compiled):
        train_a_little(encoder)

    expected = loss_and_gradients(plain, recompute=False, compiled=False)
    found = loss_and_gradients(compiled, recompute=False, compiled=True, backend="eager")

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
