"""What `launch local` would run, and what it refuses."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from launch.local import local_command
from tests.conftest import run_module


def test_one_process_is_the_room_itself() -> None:
    assert local_command(1, ["pretrain", "a.yaml"]) == [sys.executable, "-m", "pretrain", "a.yaml"]


def test_several_processes_run_under_torchrun() -> None:
    command = local_command(3, ["finetune", "train", "a.yaml"])
    assert command[2:5] == ["torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert command[5:] == ["-m", "finetune", "train", "a.yaml"]


@pytest.mark.parametrize("hostile", ["a b", "$(touch x)", "it's", '"', "a;b"])
def test_hostile_values_arrive_as_they_are(hostile: str) -> None:
    printed = run_module("launch", "local", "--dry-run", "--", "pretrain", hostile).stdout
    assert shlex.split(printed)[-1] == hostile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0", "--", "pretrain"], "--processes must be at least 1, got 0"),
        (["--", "train"], "expected pretrain or finetune and its arguments after --, got 'train'"),
    ],
)
def test_a_wrong_call_leaves_with_2(arguments: list[str], message: str) -> None:
    ran = run_module("launch", "local", *arguments, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_it_really_starts_the_room(tmp_path: Path) -> None:
    job = [
        "pretrain",
        "configs/pretrain/demo.yaml",
        "--dry-run",
        "data.shards=/nowhere",
        f"run_dir={tmp_path}",
    ]
    ran = run_module("launch", "local", "--", *job, check=False)
    assert ran.returncode == 3
    assert "no folder of shards at /nowhere" in ran.stderr
    assert json.dumps("/nowhere") not in ran.stdout
