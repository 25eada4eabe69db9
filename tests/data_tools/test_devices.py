"""GPUs are found by the name that the driver reports."""

import pytest

from kinemae.data_tools.devices import GPUS, find_gpu


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200_nvl"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_a_gpu_is_found_by_the_name_of_its_driver(name: str, key: str) -> None:
    assert find_gpu(name) is GPUS[key]


@pytest.mark.parametrize("name", ["NVIDIA L40", "Tesla T4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""])
def test_other_cards_and_parts_of_a_card_are_unknown(name: str) -> None:
    assert find_gpu(name) is None


def test_the_peak_depends_on_the_precision() -> None:
    assert GPUS["h100"].peak_tflops("bf16") > 10 * GPUS["h100"].peak_tflops("fp32")
