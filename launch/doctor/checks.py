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
LEAST_PYTHON = (3, 11)
BACKENDS = ("gloo", "nccl")
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
    "connect": ("error", "set `master_addr` to an address that all nodes reach; open all TCP ports"),
    "hostname": ("error", f"set {_INTERFACES}, or correct /etc/hosts"),
    "torch": ("error", "correct `import torch` there; leave a GPU for each process in CUDA_VISIBLE_DEVICES"),
    "group": (
        "error",
        f"open all TCP ports; set {_INTERFACES}; if the address is in use, set another `master_port`; "
        "environment.NCCL_DEBUG=INFO shows more",
    ),
    "sums": ("error", "test the memory, network cards and cables: gradients would be wrong"),
    "folder": ("error", "mount one file system there on every node, with write permission and free space"),
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


def evaluate(
    reports: Reports, processes: Mapping[str, int], *, run_dir: str = "", seen_here: Sequence[str] = ()
) -> list[Result]:
    """Group equal problems of nodes; add a summary.

    Args:
        processes: of each node.
        run_dir: the run folder, if it is checked.
        seen_here: files of nodes in it that this machine sees.
    """
    problems = [*_parts(reports), *_versions(reports), *_gpus(reports, processes), *_shards(reports)]
    problems += [*_network(reports), *_group(reports), *_folder(reports, run_dir, seen_here)]
    nodes: dict[tuple[str, str], list[str]] = {}
    for name, text, node in dict.fromkeys(problems):  # several ranks of a node may have the same one
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


def _parts(reports: Reports) -> Iterator[Problem]:
    """Nodes without a whole report, and parts of the probe that have failed."""
    checks = {"host": "version", "gpus": "driver", "folder": "folder", "group": "group", "seen": "folder"}
    for name, report in reports.items():
        if "lost" in report and "stage" not in report:
            yield Problem("start", f"cannot start a probe on {{nodes}}: {report['lost']}", name)
        elif "lost" in report:
            yield Problem("hang", f"{{nodes}} stopped at {report['stage']!r}: {report['lost']}", name)
        for part, check in checks.items():
            if isinstance(report.get(part), dict) and "failed" in report[part]:
                text = f"the check of {part!r} failed on {{nodes}}: {report[part]['failed']}"
                yield Problem(check, text, name)


def _versions(reports: Reports) -> Iterator[Problem]:
    hosts = _part(reports, "host")
    for name, host in hosts.items():
        for package in (package for package, version in host["versions"].items() if version is None):
            yield Problem("version", f"{package} is not installed on {{nodes}} ({host['executable']})", name)
        if tuple(map(int, host["versions"]["python"].split(".")[:2])) < LEAST_PYTHON:
            yield Problem("version", f"python is {host['versions']['python']} on {{nodes}}, below 3.11", name)
    for package in ("python", *PACKAGES):
        versions = {name: host["versions"][package] for name, host in hosts.items()}
        yield from _different("version", package, versions)
    builds = {name: rank["build"] for name, rank in _ranks(reports) if "build" in rank}
    yield from _different("version", "the build", builds)


def _different(check: str, label: str, values: Mapping[str, str | None]) -> Iterator[Problem]:
    """Nodes whose value is not the most common one; the first node breaks a tie."""
    present = {name: value for name, value in values.items() if value}
    usual = Counter(present.values()).most_common(1)[0][0] if present else None
    for name, value in present.items():
        if value != usual:
            yield Problem(check, f"{label} is {value} on {{nodes}}, and {usual} on the other nodes", name)


