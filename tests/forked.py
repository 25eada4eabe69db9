"""Start Python programs as forks of one process that has imported PyTorch, DeepSpeed and KineMAE.

In a new interpreter these imports take more CPU time than a short training. A fork has its own arguments,
environment, folder, files and signals, and ends as an interpreter does. Tests of launchers, of imports, of
memory and of the installed package start new interpreters.
"""

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = Path(__file__).resolve().parents[1]
IMPORTS = (
    "deepspeed.module_inject.auto_ep_config",
    "pandas",
    "pyarrow.dataset",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "kinemae.finetune.predict.command",
    "kinemae.finetune.train",
    "kinemae.pretrain.training",
)
_NUMBER = struct.Struct("i")


class ForkedPython(subprocess.Popen[str]):
    """A process that runs `python WORDS` from the repository: `-m MODULE ARGUMENTS` or `-c CODE ARGUMENTS`.

    It is no child of this process: its id and exit status arrive through a pipe.
    """

    def __init__(self, *words: str, environment: dict[str, str], **files: Any):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        super().__init__(words, cwd=REPO, env=environment, text=True, **files)

    def _execute_child(self, words: Any, *settings: Any) -> None:
        pipes = settings[9:15]  # of stdin, stdout, stderr: ends to read and to write, or -1
        given = [own if end == -1 else end for own, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._status, write = os.pipe()
        request = json.dumps([words, str(settings[4]), settings[5]]).encode()
        socket.send_fds(_server(), [request], [*given, write])
        os.close(write)
        self.pid = self._read()
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _read(self) -> int:
        return int(_NUMBER.unpack(os.read(self._status, _NUMBER.size))[0])

    def wait(self, timeout: float | None = None) -> int:
        """See `Popen.wait`."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._read())
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """See `Popen.poll`."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode


def run_forked(*words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end and return its output; `check` for a success."""
    pipe = subprocess.PIPE
    with ForkedPython(*words, environment=environment, stdout=pipe, stderr=pipe) as process:
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    code = process.returncode
    assert code == 0 or not check, f"python {' '.join(words)} exited with {code}:\n{errors}"
    return subprocess.CompletedProcess(words, code, output, errors)


@functools.cache
def _server() -> socket.socket:
    """The server of this process; it ends when this socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.Popen(command, cwd=REPO, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    return ours


def _serve(requests: socket.socket) -> list[str]:
    """Fork for each request; return the words of the command line, in the new process.

    A process between the server and the new one waits for its exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the waiting processes leave no zombies
    others = {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")} - {"python"}
    assert threading.active_count() == 1 and others <= {"jemalloc_bg_thd"}, "a fork would lack the threads"
    while True:
        message, files, _, _ = socket.recv_fds(requests, 2**20, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, status = files
    child = os.fork()
    if child:
        for file in standard:
            os.close(file)
        os.write(status, _NUMBER.pack(child))
        os.write(status, _NUMBER.pack(os.waitpid(child, 0)[1]))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(status)
    for place, file in enumerate(standard):
        os.dup2(file, place)
        os.close(file)
    words, folder, environment = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(words)


def main() -> None:
    """Import, serve, and run a program in each fork."""
    for name in IMPORTS:
        importlib.import_module(name)
    kind, what, *arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[:] = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))


if __name__ == "__main__":
    main()
