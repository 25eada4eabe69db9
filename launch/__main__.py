"""`kinemae launch KIND [CLUSTER.yaml] [a.b=c] -- pretrain CONFIG [a.b=c]`; status, logs, cancel."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from kinemae.data_tools.exit_codes import EXIT_CONFIG
from kinemae.launch.cluster import UsageError
from kinemae.launch.job import JobRefused

_ABOUT = "Start a training on this machine, on hosts by ssh, on Slurm or on Kubernetes, and look after it."
_EPILOG = """examples:
  kinemae launch local processes=2 -- pretrain CONFIG run_dir=RUN
  kinemae launch ssh configs/cluster/ssh.yaml -- pretrain CONFIG run_dir=RUN
  kinemae launch status RUN"""

# The module that registers each command. Only the module of the given command is imported.
_MODULES = {
    "local": "kinemae.launch.local",
    "ssh": "kinemae.launch.ssh",
    "slurm": "kinemae.launch.slurm.command",
    "k8s": "kinemae.launch.k8s.command",
    "doctor": "kinemae.launch.doctor.command",
    "plan": "kinemae.launch.plan.command",
    "status": "kinemae.launch.status",
    "logs": "kinemae.launch.status",
    "cancel": "kinemae.launch.status",
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
        return EXIT_CONFIG
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
                f"unknown argument {stray!r}{more}; kinemae launch {own[0]} --help lists all arguments"
            )
        arguments.words.append(stray)
    if job and not getattr(arguments, "takes_job", False):
        raise UsageError(f"kinemae launch {own[0]} starts no job: leave out what stands after --")
    arguments.job = job
    return arguments


def parser(first: str | None = None) -> argparse.ArgumentParser:
    """All commands, or only `first` if it is one of them; each file registers its own."""
    whole = argparse.ArgumentParser(
        prog="kinemae launch",
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
