"""Every documented command can be pasted: a shell does not split it, and its program accepts it."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.__main__ import PROGRAM as DATA_TOOLS
from kinemae.data_tools.benchmark import BenchConfig
from kinemae.data_tools.command import Program, parse_arguments
from kinemae.data_tools.config import load_config
from kinemae.data_tools.config_files import CONFIGS, find_config
from kinemae.data_tools.config_files import PROGRAM as CONFIGS_PROGRAM
from kinemae.data_tools.editing.compact import CompactConfig
from kinemae.data_tools.editing.rewrite import ReshardConfig, SubsetConfig
from kinemae.data_tools.indexing.command import IndexConfig
from kinemae.data_tools.report.sampled_videos import ReportConfig
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.stream.order import plan_batch
from kinemae.data_tools.synth import SynthConfig
from kinemae.data_tools.verify.command import VerifyConfig
from kinemae.finetune.__main__ import PROGRAM as FINETUNE
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.map import MapConfig
from kinemae.finetune.features.search import SearchConfig
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.probe.command import load_probe_config
from kinemae.finetune.sweep.halving import SweepConfig
from kinemae.finetune.sweep.space import read_space
from kinemae.launch.__main__ import PROGRAM as LAUNCH
from kinemae.launch.cluster import read_cluster
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.local import LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.ssh import SshCluster
from kinemae.pretrain.__main__ import PROGRAM as PRETRAIN
from kinemae.pretrain.advise.command import read_request
from kinemae.pretrain.builders import build_components
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.visualize.settings import VisualizeConfig
from tests.documented_commands import documented, unquoted_mappings

COMMANDS = sorted(set(documented()))
PROGRAMS = {"data": DATA_TOOLS, "pretrain": PRETRAIN, "finetune": FINETUNE}
SCHEMAS: dict[str, type] = {
    "synth": SynthConfig,
    "shard": ShardConfig,
    "index": IndexConfig,
    "report": ReportConfig,
    "subset": SubsetConfig,
    "reshard": ReshardConfig,
    "compact": CompactConfig,
    "bench": BenchConfig,
    "verify": VerifyConfig,
    "import": ImportOptions,
    "export": ExportOptions,
    "features": FeatureConfig,
    "predict": PredictConfig,
    "search": SearchConfig,
    "map": MapConfig,
    "visualize": VisualizeConfig,
}
CLUSTERS: dict[str, type] = {
    "local": LocalCluster,
    "ssh": SshCluster,
    "slurm": SlurmCluster,
    "k8s": KubernetesCluster,
}
CLUSTER_FILES = {"ssh": "ssh", "slurm": "slurm", "k8s": "kubernetes", "local": "local"}
# Values for keys that recipes leave unset.
GIVEN = {
    "pretrain": ["run_dir=RUN", "data.shards=SHARDS"],
    "finetune": ["run_dir=RUN", "data.train=TRAIN", "data.validation=VALIDATION"],
}


def split_by_a_shell(command: str, folder: Path) -> list[str]:
    """Let a shell split a command into words; redirected output goes to an empty folder."""
    script = f"python() {{ printf '%s\\0' \"$@\" > words; }}\npython {command}"
    subprocess.run(["bash", "-c", script], cwd=folder, check=True)
    return (folder / "words").read_text().split("\0")[:-1]


def test_commands_of_every_program_are_found() -> None:
    modules = {shlex.split(command)[1] for _, command in COMMANDS}
    assert {"data", "pretrain", "finetune", "launch"} <= modules
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_shell_does_not_split_a_command(page: str, command: str, tmp_path: Path) -> None:
    words = split_by_a_shell(command, tmp_path)
    as_written = shlex.split(command, comments=True)
    assert words == (as_written[: as_written.index(">")] if ">" in as_written else as_written)
    assert not {"python", "kinemae"} & set(words[1:]), "one command per line"


def test_mappings_within_sentences_are_quoted_for_a_shell() -> None:
    assert list(unquoted_mappings()) == []


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_accepted_by_its_program(page: str, command: str) -> None:
    words = shlex.split(command.partition(" > ")[0], comments=True)
    # The example mask of ARCHITECTURE.md does not exist.
    accept(words[1], [word.replace("name: rows", "name: uniform") for word in words[2:]])


def accept(module: str, words: list[str]) -> None:
    """Parse a command and load its config."""
    if module == "launch":
        accept_launch(words)
    elif module in PROGRAMS:
        accept_program(PROGRAMS[module], words)
    elif module == "configs":
        parse_arguments(CONFIGS_PROGRAM, words)
    else:
        assert module == "pytest" or module.startswith("tests."), module


def accept_program(program: Program, words: list[str]) -> None:
    arguments = parse_arguments(program, words)
    name = next(iter(words), "")
    if program is PRETRAIN and name == "advise":
        read_request(arguments)
    elif program is PRETRAIN and name != "visualize":
        config = load("pretrain", PretrainConfig, arguments)
        grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
        if config.target.name != "teacher":  # reads the folder of the teacher
            build_components(config, grid)
        batch, views = config.batch, config.data.views_per_video
        plan_batch(batch.global_clips, batch.clips_per_device, world=1, views=views)
    elif name == "train":
        load("finetune", FinetuneConfig, arguments)
    elif name == "evaluate":
        load_config(
            FinetuneConfig, CONFIGS / "finetune" / "demo.yaml", [*GIVEN["finetune"], *arguments.overrides]
        )
    elif name == "plan":
        given = [*GIVEN["finetune"], "epochs=1"]
        load_config(FinetuneConfig, None, [*given, *arguments.overrides])
    elif name == "sweep":
        own = [word.removeprefix("sweep.") for word in arguments.overrides if word.startswith("sweep.")]
        load_config(SweepConfig, None, own)
        words = [word for word in arguments.overrides if not word.startswith("sweep.")]
        axes, arguments.overrides = read_space(FinetuneConfig, words)
        load("finetune", FinetuneConfig, arguments)
        assert axes
    elif program is FINETUNE and name in ("probe", "knn"):
        load_probe_config(arguments, ["method=knn"] if name == "knn" else [])
    elif name in SCHEMAS:
        load_config(SCHEMAS[name], None, arguments.overrides)


def load(kind: str, schema: Callable[..., Any], arguments: Any) -> Any:
    is_any = arguments.config in ("CONFIG", "advised.yaml")  # the latter is the output of another command
    path = find_config("demo" if is_any else arguments.config, kind)
    given = GIVEN[kind]
    if any(override.startswith("data.mixture=") for override in arguments.overrides):
        given = given[:1]
    return load_config(schema, path, [*given, *arguments.overrides])


def accept_launch(words: list[str]) -> None:
    arguments = parse_arguments(LAUNCH, words)
    kind = getattr(arguments, "kind", words[0])
    if kind in CLUSTERS:
        place = CONFIGS / "cluster" / f"{CLUSTER_FILES[kind]}.yaml"
        file = str(place) if arguments.cluster == "CLUSTER.yaml" else arguments.cluster
        read_cluster(CLUSTERS[kind], file, arguments.overrides)
    if arguments.job:
        accept(arguments.job[0], arguments.job[1:])
