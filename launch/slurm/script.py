"""The text of a Slurm batch script. The script restarts a failed job and requeues a preempted one.

All values of the user are in `#SBATCH` lines and in assignments at the top, quoted by the rules of sbatch and
bash. The rest is the same text for every run.
"""

import re
import shlex
from collections.abc import Sequence

from kinemae.data_tools.overrides import ConfigError

# Values that sbatch takes without quotes.
_PLAIN = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)

# srun returns the highest exit code of its tasks. A task that srun ends because another failed with 3 exits
# with 143, which would requeue the job forever. The task that ended first counts; srun reports it first.
_BODY = r"""
set -o pipefail
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE  # task.py sets them from Slurm's variables
export MASTER_ADDR MASTER_PORT
# The address that Slurm uses for the first node: the node's name may not resolve.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')

# Write the exit code of the job: `launch status` reads it after Slurm has deleted its record.
leave() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} $1" > "$outcome"
    exit "$1"
}

restarts=0
while true; do
    # A requeued job keeps its id, and jobs may share a node: each start has its own port.
    MASTER_PORT=$((12000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0} * 5 + restarts) % 20000))
    echo "$(date '+%F %T') start $restarts of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, port $MASTER_PORT"
    output=$(srun "${options[@]}" "${task[@]}" 2>&1 | tee -a /dev/stderr)
    code=$?

    # Take the exit code of the first task that ended.
    ended=$(grep -m 1 -E '^srun: error: [^ ]+: tasks? [0-9,-]+: ' <<< "$output")
    case $ended in
        *': Exited with exit code '*) code=${ended##* } ;;
        *': User defined signal 1'*) code=138 ;;  # stopped during its start
        *': Terminated'*) code=143 ;;
        ?*) code=1 ;;
    esac
    echo "$(date '+%F %T') exit code $code"

    case $code in
        138 | 143)  # stopped with a checkpoint: before the time limit, by preemption, or by `launch cancel`
            if [ "$requeue" = yes ] && [ ! -e "$cancelled" ]; then
                scontrol requeue "$SLURM_JOB_ID"
            fi
            leave "$code"  # the next element of an array resumes the run
            ;;
        0 | 2 | 3 | 4 | 6 | 130)  # finished, or failed in a way that a restart would repeat
            break
            ;;
    esac
    if [ -e "$cancelled" ] || [ "$restarts" -ge "$max_restarts" ]; then
        break
    fi
    restarts=$((restarts + 1))
done
if [ -n "$SLURM_ARRAY_JOB_ID" ]; then
    scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"  # remaining elements have nothing to do
fi
leave "$code"
"""


def batch_script(
    directives: Sequence[tuple[str, str]], settings: Sequence[tuple[str, str | Sequence[str]]]
) -> str:
    """Build a batch script.

    Args:
        directives: long options of sbatch and their values; an empty value is a switch.
        settings: shell variables: `cancelled`, `outcome`, `requeue`, `max_restarts`, and the arrays `options`
            (of srun) and `task` (its command).

    Raises:
        ValueError: a value that no `#SBATCH` line can contain.
    """
    lines = ["#!/bin/bash", "# written by `kinemae launch slurm`"]
    lines += [f"#SBATCH --{name}" + (f"={_quote(value)}" if value else "") for name, value in directives]
    lines.append("")
    for name, value in settings:
        if isinstance(value, str):
            lines.append(f"{name}={shlex.quote(value)}")
        else:
            lines += [f"{name}=(", *(f"    {shlex.quote(word)}" for word in value), ")"]
    return "\n".join(lines) + "\n" + _BODY


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
