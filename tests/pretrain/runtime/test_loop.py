"""The training loop with unreadable data and with losses that are not finite."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinemae.data_tools.command import DataError, Diverged
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import TrainingClips
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.loop import Trainer
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.optimizer import parameter_groups
from kinemae.pretrain.training import Plan, make_plan, run_pretraining


class Poisoned(nn.Module):
    """Model with a NaN loss at chosen steps, identified by the clip's index in the run."""

    def __init__(self, bad_steps: set[int], clips_per_step: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.bad_clips = {step * clips_per_step for step in bad_steps}

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        is_bad = torch.tensor([int(clip) in self.bad_clips for clip in batch.clip_index_B])
        factor_B = torch.where(is_bad, float("nan"), 1.0)
        return {"loss": self.weight.square().sum() * factor_B}


def poisoned_training(plan: Plan, bad_steps: set[int]) -> tuple[Trainer, Poisoned]:
    config = plan.config
    module = Poisoned(bad_steps, config.batch.global_clips)
    clips = TrainingClips(plan.index, clip=config.clip, augment=config.augment, seed=config.seed)
    Path(config.run_dir).mkdir(parents=True)
    training = Trainer(
        module=module,
        groups=parameter_groups(module, 0.05),
        clips=clips,
        plan=plan.batch,
        config=config,
        steps=config.steps,
        processes=plan.processes,
    )
    return training, module


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(
    zero_stage: int, small_config: Callable[..., PretrainConfig]
) -> None:
    stage = f"engine.zero_stage={zero_stage}"
    config = small_config(stage)
    healthy = small_config(stage, f"run_dir={config.run_dir}-healthy")
    poisoned_training(make_plan(healthy), set())[0].run()
    training, module = poisoned_training(make_plan(config), {2})
    training.run()
    state = json.loads(max(Path(config.run_dir).glob("checkpoints/*/state.json")).read_text())
    assert state["skipped_steps"] == 1
    assert torch.isfinite(module.weight).all()
    losses, of_healthy = (
        [line["loss"] for line in read_metrics(Path(run.run_dir) / "metrics.jsonl")]
        for run in (config, healthy)
    )
    assert losses[:2] == of_healthy[:2]
    assert losses[2] is None or math.isnan(losses[2])
    assert losses[3] == of_healthy[2]  # the weights are those before the skipped step


def test_a_skipped_step_keeps_weights_and_moments(
    small_config: Callable[..., PretrainConfig],
) -> None:
    training, module = poisoned_training(make_plan(small_config("steps=1", "engine.zero_stage=0")), {0})
    training.run()
    assert torch.equal(module.weight, torch.ones(3, 3))


def test_too_many_skipped_steps_in_a_row_stop_the_run(small_config: Callable[..., PretrainConfig]) -> None:
    training, _ = poisoned_training(make_plan(small_config("steps=30")), set(range(30)))
    with pytest.raises(Diverged, match=r"10 steps in a row .* lower optim\.lr"):
        training.run()


@pytest.fixture
def damaged_shards(synth_shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards in which one byte of one video is flipped; that sample is first in the index."""
    folder = tmp_path / "damaged"
    shutil.copytree(synth_shards / "unlabelled", folder)
    index = open_index(folder)
    sample = index.sample(0)
    path = index.shard_location(sample).path
    content = bytearray(path.read_bytes())
    content[sample.offset + sample.length // 2] ^= 0x10
    path.write_bytes(content)
    return folder


def test_an_unreadable_video_is_logged_counted_and_skipped(
    small_config: Callable[..., PretrainConfig], damaged_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(f"data.shards={damaged_shards}", "steps=10", "batch.global_clips=4")
    caplog.set_level("WARNING", logger="kinemae")
    with caplog.at_level("WARNING"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("kinemae.data_tools.command.log.propagate", True)
        run_pretraining(make_plan(config))
    lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    key = open_index(damaged_shards).sample(0).key
    assert sum(line["skipped_clips"] for line in lines) == 1  # 10 steps of 4 clips are one epoch of 40
    assert all(line["loss"] > 0 for line in lines)
    assert f"clip of {key} skipped" in caplog.text


def test_too_many_unreadable_videos_stop_the_run(
    small_config: Callable[..., PretrainConfig], damaged_shards: Path
) -> None:
    index = open_index(damaged_shards)
    for shard in index.shards:
        path = damaged_shards / shard.name
        path.write_bytes(bytes(len(path.read_bytes())))
    config = small_config(f"data.shards={damaged_shards}", "steps=30")
    with pytest.raises(
        DataError, match=r"12 of 12 clips could not be read, more than data\.max_bad_fraction=0\.01"
    ):
        run_pretraining(make_plan(config))


@pytest.mark.slow
def test_pictures_are_drawn_at_their_steps(small_run: Path) -> None:
    config = load_config(PretrainConfig, small_run, ["pictures.every_steps=4", "pictures.clips=2"])
    run_pretraining(make_plan(config))
    drawn = sorted(path.name for path in (Path(config.run_dir) / "pictures").iterdir())
    assert drawn == [f"step-0000000{step}.{kind}" for step in (4, 6) for kind in ("gif", "png")]


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bf16_uses_autocast_and_is_close_to_fp32(
    zero_stage: int, small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        run_dir = tmp_path / precision
        overrides = (f"run_dir={run_dir}", f"engine.precision={precision}", f"engine.zero_stage={zero_stage}")
        run_pretraining(make_plan(small_config(*overrides)))
        losses[precision] = [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)
