"""The text of a batch script for Slurm.

Everything that a user chose stands in `#SBATCH` lines and in assignments at the top, quoted by the rules of
the one who reads it (sbatch there, bash here); what follows is the same text for every run.
"""

import re
import shlex
from collections.abc import Sequence

# What sbatch takes without quotes.
_PLAIN = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)

# srun returns the highest code of its tasks. One that it ends itself, because another failed with 3, leaves
# with 143: that would be requeued for ever. So what counts is the task that ended first; srun names it.
_BODY = r"""
set -o pipefail
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE  # task.py sets them from Slurm's
export MASTER_ADDR MASTER_PORT
# The address by which Slurm reaches the first node: a node's name need not resolve.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')

# The exit code of the job, for `launch status` after Slurm has deleted its record.
leave() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} $1" > "$outcome"
    exit "$1"
}

restarts=0
while true; do
    # A requeued job keeps its id, and jobs may share a node: each start has a port of its own.
    MASTER_PORT=$((12000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0} * 5 + restarts) % 20000))
    echo "$(date '+%F %T') start $restarts of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, port $MASTER_PORT"
    said=$(srun "${options[@]}" "${task[@]}" 2>&1 | tee -a /dev/stderr)
    code=$?

    # srun returns the highest code, which may be that of a task it ended itself: the first to end counts.
    ended=$(grep -m 1 -E '^srun: error: [^ ]+: tasks? [0-9,-]+: ' <<< "$said")
    case $ended in
        *': Exited with exit code '*) code=${ended##* } ;;
        *': User defined signal 1'*) code=138 ;;  # asked to stop while it was still starting
        *': Terminated'*) code=143 ;;
        ?*) code=1 ;;
    esac
    echo "$(date '+%F %T') exit code $code"

    case $code in
        138 | 143)  # stopped with a checkpoint: before the time limit, by preemption, or by `launch cancel`
            if [ "$requeue" = yes ] && [ ! -e "$cancelled" ]; then
                scontrol requeue "$SLURM_JOB_ID"
            fi
            leave "$code"  # the next element of an array continues
            ;;
        0 | 2 | 3 | 4 | 6 | 130)  # finished or refused: another start would say the same
            break
            ;;
    esac
    if [ -e "$cancelled" ] || [ "$restarts" -ge "$max_restarts" ]; then
        break
    fi
    restarts=$((restarts + 1))
done
if [ -n "$SLURM_ARRAY_JOB_ID" ]; then
    scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"  # elements that have nothing left to do
fi
leave "$code"
"""


def batch_script(
    heading: str,
    directives: Sequence[tuple[str, str]],
    settings: Sequence[tuple[str, str | Sequence[str]]],
) -> str:
    """A whole batch script.

    Args:
        heading: a line of comment: what this is.
        directives: sbatch's long options and their values; an empty value is a switch.
        settings: the variables of the script's fixed part: `cancelled`, `outcome`, `requeue`, `max_restarts`,
            and the arrays `options` (of srun) and `task` (what it starts).

    Raises:
        ValueError: a value that no `#SBATCH` line can hold.
    """
    lines = ["#!/bin/bash", f"# {heading}"]
    lines += [f"#SBATCH --{name}" + (f"={_for_sbatch(value)}" if value else "") for name, value in directives]
    lines.append("")
    for name, value in settings:
        if isinstance(value, str):
            lines.append(f"{name}={shlex.quote(value)}")
        else:
            lines += [f"{name}=(", *(f"    {shlex.quote(word)}" for word in value), ")"]
    return "\n".join(lines) + "\n" + _BODY


def for_file_name(path: str) -> str:
    """A path for Slurm's options that take a file name, where `%` begins a field such as `%j`."""
    return path.replace("%", "%%")


def _for_sbatch(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"Slurm takes one line of printable text, got {value!r}")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
