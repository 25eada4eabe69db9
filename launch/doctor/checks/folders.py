"""Check that the run folder and the shards are shared by all nodes, writable, fast and large enough."""

import shlex
from collections.abc import Mapping
from typing import Any

from kinemae.launch.doctor.results import CheckResult, count, error, join_names, odd_ones, or_ok, warning

CHECK = "folder"
SLOW_SYNC_MS = 500.0
GIB = 1 << 30
# File systems whose content is lost with the node: memory and container layers.
TEMPORARY = ("tmpfs", "ramfs", "overlay")
_FIXES = {
    "ENOENT": "create it, or mount the shared file system there",
    **dict.fromkeys(("EACCES", "EPERM"), "give the job's account write permission there (ls -ld, id)"),
    "EROFS": "mount it writable there",
    **dict.fromkeys(("ENOSPC", "EDQUOT"), "free some space or raise the quota"),
}

Reports = Mapping[str, Mapping[str, Any]]


def check_written(folder: str, written: Reports, needed_bytes: int | None) -> list[CheckResult]:
    """Check the result, speed and free space of each node's write.

    Args:
        written: the replies of `kinemae.launch.doctor.probe.folders.write`.
        needed_bytes: size of all kept checkpoints, if known.
    """
    results = []
    for name, report in written.items():
        if "failed" in report:
            text = f"{name} cannot write to {folder}: {report['reason']}"
            fix = _FIXES.get(report["failed"], "repair the file system there (dmesg, mount)")
            results.append(error(CHECK, text, fix, [name]))
        elif report["sync_ms"] > SLOW_SYNC_MS:
            text = f"{name} takes {report['sync_ms']:.0f} ms to sync 64 KiB to {folder} ({report['kind']})"
            fix = "use a faster file system for runs, or save less often (save_every_steps)"
            results.append(warning(CHECK, text, fix, [name]))
    good = {name: report for name, report in written.items() if "failed" not in report}
    results += _check_space(folder, good, needed_bytes)
    temporary = {name: report["kind"] for name, report in good.items() if report["kind"] in TEMPORARY}
    if temporary and len(written) > 1:
        kind = next(iter(temporary.values()))
        text = f"{folder} is a {kind} on {join_names(list(temporary))}: its content is lost with the node"
        results.append(warning(CHECK, text, "set a run_dir on permanent storage", temporary))
    return results


def _check_space(folder: str, good: Reports, needed_bytes: int | None) -> list[CheckResult]:
    if not good:
        return []
    name = min(good, key=lambda node: good[node]["free_bytes"])
    free = good[name]["free_bytes"]
    needed = GIB if needed_bytes is None else needed_bytes
    if free >= needed:
        return []
    noun = "a small run" if needed_bytes is None else "the kept checkpoints"
    text = f"{folder} has {free / GIB:.1f} GiB free, {noun} need {needed / GIB:.1f} GiB"
    fix = "free some space, set another run_dir, or keep fewer checkpoints"
    return [(warning if needed_bytes is None else error)(CHECK, text, fix, [name])]


def check_shared(folder: str, unseen: Mapping[str, Mapping[str, str]], nodes: int) -> list[CheckResult]:
    """Check that all nodes and this machine see all written files.

    Args:
        unseen: for each node, the writers whose file is wrong there, with the reason.
        nodes: number of nodes that wrote.
    """
    results = []
    for name, states in unseen.items():
        by_state: dict[str, list[str]] = {}
        for writer, state in states.items():
            by_state.setdefault(state, []).append(writer)
        for state, writers in by_state.items():
            problem = "does not see" if state == "missing" else f"reads {state} from"
            text = f"{name} {problem} the file that {join_names(writers)} wrote to {folder}"
            fix = f"mount the same file system at {folder} on every node, or set another run_dir"
            results.append(error(CHECK, text, fix, [name, *writers]))
    text = f"{folder}: written, renamed and seen by {count(nodes, 'node')} and this machine"
    return or_ok(results, CHECK, text)


def check_locks(folder: str, states: Mapping[str, str]) -> list[CheckResult]:
    """Check that a lock of one node excludes the others; it prevents a second job of a run.

    Args:
        states: the replies of `probe.folders.lock`, one node after another; the first one got the lock.
    """
    nodes = list(states)
    ignored = [name for name in nodes[1:] if states[name] == "locked"]
    failed = {name: states[name] for name in nodes if states[name] not in ("locked", "busy")}
    fix = "mount it with locks (NFS 4 without local_lock, Lustre with -o flock), or never start a run twice"
    results = []
    if ignored:
        text = f"{join_names(ignored)} could take a lock in {folder} that {nodes[0]} holds"
        results.append(warning("locks", text, fix, ignored))
    if failed:
        text = f"{folder} cannot be locked on {join_names(list(failed))}: {next(iter(failed.values()))}"
        results.append(warning("locks", text, fix, failed))
    return or_ok(results, "locks", f"a lock in {folder} holds on all nodes")


def check_shards(folder: str, reports: Reports) -> list[CheckResult]:
    """Check that all nodes read the same bytes of a data set."""
    results = []
    for name, report in reports.items():
        if "failed" in report:
            fix = "put the shards at this path on every node, or at a URL (s3://, http://)"
            results.append(error("shards", f"{name} cannot read {folder}: {report['failed']}", fix, [name]))
    digests = {name: report["digest"] for name, report in reports.items() if "failed" not in report}
    if not digests:
        return results
    for nodes in odd_ones(digests)[1].values():
        text = f"the content of {folder} on {join_names(nodes)} differs from the other nodes"
        fix = f"copy the shards again, then run kinemae data verify {shlex.quote(folder)}"
        results.append(error("shards", text, fix, nodes))
    slowest = min(reports[name]["mb_per_s"] for name in digests)
    text = f"{folder}: the same bytes on {count(len(digests), 'node')}, {slowest:.0f} MB/s or more"
    return or_ok(results, "shards", f"{text} (possibly from a cache)")
