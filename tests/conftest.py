"""Fixtures that every test may use: the repository, real videos, and small real shards made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two threads on two busy cores are slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def videos() -> Path:
    folder = REPO.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}")
    return folder


def run_module(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` as a user would, one thread, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and result.returncode != 0:
        raise AssertionError(
            f"python -m {' '.join(arguments)} left with {result.returncode}:\n{result.stderr}"
        )
    return result


@pytest.fixture(scope="session")
def synth_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "videos"
    run_module(
        "data_tools", "synth", str(folder), "train_per_class=4", "validation_per_class=3", "unlabelled=40"
    )
    return folder


@pytest.fixture(scope="session")
def synth_shards(synth_videos: Path) -> Path:
    folder = synth_videos.parent / "shards"
    run_module("data_tools", "shard", str(synth_videos), str(folder), "samples_per_shard=16")
    return folder
