"""Recipes have the published learning rates, batch sizes and epochs of the original scripts."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from kinemae.data_tools.components import build_component
from kinemae.data_tools.config import load_config
from kinemae.finetune.config import FinetuneConfig
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSelection

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
VIDEOS = {"k400": 240_000, "hybrid": 1_350_000, "ssv2": 168_913, "ucf101": 9_537, "hmdb51": 3_570}


class Pretraining(NamedTuple):
    """Values of a pretraining script; `base` and `end` are learning rates at a batch of 256 videos."""

    data: str
    batch: int
    epochs: int
    warmup: int
    base: float
    end: float
    views: int = 1
    overrides: tuple[str, ...] = ()


V1, V2 = {"warmup": 40, "base": 1.5e-4, "end": 1e-5}, {"end": 1e-5, "views": 4}
SMALL_SETS = {"batch": 192, "warmup": 40, "base": 3e-4, "end": 1e-5}
PRETRAINING = {
    "videomae_small": Pretraining("k400", 1024, 1601, **V1),
    "videomae_base": Pretraining("k400", 2048, 1601, **V1),
    "videomae_large": Pretraining("k400", 512, 1601, **V1),
    "videomae_huge": Pretraining("k400", 1024, 1601, **V1),
    "videomae_v2_base": Pretraining("hybrid", 32 * 32, 200, 20, 1e-3, **V2),
    "videomae_v2_large": Pretraining("hybrid", 48 * 32, 300, 30, 1e-3, **V2),
    "videomae_v2_huge": Pretraining("hybrid", 64 * 32, 300, 30, 1e-3, **V2),
    "videomae_v2_giant": Pretraining("hybrid", 64 * 32, 300, 30, 6e-4, **V2),
    # PySlowFast: the learning rate is per machine of 8 GPUs, with 64 (base) or 32 (huge) videos.
    "mae_st_base": Pretraining("k400", 512, 200, 60, 1e-4 * 256 / 64, 1e-6 * 256 / 64, 4),
    "mae_st_large": Pretraining("k400", 2 * 128, 100, 5, 1.6e-3, 0.0, 4),
    "mae_st_huge": Pretraining("k400", 512, 400, 60, 1e-4 * 256 / 32, 1e-6 * 256 / 32, 4),
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_has_its_scripts_schedule(name):
    check_schedule(load_config(PretrainConfig, CONFIGS / "pretrain" / f"{name}.yaml", []), PRETRAINING[name])


@pytest.mark.parametrize(
    "data, script",
    [
        ("SSv2", Pretraining("ssv2", 2048, 2401, **V1)),
        ("UCF101", Pretraining("ucf101", epochs=3201, **SMALL_SETS)),
        ("HMDB51", Pretraining("hmdb51", epochs=4800, **SMALL_SETS)),
    ],
)
def test_overrides_in_a_header_give_the_schedules_of_other_data_sets(data, script):
    path = CONFIGS / "pretrain" / "videomae_base.yaml"
    text = re.search(rf"#   {data} ((.|\n#     )*)", path.read_text()).group(1)
    config = load_config(PretrainConfig, path, re.findall(r"[\w.]+=\S+", text))

    check_schedule(config, script)
    assert config.clip.stride == (4 if data == "UCF101" else 2)
    assert config.augment.flip == (data != "SSv2")
    assert config.masking.args["ratio"] == (0.9 if data == "SSv2" else 0.75)


def check_schedule(config: PretrainConfig, script: Pretraining) -> None:
    steps_per_epoch = VIDEOS[script.data] // script.batch
    assert config.batch.global_clips == script.batch * script.views
    assert config.data.views_per_video == script.views
    assert config.steps == script.epochs * steps_per_epoch
    assert round(config.optim.warmup_fraction * config.steps) == script.warmup * steps_per_epoch
    assert config.optim.lr == pytest.approx(script.base * script.batch / 256)
    assert config.optim.final_lr == pytest.approx(script.end * script.batch / 256)
    assert config.optim.betas == [0.9, 0.95] and config.optim.weight_decay == 0.05


# Millions of parameters of model and encoder, visible tokens, predicted values per token.
SIZES = {
    "videomae_small": (24.03, 21.88, 160, 1536),
    "videomae_base": (94.21, 86.23, 160, 1536),
    "videomae_large": (343.0, 303.9, 160, 1536),
    "videomae_huge": (692.5, 631.6, 160, 1536),
    "videomae_v2_base": (94.21, 86.23, 160, 1536),
    "videomae_v2_giant": (None, None, 208, 1176),
    "mae_st_large": (None, None, 157, 768),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_builds_the_published_model(name):
    config = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{name}.yaml", [])
    shape = config.model.shape()
    grid = TokenGrid.of(config.clip.frames, config.clip.size, shape.encoder.patch)
    target = build_component("kinemae.pretrain.targets", config.target, Target)
    with torch.device("meta"):
        noise = build_component("kinemae.pretrain.noise", config.noise, Noise)
        model = build_autoencoder(config.model, grid, target=target, noise=noise)
    masking = build_component("kinemae.pretrain.masking", config.masking, Masking)
    parameters, of_encoder, visible, values = SIZES[name]

    assert masking.counts(grid)[0] == visible
    assert target.target_values(shape.encoder) == values
    if parameters is not None:
        assert float(f"{millions(model):.4g}") == parameters
        assert float(f"{millions(model.encoder):.4g}") == of_encoder


def millions(model: nn.Module) -> float:
    """Count parameters without the biases of keys, which the originals do not have."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    keys = sum(count // 3 for name, count in counts.items() if name.endswith("qkv.bias"))
    return (sum(counts.values()) - keys) / 1e6


