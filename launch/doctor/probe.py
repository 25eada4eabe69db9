"""The probe of `launch doctor`: examines one node from inside and prints a report.

`nodes.py` sends this file as text to `python -` on each node, so a node needs no installed KineMAE. It uses
the standard library only; torch is imported by the ranks of the process group, each in its own process.
"""

from __future__ import annotations  # an old Python reports its version instead of a syntax error

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

MARK = "kinemae-probe"
# srun keeps lines of at most 1024 characters whole; it may mix longer ones of several nodes.
CHUNK = 800
JOINING = "joining the group"
STAGES = ("starting", "importing torch", "selecting a GPU", JOINING, "summing", "done")  # of a rank
_SCONTROL_S, _SEEN_S, _MARGIN_S = 60, 4.0, 5.0
_REDUCED_MB = {"gloo": 8, "nccl": 256}  # of the timed all-reduce
_TAIL = 800


def main(request: dict[str, Any]) -> None:
    """Print a report in parts, each announced by its stage: the last stage names a part that hangs.

    Args:
        request: `source` (of this file), `environment` (variables from the cluster file), `packages`,
            `run_dir` (a new folder in the run folder, or None), `shards`, `token`, `processes` (of each
            node), `master` (null on Slurm), `port`, `limit_s` (of the process group).
    """
    node = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["SLURM_PROCID"])
    os.environ.update(request["environment"])
    for part in (host, folder, shards, group, seen):
        _send(node, {"stage": part.__name__})
        _send(node, {part.__name__: _attempt(part, node, request)})
    _send(node, {"stage": "done"})


def _send(node: int, values: dict[str, Any]) -> None:
    text = json.dumps(values)
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    for number, chunk in enumerate(chunks, 1):
        sys.stdout.write(f"{MARK} {node} {len(chunks) - number} {chunk}\n")
    sys.stdout.flush()


