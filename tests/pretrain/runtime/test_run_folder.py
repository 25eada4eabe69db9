"""A run folder belongs to one config, records every start, and has no environment variables."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import to_yaml
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.config import FinetuneConfig
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.config_changes import ALLOWED_CHANGES, REFUSED, find_changes, table_of
from kinemae.pretrain.runtime.run_folder import check_run_dir, open_run_dir
from tests.forked import run_forked

CANARY = "canary-4c1f9a"
BuildConfig = Callable[..., PretrainConfig]


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_holds_nothing_to_continue(
    small_config: BuildConfig, tmp_path: Path, exists: bool
) -> None:
    if exists:
        (tmp_path / "new").mkdir()
    assert check_run_dir(tmp_path / "new", small_config()) is False
    assert (tmp_path / "new").exists() == exists


def test_the_same_config_continues(small_config: BuildConfig, tmp_path: Path) -> None:
    open_run_dir(tmp_path / "run", small_config())
    assert check_run_dir(tmp_path / "run", small_config()) is True


@pytest.mark.parametrize(
    "override",
    [
        "data.num_workers=3",
        "data.max_bad_fraction=0.5",
        "batch.clips_per_device=2",
        "log.every_steps=7",
        "pictures.every_steps=9",
        "save_every_steps=1",
        "keep_checkpoints=5",
        "keep_every_steps=4",
        "save_in_background=false",
        "engine.zero_stage=2",
        "engine.precision=bf16",
        "optim.lr=1e-4",
        "engine.cpu_threads=2",
        "engine.bucket_mb=10",
    ],
)
def test_allowed_keys_may_change_in_a_continued_run(
    small_config: BuildConfig, tmp_path: Path, override: str
) -> None:
    open_run_dir(tmp_path / "run", small_config())
    assert check_run_dir(tmp_path / "run", small_config(override)) is True


def test_a_damaged_record_of_starts_is_named(small_config: BuildConfig, tmp_path: Path) -> None:
    open_run_dir(tmp_path, small_config())
    (tmp_path / "environment.json").write_text("[")
    with pytest.raises(ValueError, match=r"environment\.json: expected JSON"):
        open_run_dir(tmp_path, small_config())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.betas=[0.9,0.9]", r"\(optim\.betas: run \[0\.9, 0\.95\], config \[0\.9, 0\.9\]\)"),
        ("masking.args.ratio=0.25", r"\(masking\.args\.ratio: run 0\.5, config 0\.25\)"),
        ("model.width=null", r"\(model\.width: run 24, config None\)"),
        ("data.views_per_video=2", r"\(data\.views_per_video: run 1, config 2\)"),
    ],
)
def test_other_changes_are_refused_by_key(
    small_config: BuildConfig, tmp_path: Path, override: str, message: str
) -> None:
    open_run_dir(tmp_path / "run", small_config())
    with pytest.raises(ValueError, match=f"another config {message}; fix: choose another run_dir"):
        check_run_dir(tmp_path / "run", small_config(override))


def test_automatic_precision_is_recorded_at_each_start_and_changes_are_logged(
    small_config: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "environment.json"
    open_run_dir(tmp_path / "run", small_config())
    (start,) = json.loads(path.read_text())
    assert start["precision"] == "fp32", "the run names the CPU"
    path.write_text(json.dumps([{**start, "precision": "bf16"}]))
    with caplog.at_level("INFO", logger="kinemae"):
        assert check_run_dir(tmp_path / "run", small_config()) is True
        open_run_dir(tmp_path / "run", small_config())
    expected = "precision: bf16 at the last start, fp32 now: everything is rounded differently from here on"
    assert caplog.messages == [expected]


def test_a_key_missing_in_the_run_has_its_default(small_config: BuildConfig, tmp_path: Path) -> None:
    """The config of an older version may lack keys."""
    open_run_dir(tmp_path / "run", small_config())
    stored = yaml.safe_load(to_yaml(small_config()))
    del stored["optim"]["weight_decay"], stored["loss_guard"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(stored))
    assert check_run_dir(tmp_path / "run", small_config()) is True
    with pytest.raises(ValueError, match=r"\(optim\.weight_decay: run 0\.05, config 0\.1\)"):
        check_run_dir(tmp_path / "run", small_config("optim.weight_decay=0.1"))


def test_a_key_only_in_the_config_of_the_run_is_a_change(small_config: BuildConfig, tmp_path: Path) -> None:
    open_run_dir(tmp_path / "run", small_config())
    stored = yaml.safe_load(to_yaml(small_config()))
    stored["optim"]["momentum"] = 0.9
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match=r"\(optim\.momentum: run 0\.9, config None\)"):
        check_run_dir(tmp_path / "run", small_config())


def test_changes_are_logged_as_a_table_with_their_effects(
    small_config: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_run_dir(tmp_path / "run", small_config())
    with (
        caplog.at_level("INFO", logger="kinemae"),
        pytest.raises(ValueError, match=r"\(seed: run 3, config 4\); fix: choose another run_dir, or"),
    ):
        check_run_dir(tmp_path / "run", small_config("engine.zero_stage=2", "seed=4"))
    assert caplog.messages == [
        "key                old  new  effect",
        "seed               3    4    refused: other clips, masks and noise from here on",
        "engine.zero_stage  0    2    speed and memory; sums are rounded differently",
    ]


def test_every_listed_key_exists() -> None:
    known = {name for schema in (PretrainConfig, FinetuneConfig) for name in _keys(schema)}
    assert [key for key in (*ALLOWED_CHANGES, *REFUSED) if key not in known] == []


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(schema):
        yield prefix + entry.name
        if isinstance(entry.default_factory, type) and dataclasses.is_dataclass(entry.default_factory):
            yield from _keys(entry.default_factory, f"{prefix}{entry.name}.")


def test_a_long_value_is_truncated_in_the_table() -> None:
    (head, row) = table_of(find_changes({"a": {"b": "x" * 99}}, {"a": {"b": 1}}))
    assert row == f"a.b  '{'x' * 36}...  1    refused: another run"
    assert head.index("effect") == row.index("refused")


def test_other_folders_and_files_are_refused(small_config: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(
        ValueError, match="expected a run or an empty folder, got other files; fix: choose another run_dir"
    ):
        check_run_dir(tmp_path / "photos", small_config())
    with pytest.raises(ValueError, match="expected a folder, got a file; fix: choose another run_dir"):
        check_run_dir(tmp_path / "photos" / "one.jpg", small_config())


def test_a_first_start_that_was_interrupted_can_be_repeated(
    small_config: BuildConfig, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml.partial").write_text("seed", encoding="utf-8")  # what a full disk leaves
    assert check_run_dir(run_dir, small_config()) is False
    open_run_dir(run_dir, small_config())
    assert [path.name for path in run_dir.glob("config*")] == ["config.yaml"]


def test_an_unwritable_folder_is_an_error_of_one_line(small_config: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to .*file/run: Not a directory; fix that and run"):
        open_run_dir(tmp_path / "file" / "run", small_config())


def test_the_first_config_stays_and_starts_are_recorded(small_config: BuildConfig, tmp_path: Path) -> None:
    first, second = small_config(), small_config("data.num_workers=1")
    open_run_dir(tmp_path / "run", first)
    open_run_dir(tmp_path / "run", second)
    assert (tmp_path / "run" / "config.yaml").read_text() == to_yaml(first)
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(starts) == 2
    assert [start["changed"] for start in starts] == [{}, {"data.num_workers": [0, 1]}]
    for start in starts:
        assert {"started", "command", "commit", "host", "processes", "python", "versions"} <= start.keys()
        assert start["versions"]["torch"] and start["versions"]["deepspeed"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "environment.json"]


def test_a_small_file_is_replaced_atomically(tmp_path: Path) -> None:
    (tmp_path / "note.txt.partial").write_text("of a killed process, longer than what follows")
    atomic_write_text(tmp_path / "note.txt", "old")
    atomic_write_text(tmp_path / "note.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert (tmp_path / "note.txt").read_text() == "new"


@pytest.mark.processes
def test_no_environment_variable_reaches_the_run_folder(small_run: Path, small_config: BuildConfig) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": CANARY, "KINEMAE_TOKEN": CANARY, "WANDB_API_KEY": CANARY}
    words = ("-m", "pretrain", str(small_run), "steps=2", "pictures.every_steps=1")
    ran = run_forked(*words, **secrets)
    files = [path for path in Path(small_config().run_dir).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".yaml", ".json", ".jsonl", ".safetensors", ".gif"} <= kinds
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in ran.stdout + ran.stderr
