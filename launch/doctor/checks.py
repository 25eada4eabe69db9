"""Checks of `launch doctor`: functions of the nodes' reports (`probe.py`), and the table of fixes."""

import csv
import ipaddress
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kinemae.launch.doctor.probe import GPU_FIELDS, JOINING, STAGES

Reports = Mapping[str, Mapping[str, Any]]
"""The reports of all nodes by name, in the order of the nodes."""

HERE = "this machine"
PACKAGES = ("torch", "deepspeed", "av", "pyarrow", "numpy")  # their versions change results or files
LEAST_PYTHON, LEAST_FILES, GIB = (3, 11), 4096, 1 << 30
LEAST_OF_LINK = {"gloo": 0.1, "nccl": 0.5}  # Gloo copies through the CPU; NCCL reaches 0.8 of a link
BUSY_FRACTION = 0.05
_WIDTH, _MOST_NAMES = 110, 6

_INTERFACES = "environment.GLOO_SOCKET_IFNAME and environment.NCCL_SOCKET_IFNAME"
# Check: level and fix of its problems. An error prevents a run, a warning makes it slow or fragile.
FIXES = {
    "start": ("error", "run the probe's command by hand (--dry-run prints it); sinfo -R lists bad nodes"),
    "hang": ("error", "look for a hanging driver (nvidia-smi) or file system (df) there"),
    "version": ("error", "install one version on all nodes, or set `python` in the cluster file"),
    "driver": ("error", "leave the node out, and restart its driver or the machine"),
    "gpus": ("error", "start fewer processes, ask the scheduler for more GPUs, or install torch for CUDA"),
    "ecc": ("error", "reset the GPU (nvidia-smi --gpu-reset); replace it if they return"),
    "unlike": ("warning", "leave these nodes out: every step waits for the slowest GPU"),
    "busy": ("warning", "end the processes that nvidia-smi lists, or leave the node out"),
    "files": ("warning", "raise nofile in /etc/security/limits.conf, or LimitNOFILE of sshd or slurmd"),
    "port": ("error", "end its user (ss -ltnp), or set another `master_port`"),
    "connect": ("error", "set `master_addr` to an address that all nodes reach; open all TCP ports"),
    "hostname": ("error", f"set {_INTERFACES}, or correct /etc/hosts"),
    "torch": ("error", "correct `import torch` there; leave a GPU for each process in CUDA_VISIBLE_DEVICES"),
    "group": ("error", f"open all TCP ports; set {_INTERFACES}; environment.NCCL_DEBUG=INFO shows more"),
    "sums": ("error", "test the memory, network cards and cables: gradients would be wrong"),
    "speed": ("warning", "check the interface (NCCL_SOCKET_IFNAME, NCCL_IB_HCA) and its speed (ethtool)"),
    "folder": ("error", "mount one file system there on every node, with write permission and free space"),
    "space": ("error", "free some space, set another run_dir, or keep fewer checkpoints"),
    "lock": ("warning", "mount it with locks (NFS 4, Lustre with -o flock), or never start a run twice"),
    "shards": ("error", "put one copy of the data set at this path on every node, or at a URL"),
}