def host(node: int, request: dict[str, Any]) -> dict[str, Any]:
    """Versions, the driver's GPUs, and the address that Gloo announces to other nodes."""
    return {
        "name": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "hostname": socket.gethostname(),
        "versions": {
            "python": sys.version.split()[0],
            **{name: _version(name) for name in request["packages"]},
        },
        "executable": sys.executable,
        "gpus": len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        "machine": machine(),
        "has_interface": "GLOO_SOCKET_IFNAME" in os.environ,
        "own_address": own_address(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """A text that is equal for nodes which share one machine and network."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


def own_address() -> str | None:
    """The first bindable address of the own hostname; Gloo uses it unless an interface is set."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as handle, contextlib.suppress(OSError):
                handle.bind(address)
                return str(address[0])
    return None


def folder(node: int, request: dict[str, Any]) -> dict[str, int] | None:
    """Write a file; return `free_bytes`, None without a run folder."""
    if request["run_dir"] is None:
        return None
    path = Path(request["run_dir"]) / f"node-{node}"
    path.write_text(request["token"].ljust(1 << 16))
    return {"free_bytes": shutil.disk_usage(path.parent).free}


def seen(node: int, request: dict[str, Any]) -> list[str] | None:
    """The nodes' files that are visible here; a network file system may show an old listing for a moment."""
    if request["run_dir"] is None:
        return None
    end = time.monotonic() + _SEEN_S
    while True:
        files = Path(request["run_dir"]).glob("node-*")
        found = sorted(path.name for path in files if path.read_text().strip() == request["token"])
        if len(found) == len(request["processes"]) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def shards(node: int, request: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The `fingerprint` of each data set, after a byte of its last shard was read."""

    def read(folder: str) -> dict[str, str]:
        fingerprint = json.loads((Path(folder) / "dataset.json").read_text())["fingerprint"]
        for tar in sorted(Path(folder).glob("*.tar"))[-1:]:
            with tar.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                file.read(1)
        return {"fingerprint": fingerprint}

    return {folder: _attempt(read, folder) for folder in request["shards"]}


def _attempt(part: Any, *arguments: Any) -> Any:
    """The result of a part, or `failed` with the reason."""
    try:
        return part(*arguments)
    except (OSError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def group(node: int, request: dict[str, Any]) -> dict[str, Any]:
    """Start this node's ranks of a process group of all nodes, and wait for them.

    Returns:
        `ranks`: the results of each rank, see `rank_main`, with `failed` unless its stage is `done`.
    """
    processes = request["processes"]
    master = request["master"] or os.environ.get("MASTER_ADDR")
    master = master or slurm_address(os.environ["SLURM_STEP_NODELIST"])
    end = time.monotonic() + request["limit_s"]
    first, world = sum(processes[:node]), sum(processes)
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": processes[node], "MASTER_ADDR": master}
    shared |= {"MASTER_PORT": request["port"], "OMP_NUM_THREADS": 1, "DOCTOR_LIMIT_S": request["limit_s"]}
    ranks = []
    for local in range(processes[node]):
        variables = {**shared, "RANK": first + local, "LOCAL_RANK": local}
        rank = subprocess.Popen(
            [sys.executable, "-c", f"{request['source']}\nrank_main()\n"],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ranks.append(rank)
    return {"ranks": [_wait_for(rank, end) for rank in ranks]}


def slurm_address(nodes: str) -> str:
    """The address that Slurm uses for the first of some nodes: its name, the fallback, need not resolve."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scontrol", "--oneliner", "show", "node", nodes]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_SCONTROL_S)
        shown = re.search(r"\bNodeAddr=(\S+)", ran.stdout)
        if shown:
            return shown[1]
    return re.sub(r"\[(\d+).*", r"\1", nodes.partition(",")[0])


def _wait_for(rank: subprocess.Popen[str], end: float) -> dict[str, Any]:
    try:
        output, errors = rank.communicate(timeout=max(0.5, end - time.monotonic()))
        failed = f"ended with exit code {rank.returncode}: {errors.strip()[-_TAIL:]}"
    except subprocess.TimeoutExpired:
        rank.kill()
        output, errors = rank.communicate()
        failed = "not done in time"
    result = {"stage": "starting"}
    for line in output.splitlines():
        if line.startswith("{"):
            result.update(json.loads(line))
    return result if result["stage"] == "done" else dict(result, failed=failed)


def rank_main() -> None:
    """Join a Gloo group, and an NCCL group if every rank has a GPU; sum integers; time an all-reduce.

    Prints, as JSON objects: `stage` before each step; `build` (versions of torch and NCCL), `gpus` (their
    number), `gpu` (the name of its own); for each backend `wrong` (the first wrong sum, or None) and
    `mb_per_s` (of a link of a ring).
    """
    limit_s, began = int(os.environ["DOCTOR_LIMIT_S"]), time.monotonic()
    signal.alarm(limit_s + 10)  # if the probe was killed
    _print(stage="importing torch")
    import torch
    import torch.distributed as dist

    is_gpu = torch.cuda.is_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if is_gpu else "none"
    build = f"torch {torch.__version__}, NCCL {nccl}"
    _print(stage="selecting a GPU", build=build, gpus=torch.cuda.device_count())
    if is_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _print(stage=JOINING, gpu=torch.cuda.get_device_name() if is_gpu else None)
    end = began + limit_s - _MARGIN_S  # an error of this process says more than the time limit
    while os.environ["RANK"] != "0":  # torch would not say why it cannot connect
        master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection((master, port), timeout=_MARGIN_S).close()
            break
        except OSError as error:
            if time.monotonic() > end - _MARGIN_S:
                sys.exit(f"cannot connect to {master}, port {port}: {error}")
            time.sleep(0.2)
    dist.init_process_group("gloo", timeout=timedelta(seconds=max(1.0, end - time.monotonic())))
    are_gpus = torch.tensor(int(is_gpu))
    dist.all_reduce(are_gpus, dist.ReduceOp.MIN)
    _print(stage="summing")
    for backend, device in [("gloo", "cpu")] + ([("nccl", "cuda")] if are_gpus else []):
        group = dist.new_group(backend=backend)
        wrong, rate = sums(lambda values, group=group: dist.all_reduce(values, group=group), backend, device)
        _print(**{backend: {"wrong": wrong, "mb_per_s": rate}})
    dist.barrier()
    _print(stage="done")
    os._exit(0)  # the backend's clean-up may wait for ranks that have ended


def _print(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def sums(all_reduce: Any, backend: str, device: str) -> tuple[str | None, float]:
    """Check sums of integers below 2^24, which float32 represents exactly, and time the all-reduce.

    Returns:
        The first wrong value, or None; MB/s on a link of a ring (2 (n - 1) / n of the bytes), best of three.
    """
    import torch

    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    pattern = (torch.arange(_REDUCED_MB[backend] * 250_000, device=device) % 7).float()
    expected = pattern * (world * (world + 1) // 2)
    wrong, seconds = None, []
    for _ in range(4):  # the first one opens connections
        values = pattern * (rank + 1)
        began = time.monotonic()
        all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
        for place in (values != expected).nonzero().flatten()[:1].tolist():
            wrong = f"value {place} is {values[place]:g} instead of {expected[place]:g}"
    return wrong, 2 * (world - 1) / world * _REDUCED_MB[backend] / min(seconds[1:])
