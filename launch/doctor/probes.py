"""Connections to the probes: one probe on each node; all nodes get the same request at the same time."""

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinemae.launch.doctor.probe.server import MARK
from kinemae.launch.doctor.results import CheckResult, error, join_names

CHECK = "reach"
SOURCES = Path(__file__).resolve().parent / "probe"
# Each module imports only modules before it.
MODULES = ("machine", "devices", "network", "folders", "group", "server")
_PACKAGES = ("kinemae", "kinemae.launch", "kinemae.launch.doctor", "kinemae.launch.doctor.probe")
LEAST_PYTHON = (3, 11)
_TAIL_LINES = 5
_LATE = "no reply within"
# One line with one kind of quotes: every remote shell passes it on unchanged.
BOOTSTRAP = "import sys;exec(sys.stdin.readline())"
_LOADER = f"""
import json, os, sys, types
os.environ.update(ENVIRONMENT)
if sys.version_info < {LEAST_PYTHON}:
    node = sys.argv[1] if len(sys.argv) > 1 else os.environ["SLURM_PROCID"]
    print("{MARK} " + node + " 0 0 " + json.dumps({{"failed": sys.version.split()[0]}}))
    sys.exit()
for name, text in MODULES:
    module = types.ModuleType(name)
    module.__source__ = text
    sys.modules[name] = module
    if text:
        exec(compile(text, name, "exec"), module.__dict__)
sys.modules["kinemae.launch.doctor.probe.server"].main()
"""
_START_FIX = "start the probe by hand (--dry-run prints its command) and correct what its message names"
_FIXES = {
    "queue": "wait, ask for fewer nodes=N, or exclude a node with extra: [--exclude=NAME]",
    "python": "set `python` in the cluster file to an interpreter of Python 3.11 or newer",
    "facts": "see whether nvidia-smi or a file system hangs there, and leave the node out",
    "group": "import torch there by hand, with the same environment",
    **dict.fromkeys(
        ("write", "look", "lock", "read_shards"),
        "see whether a network file system hangs there (mount, df), and leave the node out",
    ),
}


