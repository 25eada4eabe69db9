"""`python -P task.py AGENT_PID FOLDER COMMAND ...`: become a process of a job, which ends with its agent."""

import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Let the kernel send SIGTERM to this process when its agent dies, then exec the command."""
    agent, folder, *command = argv
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(agent):  # it died before prctl
        return 128 + signal.SIGTERM
    try:
        os.chdir(folder)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{socket.gethostname()}: cannot start {command[0]} in {folder}: {error}\n")
        return 5  # as a process that hangs: another host may do better


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
