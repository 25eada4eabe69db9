"""The text of a batch script for Slurm.

Everything that a user chose stands in `#SBATCH` lines and in assignments at the top, quoted by the rules of the one
who reads it (sbatch there, bash here); what follows is the same text for every run and holds no value at all.
"""

import re
import shlex
from collections.abc import Sequence

# What sbatch takes without quotes.
_PLAIN = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)

# srun returns the highest code of its tasks. One that it ends itself, because another failed with 3, leaves with 143:
# that would be requeued for ever. So what counts is the task that ended first, which srun names on its error output.
# A death by the warning signals is a task that was asked to stop while it was still starting: nothing is lost.
_BODY = r"""
set -o pipefail
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE  # task.py sets them from Slurm's
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

restarts=0
while true; do
    # A requeued job keeps its id, and jobs may share a node: each start has a port of its own.
    MASTER_PORT=$((12000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0} * 5 + restarts) % 20000))
    echo "$(date '+%F %T') start $restarts of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, port $MASTER_PORT"
    said=$(srun "${options[@]}" "${task[@]}" 2>&1 | tee -a /dev/stderr)
    code=$?

    # srun returns the highest code, which may be that of a task it ended itself: the first to end counts.
    first=$(grep -m 1 -E '^srun: error: [^ ]+: tasks? [0-9,-]+: ' <<< "$said")
    case $first in
        *': Exited with exit code '*) code=${first##* } ;;
        *': User defined signal 1'*) code=138 ;;  # asked to stop while it was still starting
        *': Terminated'*) code=143 ;;
        ?*) code=1 ;;
    esac
    echo "$(date '+%F %T') exit code $code"

    case $code in
        138 | 143)  # stopped with a checkpoint: before the time limit, by preemption, or by `launch cancel`
            if [ "$requeue" = yes ] && [ ! -e "$cancelled" ]; then
                scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"
            fi
            exit "$code"
            ;;
        0 | 2 | 3 | 4 | 6 | 130)  # finished, or refused: another start would say the same
            exit "$code"
            ;;
    esac
    if [ -e "$cancelled" ] || [ "$restarts" -ge "$max_restarts" ]; then
        exit "$code"
    fi
    restarts=$((restarts + 1))
done
"""
