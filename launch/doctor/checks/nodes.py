"""The doctor's lines to the nodes: one probe on each, asked one question at a time, all at once."""

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kinemae.launch.doctor.probe.server import MARK

SOURCES = Path(__file__).resolve().parents[1] / "probe"
# Each needs those before it alone.
MODULES = ("machine", "devices", "network", "folders", "group", "server")
_PACKAGES = ("kinemae", "kinemae.launch", "kinemae.launch.doctor", "kinemae.launch.doctor.probe")
LEAST_PYTHON = (3, 11)
_TAIL_LINES = 5
_LATE = "no answer within"
# One line without line ends, quotes of its own kind alone: any remote shell hands it on as it is.
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


class Nodes:
    """Probes on all nodes, and what became of those that fell silent.

    Args:
        names: of the nodes, as findings are to call them.
        commands: how to start the probes: a command, and the nodes for which it speaks.
        environment: what a job would get from the cluster file.

    Attributes:
        lost: why a node no longer answers, by its number: (what it was asked, what came of it).
        failures: questions that a node could not answer, in the same form; it is asked on.
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
        self._answers: queue.Queue[tuple[int, int, str | None]] = queue.Queue()
        self._said: dict[int, list[str]] = {node: [] for node in range(len(names))}
        self._asked = 0
        self._lines = [self._start(list(command), list(serves)) for command, serves in commands]
        first = _first_line(environment)
        for line in self._lines:
            _write(line, first)

    def present(self) -> list[int]:
        """The nodes that still answer."""
        return [node for node in range(len(self.names)) if node not in self.lost]

    def hello(self, limit_s: float) -> dict[int, dict[str, Any]]:
        """What each probe says of itself once it runs."""
        hello = self._collect("start", 0, set(self.present()), limit_s)
        self.lost |= {node: ("python", reason) for node, what, reason in self.failures if what == "start"}
        self.failures.clear()
        return hello

    def explain_start(self, why: Callable[[], str]) -> None:
        """Give the scheduler's reason for nodes whose probes have not started in time."""
        late = [node for node, (what, said) in self.lost.items() if what == "start" and _LATE in said]
        if late:
            reason = f"{self.lost[late[0]][1]}; {why()}"
            self.lost |= {node: ("queue", reason) for node in late}

    def ask(self, what: str, each: Mapping[int, dict[str, Any]], limit_s: float) -> dict[int, Any]:
        """Ask some nodes the same thing at the same time.

        Args:
            what: a name of `kinemae.launch.doctor.probe.server.QUESTIONS`.
            each: the arguments for each node that is asked; nodes that are lost are left out.

        Returns:
            The answers of those who gave one; the others stand in `lost` from then on.
        """
        self._asked += 1
        addressed = {node: arguments for node, arguments in each.items() if node not in self.lost}
        question = {
            "id": self._asked,
            "ask": what,
            "each": {str(node): addressed[node] for node in addressed},
        }
        for line in self._lines:
            if any(node in addressed for node in line.serves):
                _write(line, json.dumps(question) + "\n")
        return self._collect(what, self._asked, set(addressed), limit_s)

    def close(self) -> None:
        """Let the probes end, and end those that do not."""
        for line in self._lines:
            line.close()
        end = time.monotonic() + 3
        for line in self._lines:
            for end_it in (line.process.terminate, line.process.kill):
                try:
                    line.process.wait(max(0.1, end - time.monotonic()))
                    break
                except subprocess.TimeoutExpired:
                    end_it()
                    end = max(end, time.monotonic() + 2)  # srun cancels its request at SIGTERM
            line.process.wait()

    def _start(self, command: list[str], serves: list[int]) -> "_Line":
        line = _Line(command, serves)
        threading.Thread(target=self._listen, args=(line,), daemon=True).start()
        threading.Thread(target=self._overhear, args=(line,), daemon=True).start()
        return line

    def _listen(self, line: "_Line") -> None:
        parts: dict[tuple[str, str], str] = {}
        for text in line.output:
            words = text.rstrip("\n").split(" ", 4)
            if words[0] != MARK or len(words) < 5:
                self._overheard(line, text)  # a greeting of the remote shell, or its complaint
                continue
            _, node, question, left, chunk = words
            parts[node, question] = parts.get((node, question), "") + chunk
            if left == "0":
                self._answers.put((int(node), int(question), parts.pop((node, question))))
        for silent in line.serves:
            self._answers.put((silent, -1, None))

    def _overhear(self, line: "_Line") -> None:
        for text in line.complaints:
            self._overheard(line, text)

    def _overheard(self, line: "_Line", text: str) -> None:
        for node in line.serves:
            self._said[node] = [*self._said[node], text.strip()][-_TAIL_LINES:]

    def _collect(self, what: str, question: int, waiting: set[int], limit_s: float) -> dict[int, Any]:
        answers: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + limit_s
        while waiting:
            try:
                node, about, text = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if text is None and node not in self.lost:
                waiting.discard(node)
                time.sleep(0.1)  # its last words come by another pipe
                self.lost[node] = what, " / ".join(filter(None, self._said[node])) or "it left without a word"
            elif about == question and node in waiting:
                waiting.discard(node)
                answers[node] = _read(text or "")
        for node in waiting:
            self.lost[node] = what, f"{_LATE} {limit_s:g} s"
        failed = {node: answer["failed"] for node, answer in answers.items() if "failed" in answer}
        self.failures += [(node, what, reason) for node, reason in failed.items()]
        # In the order of the nodes, whoever was quicker: ranks are numbered by it, and the first breaks ties.
        return {node: answers[node]["value"] for node in sorted(answers) if node not in failed}


class _Line:
    """One process that speaks for some nodes."""

    def __init__(self, command: list[str], serves: list[int]):
        self.serves = serves
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", bufsize=1, start_new_session=True,  # only the doctor handles Ctrl-C
        )  # fmt: skip
        self.input, self.output, self.complaints = (_there(pipe) for pipe in _pipes(self.process))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it has left already
            self.input.close()


def _pipes(process: "subprocess.Popen[str]") -> tuple[IO[str] | None, IO[str] | None, IO[str] | None]:
    return process.stdin, process.stdout, process.stderr


def _there(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _write(line: _Line, text: str) -> None:
    with contextlib.suppress(OSError):  # its end is told by the listening thread
        line.input.write(text)
        line.input.flush()


def _first_line(environment: Mapping[str, str]) -> str:
    modules = [(name, "") for name in _PACKAGES]
    for name in MODULES:
        modules.append(
            (f"kinemae.launch.doctor.probe.{name}", (SOURCES / f"{name}.py").read_text(encoding="utf-8"))
        )
    loader = f"ENVIRONMENT={dict(environment)!a}\nMODULES={modules!a}\n{_LOADER}"
    return f"exec({loader!a})\n"


def probe_words(python: str, node: int | None) -> list[str]:
    """The words that start a probe; without a number it is read from SLURM_PROCID."""
    return [python, "-u", "-c", BOOTSTRAP, *([] if node is None else [str(node)])]


def _read(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {"failed": f"its answer was garbled on the way: {text[:80]!r}"}
    return dict(answer)
