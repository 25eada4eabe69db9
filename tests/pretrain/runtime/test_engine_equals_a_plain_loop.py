"""Samples and losses equal a plain PyTorch loop for one or two processes, any launcher, any ZeRO stage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.loader import TrainingClips
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan
from tests.forked import REPO, run_forked
from tests.ranks import free_port, keys_by_step, run_ranks

STEPS = 6
TOLERANCE = 1e-5
BIN = Path(sys.executable).parent


def plain_losses(config: PretrainConfig) -> list[float]:
    """Reference: the run as a plain loop, without DeepSpeed, loader, accumulation or ranks."""
    plan = make_plan(config)
    model = plan.model
    clips = TrainingClips(
        plan.index, clip=config.clip, augment=config.augment, seed=config.seed, annotate=plan.split
    )
    decayed = [p for p in model.parameters() if sum(size > 1 for size in p.shape) > 1]
    others = [p for p in model.parameters() if sum(size > 1 for size in p.shape) <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.optim.weight_decay},
            {"params": others, "weight_decay": 0},
        ],
        betas=(0.9, 0.95),
    )
    peak, final, losses = config.optim.lr, config.optim.final_lr, []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            half_cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / config.steps)).item())
            group["lr"] = final + (peak - final) * half_cosine
        start = step * config.batch.global_clips
        batch = clips.batch(range(start, start + config.batch.global_clips))
        loss = model(batch, ClipRandom(config.seed, batch.clip_index_B))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_keys(config: PretrainConfig) -> dict[int, list[str]]:
    clips = TrainingClips(make_plan(config).index, clip=config.clip, augment=config.augment, seed=config.seed)
    size = config.batch.global_clips
    return {
        step: sorted(clips.batch(range(step * size, (step + 1) * size)).keys) for step in range(config.steps)
    }


def with_a_launcher(*command: str) -> Callable[..., None]:
    """Start the run by a launcher, whose processes are new interpreters."""

    def run(*arguments: str) -> None:
        on_the_cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        environment = {**os.environ, **on_the_cpu, "PATH": f"{BIN}:{os.environ['PATH']}"}
        words = [*(word.format(port=free_port()) for word in command), *arguments]
        ran = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-3000:]

    return run


ONE = partial(run_forked, "-m", "pretrain")
TWO = partial(run_ranks, 2, "-m", "pretrain")
TORCHRUN = with_a_launcher(
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pretrain")
)
DEEPSPEED = with_a_launcher(
    *(str(BIN / "deepspeed"), "--master_port={port}", "--num_accelerators=2", "--module", "pretrain")
)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("run", "overrides"),
    [
        pytest.param(ONE, ["engine.zero_stage=0"], id="one process, ZeRO 0"),
        pytest.param(ONE, ["engine.zero_stage=1", "batch.clips_per_device=1"], id="ZeRO 1, 4 accumulated"),
        pytest.param(TORCHRUN, ["engine.zero_stage=0"], id="torchrun 2, ZeRO 0", marks=pytest.mark.nightly),
        pytest.param(
            TWO,
            ["engine.zero_stage=3", "batch.clips_per_device=1"],
            id="two processes, ZeRO 3, 2 accumulated",
        ),
        pytest.param(
            DEEPSPEED,
            ["engine.zero_stage=2", "batch.clips_per_device=1"],
            id="deepspeed 2, ZeRO 2",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_every_topology_gives_the_samples_and_losses_of_a_plain_loop(
    run: Callable[..., None],
    overrides: list[str],
    small_run: Path,
    small_config: Callable[..., PretrainConfig],
) -> None:
    if run is DEEPSPEED and not (BIN / "deepspeed").exists():
        pytest.skip("the deepspeed launcher is not installed beside this python")
    config = small_config()
    run(str(small_run), *overrides)
    run_dir = Path(config.run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    shutil.move(run_dir, run_dir.with_name("done"))  # the reference must not find a run to continue
    assert [line["loss"] for line in metrics] == pytest.approx(plain_losses(config), abs=TOLERANCE)
    keys = keys_by_step(run_dir.with_name("done"))
    assert {step: sorted(found) for step, found in keys.items()} == plain_keys(config)
