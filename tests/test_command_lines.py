"""Command lines: help and usage errors import no large packages; configs are found by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kinemae.data_tools.command import exit_code_of, log_error, run_program
from kinemae.data_tools.config_files import CONFIGS, find_config
from kinemae.data_tools.config_files import main as run_configs
from kinemae.data_tools.packages import TRAINING as TRAINING_PACKAGES
from kinemae.finetune.__main__ import PROGRAM as FINETUNE
from kinemae.finetune.export.formats import FORMATS
from kinemae.launch.job import prepare_job
from kinemae.pretrain.__main__ import PROGRAM as PRETRAIN
from tests.finetune.test_model_file import saved

# Packages that take long to import.
HEAVY = ("torch", "numpy", "pyarrow", "av", "cv2", "omegaconf", "deepspeed", "scipy")

ASK_ALL = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from kinemae.data_tools import __main__ as data_tools
from kinemae.data_tools.command import run_program
from kinemae.finetune import __main__ as finetune
from kinemae.launch import __main__ as launch
from kinemae.pretrain import __main__ as pretrain

def answer(run, words):
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            code = run(words)
    except SystemExit as error:
        code = error.code
    heavy = [name for name in sys.argv[1:] if name in sys.modules]
    print(*words, "exit code", code, "imported", *heavy or ["nothing"])

for module in (data_tools, pretrain, finetune, launch):
    run = lambda words, program=module.PROGRAM: run_program(program, words)
    for command in module.PROGRAM.commands:
        answer(run, [*filter(None, [command.name]), "--help"])
    answer(run, ["--help"])
    for command in module.PROGRAM.commands:
        answer(run, [*filter(None, [command.name])])
        answer(run, [*filter(None, [command.name]), "one", "two", "--steps=3"])
answer(lambda words: run_program(pretrain.PROGRAM, words), ["no_such_file.yaml"])
answer(lambda words: run_program(finetune.PROGRAM, words), ["train", "no_such_file.yaml"])
"""


def test_help_and_wrong_usage_import_nothing_large(repo: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ASK_ALL, *HEAVY], cwd=repo, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert len(lines) > 50
    for line in lines:
        assert line.endswith("imported nothing"), line
        expected = "exit code 0 " if "--help" in line else "exit code 2 "
        assert expected in line, line


WITHOUT_TRAINING = """
import sys
from importlib.abc import MetaPathFinder
from kinemae.data_tools.__main__ import main

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked or name == "torch.utils.tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

videos, shards, *blocked = sys.argv[1:]
sys.meta_path.insert(0, Blocked())
few = ["train_per_class=1", "validation_per_class=1", "unlabelled=2", "workers=1"]
sys.exit(
    main(["synth", videos, *few])
    or main(["shard", videos, shards, "workers=1"])
    or main(["verify", shards, "--full", "workers=1"])
)
"""
TRAINING = ("deepspeed", "tensorboard", "safetensors", "scipy", "transformers", "torchcodec")


@pytest.mark.slow
def test_data_tools_work_without_the_packages_of_training(tmp_path: Path) -> None:
    folders = [str(tmp_path / "videos"), str(tmp_path / "shards")]
    command = [sys.executable, "-c", WITHOUT_TRAINING, *folders, *TRAINING]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "shards" / "train" / "index.arrow").is_file()


WITHOUT_EXTRAS = """
import sys

folder, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys([*blocked, "torch.utils.tensorboard"]))  # their import fails
import torch
import kinemae
from kinemae.data_tools.command import run_program
from kinemae.pretrain.__main__ import main as pretrain

model = kinemae.load(folder)
assert model.scores(torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8)).shape == (1, 3)
assert model.predict(f"{folder}/video.mp4", stride=2, cpu_threads=1).columns == model.classes
sys.exit(pretrain(["demo", "data.shards=absent", "run_dir=run"]))
"""
NO_TRAINING = "packages: expected the package {}, got none; fix: pip install 'kinemae[train]'"
EXTRAS = (*TRAINING_PACKAGES, "peft", "transformers", "huggingface_hub", "s3fs", "aiohttp", "umap")