class Problem(NamedTuple):
    """A problem of one node; `text` has {nodes} in place of its name, so that equal ones are one result."""

    check: str
    text: str
    node: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """A problem of some nodes, with its fix; or, at the level `ok`, a summary of the nodes."""

    level: str
    check: str
    text: str
    fix: str = ""
    nodes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the nodes are checked for.

    Attributes:
        processes: of each node.
        link_gbit: network speed, if known.
        run_dir: the run folder, if it is checked.
        seen_here: files of nodes in it that this machine sees.
        needed_bytes: free space that it needs.
    """

    processes: Mapping[str, int]
    link_gbit: float | None = None
    run_dir: str = ""
    seen_here: Sequence[str] = ()
    needed_bytes: int = GIB


def evaluate(reports: Reports, job: Job) -> list[Result]:
    """Group equal problems of nodes; add a summary."""
    checks = (_reach, _failed, _same, _devices, _limits, _network, _group, _speed, _folder, _locks)
    problems = dict.fromkeys(problem for check in checks for problem in check(reports, job))
    nodes: dict[tuple[str, str], list[str]] = {}
    for name, text, node in problems:  # each once, although several ranks of a node have it
        nodes.setdefault((name, text), []).append(node)
    results = []
    for (name, text), names in nodes.items():
        level, fix = FIXES[name]
        text = text.replace("{nodes}", join_names(names))
        results.append(Result(level=level, check=name, text=text, fix=fix, nodes=names))
    return [*results, Result(level="ok", check="summary", text=_summary(reports))]


def join_names(nodes: Sequence[str]) -> str:
    """Node names for a sentence; only the first few of many."""
    rest = len(nodes) - _MOST_NAMES
    return ", ".join(nodes[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _part(reports: Reports, part: str) -> dict[str, Any]:
    """A part of the reports of all nodes that have it and where it has not failed."""
    present = {name: report[part] for name, report in reports.items() if report.get(part) is not None}
    return {name: found for name, found in present.items() if "failed" not in found}


def _ranks(reports: Reports) -> list[tuple[str, dict[str, Any]]]:
    """The node and results of each rank."""
    return [(name, rank) for name, group in _part(reports, "group").items() for rank in group["ranks"]]


def _reach(reports: Reports, job: Job) -> Iterator[Problem]:
    for name, report in reports.items():
        if "lost" in report and "stage" not in report:
            yield Problem("start", f"cannot start a probe on {{nodes}}: {report['lost']}", name)
        elif "lost" in report:
            yield Problem("hang", f"{{nodes}} stopped at {report['stage']!r}: {report['lost']}", name)


def _failed(reports: Reports, job: Job) -> Iterator[Problem]:
    """Parts of the probe that have failed."""
    checks = {"host": "version", "gpus": "driver", "folder": "folder", "group": "group", "seen": "folder"}
    for name, report in reports.items():
        for part, check in checks.items():
            if isinstance(report.get(part), dict) and "failed" in report[part]:
                text = f"the check of {part!r} failed on {{nodes}}: {report[part]['failed']}"
                yield Problem(check, text, name)


def _same(reports: Reports, job: Job) -> Iterator[Problem]:
    """What must be equal on all nodes: versions, GPUs, data sets."""
    hosts, gpus, shards = _part(reports, "host"), _gpus(reports), _part(reports, "shards")
    for name, host in hosts.items():
        for package, version in host["versions"].items():
            if version is None:
                yield Problem(
                    "version", f"{package} is not installed on {{nodes}} ({host['executable']})", name
                )
        if tuple(map(int, host["versions"]["python"].split(".")[:2])) < LEAST_PYTHON:
            yield Problem("version", f"python is {host['versions']['python']} on {{nodes}}, below 3.11", name)
    for package in ("python", *PACKAGES):
        versions = {name: host["versions"][package] for name, host in hosts.items()}
        yield from _different("version", package, versions)
    builds = {name: rank["build"] for name, rank in _ranks(reports) if "build" in rank}
    yield from _different("version", "the build", builds)
    for field in ("name", "driver_version", "memory.total"):
        values = {name: ", ".join(sorted({gpu[field] for gpu in own})) for name, own in gpus.items()}
        yield from _different("unlike", f"{field} of the GPUs", values)
    for folder in next(iter(shards.values()), ()):
        for name, found in shards.items():
            if failed := found[folder].get("failed"):
                yield Problem("shards", f"{{nodes}} cannot read {folder}: {failed}", name)
        prints = {name: found[folder].get("fingerprint") for name, found in shards.items()}
        yield from _different("shards", f"the fingerprint of {folder}", prints)


def _different(kind: str, label: str, values: Mapping[str, str | None]) -> Iterator[Problem]:
    """Nodes whose value is not the most common one; the first node breaks a tie."""
    present = {name: value for name, value in values.items() if value}
    usual = Counter(present.values()).most_common(1)[0][0] if present else None
    for name, value in present.items():
        if value != usual:
            yield Problem(kind, f"{label} is {value} on {{nodes}}, and {usual} on the other nodes", name)


def _gpus(reports: Reports) -> dict[str, list[dict[str, str]]]:
    """The rows of nvidia-smi of each node, by `GPU_FIELDS`."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, part in _part(reports, "gpus").items():
        rows = [[word.strip() for word in row] for row in csv.reader(part["lines"].splitlines())]
        found[name] = [dict(zip(GPU_FIELDS, row, strict=True)) for row in rows if len(row) == len(GPU_FIELDS)]
    return found


