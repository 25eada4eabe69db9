"""`import kinemae`: lazy names, subpackages that can be called, the same programs as the commands."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import kinemae
import kinemae.pretrain.folder_kinds
from kinemae.data_tools.command import CheckpointError, DataError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.files import read_jsonl
from kinemae.data_tools.overrides import as_overrides
from kinemae.finetune.config import FinetuneConfig
from kinemae.pretrain.__main__ import main as pretrain
from kinemae.pretrain.config import PretrainConfig
from tests.conftest import demo_job
from tests.test_command_lines import HEAVY

IMPORT = """
import sys
import kinemae
assert {"load", "read_clip", "clips", "pretrain", "finetune"} <= set(dir(kinemae))
kinemae.pretrain, kinemae.finetune
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_the_import_loads_no_large_package(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT, *HEAVY, "yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == []


def test_every_name_is_importable_and_a_typo_is_an_attribute_error() -> None:
    for name in kinemae.__all__:
        assert callable(getattr(kinemae, name)), name
    with pytest.raises(AttributeError, match="module 'kinemae' has no attribute 'lod'"):
        kinemae.lod  # noqa: B018


def test_a_callable_subpackage_is_still_a_package() -> None:
    assert importlib.import_module("kinemae.pretrain") is kinemae.pretrain
    assert kinemae.pretrain.folder_kinds.MODEL_FOLDER == "model"
    assert importlib.reload(kinemae.pretrain) is kinemae.pretrain and callable(kinemae.pretrain)


def test_nested_settings_are_overrides() -> None:
    settings = {
        "epochs": 3.0,
        "data": {"train": Path("a b"), "validation": "010"},
        "optim": {"lr": 1e-5, "betas": (0.9, 0.95)},
        "task": {"name": "classification", "args": {"label": "on"}},
        "run_dir": "~/runs",
        "seed": 2,
    }
    config = load_config(FinetuneConfig, None, as_overrides(settings))
    assert (config.epochs, config.data.train, config.data.validation) == (3.0, "a b", "010")
    assert (config.optim.lr, config.optim.betas, config.seed) == (1e-5, [0.9, 0.95], 2)
    assert config.task.args == {"label": "on"} and config.run_dir == str(Path.home() / "runs")
    with pytest.raises(
        ValueError, match=r"optim.lr: expected a number, a text, a list or a mapping, got object"
    ):
        as_overrides({"optim": {"lr": object()}})


@pytest.mark.slow
def test_a_call_is_the_command_and_a_repeated_call_continues(synth_shards: Path, tmp_path: Path) -> None:
    small = {"model": {"width": 48, "depth": 2}, "batch": {"global_clips": 8, "clips_per_device": 8}}
    settings = {
        **small,
        "engine": {"device": "cpu"},
        "log": {"every_steps": 1},
        "pictures": {"every_steps": 0},
    }
    shards = {"shards": synth_shards / "unlabelled", "num_workers": 0}
    environment = dict(os.environ)
    result = kinemae.pretrain("demo", data=shards, steps=3, run_dir=tmp_path / "called", **settings)
    assert dict(os.environ) == environment
    _, *job = demo_job(synth_shards, steps=3)
    overrides = as_overrides({**settings, "data": {"num_workers": 0}, "run_dir": tmp_path / "command"})
    assert pretrain([*job, *overrides]) == 0
    losses = [
        [line["loss"] for line in read_jsonl(tmp_path / run / "metrics.jsonl")]
        for run in ("called", "command")
    ]
    assert losses[0] == losses[1] and result["metrics"]["loss"] == losses[0][-1]
    assert kinemae.load(result["encoder"]).encoder.shape.width == 48
    again = kinemae.pretrain("demo", data=shards, steps=3, run_dir=tmp_path / "called", **settings)
    assert again["continues"] and again["metrics"]["loss"] == losses[0][-1]

    data = {name: synth_shards / name for name in ("train", "validation")}
    tree = {
        "data": {**data, "num_workers": 0},
        "encoder": result["encoder"],
        "epochs": 0.5,
        "engine": {"device": "cpu"},
    }
    scored = kinemae.finetune(tree, run_dir=tmp_path / "finetuned", batch=small["batch"], report=False)
    assert scored["top1"] == json.loads((tmp_path / "finetuned" / "result.json").read_text())["top1"]
    assert kinemae.load(scored["model"]).classes == tuple(scored["per_class_accuracy"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kinemae.pretrain("dmo"), ValueError, "no config file at dmo; did you mean demo?"),
        (lambda: kinemae.pretrain("demo", stps=3), ValueError, "stps"),
        (lambda: kinemae.pretrain({"steps": 3}), ValueError, "no value for"),
        (lambda: kinemae.pretrain("demo", data={"shards": "absent"}, run_dir="r"), DataError, "absent"),
        (
            lambda: kinemae.finetune("demo", encoder="absent", data={"train": "t"}, run_dir="r"),
            CheckpointError,
            "absent: expected encoder.json",
        ),
    ],
)
def test_errors_are_those_of_the_commands(call, error, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message.replace("?", r"\?")):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_keys_equals_the_file(repo: Path) -> None:
    required = {"data": {"shards": "s"}, "run_dir": "r"}
    path = repo / "configs/pretrain/videomae_small.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    from_tree = load_config(PretrainConfig, None, [*as_overrides(tree), *as_overrides(required)])
    assert from_tree == load_config(PretrainConfig, path, as_overrides(required))
