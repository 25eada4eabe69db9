"""`kinemae launch COMMAND [CLUSTER] [a.b=c] -- pretrain CONFIG [a.b=c]`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from kinemae.data_tools.exit_codes import EXIT_CONFIG
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.job import JobRefused

# The module whose `add_to` registers each command.
COMMANDS = {
    "local": "local",
    "ssh": "ssh",
    "slurm": "slurm.command",
    "k8s": "k8s.command",
    "doctor": "doctor.command",
    "plan": "plan.command",
    "status": "status",
    "logs": "status",
    "cancel": "status",
}
_ABOUT = "Start and supervise trainings on this machine, on hosts by ssh, on Slurm or on Kubernetes."
_EPILOG = """examples:
  kinemae launch local processes=2 -- pretrain CONFIG run_dir=RUN
  kinemae launch ssh CLUSTER.yaml -- pretrain CONFIG run_dir=RUN
  kinemae launch status RUN"""


def main(argv: Sequence[str]) -> int:
    """Parse and run; print expected errors as one line and return their exit code."""
    try:
        arguments = parse(argv)
        code = arguments.run(arguments)
        assert isinstance(code, int)
        return code
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    except JobRefused as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    except BrokenPipeError:  # as in `launch logs RUN | head`
        sys.stderr.close()
        return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `job` holds the words after `--`, `words` the positional ones before.

    Raises:
        ValueError: an unknown option, or a job after a command that starts none.
    """
    own, job = list(argv), []
    if "--" in own:
        place = own.index("--")
        own, job = own[:place], own[place + 1 :]
    arguments, unknown = parser(own[0] if own else "").parse_known_args(own)
    for word in unknown:
        takes_words = hasattr(arguments, "words")
        if word.startswith("-") or not takes_words:
            is_key = takes_words and word.startswith("--")
            hint = f"; keys have no dashes: {word[2:].partition('=')[0]}=..." if is_key else ""
            raise ConfigError(
                f"unknown argument {word!r}{hint}; fix: see kinemae launch {own[0]} --help for all arguments"
            )
        arguments.words.append(word)
    if job and not getattr(arguments, "takes_job", False):
        raise ConfigError(f"kinemae launch {own[0]} starts no job; fix: remove the words from -- on")
    arguments.job = job
    return arguments


def parser(first: str = "") -> argparse.ArgumentParser:
    """Build the parser of one command, or of all if `first` is none of them: each import takes time."""
    whole = argparse.ArgumentParser(
        prog="kinemae launch",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = whole.add_subparsers(required=True, metavar="COMMAND")
    for module in [COMMANDS[first]] if first in COMMANDS else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"kinemae.launch.{module}").add_to(parsers)
    return whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
