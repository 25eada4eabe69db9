"""Fixtures of the tests of probes: a tiny encoder, features in files, a runner of commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid

SHAPE = EncoderShape(width=32, depth=3, heads=2, mlp_width=64, patch=(2, 8, 8))


def finetune(*arguments):
    """Run a command in this process and return its exit code."""
    return run_program(PROGRAM, [str(argument) for argument in arguments])


def read(path):
    return json.loads(Path(path).read_text())


def write_encoder(folder, *, seed=0):
    """Export an encoder with random weights."""
    torch.manual_seed(seed)
    grid = TokenGrid.of(4, 16, SHAPE.patch)
    description = EncoderDescription(shape=SHAPE, grid=grid, reference=grid, frames=4, stride=2, size=16)
    save_encoder(folder, Encoder(SHAPE, grid), description)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("exported") / "encoder")


@pytest.fixture(scope="module")
def data(synth_shards):
    """Overrides of every probe on small shards."""
    return [
        f"data.train={synth_shards / 'train'}",
        f"data.validation={synth_shards / 'validation'}",
        "data.num_workers=0",
        "engine={device: cpu, cpu_threads: 1}",
        "train={min_steps: 20, epochs: 1, batch: 16}",
    ]


def make_features(*, samples=60, values=8, classes=3, seed=0, prefix="train", apart=3.0):
    """Features of separable classes: arrays of an npz file."""
    draws = np.random.default_rng(seed)
    label_R = np.arange(samples) % classes
    centre_YX = np.random.default_rng(99).standard_normal((classes, values)) * apart
    return {
        "features": (centre_YX[label_R] + draws.standard_normal((samples, values))).astype(np.float32),
        "key": np.array([f"{prefix}-{number}" for number in range(samples)]),
        "label": np.array(["abcdefgh"[number] for number in label_R]),
        "group": np.array([f"{prefix}-group-{number // 6}" for number in range(samples)]),
    }


@pytest.fixture
def files(tmp_path):
    """Overrides of a probe of features in files."""
    np.savez(tmp_path / "train.npz", **make_features())
    np.savez(tmp_path / "validation.npz", **make_features(seed=1, prefix="validation"))
    return [
        f"data.train={tmp_path / 'train.npz'}",
        f"data.validation={tmp_path / 'validation.npz'}",
        f"run_dir={tmp_path / 'run'}",
        "engine={device: cpu, cpu_threads: 1}",
        "train={min_steps: 60, epochs: 1, batch: 16}",
    ]