@pytest.mark.slow
def test_inference_works_without_the_packages_of_training(tmp_path: Path) -> None:
    saved(tmp_path)
    shutil.copyfile(Path(__file__).parent / "data/videos/h264_b_frames.mp4", tmp_path / "video.mp4")
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(tmp_path), *EXTRAS]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert NO_TRAINING.format("deepspeed") in ran.stderr


def test_a_missing_optional_package_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    error = ModuleNotFoundError("No module named 'sklearn'", name="sklearn.pipeline")
    assert exit_code_of(error) == 2 and exit_code_of(ModuleNotFoundError(name="another")) == 1
    log_error(error)
    assert caplog.messages == [NO_TRAINING.format("sklearn")]


def test_help_of_export_names_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_program(FINETUNE, ["export", "--help"])
    text = capsys.readouterr().out
    assert all(system in text for system in FORMATS)


@pytest.mark.parametrize("given", ["demo", "pretrain/demo", "configs/pretrain/demo.yaml"])
def test_a_config_is_found_by_its_path_or_its_name(
    given: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    assert find_config(given, "pretrain").resolve() == CONFIGS / "pretrain" / "demo.yaml"


def test_a_name_is_found_from_any_folder_and_a_local_file_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("demo", "pretrain") == CONFIGS / "pretrain" / "demo.yaml"
    (tmp_path / "configs/pretrain").mkdir(parents=True)
    (tmp_path / "configs/pretrain/demo.yaml").touch()
    assert find_config("demo", "pretrain").resolve() == tmp_path / "configs/pretrain/demo.yaml"
    (tmp_path / "demo").touch()
    assert find_config("demo", "pretrain") == Path("demo")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("configs/pretrain/demo.yml", "did you mean configs/pretrain/demo.yaml?"),
        ("configs/pretrain/demoo.yaml", "did you mean configs/pretrain/demo.yaml?"),
        ("configs/demo.yaml", "no config file at configs/demo.yaml; did you mean demo?"),
        ("dmo", "no config file at dmo; did you mean demo?"),
        ("videomae_bas", "did you mean videomae_base?"),
        ("previw", "did you mean the command preview?"),
        ("zzz", "no config file at zzz; fix: `kinemae configs` lists the names\n"),
        ("steps=3", "expected a config file first, got the override 'steps=3'; fix: write CONFIG steps=3"),
        ("steps=3 demo", "expected a config file first, got the override 'steps=3'; fix: write demo steps=3"),
        ("demo dry-run", "expected an override of the form key=value, got 'dry-run'; fix: write --dry-run"),
        (
            "demo data.shards=/my shards a=1",
            "fix: if it belongs to the word before it, quote both, 'data.shards=/my shards'",
        ),
        ("configs", "configs: expected a config file, got a folder\n"),
        (
            "configs/finetune/demo.yaml",
            "is a fine-tuning config; fix: start it with kinemae finetune train",
        ),
        ("configs/cluster/ssh.yaml", "is a cluster file; fix: start it with kinemae launch"),
    ],
)
def test_a_missing_config_error_suggests_the_nearest_name(
    given: str, message: str, repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo)
    assert run_program(PRETRAIN, given.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("given", ["videomae_base", "show demo a=1"])
def test_configs_takes_no_further_arguments(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_configs(given.split()) == 2
    assert f"expected no further arguments, got {given.split()[-1]!r}" in capsys.readouterr().err


def test_a_run_folder_in_place_of_a_config_error_suggests_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    assert run_program(PRETRAIN, [str(tmp_path)]) == 2
    assert (
        f"expected a config file, got a folder; fix: give {tmp_path}/config.yaml" in capsys.readouterr().err
    )


def test_the_launcher_finds_a_config_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = prepare_job(["pretrain", "demo", "run_dir=run"], {}, dry_run=False)
    assert job.config == str(CONFIGS / "pretrain" / "demo.yaml")
    assert job.run_dir == str(tmp_path / "run")
