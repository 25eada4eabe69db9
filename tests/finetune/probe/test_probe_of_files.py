"""Probes of features in files, and the errors of wrong input."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinemae.data_tools.config import load_config
from kinemae.finetune.probe.checks import check_probe_data
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.tasks.classification import Classification
from tests.finetune.probe.conftest import finetune, make_features, read
from tests.label_index import label_index


@pytest.mark.parametrize("method", ["linear", "logistic", "knn"])
def test_features_of_separable_classes_are_classified(files, tmp_path, method):
    assert finetune("probe", *files, f"method={method}") == 0

    result = read(tmp_path / "run" / method / "result.json")
    assert result["top1"] > 0.95
    assert result["probe"]["floor"]["value"] == pytest.approx(1 / 3)
    assert result["classes"] == ["a", "b", "c"]
    assert result["probe"]["interval"]["groups"] == 10


def test_parquet_equals_npz(files, tmp_path):
    assert finetune("probe", *files, "method=knn") == 0
    own = read(tmp_path / "run/knn/result.json")
    for name in ("train", "validation"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            columns = {key: arrays[key].tolist() for key in arrays.files}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")

    changed = [each.replace(".npz", ".parquet") for each in files]
    assert finetune("probe", *changed, "method=knn") == 0

    assert read(tmp_path / "run/knn/result.json")["confusion_matrix"] == own["confusion_matrix"]


def test_a_task_reads_extra_columns_of_files(files, tmp_path):
    for seed, name in enumerate(("train", "validation")):
        arrays = make_features(seed=seed, prefix=name)
        arrays["speed"] = arrays["features"].astype(np.float64).sum(axis=1)
        np.savez(tmp_path / f"{name}.npz", **arrays)

    task = ["task={name: regression, args: {labels: [speed]}}", "train.min_steps=300"]
    assert finetune("probe", *files, *task) == 0

    result = read(tmp_path / "run/linear/result.json")
    found = result["probe"]
    assert found["floor"]["value"] > 3 * result[result["metric"]] or result[result["metric"]] > 0.9


def test_one_class_is_rejected(files, tmp_path, capsys):
    for name in ("train", "validation"):
        np.savez(tmp_path / f"{name}.npz", **{**make_features(prefix=name), "label": np.array(["a"] * 60)})

    assert finetune("probe", *files) == 3

    assert (
        "expected at least two classes in the column label, got 'a' for all videos" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"features": np.full((60, 8), np.nan, np.float32)}, 3, "got NaN or infinity in sample train-0"),
        ({"features": np.zeros((60,), np.float32)}, 3, "of shape (samples, values), got (60,)"),
        ({"features": np.zeros((59, 8), np.float32)}, 3, "expected 59 values in `key`"),
        ({"label": np.array(["a", "b"] * 30)}, 3, "expected the 2 labels of data.train, got 'c' too"),
        ({"group": np.array(["validation-group-0"] * 60)}, 3, "expected no group of data.train"),
        ({"key": np.array([f"validation-{i}" for i in range(60)])}, 3, "expected no file of data.train"),
        ({"group": np.array(["one"] * 60)}, 3, "samples of two or more groups"),
    ],
)
def test_wrong_training_data_is_one_line(files, tmp_path, change, code, message, capsys):
    np.savez(tmp_path / "train.npz", **{**make_features(), **change})

    assert finetune("probe", *files) == code

    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and "fix:" in lines[-1]
    assert not (tmp_path / "run/linear").exists()


def test_equal_keys_of_different_videos_are_accepted(tmp_path):
    """Keys of shards are often numbers: only the content tells whether two samples are one video."""
    train, validation = (label_index(tmp_path / name, labels=[0, 1, 2] * 4) for name in "tv")
    assert train.sample(0).key == validation.sample(0).key
    given = ["encoder=e", f"data.train={tmp_path / 't'}", f"data.validation={tmp_path / 'v'}", "run_dir=r"]
    task = Classification()
    task.fit(train, key="data.train=t")

    targets = task.read(train, key="data.train=t")
    check_probe_data(load_config(ProbeConfig, None, given), task, train, validation, targets)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=knn", "knn.k=[61]"], "knn.k: expected at most 60"),
        (["method=knn", "few_shot.per_class=[21]"], "few_shot.per_class: expected at most 20"),
        (["method=linear", "few_shot.per_class=[1]"], "method must be knn or logistic with few_shot"),
        (["method=attentive"], "method must not be attentive with pooled features"),
        (["grid.pool=[max]"], "grid.pool must hold mean, statistics or slices"),
        (["grid.pool=[slices]"], "grid.pool must not hold slices without features.kind=slices of an encoder"),
        (["grid.lr=[]"], "grid.lr must hold at least one value"),
        (["encoder=[]"], "encoder must be null, a folder or a list of folders"),
        (["encoder=somewhere"], "data.train: expected a folder of shards with encoder=somewhere"),
        (["data.train=folder"], "encoder: expected a folder, or null with data.train as a file"),
        (["data.views_per_video=2"], "features.train_views sets the views"),
    ],
)
def test_a_wrong_config_is_one_line(files, overrides, message, capsys):
    assert finetune("probe", *files, *overrides) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_knn_takes_no_other_method(files, capsys):
    assert finetune("knn", *files, "method=linear") == 2

    assert "method: expected knn or no such key" in capsys.readouterr().err


def test_a_missing_column_is_named(files, tmp_path, capsys):
    arrays = make_features()
    del arrays["key"]
    np.savez(tmp_path / "train.npz", **arrays)

    assert finetune("probe", *files) == 3

    assert "expected the column key, got features, label, group" in capsys.readouterr().err


def test_a_missing_file_is_named(files, tmp_path, capsys):
    (tmp_path / "train.npz").unlink()

    assert finetune("probe", *files) == 3

    assert "expected a file of features, got no file" in capsys.readouterr().err
