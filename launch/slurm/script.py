"""The text of a Slurm batch script: its options, and one command that runs `slurm/batch.py`."""

import re
import shlex
from collections.abc import Sequence

from kinemae.data_tools.overrides import ConfigError

# Values that sbatch takes without quotes.
_PLAIN = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)


def batch_script(directives: Sequence[tuple[str, str]], command: Sequence[str]) -> str:
    """Build a batch script. It becomes the command, so that Slurm's signals reach it.

    Args:
        directives: long options of sbatch and their values; an empty value is a switch.

    Raises:
        ValueError: a value that no `#SBATCH` line can contain.
    """
    lines = ["#!/bin/bash", "# written by `kinemae launch slurm`"]
    lines += [f"#SBATCH --{name}" + (f"={_quote(value)}" if value else "") for name, value in directives]
    words = " \\\n    ".join(shlex.quote(word) for word in command)
    return "\n".join(lines) + f"\n\nexec {words}\n"


def escape_file_name(path: str) -> str:
    """Escape a path for Slurm options that take a file name, where `%` begins a field such as `%j`."""
    return path.replace("%", "%%")


def _quote(value: str) -> str:
    if not value.isprintable():
        raise ConfigError(f"Slurm takes one line of printable text, got {value!r}")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
