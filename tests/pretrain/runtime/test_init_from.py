"""`init_from`: a run with the weights of another run's encoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import load_description
from kinemae.pretrain.training import make_plan, run_pretraining

Build = Callable[..., PretrainConfig]


@pytest.fixture
def first(small_config: Build, tmp_path: Path) -> Path:
    """The folder that a finished run exported."""
    run_pretraining(make_plan(small_config("steps=1", f"run_dir={tmp_path / 'first'}")))
    return tmp_path / "first" / "encoder"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder.safetensors")


def test_a_run_exports_encoder_and_decoder(first: Path) -> None:
    names = ["decoder.json", "decoder.safetensors", "encoder.json", "encoder.safetensors"]
    assert sorted(path.name for path in first.iterdir()) == names
    assert json.loads((first / "decoder.json").read_text())["target"]["name"] == "pixels"


def test_a_run_starts_with_the_weights_of_the_other_and_logs_it(
    first: Path, small_config: Build, tmp_path: Path
) -> None:
    # A rate of nearly nothing: what is exported at the end is what the run began with.
    config = small_config("steps=1", f"init_from={first}", "optim.lr=1e-12", "optim.final_lr=0", "seed=9")
    run_pretraining(make_plan(config))

    own = Path(config.run_dir) / "encoder"
    for name in ("encoder.safetensors", "decoder.safetensors"):
        given, kept = load_file(first / name), load_file(own / name)
        assert all(torch.allclose(kept[key], value, atol=1e-9) for key, value in given.items())
    assert load_description(own).trained_by["init_from"] == str(first)


def test_a_continued_run_loads_its_checkpoint_instead(
    first: Path, small_config: Build, tmp_path: Path
) -> None:
    whole = small_config("steps=4", f"init_from={first}", f"run_dir={tmp_path / 'whole'}")
    run_pretraining(make_plan(whole))
    broken = small_config("steps=4", f"init_from={first}", f"run_dir={tmp_path / 'broken'}")
    shutil.copytree(whole.run_dir, broken.run_dir)
    shutil.rmtree(Path(broken.run_dir) / "checkpoints" / "step-00000004")
    nothing = {name: torch.zeros_like(value) for name, value in weights(first).items()}
    save_file(nothing, first / "encoder.safetensors")

    run_pretraining(make_plan(broken))

    one, other = (weights(Path(config.run_dir) / "encoder") for config in (whole, broken))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_init_from_is_refused(first: Path, small_config: Build) -> None:
    run_pretraining(make_plan(small_config("steps=1")))
    with pytest.raises(ValueError, match=r"init_from: run None, config '.*encoder'"):
        make_plan(small_config("steps=1", f"init_from={first}"))


@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_other_clip_sizes_resample_the_positions(
    positions: str, small_config: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    way = f"model.positions.name={positions}"
    run_pretraining(make_plan(small_config("steps=1", way, f"run_dir={tmp_path / 'first'}")))
    first = tmp_path / "first" / "encoder"
    config = small_config("steps=1", way, f"init_from={first}", "clip.frames=8", "clip.size=48")
    caplog.set_level("INFO", logger="kinemae")

    run_pretraining(make_plan(config))

    found = load_description(Path(config.run_dir) / "encoder")
    assert [(grid.t, grid.h, grid.w) for grid in (found.reference, found.grid)] == [(2, 4, 4), (4, 6, 6)]
    assert any("from 2x4x4 tokens" in message and "to 4x6x6" in message for message in caplog.messages)


def test_a_missing_init_from_is_an_error_before_the_start(small_config: Build, tmp_path: Path) -> None:
    config = small_config("steps=1", f"init_from={tmp_path / 'nowhere'}")
    with pytest.raises(CheckpointError, match=r"nowhere: expected encoder.json and encoder.safetensors"):
        make_plan(config)
    assert not Path(config.run_dir).exists()
