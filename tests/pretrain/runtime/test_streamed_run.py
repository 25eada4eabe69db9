"""Pretraining on tars without an index: the steps of a run, its continuation, settings that need an index."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.data_tools.stream.tars import SAMPLES, key, write_tars
from tests.ranks import keys_by_step, run_ranks

ALL = {key(tar, sample) for tar in range(4) for sample in range(SAMPLES)}


def keys_of(found: dict[int, list[str]], steps: range) -> list[str]:
    return [key for step in steps for key in found[step]]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.processes
def test_a_run_continues_with_the_tars_that_are_not_done_on_another_number_of_processes(
    small_run: Path, small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    pattern, run_dir = write_tars(tmp_path / "tars"), tmp_path / "run"
    changes = [f"data.shards={pattern}", "data.shuffle_buffer=1", "save_every_steps=3", "data.num_workers=1"]
    run_ranks(2, "-m", "pretrain", str(small_run), *changes)
    first = keys_by_step(run_dir)
    stored = json.loads((run_dir / "checkpoints" / "step-00000003" / "state.json").read_text())["tars"]
    assert stored == {"seed": 3, "tars": 4, "epoch": 0, "before": 2, "later": []}
    assert sorted(keys_of(first, range(5))) == sorted(ALL)  # an epoch of two processes
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    run_pretraining(make_plan(small_config(*changes)))
    again = keys_by_step(run_dir)
    assert [again[step] for step in range(3)] == [first[step] for step in range(3)]
    rest = keys_of(again, range(3, 6))[: 2 * SAMPLES]
    assert {*keys_of(again, range(3)), *rest} == ALL  # the two open tars come first, from their beginning
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(6)] and all(line["loss"] > 0 for line in lines)


def test_pictures_and_the_monitor_read_the_first_videos_of_the_stream(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = ["steps=2", "pictures={every_steps: 1, clips: 2}", "monitor={every_steps: 1, clips: 3}"]
    config = small_config(f"data.shards={write_tars(tmp_path / 'tars')}", *changes)
    plan = make_plan(config)
    assert plan.summary()["samples"] is None and plan.summary()["epochs"] is None
    run_pretraining(plan)
    assert len([*(tmp_path / "run" / "pictures").glob("*.png")]) == 2
    assert all("monitor/effective_rank" in line for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "data.cache_dir=cache",
            "data.cache_dir: expected it to be unset for tars without an index, got c",
        ),
        ("loss_guard.spike_sigmas=6", "loss_guard.spike_sigmas: expected it to be unset for tars"),
        ("data.where=width > 1", "data.where: expected it to be unset for tars"),
        ("data.weight=width", "data.weight: expected it to be unset for tars"),
        ("data.shuffle_buffer=0", "data.shuffle_buffer must be at least 1, got 0"),
        (
            "data.shards={tmp_path}/x-{{000..009}}.tar",
            "expected .*x-009.tar, got no such file; fix",
        ),
        ("data.shards='pipe:cat x.tar'", "'pipe:cat x.tar' cannot be used"),
    ],
)
def test_settings_that_need_an_index_and_wrong_patterns_are_named(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, change: str, message: str
) -> None:
    pattern = write_tars(tmp_path, 1)
    with pytest.raises((ValueError, DataError), match=message):
        make_plan(small_config(f"data.shards={pattern}", change.format(tmp_path=tmp_path)))
