"""A stopped, killed or damaged run continues with equal results, or its error states the reason."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.checkpointing import stored_steps
from tests.forked import ForkedPython
from tests.full_disk import no_file_above
from tests.seeds import SEED

STEPS = 24


def losses(run_dir: Path) -> list[tuple[int, float, int]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [(line["step"], line["loss"], line["samples"]) for line in lines]


def run(config: PretrainConfig) -> None:
    run_pretraining(make_plan(config))


def start(small_run: Path, *overrides: str) -> ForkedPython:
    words = ("-m", "pretrain", str(small_run), *overrides)
    return ForkedPython(*words, environment={}, stderr=subprocess.DEVNULL)


def wait_for_step(process: ForkedPython, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_metrics(run_dir / "metrics.jsonl")):
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_killed_at_random_moments_is_bitwise_equal_to_an_uninterrupted_one(
    small_run: Path, small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    run(small_config(f"run_dir={unbroken}", f"steps={STEPS}"))
    chance = random.Random(SEED)
    for moment in sorted(chance.sample(range(1, STEPS - 2), 3)):
        process = start(small_run, f"run_dir={killed}", f"steps={STEPS}")
        wait_for_step(process, killed, moment)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(small_config(f"run_dir={killed}", f"steps={STEPS}"))
    assert losses(killed) == losses(unbroken)
    assert len(losses(unbroken)) == STEPS


@pytest.mark.processes
def test_sigterm_saves_a_checkpoint_and_exits_with_75(
    small_run: Path, small_config: Callable[..., PretrainConfig]
) -> None:
    run_dir = Path(small_config().run_dir)
    process = start(small_run, "steps=100000", "save_every_steps=100000")
    wait_for_step(process, run_dir, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["step"] == len(read_metrics(run_dir / "metrics.jsonl"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = tmp_path / "unbroken"
    run(small_config(f"run_dir={unbroken}"))
    damaged = tmp_path / "damaged"
    shutil.copytree(unbroken, damaged)
    newest = max((damaged / "checkpoints").iterdir())
    victim = max(newest.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    run(small_config(f"run_dir={damaged}"))
    assert losses(damaged) == losses(unbroken)


def test_a_full_disk_stops_the_run_and_it_continues_with_free_space(
    small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    config = small_config()
    run(config)
    before = losses(Path(config.run_dir))
    shutil.rmtree(Path(config.run_dir) / "checkpoints" / "step-00000006")
    with (
        no_file_above(60_000),
        pytest.raises(CheckpointError, match=r"step 6 .*File too large.*; older checkpoints are intact"),
    ):
        run(config)
    assert stored_steps(Path(config.run_dir)) == ["step-00000004"]
    run(config)
    assert losses(Path(config.run_dir)) == before
    assert stored_steps(Path(config.run_dir)) == ["step-00000004", "step-00000006"]


def test_a_run_stops_if_all_checkpoints_are_damaged(small_config: Callable[..., PretrainConfig]) -> None:
    config = small_config()
    run(config)
    for manifest in Path(config.run_dir).glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints .* are damaged"):
        run(config)


def test_an_interrupted_save_is_ignored_and_removed(
    small_config: Callable[..., PretrainConfig],
) -> None:
    config = small_config("steps=2")
    leftover = Path(config.run_dir) / "checkpoints" / "step-00000009.partial"
    plan = make_plan(config)
    leftover.mkdir(parents=True)
    run_pretraining(plan)
    assert sorted(path.name for path in leftover.parent.iterdir()) == ["step-00000002"]


def test_a_run_dir_of_another_config_is_refused_before_anything_starts(
    small_config: Callable[..., PretrainConfig],
) -> None:
    run(small_config("steps=2"))
    with pytest.raises(
        ValueError, match=r"holds a run of another config \(optim\.weight_decay: run 0\.05, config 0\.1\)"
    ):
        make_plan(small_config("steps=2", "optim.weight_decay=0.1"))


def test_a_finished_run_is_not_changed(small_config: Callable[..., PretrainConfig]) -> None:
    config = small_config("steps=2")
    run(config)
    before = losses(Path(config.run_dir))
    run(config)
    assert losses(Path(config.run_dir)) == before
