"""`kinemae pretrain` reports each error in one line with its exit code before the run starts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.run_folder import open_run_dir
from tests.conftest import run_module

CONFIG, DATA = 2, 3


@pytest.fixture
def arguments(repo: Path, synth_shards: Path, tmp_path: Path) -> list[str]:
    """The shipped demo on small shards, its run in `tmp_path / "run"`."""
    config = str(repo / "configs/pretrain/demo.yaml")
    places = [f"data.shards={synth_shards / 'unlabelled'}", f"run_dir={tmp_path / 'run'}"]
    shape = ["data.views_per_video=2", "model.predict_ratio=0.5"]
    return [
        config,
        *places,
        *shape,
        "steps=1",
    ]  # an error that is not detected must not train for minutes


@pytest.fixture
def refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command in this process, check that the run did not start, and return the only line."""

    def run(code: int, *overrides: str) -> str:
        had_group = dist.is_initialized()
        capsys.readouterr()
        given = run_program(PROGRAM, [*arguments, *overrides])
        output, errors = capsys.readouterr()
        assert given == code, errors
        messages = [line for line in errors.splitlines() if " INFO " not in line]
        assert output == "" and len(messages) == 1 and " ERROR " in messages[0]
        assert had_group or not dist.is_initialized()
        assert not (tmp_path / "run" / "environment.json").exists()
        return errors

    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clip.size=30"], "a clip of 8 frames at 30x30 cannot be cut into patches of 2 frames at 8x8"),
        (["clip.frames=7"], "a clip of 7 frames at 32x32 cannot be cut into patches of 2 frames at 8x8"),
        (["masking.args.ratio=1.0"], "masking.args.ratio must lie strictly between 0 and 1, got 1.0"),
        (["masking.name=tube", "clip.size=8"], "leaves 4 tokens visible and 0 hidden on a grid of 4x1x1"),
        (["masking.args.ratio=all"], "masking.args.ratio must be of type float, got 'all'"),
        (["masking.args.ratio=true"], "masking.args.ratio must be of type float, got True"),
        (["masking.args.ratio=.nan"], "masking.args.ratio must be a finite number, got nan"),
        (["masking.args.ratoi=0.5"], "masking.args: uniform has no argument 'ratoi'; did you mean 'ratio'?"),
        (["masking.name=tubes"], "masking.name: no masking named 'tubes'; did you mean 'tube'?"),
        (["noise.name=gausian"], "noise.name: no noise named 'gausian'; did you mean 'gaussian'?"),
        (["target.name=pixel"], "target.name: no target named 'pixel'; did you mean 'pixels'?"),
        (["target.name=os.path"], "target.name: no target named 'os.path'; expected one of "),
        (["step=5"], "config key step: unknown key; did you mean steps?"),
        (["optim.weigth_decay=0"], "did you mean optim.weight_decay?"),
        (["masking=tubes"], "masking.name: no masking named 'tubes'; did you mean 'tube'?"),
        (["steps=many"], "config key steps: expected a whole number, got 'many'"),
        (["batch.global_clips=[1]"], "config key batch.global_clips: "),
        (["model.decoder=flat"], "config key model.decoder: "),
        (["optim.lr=.nan"], "optim.lr must be a finite number, got nan"),
        (["optim.lr=-1"], "optim.lr must be above 0, got -1.0"),
        (["steps=0"], "steps must be at least 1, got 0"),
        (["save_every_steps=0"], "save_every_steps must be at least 1, got 0"),
        (["data.views_per_video=0"], "data.views_per_video must be at least 1, got 0"),
        (["model.predict_ratio=0"], "model.predict_ratio must lie above 0 and at most at 1, got 0.0"),
        (["engine.zero_stage=7"], "engine.zero_stage must be 0, 1, 2 or 3, got 7"),
        (["engine.precision=fp8"], "engine.precision must be auto, fp32 or bf16, got 'fp8'"),
        (
            ["model.size=huger"],
            "model.size must be one of tiny, small, base, large, huge, giant, got 'huger'",
        ),
        (["--steps=2"], "expected an override without dashes, got '--steps=2'; fix: write steps=2"),
        (["steps"], "expected an override of the form key=value, got 'steps'"),
        (["steps=12:30:00"], "steps: YAML reads 12:30:00 as another number"),
        (["data.timeout_s=0"], "data.timeout_s must be above 0, got 0.0"),
        (
            ["data.shards=null"],
            "data.shards: expected a folder, got null; fix: set data.shards=FOLDER, or data.mixture={",
        ),
        (["data.mixture={a: 1}"], "data.shards must be null if data.mixture is set, got '/"),
        (
            ["data.shards=null", "data.mixture={}"],
            "data.mixture must name at least one folder: {FOLDER: weight}",
        ),
        (
            ["data.shards=null", "data.mixture={a: 1, b/c: 0}"],
            "the weight of b/c in data.mixture must be above 0, got 0.0",
        ),
        (
            ["data.shards=null", "data.mixture={a: much}"],
            "config key data.mixture.a: expected a number, got 'much'",
        ),
        (["data.concatenate=[a]"], "data.shards must be null if data.concatenate is set, got '/"),
        (["data.shards=null", "data.concatenate=[a, a]"], "data.concatenate must name one or more folders"),
        (["data.where=label >"], "data.where: expected a condition over columns, got 'label >' (invalid"),
        (["data.where=lable is None"], "got 'lable'; did you mean 'label'?"),
        (["data.weight=key"], "data.weight: expected a column of numbers of "),
        (["batch.global_clips=31"], "batch.global_clips=31 cannot be shared by 1 processes"),
    ],
)
def test_an_invalid_config_exits_with_2_and_names_the_fix(
    refused: Callable[..., str], overrides: list[str], message: str
) -> None:
    assert message in refused(CONFIG, *overrides)