def _gpu_rows(reports: Reports) -> dict[str, list[dict[str, str]]]:
    """The rows of nvidia-smi of each node, by `GPU_FIELDS`."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, part in _part(reports, "gpus").items():
        rows = [[word.strip() for word in row] for row in csv.reader(part["lines"].splitlines())]
        found[name] = [dict(zip(GPU_FIELDS, row, strict=True)) for row in rows if len(row) == len(GPU_FIELDS)]
    return found


def _gpus(reports: Reports, processes: Mapping[str, int]) -> Iterator[Problem]:
    found = _gpu_rows(reports)
    for name, gpus in found.items():
        for gpu in gpus:
            used, total, errors = (gpu[field] for field in ("memory.used", "memory.total", GPU_FIELDS[-1]))
            label = f"GPU {gpu['index']} of {{nodes}}"
            if used.isdigit() and total.isdigit() and int(used) > BUSY_FRACTION * int(total):
                yield Problem("busy", f"{label} has {used} of {total} MiB in use", name)
            if errors.isdigit() and int(errors):  # [N/A] without ECC
                yield Problem("ecc", f"{label} has {errors} uncorrected errors", name)
        ranks = reports[name].get("group", {}).get("ranks", [])
        seen = min([len(gpus), *(rank["gpus"] for rank in ranks if "gpus" in rank)])
        if any(found.values()) and seen < processes[name]:
            text = f"{{nodes}} has {len(gpus)} GPUs, torch sees {seen}, for {processes[name]} ranks"
            yield Problem("gpus", text, name)
    for field in ("name", "driver_version", "memory.total"):
        values = {name: ", ".join(sorted({gpu[field] for gpu in own})) for name, own in found.items()}
        yield from _different("unlike", f"{field} of the GPUs", values)


def _shards(reports: Reports) -> Iterator[Problem]:
    shards = _part(reports, "shards")
    for folder in next(iter(shards.values()), ()):
        for name, found in shards.items():
            if failed := found[folder].get("failed"):
                yield Problem("shards", f"{{nodes}} cannot read {folder}: {failed}", name)
        prints = {name: found[folder].get("fingerprint") for name, found in shards.items()}
        yield from _different("shards", f"the fingerprint of {folder}", prints)


def _network(reports: Reports) -> Iterator[Problem]:
    """Nodes that do not reach the first one, and hostnames that the others do not reach."""
    first = next(iter(reports.values())).get("group", {}).get("ranks") or [{"stage": STAGES[0]}]
    links = {name: group["link"] for name, group in _part(reports, "group").items() if group["link"]}
    for name, link in links.items():
        # Every connection fails if the first rank has not come to listen.
        if link["failed"] and STAGES.index(first[0]["stage"]) >= STAGES.index(JOINING):
            group = reports[name]["group"]
            text = f"{{nodes}} cannot connect to {group['master']}, port {group['port']}: {link['failed']}"
            yield Problem("connect", text, name)
    addresses = [link["address"] for link in links.values() if "address" in link]
    is_one_machine = addresses and all(map(_is_loopback, addresses))
    hosts = _part(reports, "host")
    for name, host in hosts.items() if len(hosts) > 1 and not is_one_machine else ():
        address = host["own_address"]
        if not host["has_interface"] and (address is None or _is_loopback(address)):
            problem = f"resolves to {address}" if address else "cannot be resolved"
            text = f"the hostname {host['hostname']} of {{nodes}} {problem}; Gloo announces that address"
            yield Problem("hostname", f"{text}, which other nodes cannot reach", name)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _group(reports: Reports) -> Iterator[Problem]:
    """The ranks that stopped at the earliest stage; the others only waited for them."""
    ranks = _ranks(reports)
    for name, rank in ranks:
        for backend in BACKENDS:
            if wrong := rank.get(backend, {}).get("wrong"):
                yield Problem("sums", f"sums with {backend} are wrong on {{nodes}}: {wrong}", name)
    least = min((STAGES.index(rank["stage"]) for _, rank in ranks), default=0)
    failed = [(name, rank) for name, rank in ranks if "failed" in rank and rank["stage"] == STAGES[least]]
    crashed = [(name, rank) for name, rank in failed if "exit code" in rank["failed"]]
    is_own = least < STAGES.index(JOINING)
    is_lost = any("lost" in report for report in reports.values())
    is_result = (is_lost and not is_own) or any(_network(reports))  # of another problem
    for name, rank in () if is_result else crashed or failed:
        lines = rank["failed"].splitlines()
        text = f"the process group stopped at {rank['stage']} on {{nodes}}: {lines[0]}"
        text += f" ... {lines[-1]}" if len(lines) > 1 else ""
        yield Problem("torch" if is_own else "group", text, name)


def _folder(reports: Reports, run_dir: str, seen_here: Sequence[str]) -> Iterator[Problem]:
    """Nodes that do not see the files of all nodes that could write one."""
    written = _part(reports, "folder")
    seen = {**_part(reports, "seen"), HERE: seen_here} if written else {}
    numbers = {name: number for number, name in enumerate(reports)}
    for name, files in seen.items():
        if unseen := [writer for writer in written if f"node-{numbers[writer]}" not in files]:
            text = f"{{nodes}} does not see the file that {join_names(unseen)} wrote to {run_dir}"
            yield Problem("folder", text, name)


def _summary(reports: Reports) -> str:
    ranks, hosts, folders = _ranks(reports), _part(reports, "host"), _part(reports, "folder")
    versions = [host["versions"] for host in hosts.values()]
    gpus = [gpu["name"] for own in _gpu_rows(reports).values() for gpu in own]
    done = [rank for _, rank in ranks if rank["stage"] == STAGES[-1]]
    parts = [f"{len(hosts)} of {len(reports)} nodes reported"]
    parts += [f"python {one['python']}, torch {one['torch']}" for one in versions[:1]]
    parts.append(f"{len(gpus)} GPUs, {gpus[0]}" if gpus else "no GPUs")
    parts.append(f"{len(done)} of {len(ranks)} processes formed a group")
    for backend in BACKENDS if len(done) == len(ranks) > 1 else ():
        rates = [rank[backend]["mb_per_s"] for rank in done if backend in rank]
        parts += [f"all-reduce {min(rates):.0f} MB/s with {backend}"] if rates else []
    if folders:
        parts.append(f"{min(one['free_bytes'] for one in folders.values()) / 1e9:.0f} GB free for the run")
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
