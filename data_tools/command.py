"""Command-line programs: subcommands, overrides, exit codes and one-line errors."""

import argparse
import importlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.error_file import write_error_file
from kinemae.data_tools.exit_codes import (
    EXIT_CHECKPOINT,
    EXIT_CONFIG,
    EXIT_CRASHED,
    EXIT_DATA,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_STUCK,
)
from kinemae.data_tools.overrides import ConfigError, check_overrides, is_override, parse_override
from kinemae.data_tools.packages import as_config_error, quick_imports

log = logging.getLogger("kinemae")


class DataError(Exception):
    """Videos, shards or labels cannot be used."""


class CheckpointError(Exception):
    """A checkpoint or an exported encoder cannot be used."""


class Diverged(Exception):
    """The loss diverged, and the limit of roll-backs is reached."""


class Stuck(Exception):
    """A step, a storage or a file system did not respond in time; a restart may help."""


class Stopped(Exception):
    """The run stopped on request after saving a checkpoint."""


_EXIT_CODES: dict[type[BaseException], int] = {
    ValueError: EXIT_CONFIG,
    Stuck: EXIT_STUCK,  # before DataError: StorageUnavailable is a subclass of both
    DataError: EXIT_DATA,
    CheckpointError: EXIT_CHECKPOINT,
    Diverged: EXIT_DIVERGED,
    Stopped: EXIT_STOPPED,
    KeyboardInterrupt: EXIT_INTERRUPTED,
}


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing, such as a full disk, into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}; fix that and run the same command again"
        ) from error


