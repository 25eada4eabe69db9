"""Every shipped config loads, its components are compatible, and its header states how to run it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.components import build_component
from kinemae.data_tools.config import load_config, to_yaml
from kinemae.finetune.config import FinetuneConfig
from kinemae.pretrain.builders import check_compatibility
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Target

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PRETRAIN = sorted((CONFIGS / "pretrain").glob("*.yaml"))
RECIPES = sorted([*PRETRAIN, *(CONFIGS / "finetune").glob("*.yaml")])


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
def test_a_pretraining_recipe_builds(path: Path) -> None:
    config = load_config(PretrainConfig, path, [])
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    parts = {
        "masking": build_component("kinemae.pretrain.masking", config.masking, Masking),
        "pruning": build_component("kinemae.pretrain.pruning", config.pruning, Pruning),
        "noise": build_component("kinemae.pretrain.noise", config.noise, Noise),
        "target": build_component("kinemae.pretrain.targets", config.target, Target),
    }
    visible, hidden = parts["masking"].counts(grid)
    assert visible + hidden == grid.tokens
    check_compatibility(config.model, **parts)
    with torch.device("meta"):
        model = build_autoencoder(config.model, grid, **{k: v for k, v in parts.items() if k != "masking"})
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_states_command_hardware_time_and_score(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "time", "score"):
        assert any(word in line for line in head), f"{path.name} does not state its {word}"


@pytest.mark.slow
def test_a_resolved_config_loads_to_the_same_config(tmp_path: Path) -> None:
    for schema, name in ((PretrainConfig, "pretrain/demo.yaml"), (FinetuneConfig, "finetune/demo.yaml")):
        config = load_config(schema, CONFIGS / name, ["seed=7"])
        copy = tmp_path / "config.yaml"
        copy.write_text(to_yaml(config))
        assert load_config(schema, copy, []) == config
        assert load_config(schema, copy, ["seed=8"]) == replace(config, seed=8)