def _devices(reports: Reports, job: Job) -> Iterator[Problem]:
    found = _gpus(reports)
    for name, gpus in found.items():
        for gpu in gpus:
            used, total, errors = (gpu[field] for field in ("memory.used", "memory.total", GPU_FIELDS[-1]))
            if used.isdigit() and total.isdigit() and int(used) > BUSY_FRACTION * int(total):
                yield Problem(
                    "busy", f"GPU {gpu['index']} of {{nodes}} has {used} of {total} MiB in use", name
                )
            if errors.isdigit() and int(errors):  # [N/A] without ECC
                yield Problem("ecc", f"GPU {gpu['index']} of {{nodes}} has {errors} uncorrected errors", name)
        ranks = reports[name].get("group", {}).get("ranks", [])
        counts = [len(gpus), *(rank["gpus"] for rank in ranks if "gpus" in rank)]
        if any(found.values()) and min(counts) < job.processes[name]:
            text = (
                f"{{nodes}} has {len(gpus)} GPUs, torch sees {min(counts)}, for {job.processes[name]} ranks"
            )
            yield Problem("gpus", text, name)


def _limits(reports: Reports, job: Job) -> Iterator[Problem]:
    for name, host in _part(reports, "host").items():
        if host["open_files"] and host["open_files"] < LEAST_FILES:
            text = f"{{nodes}} allows {host['open_files']} open files (ulimit -Hn), fewer than {LEAST_FILES}"
            yield Problem("files", text, name)


def _network(reports: Reports, job: Job) -> Iterator[Problem]:
    first = next(iter(reports.values())).get("group", {}).get("ranks") or [{"stage": STAGES[0]}]
    for name, group in _part(reports, "group").items():
        if group["port_failed"]:
            text = f"port {group['port']} is not available on {{nodes}}: {group['port_failed']}"
            yield Problem("port", text, name)
        # Every connection fails if the first rank has not come to listen.
        if failed := _is_from(JOINING, first[0]) and (group["link"] or {}).get("failed"):
            text = f"{{nodes}} cannot connect to {group['master']}, port {group['port']}: {failed}"
            yield Problem("connect", text, name)
    hosts, links = _part(reports, "host"), _interfaces(reports)
    for name, host in hosts.items() if len(hosts) > 1 and links != ["lo"] else ():
        address = host["own_address"]
        if not host["has_interface"] and (address is None or ipaddress.ip_address(address).is_loopback):
            problem = f"resolves to {address}" if address else "cannot be resolved"
            text = f"the hostname {host['hostname']} of {{nodes}} {problem}; Gloo announces that address"
            yield Problem("hostname", f"{text}, which other nodes cannot reach", name)


def _interfaces(reports: Reports) -> list[str]:
    """The interfaces that lead to the first node; only `lo` for nodes on one machine."""
    links = [group["link"] or {} for group in _part(reports, "group").values()]
    return sorted({link["interface"] for link in links if link.get("interface")})


def _is_from(stage: str, rank: Mapping[str, Any]) -> bool:
    """Check whether a rank has come to a stage."""
    return STAGES.index(rank["stage"]) >= STAGES.index(stage)


def _group(reports: Reports, job: Job) -> Iterator[Problem]:
    """The ranks that stopped at the earliest stage; the others only waited for them."""
    ranks = _ranks(reports)
    for name, rank in ranks:
        for backend in LEAST_OF_LINK:
            if wrong := rank.get(backend, {}).get("wrong"):
                yield Problem("sums", f"sums with {backend} are wrong on {{nodes}}: {wrong}", name)
    least = min((STAGES.index(rank["stage"]) for _, rank in ranks), default=0)
    failed = [(name, rank) for name, rank in ranks if "failed" in rank and rank["stage"] == STAGES[least]]
    crashed = [(name, rank) for name, rank in failed if "exit code" in rank["failed"]]
    is_own = least < STAGES.index(JOINING)
    is_result = (not is_own and any(_reach(reports, job))) or any(_network(reports, job))
    for name, rank in () if is_result else crashed or failed:
        lines = rank["failed"].splitlines()
        text = f"the process group stopped at {rank['stage']} on {{nodes}}: {lines[0]}"
        text += f" ... {lines[-1]}" if len(lines) > 1 else ""
        yield Problem("torch" if is_own else "group", text, name)


