"""`python -P launch/k8s/pod.py JOB.json ...`: the agent in a pod of a PyTorchJob.

Its controller starts a pod again by the exit code: from 128 on it does, below the job has failed. So a crash
leaves with 128 more.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run as a file, with -P

from kinemae.data_tools.exit_codes import is_restartable
from kinemae.launch.supervisor.agent import main

_RETRYABLE = 128


def retryable(code: int) -> int:
    """The same code, above 127 where the job may start again."""
    return code + _RETRYABLE if is_restartable(code) and 0 < code < _RETRYABLE else code


if __name__ == "__main__":
    sys.exit(retryable(main(sys.argv[1:])))
