"""Config files: found by path or by name in `configs/`; the command `kinemae configs`."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kinemae.data_tools.command import Command, Program, lazy, run_program
from kinemae.data_tools.overrides import ConfigError, is_override

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_SUFFIXES = (".yaml", ".yml")
_KINDS = {
    "pretrain": "a pretraining config; fix: start it with kinemae pretrain",
    "finetune": "a fine-tuning config; fix: start it with kinemae finetune train",
    "cluster": "a cluster file; fix: start it with kinemae launch",
}


def find_config(given: str, kind: str, *, commands: Sequence[str] = ()) -> Path:
    """Find the config file that a command line names.

    Args:
        given: a path, or a name such as `demo` for `configs/KIND/demo.yaml`.
        kind: the folder of `configs/`: `pretrain`, `finetune` or `cluster`.
        commands: commands of the same program, suggested for a misspelled command.

    Raises:
        ValueError: the file does not exist; the message suggests the nearest one.
    """
    path = Path(given)
    if path.is_file():
        folder = path.resolve().parent
        if folder.parent.name == "configs" and folder.name in _KINDS and folder.name != kind:
            raise ConfigError(f"{path} is {_KINDS[folder.name]}")
        return path
    for folder in (Path("configs") / kind, CONFIGS / kind):
        named = folder / f"{given.removeprefix(f'{kind}/')}.yaml"
        if path.suffix not in _SUFFIXES and named.is_file():
            return named
    if is_override(given):
        raise ConfigError(
            f"expected a config file first, got the override {given!r}; fix: write CONFIG {given}"
        )
    if path.is_dir():
        stored = path / "config.yaml"
        fix = f"; fix: give {stored}" if stored.is_file() else ""
        if fix and kind == "pretrain":
            fix += f", or draw what the trained model does: kinemae pretrain visualize {given} VIDEO OUT"
        raise ConfigError(f"{given}: expected a config file, got a folder{fix}")
    near = _nearest(path, kind, commands)
    hint = f"did you mean {near}?" if near else "fix: `kinemae configs` lists the names"
    raise ConfigError(f"no config file at {given}; {hint}")


def lazy_with_config(
    kind: str, module: str, function: str, *, commands: Sequence[str] = ()
) -> Callable[[argparse.Namespace], None]:
    """A `run` function that finds the config, see `find_config`, and then imports its module, see `lazy`."""

    def run(arguments: argparse.Namespace) -> None:
        arguments.config = find_config(arguments.config, kind, commands=commands)
        lazy(module, function)(arguments)

    return run


def _nearest(path: Path, kind: str, commands: Sequence[str]) -> str | None:
    """The nearest of: another suffix, another name in the same folder, a name in `configs/`, a command."""
    others = [path.with_suffix(suffix) for suffix in _SUFFIXES] if path.name.strip(".") else []
    found = next((other for other in others if other.is_file()), None)
    if found is not None:
        return str(found)
    for folder in (path.parent, CONFIGS / kind):
        files = {other.stem: other for suffix in _SUFFIXES for other in folder.glob(f"*{suffix}")}
        names = difflib.get_close_matches(path.stem, files, n=1)
        if names:
            return str(files[names[0]]) if folder == path.parent else names[0]
    close = difflib.get_close_matches(str(path), commands, n=1)
    return f"the command {close[0]}" if close else None


def _list_configs(arguments: argparse.Namespace) -> None:
    """Print the names of all configs by kind, each with the first line of its header."""
    for kind in _KINDS:
        paths = sorted((CONFIGS / kind).glob("*.yaml"))
        width = max(len(path.stem) for path in paths)
        sys.stdout.write(f"{kind}:\n")
        for path in paths:
            first = path.read_text(encoding="utf-8").splitlines()[0]
            title = first.removeprefix("#").strip() if first.startswith("#") else ""
            sys.stdout.write(f"  {path.stem:{width}}  {title}\n")


def _show_config(arguments: argparse.Namespace) -> None:
    """Print a config with its comments, found by `NAME` or `KIND/NAME`."""
    name: str = arguments.name
    kind, slash, _ = name.partition("/")
    if slash and kind not in _KINDS:
        raise ConfigError(f"{name}: expected one of {', '.join(_KINDS)} before the slash, got {kind!r}")
    if not slash:
        kinds = [kind for kind in _KINDS if (CONFIGS / kind / f"{name}.yaml").is_file()]
        if len(kinds) > 1:
            fix = " or ".join(f"{kind}/{name}" for kind in kinds)
            raise ConfigError(f"{name}: several configs have this name; fix: write {fix}")
        kind = kinds[0] if kinds else "pretrain"
    sys.stdout.write(find_config(name, kind).read_text(encoding="utf-8"))


PROGRAM = Program(
    name="configs",
    description="List the configs that come with KineMAE, or print one.",
    commands=[
        Command(
            name="",
            help="list all configs",
            example="kinemae configs",
            run=_list_configs,
            takes_overrides=False,
        ),
        Command(
            name="show",
            help="print one config",
            example="kinemae configs show pretrain/demo",
            run=_show_config,
            positionals=[("name", "NAME, or KIND/NAME as in finetune/demo")],
            takes_overrides=False,
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)
