"""The folder of the best model follows a history, forwards and back, and survives a kill at each rename."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.storage.location import location
from kinemae.finetune.validation.best_model import BestModel, step_of_best
from kinemae.finetune.validation.selection import Selection
from kinemae.finetune.validation.stored_models import StoredModels
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.checkpoint_storage import storage_of
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import TensorShard

ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))
SELECTION = Selection(metric="top1", maximize=True)
HISTORY = [{"step": 9, "top1": 0.5}, {"step": 19, "top1": 0.6}, {"step": 29, "top1": 0.7}]


class Weights:
    """An engine with one value."""

    def __init__(self):
        self.value_V = torch.zeros(1)

    def shards(self):
        return [TensorShard(name="weight", kind="weight", start=0, values_V=self.value_V)]

    def shapes(self):
        return {"weight": (1,)}

    def updates(self):
        return {}

    def load_shards(self, fill, updates):
        fill(self.shards())


@pytest.fixture
def best(tmp_path):
    return BestModel(tmp_path, storage_of(tmp_path, None), SELECTION, ALONE)


def save(best, line):
    """Save a model that consists of the step as a text."""

    def write(folder: Path):
        folder.mkdir()
        (folder / "weights").write_text(str(line["step"]))

    best.save(line, write)


def stored(best):
    return (best.folder / "weights").read_text()


def checkpoint(best, count, *, keep=2, save_to=None):
    """Save a checkpoint with the first lines of the history."""
    saver = Checkpoints(best.folder.parent, ALONE, keep=keep, background=False, save_to=save_to)
    saver.save(Weights(), RunState(step=HISTORY[count - 1]["step"] + 1, validations=HISTORY[:count]))
    saver.commit()


def previous(best):
    return sorted(path.name for path in best.folder.parent.glob("best-previous/*"))


def test_the_best_model_is_replaced_and_names_its_validation(best):
    for line in HISTORY:
        save(best, line)

    assert stored(best) == "29"
    assert json.loads((best.folder / "validation.json").read_text()) == HISTORY[2]


def test_models_that_no_checkpoint_needs_are_removed(best):
    for count, line in enumerate(HISTORY, start=1):
        save(best, line)
        checkpoint(best, count, keep=1)
    save(best, {"step": 39, "top1": 0.8})

    assert previous(best) == ["step-00000029"]


def test_models_that_no_checkpoint_in_s3_needs_are_removed(tmp_path, bucket):
    save_to = f"{bucket}/run"
    best = BestModel(tmp_path, storage_of(tmp_path, save_to), SELECTION, ALONE)
    for count, line in enumerate(HISTORY, start=1):
        save(best, line)
        checkpoint(best, count, keep=1, save_to=save_to)
    save(best, {"step": 39, "top1": 0.8})

    assert previous(best) == ["step-00000029"]
    assert StoredModels(location(f"{save_to}/best")).steps() == {29, 39}


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_continues_from_an_older_checkpoint_has_its_best_model(best, count):
    for done, line in enumerate(HISTORY, start=1):
        save(best, line)
        checkpoint(best, done, keep=3)

    best.restore(HISTORY[:count])

    assert stored(best) == str(HISTORY[count - 1]["step"])
    assert all(name < f"step-{HISTORY[count - 1]['step']:08d}" for name in previous(best))


def test_a_run_that_continues_before_its_first_validation_has_no_best_model(best):
    save(best, HISTORY[0])

    best.restore([])

    assert not best.folder.exists() and previous(best) == []


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_best_model_is_replaced_loses_neither(best, monkeypatch, renames):
    save(best, HISTORY[0])
    checkpoint(best, 1)
    rename, done = Path.rename, []

    def killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(best, HISTORY[1])
    best.restore(HISTORY[:1])

    assert stored(best) == "9"
    save(best, HISTORY[1])
    assert stored(best) == "19" and previous(best) == ["step-00000009"]


def test_a_missing_best_model_is_an_error(best):
    save(best, HISTORY[0])
    shutil.rmtree(best.folder)

    with pytest.raises(CheckpointError, match="expected the best model, of step 9, got none; fix: restore"):
        best.restore(HISTORY[:1])


def test_a_failed_write_leaves_the_old_model(best):
    save(best, HISTORY[0])

    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"best: writing the best model failed .* No space left"):
        best.save(HISTORY[1], fail)

    assert stored(best) == "9" and step_of_best(best.folder) == 9
