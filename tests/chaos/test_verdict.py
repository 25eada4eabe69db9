"""The comparison of the chaos test detects every difference that a fault could leave."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.scene import Scene, WrongReaction
from tests.chaos.verdict import check

STEPS = 40


def write_run(run_dir: Path) -> Path:
    """A finished run of two processes, without the training."""
    (run_dir / "samples").mkdir(parents=True)
    (run_dir / "encoder").mkdir()
    (run_dir / "encoder" / "encoder.safetensors").write_bytes(b"weights")
    (run_dir / "checkpoints" / f"step-{STEPS:08d}").mkdir(parents=True)
    (run_dir / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").write_text("{}")
    write_lines(run_dir / "metrics.jsonl", [metrics(step) for step in range(STEPS)])
    for rank in range(2):
        keys = [{"step": step, "keys": [f"{step}-{rank}"]} for step in range(STEPS)]
        write_lines(run_dir / "samples" / f"rank-{rank:05d}.jsonl", keys)
    return run_dir


def metrics(step: int) -> dict[str, float]:
    loss = 1 / (step + 1)
    return {
        "step": step, "loss": loss, "grad_norm": 0.5, "lr": 0.1, "samples": step, "skipped_clips": 0,
    }  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, object]] | list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change(run_dir: Path, step: int, **values: float) -> None:
    lines = [metrics(at) | (values if at == step else {}) for at in range(STEPS)]
    write_lines(run_dir / "metrics.jsonl", lines)


def lose_lines(run_dir: Path, first: int, last: int) -> None:
    lines = [metrics(step) for step in range(STEPS) if not first <= step <= last]
    write_lines(run_dir / "metrics.jsonl", lines)


def repeat_a_line(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(7)) + "\n")


def repeat_a_sample(run_dir: Path) -> None:
    keys = [{"step": step, "keys": [f"{max(step, 1)}-1"]} for step in range(STEPS)]
    write_lines(run_dir / "samples" / "rank-00001.jsonl", keys)


@pytest.fixture
def scene(tmp_path: Path, repo: Path) -> Scene:
    return Scene(write_run(tmp_path / "disturbed"), [], repo=repo)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    return write_run(tmp_path / "undisturbed")


def test_equal_runs_pass(scene: Scene, undisturbed: Path) -> None:
    check(scene, undisturbed, bitwise=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: change(run, 9, loss=0.1 + 1e-9), "loss of step 9"),
        (lambda run: change(run, 9, samples=8), "samples of step 9"),
        (lambda run: lose_lines(run, 5, 6), r"no metrics of steps \[5, 6\]"),
        (repeat_a_line, r"steps twice: \[7\]"),
        (repeat_a_sample, "step 0 saw"),
        (lambda run: (run / "encoder" / "encoder.safetensors").write_bytes(b"others"), "encoder"),
        (lambda run: (run / "checkpoints" / "step-1.partial").mkdir(), "left over"),
        (
            lambda run: (run / "checkpoints" / f"step-{STEPS:08d}").rename(run / "gone"),
            "step 40, checkpoints",
        ),
        (lambda run: next(run.rglob("manifest.json")).unlink(), "without a manifest"),
    ],
)
def test_every_difference_is_found(
    scene: Scene, undisturbed: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(scene.run_dir)
    with pytest.raises(AssertionError, match=message):
        check(scene, undisturbed, bitwise=True)


def test_another_number_of_processes_has_a_tolerance(scene: Scene, undisturbed: Path) -> None:
    change(scene.run_dir, 9, loss=0.1 * (1 + 5e-6))
    check(scene, undisturbed, bitwise=False)
    change(scene.run_dir, 9, loss=0.1 * (1 + 2e-5))
    with pytest.raises(AssertionError, match="loss of step 9"):
        check(scene, undisturbed, bitwise=False)


def test_lines_may_be_missing_only_while_the_disk_was_full(scene: Scene, undisturbed: Path) -> None:
    scene.full_disk_steps.append((4, 8))
    lose_lines(scene.run_dir, 4, 8)
    check(scene, undisturbed, bitwise=True)
    lose_lines(scene.run_dir, 4, 9)
    with pytest.raises(AssertionError, match=r"no metrics of steps \[9\]"):
        check(scene, undisturbed, bitwise=True)


def test_a_remaining_process_is_found(scene: Scene, undisturbed: Path) -> None:
    left = subprocess.Popen([sys.executable, "-c", "input()", str(scene.run_dir)], stdin=subprocess.PIPE)
    try:
        scene.wait_for("its arguments in /proc", scene.processes)
        with pytest.raises(AssertionError, match=str(left.pid)):
            check(scene, undisturbed, bitwise=True)
    finally:
        left.kill()
        left.communicate()
    check(scene, undisturbed, bitwise=True)


def test_wait_for_has_a_time_limit(scene: Scene) -> None:
    scene.launcher = subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"])
    with pytest.raises(WrongReaction, match=r"the launcher ended while waiting for a wonder\n.*exit code 4"):
        scene.wait_for("a wonder", lambda: False, while_it_runs=True)
    with pytest.raises(WrongReaction, match=r"not within 0\.1 s: a wonder"):
        scene.wait_for("a wonder", lambda: False, bound_s=0.1)
