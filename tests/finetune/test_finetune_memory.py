"""The memory of fine-tuning steps, for `batch.clips_per_device=auto`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kinemae.data_tools.config import load_config
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.train import PreparedRun, prepare
from kinemae.pretrain.runtime.micro_batch import fits
from tests.finetune.test_finetune_run import SCRATCH

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(common: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PreparedRun]:
    folder, *words = map(str, common)
    run_dir = tmp_path_factory.mktemp("memory") / "run"

    def build(*overrides: str) -> PreparedRun:
        given = [*words, *SCRATCH, f"run_dir={run_dir}", "batch.clips_per_device=auto", *overrides]
        return prepare(load_config(FinetuneConfig, folder, given)).with_micro_batch()

    return build


def cost_of(run: PreparedRun) -> dict[str, Any]:
    assert run.auto is not None
    return run.auto.measure()


def test_a_frozen_encoder_needs_less_memory(prepared: Callable[..., PreparedRun]) -> None:
    full, frozen = (cost_of(prepared(f"adapt.method={method}")) for method in ("full", "frozen"))
    assert frozen["parameters"]["all"] == full["parameters"]["all"]
    assert frozen["parameters"]["trainable"] < 0.1 * full["parameters"]["trainable"]
    assert 0 < frozen["plain"]["peak"]["per_clip"] < 0.8 * full["plain"]["peak"]["per_clip"]
    assert full["recomputed"]["held"]["per_clip"] < full["plain"]["held"]["per_clip"]


def test_a_moving_average_counts_as_parameters(prepared: Callable[..., PreparedRun]) -> None:
    plain, averaged = (cost_of(prepared(f"ema.decay={decay}"))["parameters"] for decay in (0, 0.9))
    assert averaged["all"] - plain["all"] == plain["trainable"] == averaged["trainable"]


def test_the_model_is_not_changed_by_its_cost_and_can_be_tried(prepared: Callable[..., PreparedRun]) -> None:
    run = prepared()
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    cost_of(run)
    assert all(weight.device == CPU for weight in run.model.parameters())
    assert run.auto is not None and fits(run.model, run.auto.clips(4), CPU, reserved=10, is_bf16=True)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