def lazy(module: str, function: str) -> Callable[[argparse.Namespace], None]:
    """A `run` function that imports its module when it is called."""

    def run(arguments: argparse.Namespace) -> None:
        with quick_imports():
            called = getattr(importlib.import_module(module), function)
        called(arguments)

    return run


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand: positional arguments, then overrides.

    Attributes:
        run: called with the parsed arguments; returns the exit code, None for 0. Expected errors become one
            line and an exit code. Slow imports belong inside, see `lazy`, so that `--help` and usage errors
            are fast.
        positionals: (name, help) pairs.
        optional: (name, help) of an optional last positional; None if an override is in its place.
        options: (flag, help) pairs of on/off switches.
        value_options: (flag, placeholder, help) of options with a value; the default is None. A placeholder
            that ends with `...` is that of an option which may be repeated; its value is a list.
        variadic: (name, help) of a last positional with one or more values, instead of overrides.
        takes_overrides: whether `key=value` arguments may follow.
        takes_job: whether the command line of a job follows `--`; it becomes `arguments.job`.
    """

    name: str
    help: str
    example: str
    run: Callable[[argparse.Namespace], int | None]
    positionals: Sequence[tuple[str, str]] = ()
    optional: tuple[str, str] | None = None
    options: Sequence[tuple[str, str]] = ()
    value_options: Sequence[tuple[str, str, str]] = ()
    variadic: tuple[str, str] | None = None
    takes_overrides: bool = True
    takes_job: bool = False


@dataclass(frozen=True, kw_only=True)
class Program:
    """The command line of a package.

    Attributes:
        commands: the subcommands. An unnamed one runs if the first argument does not name another one.
    """

    name: str
    description: str
    commands: Sequence[Command] = field(default_factory=tuple)


def run_program(program: Program, argv: Sequence[str] | None = None) -> int:
    """Parse and run a command line; log an expected error as one line and return its exit code."""
    configure_logging()
    try:
        arguments = parse_arguments(program, sys.argv[1:] if argv is None else list(argv))
        code: int | None = arguments.run(arguments)
        return code or 0
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        write_error_file(error, code, lost_peer=False)
        if code == EXIT_CRASHED:
            raise
        log_error(error)
        return code


def exit_code_of(error: BaseException) -> int:
    """The exit code of a program that ends with an error."""
    error = as_config_error(error)
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), EXIT_CRASHED)


def log_error(error: BaseException) -> None:
    """Log an error that ends the program: an expected one as one line, any other with its traceback."""
    if isinstance(error, Stopped):
        log.warning("%s", error)
    elif isinstance(error, KeyboardInterrupt):
        log.error("interrupted")
    elif exit_code_of(error) == EXIT_CRASHED:
        log.error("unexpected error:", exc_info=error)
    else:
        log.error("%s", as_config_error(error))


def configure_logging() -> None:
    """Log to standard error: time, level and message; also the rank if there are several."""
    # Values as they are: `pretrain/runtime/processes.py` checks them, and its errors are logged here.
    is_one = os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ
    rank = "" if is_one else f" rank {os.environ['RANK']}"
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s{rank} %(levelname)s %(message)s", datefmt="%H:%M:%S")
    )
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def parse_arguments(program: Program, argv: list[str]) -> argparse.Namespace:
    """Parse a command line and check the form of its overrides.

    Raises:
        ValueError: an override is malformed.
    """
    parser = argparse.ArgumentParser(prog=f"kinemae {program.name}", description=program.description)
    named = {command.name: command for command in program.commands if command.name}
    unnamed = next((command for command in program.commands if not command.name), None)
    first = next((word for word in argv if not word.startswith("-")), None)
    chosen = named.get(first or "", unnamed)
    argv, job = _split_job(argv, chosen)
    if unnamed is not None and first not in named:
        _describe(parser, unnamed)
        parser.epilog = "\n".join([parser.epilog or "", *_other_commands(program.name, named)])
    else:
        choices = parser.add_subparsers(required=True, metavar="COMMAND")
        for name, command in named.items():
            _describe(choices.add_parser(name, help=command.help, description=command.help), command)
    arguments, unknown = parser.parse_known_args(argv)
    arguments.job = job
    for stray in unknown:
        if re.fullmatch(r"--local[-_]rank=\d+", stray):
            continue  # added by the deepspeed launcher; LOCAL_RANK is used instead
        parse_override(stray)  # raises an error for an override with dashes
        arguments.overrides.append(stray)
    if chosen is not None and not chosen.takes_overrides and arguments.overrides:
        raise ConfigError(f"expected no further arguments, got {arguments.overrides[0]!r}")
    _reject_wrong_order(arguments, chosen)
    if chosen is not None and chosen.optional is not None:
        _separate_override(arguments, chosen.optional[0])
    check_overrides(arguments.overrides)
    return arguments


def _split_job(argv: list[str], command: Command | None) -> tuple[list[str], list[str]]:
    """Separate the command line of a job, which follows `--`."""
    if command is None or not command.takes_job or "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def _separate_override(arguments: argparse.Namespace, optional: str) -> None:
    """Move the first override, which argparse takes for an omitted optional positional."""
    given = getattr(arguments, optional)
    if given is not None and is_override(given):
        arguments.overrides.insert(0, given)
        setattr(arguments, optional, None)


def _reject_wrong_order(arguments: argparse.Namespace, command: Command | None) -> None:
    """Reject an override before the config, a job without `--`, and an option without its dashes."""
    given = getattr(arguments, "config", None) or ""  # None: an optional config that is not given
    bare = next((word for word in arguments.overrides if "=" not in word), None)
    if bare is not None and is_override(given):
        raise ValueError(
            f"expected a config file first, got the override {given!r}; "
            f"fix: write {bare} {shlex.quote(given)}"
        )
    if bare is not None and bare.isidentifier() and command is not None and command.takes_job:
        fix = "write -- before the job, as in -- pretrain CONFIG"
        if arguments.job:
            fix = "write the cluster before the overrides"
        raise ConfigError(
            f"expected an override of the form key=value, or a job after --, got {bare!r}; fix: {fix}"
        )
    flags = [flag for flag, _ in command.options] if command else []
    if bare is not None and f"--{bare}" in flags:
        raise ValueError(f"expected an override of the form key=value, got {bare!r}; fix: write --{bare}")


def _other_commands(program: str, named: dict[str, Command]) -> list[str]:
    """The last lines of the unnamed command's help."""
    width = max(map(len, named), default=0) + len(" --help")
    lines = [f"  kinemae {program} {name + ' --help':{width}}  {one.help}" for name, one in named.items()]
    return ["\nother commands:", *lines] if lines else []


def _describe(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {command.example}"
    parser.set_defaults(run=command.run)
    for name, text in command.positionals:
        parser.add_argument(name, help=text)
    if command.optional:
        parser.add_argument(command.optional[0], help=command.optional[1], nargs="?")
    for flag, text in command.options:
        parser.add_argument(flag, help=text, action="store_true")
    for flag, placeholder, text in command.value_options:
        action = "append" if placeholder.endswith("...") else "store"
        parser.add_argument(flag, help=text, metavar=placeholder.removesuffix(" ..."), action=action)
    if command.variadic:
        parser.add_argument(command.variadic[0], help=command.variadic[1], nargs="+")
        parser.set_defaults(overrides=[])
    else:
        # With a default, argparse does not list it among the missing required arguments.
        text = "config overrides, read as YAML; the error of an unknown key lists the keys"
        text = text if command.takes_overrides else argparse.SUPPRESS
        parser.add_argument("overrides", nargs="*", default=[], metavar="a.b=c", help=text)
