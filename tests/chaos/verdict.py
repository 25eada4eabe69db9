"""Compare a disturbed run with the undisturbed one."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.scene import Scene

# Results and samples of a step. Times, memory and wait fractions depend on the machine.
COMPARED = ("loss", "grad_norm", "lr", "samples", "skipped_clips")
TOLERANCE = 1e-5  # relative, fp32, if the number of processes changed
NORM_TOLERANCE = 1e-3  # for gradient norms, which are small relative to their summands


def check(scene: Scene, undisturbed: Path, *, bitwise: bool) -> None:
    """Compare two finished runs (metrics, samples, encoder); check that no process or file is left over.

    Raises:
        AssertionError: describes the difference.
    """
    found, expected = (_lines(folder / "metrics.jsonl") for folder in (scene.run_dir, undisturbed))
    _check_steps(found, expected, scene.full_disk_steps)
    for step, line in found.items():
        for name in COMPARED:
            _check_value(step, name, line[name], expected[step][name], bitwise=bitwise)
    keys, expected_keys = _keys(scene.run_dir), _keys(undisturbed)
    for step in range(len(expected)):
        if keys.get(step) != expected_keys[step]:
            assert _is_in(step, scene.full_disk_steps), (
                f"step {step} saw {keys.get(step)}, not {expected_keys[step]}"
            )
    if bitwise:
        name = "encoder/encoder.safetensors"
        assert (scene.run_dir / name).read_bytes() == (undisturbed / name).read_bytes(), f"{name} differs"
    _check_nothing_is_left(scene, last=len(expected))


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = Counter(line["step"] for line in lines)
    assert max(times.values()) == 1, f"{path} has steps twice: {[step for step in times if times[step] > 1]}"
    return {line["step"]: line for line in lines}


def _check_steps(found: Any, expected: Any, full_disk_steps: list[tuple[int, int]]) -> None:
    lacking = [step for step in expected if step not in found and not _is_in(step, full_disk_steps)]
    assert not lacking, f"no metrics of steps {lacking}; the disk was full during {full_disk_steps}"
    assert found.keys() <= expected.keys()


def _check_value(step: int, name: str, value: float, expected: float, *, bitwise: bool) -> None:
    tolerance = 0.0 if bitwise else {"loss": TOLERANCE, "grad_norm": NORM_TOLERANCE}.get(name, 0.0)
    is_same = value == expected or math.isclose(value, expected, rel_tol=tolerance)
    assert is_same, f"{name} of step {step} is {value!r} and was {expected!r} undisturbed"


def _keys(run_dir: Path) -> dict[int, Counter[str]]:
    """Sample keys of each step, over all processes."""
    keys: dict[int, Counter[str]] = {}
    for path in (run_dir / "samples").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            keys.setdefault(entry["step"], Counter()).update(entry["keys"])
    return keys


def _is_in(step: int, spells: list[tuple[int, int]]) -> bool:
    return any(first <= step <= last for first, last in spells)


def _check_nothing_is_left(scene: Scene, *, last: int) -> None:
    assert not scene.processes(), scene.describe()
    assert scene.newest_intact() == last, scene.describe()
    partial = sorted(scene.run_dir.rglob("*.partial"))
    assert not partial, f"left over: {partial}"
    unlisted = [
        step for step, _ in scene.committed() if not (scene.checkpoint(step) / "manifest.json").exists()
    ]
    spoilt = {step for step, _ in scene.damaged}
    assert set(unlisted) <= spoilt, f"checkpoints without a manifest: {unlisted}"
