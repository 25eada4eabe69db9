"""The trace of a few steps."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.runtime.profiling import StepProfiler
from kinemae.pretrain.runtime.settings import ProfileConfig
from kinemae.pretrain.training import make_plan, run_pretraining


def losses(config: PretrainConfig) -> list[float]:
    run_pretraining(make_plan(config))
    return [line["loss"] for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")]


@pytest.mark.slow
def test_the_trace_has_the_steps_and_the_losses_do_not_change(
    small_config: Callable[..., PretrainConfig],
) -> None:
    config = small_config("steps=4", "profile.steps=[1,3]")
    plain = small_config("steps=4", f"run_dir={config.run_dir}-plain")
    assert losses(config) == losses(plain)
    assert not (Path(plain.run_dir) / "profile").exists()
    (trace,) = (Path(config.run_dir) / "profile").iterdir()
    assert trace.name == "steps-1-3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sorted(name for name in set(names) if name.startswith("step ")) == ["step 1", "step 2"]
    assert sum(name == "aten::addmm" for name in names) > 10


def test_a_run_that_ends_early_writes_what_it_recorded(small_config: Callable[..., PretrainConfig]) -> None:
    config = small_config("steps=2", "profile.steps=[1,50]")
    assert len(losses(config)) == 2
    assert (Path(config.run_dir) / "profile" / "steps-1-50.json.gz").exists()


def test_a_trace_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("in the way")
    profiler = StepProfiler(ProfileConfig(steps=[0, 1]), str(tmp_path), find_processes("cpu"))
    with caplog.at_level("WARNING", "kinemae"), profiler.step(0):
        pass
    assert "could not write the trace" in caplog.text


@pytest.mark.parametrize("steps", ["[5,5]", "[7]", "[-1,3]", "[0,1000]"])
def test_wrong_steps_are_refused(steps: str, small_config: Callable[..., PretrainConfig]) -> None:
    with pytest.raises(ValueError, match=r"profile\.steps must be null or \[A, B\]"):
        small_config(f"profile.steps={steps}")