def test_a_config_file_that_is_not_there_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, [str(tmp_path / "none.yaml")]) == CONFIG
    assert f"no config file at {tmp_path / 'none.yaml'}" in capsys.readouterr().err


def test_a_config_without_its_mandatory_keys_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.yaml").write_text("seed: 1\nsteps: 1\n")
    assert run_program(PROGRAM, [str(tmp_path / "short.yaml")]) == CONFIG
    expected = "no value for run_dir: set it in the config or as run_dir=..."
    assert expected in capsys.readouterr().err


def test_missing_shards_exit_with_3(refused: Callable[..., str]) -> None:
    assert "no folder of shards at /no/where; fix: make one with" in refused(DATA, "data.shards=/no/where")


def test_an_empty_folder_of_shards_exits_with_3(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected a data set, got a folder without dataset.json" in refused(
        DATA, f"data.shards={tmp_path / 'empty'}"
    )


def test_the_error_for_the_parent_of_the_splits_names_a_split(
    refused: Callable[..., str], synth_shards: Path
) -> None:
    assert f"did you mean {synth_shards / 'train'} or {synth_shards}" in refused(
        DATA, f"data.shards={synth_shards}"
    )


def test_fewer_clips_than_the_global_batch_exit_with_3(refused: Callable[..., str]) -> None:
    line = refused(DATA, "batch.global_clips=82")
    assert "got 80 (40 videos with data.views_per_video=2)" in line
    assert "expected at least batch.global_clips=82 clips" in line


def test_a_global_batch_that_the_processes_cannot_share_exits_with_2_and_names_the_numbers(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    line = refused(CONFIG)
    assert "batch.global_clips=32 cannot be shared by 3 processes in equal micro-batches" in line
    assert "batch.clips_per_device=32" in line and "data.views_per_video=2" in line
    assert "choose batch.global_clips as a multiple of 3 x 2 = 6" in line


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"WORLD_SIZE": "2"}, "WORLD_SIZE: expected RANK"), ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE")],
)
def test_incomplete_variables_of_a_launcher_are_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message in refused(CONFIG)