def test_dual_masking_predicts_half_of_the_hidden_tokens():
    config = load_config(PretrainConfig, CONFIGS / "pretrain" / "videomae_v2_base.yaml", [])
    grid = TokenGrid.of(16, 224, (2, 16, 16))
    split = TokenSelection(
        masking=build_component("kinemae.pretrain.masking", config.masking, Masking),
        grid=grid,
        patch=(2, 16, 16),
        seed=0,
        predict_ratio=config.model.predict_ratio,
        predict=config.model.predict,
    )
    assert config.model.predict == "running_cell"
    assert split.counts() == (160, (1568 - 160) // 2)


class Finetuning(NamedTuple):
    """Values of a fine-tuning script; learning rates are at a batch of 256 videos."""

    batch: int
    views: int
    base: float
    end: float
    epochs: int
    layer_decay: float
    drop_path: float
    dropout: float
    temporal: int = 5
    weight_decay: float = 0.05
    clip: float = 0.0


FINETUNING = {
    "videomae_small_k400": Finetuning(12 * 32, 2, 5e-4, 1e-6, 150, 0.75, 0.1, 0),
    "videomae_base_k400": Finetuning(6 * 64, 2, 5e-4, 1e-6, 75, 0.75, 0.1, 0),
    "videomae_large_k400": Finetuning(2 * 64, 2, 2e-3, 1e-6, 35, 0.75, 0.1, 0),
    "videomae_huge_k400": Finetuning(8 * 64, 2, 1e-3, 1e-5, 50, 0.75, 0.2, 0.5),
    "videomae_base_ssv2": Finetuning(6 * 64, 2, 5e-4, 1e-6, 30, 0.75, 0.1, 0, 2),
    "videomae_base_ucf101": Finetuning(16 * 8, 2, 5e-4, 1e-5, 100, 0.7, 0.2, 0.5),
    "videomae_base_hmdb51": Finetuning(128, 2, 1e-3, 1e-6, 50, 0.7, 0.2, 0, 10),
    "videomae_v2_base_k400": Finetuning(32 * 16, 1, 7e-4, 1e-6, 90, 0.75, 0.1, 0),
    "videomae_v2_large_k400": Finetuning(32 * 6, 2, 2e-3, 1e-6, 35, 0.75, 0.2, 0),
    "videomae_v2_huge_k400": Finetuning(32 * 4, 2, 1e-3, 1e-6, 40, 0.8, 0.2, 0.5),
    "videomae_v2_giant_k400": Finetuning(64 * 3, 2, 1e-3, 1e-6, 30, 0.9, 0.2, 0, weight_decay=0.1),
    "videomae_v2_base_ssv2": Finetuning(16 * 16, 2, 2e-3, 1e-6, 25, 0.65, 0.1, 0, 2),
    # PySlowFast: the learning rate is per machine with 16 videos.
    "mae_st_base_k400": Finetuning(128, 2, 6e-4 * 16, 1e-5 * 16, 75, 0.65, 0.1, 0.3, 7, clip=5.0),
    "mae_st_large_k400": Finetuning(128, 2, 3e-4 * 16, 1e-5 * 16, 50, 0.75, 0.2, 0.3, 7, clip=5.0),
    "mae_st_huge_k400": Finetuning(128, 1, 3e-4 * 16, 1e-6 * 16, 75, 0.8, 0.2, 0.5, 7, clip=5.0),
}


@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_recipe_has_its_scripts_schedule(name):
    config = load_config(FinetuneConfig, CONFIGS / "finetune" / f"{name}.yaml", [])
    script, optim = FINETUNING[name], config.optim

    assert config.batch.global_clips == script.batch * script.views
    assert config.data.views_per_video == script.views
    assert optim.lr == pytest.approx(script.base * script.batch / 256)
    assert optim.final_lr == pytest.approx(script.end * script.batch / 256)
    assert optim.warmup_fraction == pytest.approx(5 / config.epochs, abs=1e-5)
    assert (config.epochs, optim.layer_decay, config.drop_path) == (
        script.epochs,
        script.layer_decay,
        script.drop_path,
    )
    assert config.head.args.get("dropout", 0) == script.dropout
    assert (optim.weight_decay, optim.clip_norm) == (script.weight_decay, script.clip)
    assert config.evaluate.temporal_clips == script.temporal and config.evaluate.spatial_crops == 3
    is_directed = name.endswith("ssv2")
    assert config.augment.flip == (not is_directed)
    assert config.clip.sampling == ("uniform" if is_directed else None)
    assert not config.final_norm and config.run_dir != config.encoder.removesuffix("/encoder")


def test_every_recipe_has_a_row_in_this_file():
    own = {"demo", "kinemae_base_k400"}
    of_anyone = {"demo", "own_clips_laptop", "own_clips_gpu", "probe_diving48", "probe_ek100"}
    of_anyone.add("synthetic_tasks")
    assert {path.stem for path in (CONFIGS / "pretrain").glob("*.yaml")} == PRETRAINING.keys() | own
    assert {path.stem for path in (CONFIGS / "finetune").glob("*.yaml")} == FINETUNING.keys() | of_anyone
