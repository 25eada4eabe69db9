"""`python -m launch local [--processes N] [--dry-run] -- pretrain CONFIG [a.b=c]`."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from launch.local import local_command, run_local

EXIT_USAGE = 2


def main(argv: Sequence[str]) -> int:
    """Parse, then print or become the command."""
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Start a run as processes; so far on this machine alone.",
        epilog="example:\n  python -m launch local --processes 2 -- pretrain CONFIG seed=1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    local = kinds.add_parser("local", help="several processes on this machine, by torchrun")
    local.add_argument("--processes", type=int, default=1, help="how many; 1 starts the room itself")
    local.add_argument("--dry-run", action="store_true", help="print what would run; start nothing")
    local.add_argument("job", nargs="+", help="after --: pretrain or finetune with its arguments")
    arguments = parser.parse_args(argv)
    try:
        command = local_command(arguments.processes, arguments.job)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    if arguments.dry_run:
        sys.stdout.write(shlex.join(command) + "\n")
        return 0
    run_local(command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