def test_a_run_dir_of_another_config_exits_with_2_and_names_the_differences(
    refused: Callable[..., str], arguments: list[str], tmp_path: Path
) -> None:
    open_run_dir(tmp_path / "run", load_config(PretrainConfig, arguments[0], arguments[1:]))
    (tmp_path / "run" / "environment.json").unlink()  # so that `refused` can check for a recorded start
    line = refused(CONFIG, "clip.stride=2", "seed=1")
    assert "holds a run of another config (clip.stride: run 1, config 2; seed: run 0, config 1)" in line


def test_a_run_dir_that_is_no_run_is_left_alone(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    assert "expected a run or an empty folder, got other files; fix: choose another run_dir" in refused(
        CONFIG
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_run_dir_that_is_a_file_exits_with_2(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "expected a folder, got a file; fix: choose another run_dir" in refused(
        CONFIG, f"run_dir={tmp_path / 'file'}"
    )


def test_a_run_dir_that_cannot_be_made_exits_with_3(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"cannot write to {tmp_path}/file/run" in refused(DATA, f"run_dir={tmp_path}/file/run")


def test_a_secret_in_the_environment_cannot_be_written_into_a_config(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMAE_TEST_TOKEN", "canary-81c2")
    assert "canary-81c2" not in refused(CONFIG, "data.shards=${oc.env:KINEMAE_TEST_TOKEN}")


def test_a_dry_run_prints_the_counts_and_writes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, [*arguments, "--dry-run", "--json", "steps=10"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["samples"] == 40 and counts["epochs"] == 4.0  # 10 steps of 32 clips, 2 clips per video
    assert (counts["tokens"], counts["visible_tokens"], counts["predicted_tokens"]) == (64, 32, 16)
    assert (counts["processes"], counts["clips_per_process_at_once"], counts["accumulation"]) == (1, 32, 1)
    assert counts["process_counts"] == [1] and counts["continues"] is False
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_mixture_counts_the_epochs_of_each_set(
    arguments: list[str], synth_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(synth_shards / name) for name in ("train", "unlabelled")]
    mixture = f"data.mixture={{{folders[0]}: 3, {folders[1]}: 1}}"
    assert (
        run_program(PROGRAM, [*arguments, "--dry-run", "--json", "steps=10", "data.shards=null", mixture])
        == 0
    )
    counts = json.loads(capsys.readouterr().out)
    assert counts["samples"] == 72  # 32 and 40
    assert counts["epochs"] == {
        folders[0]: 3.75,
        folders[1]: 1.0,
    }  # 160 videos, three quarters and one quarter


def test_a_dry_run_counts_the_samples_of_concatenated_sets_that_match(
    arguments: list[str], synth_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = f"data.concatenate=[{synth_shards / 'train'}, {synth_shards / 'unlabelled'}]"
    data = ["data.shards=null", folders, "data.where=label in ['move_left', 'move_right'] or label is None"]
    assert (
        run_program(PROGRAM, [*arguments, "--dry-run", "--json", "steps=6", *data, "data.weight=frames"]) == 0
    )
    counts = json.loads(capsys.readouterr().out)
    assert counts["samples"] == 48  # 8 and 40
    assert counts["epochs"] == 2.0


def test_a_dry_run_shows_the_resolved_config_ahead_of_the_counts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, [*arguments, "--dry-run", "optim.lr=2e-4", "batch.clips_per_device=8"]) == 0
    output = capsys.readouterr().out
    assert "  lr: 0.0002\n" in output and '"accumulation": 4' in output


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_program(PROGRAM, ["--help"])
    assert left.value.code == 0
    output = capsys.readouterr().out
    assert "example:\n  kinemae pretrain demo data.shards=" in output
    assert "--dry-run" in output


@pytest.mark.slow
def test_the_module_itself_gives_line_and_exit_code_before_deepspeed_is_loaded(arguments: list[str]) -> None:
    ran = run_module("pretrain", *arguments, "masking.name=tubes", check=False)
    assert ran.returncode == CONFIG
    assert "did you mean 'tube'?" in ran.stderr and "Traceback" not in ran.stderr
    assert "deepspeed" not in ran.stderr.lower()
