"""A model with bad losses at chosen clips, and a run that trains it."""

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from kinemae.data_tools.command import configure_logging
from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import TrainingClips
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.loop import Callback, Trainer
from kinemae.pretrain.runtime.optimizer import parameter_groups
from kinemae.pretrain.runtime.run_folder import open_run_dir
from kinemae.pretrain.training import Plan, make_plan

# Of four clips in a step, the second of two processes has the last two: NaN at step 5, a spike at step 9.
BAD_ON_THE_SECOND = {5 * 4 + 2: math.nan, 9 * 4 + 3: 1000.0}


class Fragile(nn.Module):
    """Model that learns a number for each clip of the run; the losses of some clips have a factor.

    Args:
        factors: factor on the loss by the clip's index in the run; NaN for a loss that is not finite.
        slow_s: shortest duration of a forward pass in seconds.
    """

    def __init__(self, factors: dict[int, float], slow_s: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9).view(3, 3))
        self.factors = factors
        self.slow_s = slow_s

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        time.sleep(self.slow_s)
        wanted_B = (batch.clip_index_B % 7).float() / 7
        factor_B = torch.tensor([self.factors.get(int(clip), 1.0) for clip in batch.clip_index_B])
        return {"loss": ((self.weight.sum() - wanted_B).square() + self.weight.square().sum()) * factor_B}


def fragile_training(
    plan: Plan, factors: dict[int, float], callbacks: tuple[Callback, ...] = (), slow_s: float = 0.0
) -> Trainer:
    """Train that model on the clips of the plan, in the plan's folder."""
    config = plan.config
    module = Fragile(factors, slow_s)
    if plan.processes.is_first:
        open_run_dir(Path(config.run_dir), config)
    return Trainer(
        module=module,
        groups=parameter_groups(module, 0.05),
        clips=TrainingClips(plan.index, clip=config.clip, augment=config.augment, seed=config.seed),
        plan=plan.batch,
        config=config,
        steps=config.steps,
        processes=plan.processes,
        callbacks=callbacks,
    )


def main(config_file: str, *overrides: str) -> None:
    """Run one of two processes; the second one has all bad clips and is slow."""
    plan = make_plan(load_config(PretrainConfig, config_file, list(overrides)))
    slow_s = 0.05 * plan.processes.rank
    with abort_on_error(plan.processes):
        fragile_training(plan, BAD_ON_THE_SECOND, slow_s=slow_s).run()


if __name__ == "__main__":
    configure_logging()
    main(*sys.argv[1:])
