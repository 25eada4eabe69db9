"""Checks of `launch doctor`: functions of the nodes' reports (`probe.py`), and the table of fixes."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kinemae.launch.doctor.probe import JOINING, STAGES
from kinemae.launch.supervisor.hosts import hostname_problem

Reports = Mapping[str, Mapping[str, Any]]  # of all nodes by name, in the order of the nodes

HERE = "this machine"
PACKAGES = ("torch", "deepspeed", "av", "pyarrow", "numpy")  # their versions change results or files
LEAST_PYTHON = (3, 11)
BACKENDS = ("gloo", "nccl")
_WIDTH, _MOST_NAMES = 110, 6

_INTERFACES = "environment.GLOO_SOCKET_IFNAME and environment.NCCL_SOCKET_IFNAME"
# Check: fix of its problems. Each prevents a run or makes it wrong.
FIXES = {
    "start": "run the probe's command by hand (--dry-run prints it); sinfo -R lists bad nodes",
    "hang": "look for a hanging driver (nvidia-smi) or file system (df) there",
    "version": "install one version on all nodes, or set `python` in the cluster file",
    "gpus": "see nvidia-smi there; start fewer processes, request more GPUs, or install torch for CUDA",
    "hostname": f"set {_INTERFACES}, or correct /etc/hosts",
    "torch": "correct `import torch` there; leave a GPU for each process in CUDA_VISIBLE_DEVICES",
    "group": f"open all TCP ports; set `master_addr` to an address that all nodes reach; set {_INTERFACES}; "
    "if the address is in use, set another `master_port`; environment.NCCL_DEBUG=INFO shows more",
    "sums": "test the memory, network cards and cables: gradients would be wrong",
    "folder": "mount one file system there on every node, with write permission and free space",
    "shards": "put one copy of the data set at this path on every node, or at a URL",
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
        text = text.replace("{nodes}", join_names(names))
        results.append(Result(level="error", check=name, text=text, fix=FIXES[name], nodes=names))
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
    checks = {"host": "version", "folder": "folder", "group": "group", "seen": "folder"}
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


def _gpus(reports: Reports, processes: Mapping[str, int]) -> Iterator[Problem]:
    """Nodes on which torch sees too few GPUs for a run on GPUs."""
    hosts = _part(reports, "host")
    found = [(name, rank["gpus"]) for name, rank in _ranks(reports) if "gpus" in rank]
    is_gpu_run = any(seen for _, seen in found) or any(host["gpus"] for host in hosts.values())
    for name, seen in found if is_gpu_run else ():
        if seen < processes[name]:
            known = hosts[name]["gpus"] if name in hosts else 0
            text = f"{{nodes}} has {known} GPUs, torch sees {seen}, for {processes[name]} ranks"
            yield Problem("gpus", text, name)


def _shards(reports: Reports) -> Iterator[Problem]:
    shards = _part(reports, "shards")
    for folder in next(iter(shards.values()), ()):
        for name, found in shards.items():
            if failed := found[folder].get("failed"):
                yield Problem("shards", f"{{nodes}} cannot read {folder}: {failed}", name)
        prints = {name: found[folder].get("fingerprint") for name, found in shards.items()}
        yield from _different("shards", f"the fingerprint of {folder}", prints)


def _network(reports: Reports) -> Iterator[Problem]:
    """Hostnames by which other machines do not reach a node."""
    hosts = _part(reports, "host")
    for name, host in hosts.items() if len({host["machine"] for host in hosts.values()}) > 1 else ():
        if not host["has_interface"] and (found := hostname_problem(host["hostname"], host["own_address"])):
            yield Problem("hostname", f"{{nodes}}: {found}", name)


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
    is_consequence = (is_lost and not is_own) or any(_network(reports))
    for name, rank in () if is_consequence else crashed or failed:
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
    gpus = [rank["gpu"] for _, rank in ranks if rank.get("gpu")]
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
    """A paragraph for each result with its fix, and the number of errors."""
    lines = []
    for result in results:
        head = f"{result.level:<8} {result.check:<9} "
        for begin, text in ((head, result.text), (" " * len(head) + "fix: ", result.fix)):
            indent = " " * len(begin)
            lines += textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=indent)
    errors = sum(result.level == "error" for result in results)
    lines.append(f"errors: {errors}, after {seconds:.0f} s")
    return "\n".join(lines) + "\n"
