"""The installed wheel: every command runs from another folder and reads no file of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_architecture import PACKAGES

pytestmark = [pytest.mark.slow, pytest.mark.processes]

# Runs at the start of each process of the environment, also in ranks and loader workers.
RECORD_FILES = """
import os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def record(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        os.write(log, (os.path.abspath(arguments[0]) + chr(10)).encode())
sys.addaudithook(record)
"""
# A module of this name in the current folder must not replace one of kinemae's.
NAMES_IN_THE_WAY = ("launch.py", "finetune.py", "pretrain.py", "data_tools.py", "kinemae.txt")
CPU = ["engine.device=cpu", "engine.precision=fp32"]


class Installed(NamedTuple):
    """A virtual environment with the wheel, and a folder to run commands in."""

    environment: Path
    folder: Path
    log: Path

    def run(self, *words: str, program: str = "kinemae") -> str:
        """Run `kinemae WORDS`, or `python -c WORDS`, in the folder; return its standard output."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(
            [str(self.environment / "bin" / program), *(["-P", "-c"] if program == "python" else []), *words],
            cwd=self.folder,
            env={**inherited, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"kinemae {' '.join(words)}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def opened_files(self) -> set[Path]:
        """All files that the environment's processes have opened so far."""
        return {Path(line) for line in self.log.read_text(encoding="utf-8").splitlines()}


@pytest.fixture(scope="module")
def installed(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    root = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(repo, root)
    environment, folder, log = root / "venv", root / "elsewhere", root / "opened.txt"
    venv.create(environment, with_pip=False, symlinks=True)
    python = str(environment / "bin" / "python")
    bases = {"base": str(environment), "platbase": str(environment)}
    own = Path(sysconfig.get_path("purelib", "venv", bases))
    (own / "a_record_files.pth").write_text("import a_record_files\n")
    (own / "a_record_files.py").write_text(RECORD_FILES.format(log=str(log)))
    # Folders named in a .pth file are searched, but their own .pth files, of editable installs, are not read.
    (own / "third_party.pth").write_text("".join(f"{path}\n" for path in site_packages(repo)))
    pip(python, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    folder.mkdir()
    for name in NAMES_IN_THE_WAY:
        (folder / name).write_text(f"raise SystemExit('{name} of the current folder was run')\n")
    yield Installed(environment, folder, log)


def build_wheel(repo: Path, root: Path) -> Path:
    """Build from a copy: setuptools would add old files that lie in the checkout's `build/`."""
    source = root / "source"
    for name in (*PACKAGES, "kinemae", "configs"):
        shutil.copytree(repo / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(repo / name, source / name)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(root / "dist"), str(source))
    (wheel,) = (root / "dist").glob("*.whl")
    return wheel


def pip(python: str, command: str, *words: str) -> None:
    ran = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", command, "--quiet", *words],
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


def site_packages(repo: Path) -> list[str]:
    """Folders of installed packages of this process, without folders of the checkout's own code."""
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    assert paths and all(Path(path) != repo for path in paths)
    return paths


@pytest.fixture(scope="module")
def shards(installed: Installed) -> str:
    counts = ["train_per_class=2", "validation_per_class=1", "unlabelled=16"]
    installed.run("data", "synth", "videos", *counts, "workers=1")
    installed.run("data", "shard", "videos", "shards", "workers=1")
    return "shards"


@pytest.fixture(scope="module")
def pretrained(installed: Installed, shards: str) -> str:
    batch = ["batch.global_clips=8", "batch.clips_per_device=8", "steps=3"]
    job = ["pretrain", "demo", f"data.shards={shards}/unlabelled", "run_dir=pretrained", *batch, *CPU]
    installed.run("launch", "local", "processes=1", "--", *job)
    return "pretrained/encoder"


def test_the_checkout_is_not_importable_in_the_environment(installed: Installed, repo: Path) -> None:
    show = "import kinemae.launch, sys; print(kinemae.launch.__file__); print(*sys.meta_path)"
    python = str(installed.environment / "bin" / "python")
    ran = subprocess.run(
        [python, "-P", "-c", show], cwd=repo, capture_output=True, text=True, check=True, env={}
    )
    file, finders = ran.stdout.splitlines()
    assert Path(file).is_relative_to(installed.environment)
    assert "editable" not in finders


def test_configs_are_found_by_name(installed: Installed, repo: Path) -> None:
    listed = installed.run("configs")
    assert all(name in listed for name in ("demo", "videomae_base", "slurm"))
    shown = installed.run("configs", "show", "pretrain/demo")
    assert shown.strip() == (repo / "configs" / "pretrain" / "demo.yaml").read_text().strip()


@pytest.fixture(scope="module")
def finetuned(installed: Installed, shards: str, pretrained: str) -> str:
    data = [f"data.train={shards}/train", f"data.validation={shards}/validation"]
    batch = ["batch.global_clips=8", "batch.clips_per_device=8", "epochs=1"]
    job = ["demo", f"encoder={pretrained}", *data, "run_dir=finetuned", *batch, *CPU]
    installed.run("finetune", "train", *job)
    return "finetuned"


def test_an_encoder_is_pretrained_by_the_launcher_and_fine_tuned(
    installed: Installed, finetuned: str
) -> None:
    assert (installed.folder / finetuned / "result.json").is_file()


THREE_LINES = """
import sys
import kinemae
model = kinemae.load("finetuned")
clip = kinemae.read_clip(sys.argv[1], model.clip)
print(tuple(model.embed(clip[None]).shape), len(model.scores(clip[None])[0]))
[batch, *_] = kinemae.clips("shards/train", model.clip, batch_size=4)
print(tuple(model.features(batch["clip"]).shape))
"""


def test_a_model_is_used_from_python_and_from_the_command_line(
    installed: Installed, finetuned: str, repo: Path
) -> None:
    video = installed.folder / "own" / "h264_b_frames.mp4"
    video.parent.mkdir()
    shutil.copyfile(repo / "tests" / "data" / "videos" / video.name, video)
    embedding, tokens = installed.run(THREE_LINES, str(video), program="python").splitlines()
    assert embedding == "(1, 96) 8" and tokens == "(4, 64, 96)"
    summary = json.loads(installed.run("finetune", "predict", finetuned, str(video), "predicted", "--json"))
    assert summary["videos"] == 1 and (installed.folder / "predicted").is_dir()
    installed.run("finetune", "features", finetuned, str(video.parent), "features.parquet")
    assert (installed.folder / "features.parquet").is_file()


def test_no_file_of_the_checkout_or_the_current_folder_is_run(
    installed: Installed, pretrained: str, repo: Path
) -> None:
    opened = installed.opened_files()
    third_party = [Path(path) for path in site_packages(repo)]
    opened = {path for path in opened if not any(path.is_relative_to(folder) for folder in third_party)}
    assert not {path for path in opened if path.is_relative_to(repo)}
    assert not opened & {installed.folder / name for name in NAMES_IN_THE_WAY}
    modules = {path for path in opened if path.suffix in (".py", ".pyc") and "kinemae" in path.parts}
    frozen = installed.folder / "pretrained" / "launch"  # the copy that the launcher starts
    assert modules
    assert all(path.is_relative_to(installed.environment) or path.is_relative_to(frozen) for path in modules)
