"""Cluster files: a YAML file, then `a.b=c` overrides, read by the same reader as all other configs."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.overrides import ConfigError, check_overrides

Cluster = TypeVar("Cluster")

# Names that torchrun, Slurm and other launchers use, with the keys that mean the same here.
_SYNONYMS = {
    **dict.fromkeys(
        ("nproc", "nproc_per_node", "num_gpus", "gpus", "ngpus", "ntasks", "num_processes", "np", "tasks"),
        ("processes", "processes_per_node"),
    ),
    **dict.fromkeys(("ntasks_per_node", "tasks_per_node"), ("processes_per_node",)),
    **dict.fromkeys(("nnodes", "num_nodes"), ("nodes",)),
    **dict.fromkeys(("cpus", "cpus_per_task", "cpus_per_node"), ("cpus_per_process", "resources")),
    **dict.fromkeys(("gres", "gpus_per_task", "gpus_per_node"), ("gpus_per_node", "resources")),
    **dict.fromkeys(("time_limit", "walltime"), ("time",)),
    **dict.fromkeys(("mem", "memory_per_node"), ("memory", "resources")),
    **dict.fromkeys(("env", "envs"), ("environment",)),
    **dict.fromkeys(("job_name",), ("name",)),
    **dict.fromkeys(("nodelist", "hostlist", "host"), ("hosts", "hostfile")),
}


def read_cluster(schema: type[Cluster], file: str | Path | None, overrides: Sequence[str]) -> Cluster:
    """Build the config of one kind of cluster.

    Args:
        schema: a config dataclass.
        file: a YAML file, or the name of one in `configs/cluster`; None for defaults and overrides alone.

    Raises:
        ValueError: see `load_config`.
    """
    from kinemae.data_tools.config import load_config  # imports omegaconf, which --help does not need

    names: list[str] = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    for override in overrides:
        key = override.partition("=")[0]
        meant = [name for name in _SYNONYMS.get(key, ()) if name in names]
        if meant and key not in names:
            raise ConfigError(f"config key {key}: unknown key; did you mean {meant[0]}?")
    path = None if file is None else find_config(str(file), "cluster")
    return load_config(schema, path, overrides)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments `[CLUSTER] [a.b=c ...]`, which `split_words` separates."""
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="CLUSTER a.b=c",
        help="a cluster file, or a name that `kinemae configs` lists, then overrides of its keys",
    )


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the cluster file from the overrides; the file comes first and contains no `=`.

    Raises:
        ValueError: a word after the first is not an override.
    """
    file = words[0] if words and "=" not in words[0] else None
    overrides = list(words[1:] if file else words)
    program = next((word for word in words if word in ("pretrain", "finetune")), None)
    if program:
        raise ConfigError(f"expected -- before the job; fix: kinemae launch ... -- {program} CONFIG")
    check_overrides(overrides)
    return file, overrides