class Probes:
    """Probes on all nodes.

    Args:
        names: of the nodes.
        commands: for each process to start, its command and the nodes that it serves.
        environment: variables from the cluster file.

    Attributes:
        lost: nodes that no longer reply, with the last request and the reason.
        failures: requests that a node could not answer, with the reason; the node still gets later requests.
    """

    def __init__(
        self,
        names: Sequence[str],
        commands: Sequence[tuple[Sequence[str], Sequence[int]]],
        environment: Mapping[str, str],
    ):
        self.names = list(names)
        self.lost: dict[int, tuple[str, str]] = {}
        self.failures: list[tuple[int, str, str]] = []
        self._replies: queue.Queue[tuple[int, int, str | None]] = queue.Queue()
        self._output: dict[int, list[str]] = {node: [] for node in range(len(names))}
        self._requests = 0
        self._connections = [_Connection(list(command), list(serves)) for command, serves in commands]
        first = _first_line(environment)
        for connection in self._connections:
            threading.Thread(target=self._read_replies, args=(connection,), daemon=True).start()
            threading.Thread(target=self._read_errors, args=(connection,), daemon=True).start()
            connection.write(first)

    def present(self) -> list[int]:
        """The nodes that still reply."""
        return [node for node in range(len(self.names)) if node not in self.lost]

    def hello(self, limit_s: float) -> dict[int, dict[str, Any]]:
        """The first reply of each probe after its start."""
        hello = self._collect("start", 0, set(self.present()), limit_s)
        self.lost |= {node: ("python", reason) for node, what, reason in self.failures if what == "start"}
        self.failures.clear()
        return hello

    def explain_start(self, reason: Callable[[], str]) -> None:
        """Add the scheduler's reason for nodes whose probes have not started in time."""
        late = [node for node, (what, text) in self.lost.items() if what == "start" and _LATE in text]
        if late:
            text = f"{self.lost[late[0]][1]}; {reason()}"
            self.lost |= {node: ("queue", text) for node in late}

    def ask(self, request: str, arguments: Mapping[int, dict[str, Any]], limit_s: float) -> dict[int, Any]:
        """Send a request to some nodes at once.

        Args:
            request: a key of `kinemae.launch.doctor.probe.server.HANDLERS`.
            arguments: for each node; lost nodes are skipped.

        Returns:
            The replies. Nodes without one are in `lost` afterwards.
        """
        self._requests += 1
        each = {node: values for node, values in arguments.items() if node not in self.lost}
        message = {"id": self._requests, "ask": request, "each": {str(node): each[node] for node in each}}
        for connection in self._connections:
            if any(node in each for node in connection.serves):
                connection.write(json.dumps(message) + "\n")
        return self._collect(request, self._requests, set(each), limit_s)

    def close(self) -> None:
        """Close the input of all probes, and kill those that do not end."""
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + 3
        for connection in self._connections:
            for kill in (connection.process.terminate, connection.process.kill):
                try:
                    connection.process.wait(max(0.1, end - time.monotonic()))
                    break
                except subprocess.TimeoutExpired:
                    kill()
                    end = max(end, time.monotonic() + 2)  # srun cancels its request at SIGTERM
            connection.process.wait()

    def unreachable(self) -> list[CheckResult]:
        """An error for each reason why nodes did not reply or could not answer."""
        results = []
        for (request, reason), lost in _group(self.lost.items()).items():
            names = [self.names[node] for node in lost]
            text = {
                "queue": reason,
                "start": f"cannot start a probe on {join_names(names)}: {reason}",
                "python": f"the interpreter on {join_names(names)} is Python {reason}",
            }.get(request, f"{join_names(names)} stopped replying at {request!r}: {reason}")
            results.append(error(CHECK, text, _FIXES.get(request, _START_FIX), names))
        failures = ((node, (request, reason)) for node, request, reason in self.failures)
        for (request, reason), failed in _group(failures).items():
            names = [self.names[node] for node in failed]
            text = f"{join_names(names)} could not answer {request!r}: {reason}"
            results.append(error(CHECK, text, _FIXES.get(request, _START_FIX), names))
        return results

    def _read_replies(self, connection: "_Connection") -> None:
        parts: dict[tuple[str, str], str] = {}
        for text in connection.stdout:
            words = text.rstrip("\n").split(" ", 4)
            if words[0] != MARK or len(words) < 5:
                self._keep_output(connection, text)  # a greeting or an error of the remote shell
                continue
            _, node, request, left, chunk = words
            parts[node, request] = parts.get((node, request), "") + chunk
            if left == "0":
                self._replies.put((int(node), int(request), parts.pop((node, request))))
        for node_number in connection.serves:
            self._replies.put((node_number, -1, None))

    def _read_errors(self, connection: "_Connection") -> None:
        for text in connection.stderr:
            self._keep_output(connection, text)

    def _keep_output(self, connection: "_Connection", text: str) -> None:
        for node in connection.serves:
            self._output[node] = [*self._output[node], text.strip()][-_TAIL_LINES:]

    def _collect(self, request: str, number: int, waiting: set[int], limit_s: float) -> dict[int, Any]:
        replies: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + limit_s
        while waiting:
            try:
                node, about, text = self._replies.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if text is None and node not in self.lost:
                waiting.discard(node)
                time.sleep(0.1)  # its last errors come through another pipe
                reason = " / ".join(filter(None, self._output[node])) or "it ended without a message"
                self.lost[node] = request, reason
            elif about == number and node in waiting:
                waiting.discard(node)
                replies[node] = _parse(text or "")
        for node in waiting:
            self.lost[node] = request, f"{_LATE} {limit_s:g} s"
        failed = {node: reply["failed"] for node, reply in replies.items() if "failed" in reply}
        self.failures += [(node, request, reason) for node, reason in failed.items()]
        # In the order of the nodes, which numbers the ranks.
        return {node: replies[node]["value"] for node in sorted(replies) if node not in failed}


class _Connection:
    """A connection to the probes of some nodes."""

    def __init__(self, command: list[str], serves: list[int]):
        self.serves = serves
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", bufsize=1, start_new_session=True,  # only the doctor handles Ctrl-C
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the reading thread reports its end
            self._stdin.write(text)
            self._stdin.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()


def probe_words(python: str, node: int | None) -> list[str]:
    """The command of a probe; without a number it takes SLURM_PROCID."""
    return [python, "-u", "-c", BOOTSTRAP, *([] if node is None else [str(node)])]


def _first_line(environment: Mapping[str, str]) -> str:
    modules = [(name, "") for name in _PACKAGES]
    for name in MODULES:
        source = (SOURCES / f"{name}.py").read_text(encoding="utf-8")
        modules.append((f"kinemae.launch.doctor.probe.{name}", source))
    loader = f"ENVIRONMENT={dict(environment)!a}\nMODULES={modules!a}\n{_LOADER}"
    return f"exec({loader!a})\n"


def _group(pairs: Iterable[tuple[int, tuple[str, str]]]) -> dict[tuple[str, str], list[int]]:
    """Nodes by request and reason: one wrong option of a cluster is one result."""
    groups: dict[tuple[str, str], list[int]] = {}
    for node, pair in sorted(pairs):
        groups.setdefault(pair, []).append(node)
    return groups


def _parse(text: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except ValueError:
        return {"failed": f"its reply was damaged on the way: {text[:80]!r}"}
    return dict(reply)
