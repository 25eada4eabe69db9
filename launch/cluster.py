"""Commands of `kinemae launch`, and cluster files: a YAML file, then `a.b=c` overrides, as all configs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.overrides import ConfigError, check_overrides

Cluster = TypeVar("Cluster")


def read_cluster(schema: type[Cluster], file: str | Path | None, overrides: Sequence[str]) -> Cluster:
    """Build the config of one kind of cluster.

    Args:
        schema: a config dataclass.
        file: a YAML file, or the name of one in `configs/cluster`; None for defaults and overrides alone.

    Raises:
        ValueError: see `load_config`.
    """
    from kinemae.data_tools.config import load_config  # imports omegaconf, which --help does not need

    path = None if file is None else find_config(str(file), "cluster")
    return load_config(schema, path, overrides)


def add_command(parsers: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """Register a subcommand with its help and examples."""
    parser = parsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


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