def _rates(reports: Reports) -> dict[str, float]:
    """MB/s of the slowest rank by backend, if several ranks have measured it."""
    ranks = [rank for _, rank in _ranks(reports)]
    used = [name for name in LEAST_OF_LINK if len(ranks) > 1 and all(name in rank for rank in ranks)]
    return {name: min(rank[name]["mb_per_s"] for rank in ranks) for name in used}


def _speed(reports: Reports, job: Job) -> Iterator[Problem]:
    for backend, rate in _rates(reports).items():
        least = LEAST_OF_LINK[backend] * (job.link_gbit or 0) * 125
        if len(reports) > 1 and rate < least:
            text = f"all-reduce with {backend}: {rate:.0f} MB/s, below {least:.0f}, "
            text += f"{LEAST_OF_LINK[backend]:.0%} of link_gbit={job.link_gbit:g}"
            yield from (Problem("speed", text, name) for name in reports)


def _folder(reports: Reports, job: Job) -> Iterator[Problem]:
    written = _part(reports, "folder")
    for name, host in _part(reports, "host").items():
        yield from (Problem("folder", f"there is no {path} on {{nodes}}", name) for path in host["missing"])
    for name, part in written.items():
        if part["free_bytes"] < job.needed_bytes:
            free, needed = part["free_bytes"] / GIB, job.needed_bytes / GIB
            text = f"{job.run_dir} has {free:.1f} GiB free on {{nodes}}, a run needs {needed:.1f} GiB"
            yield Problem("space", text, name)
    seen = {**_part(reports, "seen"), HERE: job.seen_here} if written else {}
    numbers = {name: number for number, name in enumerate(reports)}
    for name, files in seen.items():
        if unseen := [writer for writer in written if f"node-{numbers[writer]}" not in files]:
            text = f"{{nodes}} does not see the file that {join_names(unseen)} wrote to {job.run_dir}"
            yield Problem("folder", text, name)


def _locks(reports: Reports, job: Job) -> Iterator[Problem]:
    """Nodes hold their locks until the process group has ended: without it they may not meet."""
    if any(rank["stage"] != STAGES[-1] for _, rank in _ranks(reports)):
        return
    locks = {name: part["lock"] for name, part in _part(reports, "folder").items()}
    holders = [name for name, lock in locks.items() if lock == "locked"]
    for name, lock in locks.items():
        if name in holders[1:]:
            text = f"{{nodes}} could lock a file in {job.run_dir} that {holders[0]} had locked"
            yield Problem("lock", text, name)
        elif lock not in ("locked", "busy"):
            yield Problem("lock", f"{job.run_dir} cannot be locked on {{nodes}}: {lock}", name)


def _summary(reports: Reports) -> str:
    ranks, hosts = _ranks(reports), _part(reports, "host")
    gpus = [gpu["name"] for own in _gpus(reports).values() for gpu in own]
    parts = [f"{len(hosts)} of {len(reports)} nodes reported"]
    parts += [
        f"python {host['versions']['python']}, torch {host['versions']['torch']}" for host in hosts.values()
    ][:1]
    parts.append(f"{len(gpus)} GPUs, {gpus[0]}" if gpus else "no GPUs")
    done = [rank for _, rank in ranks if rank["stage"] == STAGES[-1]]
    parts.append(f"{len(done)} of {len(ranks)} processes formed a group")
    parts += [f"all-reduce {rate:.0f} MB/s with {backend}" for backend, rate in _rates(reports).items()]
    parts += [f"the interface to the first node is {name}" for name in _interfaces(reports)]
    return "; ".join(parts)


def as_text(results: Sequence[Result], seconds: float) -> str:
    """A paragraph for each result with its fix, and the number of errors and warnings."""
    lines = []
    for result in results:
        head = f"{result.level:<8} {result.check:<9} "
        for begin, text in ((head, result.text), (" " * len(head) + "fix: ", result.fix)):
            indent = " " * len(begin)
            lines += textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=indent)
    counts = Counter(result.level for result in results)
    lines.append(f"errors: {counts['error']}, warnings: {counts['warning']}, after {seconds:.0f} s")
    return "\n".join(lines) + "\n"
