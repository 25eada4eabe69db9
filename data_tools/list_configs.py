"""`kinemae configs`: list the configs that come with KineMAE; `kinemae configs show NAME` prints one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kinemae.data_tools.command import Command, Program, run_program
from kinemae.data_tools.config_files import CONFIGS, find_config

_KINDS = ("pretrain", "finetune", "cluster")


def list_configs(arguments: argparse.Namespace) -> None:
    """Print the names of all configs by kind, each with the first line of its header."""
    for kind in _KINDS:
        paths = sorted((CONFIGS / kind).glob("*.yaml"))
        width = max(len(path.stem) for path in paths)
        sys.stdout.write(f"{kind}:\n")
        for path in paths:
            sys.stdout.write(f"  {path.stem:{width}}  {_title(path)}\n")


def show_config(arguments: argparse.Namespace) -> None:
    """Print one config as it is, with its comments."""
    sys.stdout.write(_named(arguments.name).read_text(encoding="utf-8"))


def _named(name: str) -> Path:
    """Find a config by `NAME` or `KIND/NAME`; a name that several kinds have is an error."""
    kind, slash, _ = name.partition("/")
    if slash:
        if kind not in _KINDS:
            raise ValueError(f"{name}: expected one of {', '.join(_KINDS)} before the slash, got {kind!r}")
        return find_config(name, kind)
    found = [kind for kind in _KINDS if (CONFIGS / kind / f"{name}.yaml").is_file()]
    if len(found) > 1:
        fix = " or ".join(f"{kind}/{name}" for kind in found)
        raise ValueError(f"{name}: several configs have this name; fix: write {fix}")
    return find_config(name, found[0] if found else "pretrain")


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


PROGRAM = Program(
    name="configs",
    description="List the configs that come with KineMAE, or print one.",
    commands=[
        Command(
            name="",
            help="list all configs",
            example="kinemae configs",
            run=list_configs,
        ),
        Command(
            name="show",
            help="print one config",
            example="kinemae configs show pretrain/demo",
            run=show_config,
            positionals=[("name", "NAME, or KIND/NAME as in finetune/demo")],
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)
