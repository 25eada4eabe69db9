"""Best models in S3 are complete or absent, replace lost local ones, and have the errors of checkpoints."""

import io
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from kinemae.data_tools.command import CheckpointError, Stuck, exit_code_of
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_STUCK
from kinemae.data_tools.storage.location import location
from kinemae.finetune.validation.best_model import BestModel
from kinemae.finetune.validation.stored_models import StoredModels
from kinemae.pretrain.runtime.checkpoint import Checkpoints
from kinemae.pretrain.runtime.checkpoint_storage import storage_of
from tests.finetune.validation.test_best_model import ALONE, HISTORY, SELECTION, Weights, checkpoint
from tests.forked import ForkedPython
from tests.pretrain.runtime.test_object_checkpoints import unfinished_uploads

UPLOAD = """
import sys
from pathlib import Path
from kinemae.data_tools.storage.location import location
from kinemae.finetune.validation.stored_models import StoredModels
StoredModels(location(sys.argv[1])).upload(Path(sys.argv[2]), 29)
"""


def best_of(run_dir, bucket):
    run_dir.mkdir(exist_ok=True)
    return BestModel(run_dir, storage_of(run_dir, f"{bucket}/run"), SELECTION, ALONE)


def stored_in(bucket):
    return StoredModels(location(f"{bucket}/run/best"))


def save(best, line):
    """Save a model with a file in a folder, as of an adapter."""

    def write(folder: Path):
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "config").write_text(str(line["step"]))
        (folder / "weights").write_bytes(bytes([line["step"]]) * 1000)
        (folder / "empty").touch()

    best.save(line, write)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tmp_path, bucket):
    """Return the folder of a run with three best models, each with its checkpoint."""
    best = best_of(tmp_path / "run", bucket)
    for count, line in enumerate(HISTORY, start=1):
        save(best, line)
        checkpoint(best, count, keep=3, save_to=f"{bucket}/run")
    return tmp_path / "run"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_in_an_empty_folder_has_the_best_model_of_its_checkpoint(finished, tmp_path, bucket, count):
    models = [*sorted(finished.glob("best-previous/*")), finished / "best"]
    other = best_of(tmp_path / "other", bucket)

    other.restore(HISTORY[:count])

    assert files(other.folder) == files(models[count - 1])
    assert {"adapter/config", "weights", "empty", "validation.json"} == files(other.folder).keys()
    assert stored_in(bucket).steps() == {9, 19, 29} - {line["step"] for line in HISTORY[count:]}
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["best"]


def test_a_local_best_model_of_another_step_is_replaced(finished, tmp_path, bucket):
    other = best_of(tmp_path / "other", bucket)
    shutil.copytree(finished / "best-previous" / "step-00000009", other.folder)

    other.restore(HISTORY)

    assert files(other.folder) == files(finished / "best")


def test_a_run_before_its_first_validation_keeps_no_best_model(finished, bucket):
    best_of(finished, bucket).restore([])

    assert not (finished / "best").exists() and stored_in(bucket).steps() == set()


def test_old_models_that_cannot_be_removed_do_not_end_the_run(finished, bucket, monkeypatch, caplog):
    best = best_of(finished, bucket)
    checkpoint(best, 3, keep=1, save_to=f"{bucket}/run")
    with monkeypatch.context() as patch:
        patch.setattr(StoredModels, "remove", lambda models, step: fail(step))
        save(best, {"step": 39, "top1": 0.8})
    assert "earlier best models are not removed now: step 9" in caplog.text
    assert stored_in(bucket).steps() == {9, 19, 29, 39}

    save(best, {"step": 49, "top1": 0.9})

    assert stored_in(bucket).steps() == {29, 39, 49}


def fail(step):
    raise PermissionError(f"step {step}")


def test_a_best_model_that_is_missing_in_s3_is_stored_again(finished, bucket):
    stored_in(bucket).remove(29)

    best_of(finished, bucket).restore(HISTORY)

    assert stored_in(bucket).steps() == {9, 19, 29}


def test_a_best_model_that_is_missing_everywhere_is_an_error(finished, tmp_path, bucket):
    stored_in(bucket).remove(29)

    message = r"other/best or s3://.*/run/best: expected the best model, of step 29, got none; fix: restore"
    with pytest.raises(CheckpointError, match=message):
        best_of(tmp_path / "other", bucket).restore(HISTORY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a tar with a model, got an error: empty file"),
        (bytes(100), "expected a tar with a model, got an error: "),
        ("../weights", r"got an error: \.\./weights is not a file below the folder"),
        ("weights", "expected the best model, of step 29, got none"),
    ],
)
def test_another_object_in_the_place_of_a_model_is_an_error(tmp_path, bucket, content, message):
    if isinstance(content, str):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(content))
        content = buffer.getvalue()
    location(f"{bucket}/run/best/step-00000029.tar").write(content)

    with pytest.raises(CheckpointError, match=message):
        best_of(tmp_path / "run", bucket).restore(HISTORY)

    assert not (tmp_path / "run" / "best").exists() and not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_a_process_killed_in_an_upload_leaves_nothing(tmp_path, proxied_bucket):
    proxy, bucket = proxied_bucket
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(20 << 20))
    held = []

    def hold(method, path):
        if method == "PUT" and "partNumber=2" in path:
            held.append(path)
            return "slow"
        return None

    proxy.fault = hold
    words = ("-c", UPLOAD, f"{bucket}/run/best", str(tmp_path / "model"))
    with ForkedPython(*words, environment={}) as process:
        while not held:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    proxy.fault = lambda method, path: None

    assert stored_in(bucket).steps() == set() and unfinished_uploads(bucket) == 1
    Checkpoints(tmp_path, ALONE, save_to=f"{bucket}/run").load_newest(Weights())
    assert unfinished_uploads(bucket) == 0


@pytest.mark.usefixtures("quick_failures")
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [(403, CheckpointError, "access denied"), (503, Stuck, "HTTP 503"), ("reset", Stuck, "cannot .* s3://")],
)
def test_a_store_that_fails_has_the_exit_code_of_a_checkpoint(tmp_path, proxied_bucket, fault, kind, message):
    (proxy, bucket), code = proxied_bucket, EXIT_STUCK if kind is Stuck else EXIT_CHECKPOINT
    best = best_of(tmp_path / "run", bucket)
    save(best, HISTORY[0])
    checkpoint(best, 1, save_to=f"{bucket}/run")
    proxy.fault = lambda method, path: fault

    with pytest.raises(kind, match=f"writing the best model failed on rank 0: .*{message}") as error:
        save(best, HISTORY[1])
    assert exit_code_of(error.value) == code
    with pytest.raises(kind, match=f"preparing the best model failed on rank 0: .*{message}") as error:
        best_of(tmp_path / "other", bucket).restore(HISTORY[:1])
    assert exit_code_of(error.value) == code

    proxy.fault = lambda method, path: None
    best.restore(HISTORY[:1])
    assert (best.folder / "adapter" / "config").read_text() == "9" and stored_in(bucket).steps() == {9}
