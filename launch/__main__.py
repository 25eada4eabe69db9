"""`python -m launch KIND [CLUSTER.yaml] [a.b=c] -- pretrain CONFIG [a.b=c]`; status, logs, cancel."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from launch.cluster import UsageError
from launch.exit_codes import USAGE
from launch.job import JobRefused

_ABOUT = "Start a training on this machine, on hosts by ssh, on Slurm or on Kubernetes, and look after it."
_EPILOG = """examples:
  python -m launch local processes=2 -- pretrain CONFIG run_dir=RUN
  python -m launch ssh configs/cluster/ssh.yaml -- pretrain CONFIG run_dir=RUN
  python -m launch status RUN"""

# The module that registers each command. Only the module of the given command is imported.
_MODULES = {
    "local": "launch.local",
    "ssh": "launch.ssh",
    "slurm": "launch.slurm",
    "k8s": "launch.k8s",
    "doctor": "launch.doctor",
    "plan": "launch.plan",
    "status": "launch.watching",
    "logs": "launch.watching",
    "cancel": "launch.watching",
}


def main(argv: Sequence[str]) -> int:
    """Parse, run, and turn every expected failure into its message and exit code."""
    try:
        arguments = parse(argv)
        code = arguments.run(arguments)
        assert isinstance(code, int)
        return code
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except JobRefused as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    except BrokenPipeError:  # `launch logs RUN | head`
        sys.stderr.close()
        return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; `job` is what stands behind `--`, and `words` may stand among the options.

    Raises:
        UsageError: an unknown option, or a job where none is started.
    """
    own, job = list(argv), []
    if "--" in own:
        place = own.index("--")
        own, job = own[:place], own[place + 1 :]
    arguments, strays = parser(own[0] if own else None).parse_known_args(own)
    for stray in strays:
        if stray.startswith("-") or not hasattr(arguments, "words"):
            takes_keys = hasattr(arguments, "words") and stray.startswith("--")
            more = (
                f"; keys are written without dashes, {stray[2:].partition('=')[0]}=..." if takes_keys else ""
            )
            raise UsageError(
                f"unknown argument {stray!r}{more}; python -m launch {own[0]} --help lists all arguments"
            )
        arguments.words.append(stray)
    if job and not getattr(arguments, "takes_job", False):
        raise UsageError(f"python -m launch {own[0]} starts no job: leave out what stands after --")
    arguments.job = job
    return arguments


def parser(first: str | None = None) -> argparse.ArgumentParser:
    """All commands, or only `first` if it is one of them; each file registers its own."""
    whole = argparse.ArgumentParser(
        prog="python -m launch",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = whole.add_subparsers(required=True, metavar="COMMAND")
    wanted = [_MODULES[first]] if first in _MODULES else list(_MODULES.values())
    for module in dict.fromkeys(wanted):
        importlib.import_module(module).add_to(parsers)
    return whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
