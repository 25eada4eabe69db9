"""Settings of pretraining and fine-tuning."""

import warnings

import pytest
import torch

from kinemae.pretrain.runtime.settings import EngineConfig, precision_on


@pytest.mark.parametrize(
    ("precision", "device", "supported", "expected"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_automatic_precision_is_bf16_on_cuda_devices_that_support_it(
    precision: str, device: str, supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precision_on(EngineConfig(precision=precision), torch.device(device)) == expected


def test_precision_is_automatic_by_default() -> None:
    assert EngineConfig().precision == "auto"
