"""A full disk for logs drops lines of the logs, and the run continues; one for the encoder ends it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError, exit_code_of, log
from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.full_disk import small_disk
from tests.pretrain.runtime.bad_numbers import fragile_training

STEPS = 30


class FillsTheDisk:
    """Callback that fills the disk after step 3 and frees it at step 20, where it fails."""

    def __init__(self, folder: Path):
        self.filler = folder / "filler"

    def is_due(self, first_step: int, last_step: int) -> bool:
        return last_step in (3, 20)

    def after_step(self, step: int, writer: Any) -> None:
        if step == 20:
            self.filler.unlink()
            raise OSError("no pictures today")
        with pytest.raises(OSError, match="No space left"), self.filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))


def weights(run_dir: Path) -> bytes:
    (shards,) = max(run_dir.glob("checkpoints/step-*")).glob("*.safetensors")
    return shards.read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
@pytest.mark.slow
def test_a_full_disk_for_logs_does_not_change_the_weights(
    small_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    overrides = (f"steps={STEPS}", "save_every_steps=10", "log.samples=true")
    bad = {12 * 4: float("nan")}  # an incident, which cannot be written either
    run_dir = tmp_path / "full"
    with small_disk(run_dir, 400) as is_mounted:
        if not is_mounted:
            pytest.skip("this machine does not let us mount a small disk")
        training = fragile_training(make_plan(small_config(f"run_dir={run_dir}", *overrides)), bad)
        (tmp_path / "roomy").mkdir()
        (run_dir / "checkpoints").symlink_to(tmp_path / "roomy")
        training.callbacks = (FillsTheDisk(run_dir),)
        training.run()
        written = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]
        complete = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
        found = weights(run_dir)
    assert written == [line["step"] for line in complete]
    assert written[:3] == [0, 1, 2] and written[-9:] == list(range(21, STEPS)) and len(written) < STEPS
    for title in ("metrics", "the incident of step 12"):
        assert sum(f"cannot write {title}" in message for message in caplog.messages) == 1, title
    assert "FillsTheDisk failed: no pictures today; training continues" in caplog.messages
    undisturbed = small_config(f"run_dir={tmp_path / 'undisturbed'}", *overrides)
    fragile_training(make_plan(undisturbed), bad).run()
    assert found == weights(tmp_path / "undisturbed")


def test_a_full_disk_for_the_encoder_ends_with_code_3_and_the_next_start_writes_it(
    small_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = small_config("steps=2")
    with monkeypatch.context() as patch:
        patch.setattr("kinemae.pretrain.training.save_encoder", fail)
        with pytest.raises(DataError, match=f"cannot write to {config.run_dir}: No space left") as error:
            run_pretraining(make_plan(config))
    assert exit_code_of(error.value) == EXIT_DATA
    run_pretraining(make_plan(config))
    assert (Path(config.run_dir) / "encoder" / "encoder.json").exists()
