"""Every recipe in configs/finetune loads and builds its model."""

import re
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.order import plan_batch
from kinemae.finetune.build import build_model, clip_config, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from tests.task_models import classification

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs" / "finetune").glob("*.yaml"))
DEMO_CLIP = ["clip.frames=8", "clip.stride=1", "clip.size=32", "model.size=tiny", "model.patch_size=8"]
USUAL_CLIP = ["clip.frames=16", "clip.stride=4", "clip.size=224"]


def load_from_scratch(path):
    size = re.search(r"_(small|base|large|huge|giant)_", path.name)
    model = [*USUAL_CLIP, f"model.size={size.group(1)}"] if size else DEMO_CLIP
    if path.stem.startswith("probe_"):
        model = ["clip.frames=16", "clip.stride=2", "clip.size=224", "model.size=large"]
    if "ssv2" in path.name:
        model.remove("clip.stride=4")  # one frame of each segment of the video
    return load_config(FinetuneConfig, path, ["encoder=null", *model])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_model(path):
    config = load_from_scratch(path)
    description = describe_encoder(config)

    with torch.device("meta"):
        classifier = build_model(config, description, classification(400))

    assert next(classifier.parameters()).is_meta
    assert clip_config(config, description).frames == description.frames * config.clip.chunks


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("world", [1, 2, 8])
def test_a_recipes_batch_can_be_divided(path, world):
    config = load_config(FinetuneConfig, path, [])

    plan = plan_batch(
        config.batch.global_clips,
        config.batch.clips_per_device,
        world,
        config.mix.group_size(config.data.views_per_video),
    )

    assert plan.micro_clips * plan.accumulation * world == config.batch.global_clips


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_in_a_recipes_header_names_the_recipe(path):
    assert re.findall(r"kinemae finetune train (\w+)", path.read_text()) == [path.stem]
