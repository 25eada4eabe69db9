"""Are the run folder and the shards one and the same on all nodes, writable, quick, and large enough?"""

import shlex
from collections.abc import Mapping
from statistics import median
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, counted, error, named, odd_ones, ok, or_ok, warning

CHECK = "folder"
SLOW_SYNC_MS = 500.0
LEAST_OF_MEDIAN = 0.5
GIB = 1 << 30
# Memory and container layers: gone with the node, whatever else is said of them.
FLEETING = ("tmpfs", "ramfs", "overlay")
_WHYS = {
    "ENOENT": "create it, or mount the shared file system there",
    "EACCES": "let the account that runs jobs write there (ls -ld, id)",
    "EPERM": "let the account that runs jobs write there (ls -ld, id)",
    "EROFS": "mount it for writing there",
    "ENOSPC": "free some space or raise the quota; old checkpoints may go, the newest must stay",
    "EDQUOT": "free some space or raise the quota; old checkpoints may go, the newest must stay",
}

Reports = Mapping[str, Mapping[str, Any]]


def check_written(folder: str, written: Reports, wanted_bytes: int | None) -> list[Finding]:
    """What became of every node's attempt to write: refusals, room, speed.

    Args:
        written: each node's answer of `kinemae.launch.doctor.probe.folders.write`.
        wanted_bytes: what the checkpoints that are kept at a time will take; None where it is not known.
    """
    findings = []
    for name, report in written.items():
        if "failed" in report:
            mend = _WHYS.get(report["failed"], "mend the file system there (dmesg, mount)")
            findings.append(error(CHECK, f"{name} cannot write to {folder}: {report['why']}", mend, [name]))
        elif report["sync_ms"] > SLOW_SYNC_MS:
            text = (
                f"{name} takes {report['sync_ms']:.0f} ms to write 64 KiB through to {folder} "
                f"({report['kind']})"
            )
            mend = "ask for a faster file system for runs, or save less often (save_every_steps)"
            findings.append(warning(CHECK, text, mend, [name]))
    sound = {name: report for name, report in written.items() if "failed" not in report}
    findings += _room(folder, sound, wanted_bytes)
    fleeting = {name: report["kind"] for name, report in sound.items() if report["kind"] in FLEETING}
    if fleeting and len(written) > 1:
        findings.append(
            warning(
                CHECK,
                f"{folder} is a {next(iter(fleeting.values()))} on {named(list(fleeting))}: it "
                "goes with the node",
                "choose a run_dir on storage that stays",
                fleeting,
            )
        )
    return findings


def _room(folder: str, sound: Reports, wanted_bytes: int | None) -> list[Finding]:
    if not sound:
        return []
    name = min(sound, key=lambda node: sound[node]["free_bytes"])
    free = sound[name]["free_bytes"]
    need = wanted_bytes if wanted_bytes is not None else GIB
    if free >= need:
        return []
    what = "the checkpoints that are kept take" if wanted_bytes is not None else "a small run takes up to"
    say = error if wanted_bytes is not None else warning
    return [
        say(
            CHECK,
            f"{folder} has {free / GIB:.1f} GiB free, {what} {need / GIB:.1f} GiB",
            "free some space, choose another run_dir, or keep fewer checkpoints",
            [name],
        )
    ]


def check_shared(folder: str, unseen: Mapping[str, Mapping[str, str]], nodes: int) -> list[Finding]:
    """Does everybody, this machine as well, see what everybody wrote and renamed?

    Args:
        unseen: for each node the writers whose file is not as it should be there, with what is wrong.
        nodes: how many of them wrote.
    """
    findings = []
    for name, states in unseen.items():
        by_state: dict[str, list[str]] = {}
        for writer, state in states.items():
            by_state.setdefault(state, []).append(writer)
        for state, whose in by_state.items():
            said = "does not see what" if state == "missing" else f"finds {state} in what"
            findings.append(
                error(
                    CHECK,
                    f"{name} {said} {named(whose)} wrote to {folder}",
                    f"{folder} is not one shared folder: mount the same file system at that path on "
                    "every node, "
                    "or choose a run_dir that is on one",
                    [name, *whose],
                )
            )
    everybody = f"{counted(nodes, 'node')} and this machine"
    return or_ok(findings, CHECK, f"{folder}: written, renamed and seen by {everybody}")


def check_locks(folder: str, states: Mapping[str, str]) -> list[Finding]:
    """A lock that one node holds must be refused to the others: it keeps a second job out of a run.

    Args:
        states: each node's answer of `probe.folders.lock`, asked one after another; the first got the lock.
    """
    nodes = list(states)
    loose = [name for name in nodes[1:] if states[name] == "mine"]
    refused = {name: states[name] for name in nodes if states[name] not in ("mine", "taken")}
    findings = []
    mend = (
        "mount it with locks (NFS 4 without local_lock, Lustre with -o flock); until "
        "then start a run once only"
    )
    if loose:
        text = f"a lock in {folder} that {nodes[0]} holds was given to {named(loose)} too"
        findings.append(warning("locks", text, mend, loose))
    if refused:
        text = f"{folder} cannot be locked on {named(list(refused))}: {next(iter(refused.values()))}"
        findings.append(warning("locks", text, mend, refused))
    return or_ok(findings, "locks", f"a lock in {folder} holds on all nodes")


def check_shards(folder: str, reports: Reports) -> list[Finding]:
    """Do all nodes read the same bytes of the same data set?"""
    failed = {name: report["failed"] for name, report in reports.items() if "failed" in report}
    findings = [
        error(
            "shards",
            f"{name} cannot read {folder}: {reason}",
            "put the shards where every node reads them at that path, or at a URL (s3://, http://)",
            [name],
        )
        for name, reason in failed.items()
    ]
    digests = {name: report["digest"] for name, report in reports.items() if "failed" not in report}
    if not digests:
        return findings
    _, others = odd_ones(digests)
    for nodes in others.values():
        text = (
            f"{named(nodes)} {'find' if len(nodes) > 1 else 'finds'} other bytes in {folder} "
            "than the other nodes"
        )
        mend = f"copy the shards anew there, then: kinemae data verify {shlex.quote(folder)}"
        findings.append(error("shards", text, mend, nodes))
    slowest = min(digests, key=lambda name: reports[name]["mb_per_s"])
    told = (
        f"{folder}: the same bytes on {counted(len(digests), 'node')}, "
        f"{reports[slowest]['mb_per_s']:.0f} MB/s on the slowest"
    )
    return or_ok(findings, "shards", f"{told} (a cache may have helped)")


def check_decoding(folder: str, reports: Reports) -> list[Finding]:
    """Does reading clips succeed everywhere, and about as fast?

    Args:
        reports: each node's answer of `kinemae.launch.doctor.probe.folders.decode`.
    """
    findings = []
    for name, report in reports.items():
        if "failed" in report:
            mend = f"see what it says there of kinemae data verify {shlex.quote(folder)} --full"
            text = f"{name} cannot read clips of {folder}: {report['failed']}"
            findings.append(error("decoding", text, mend, [name]))
        if "slow" in report:
            mend = f"look at what else runs on {name} (top) and at its way to the storage"
            text = f"{name} is too slow to measure with {folder}: {report['slow']}"
            findings.append(warning("decoding", text, mend, [name]))
    rates = {name: report["clips_per_s"] for name, report in reports.items() if "clips_per_s" in report}
    if not rates:
        told = f"not measured: KineMAE is not installed where {named(list(reports))} could import it"
        return findings or [ok("decoding", told)]
    usual = median(rates.values())
    for name, rate in rates.items():
        if rate < LEAST_OF_MEDIAN * usual:
            text = f"a core of {name} reads {rate:.1f} clips/s of {folder}, the others {usual:.1f}"
            mend = f"look at what else runs on {name} (top), at its clock speed and at its way to the storage"
            findings.append(warning("decoding", text, mend, [name]))
    return or_ok(findings, "decoding", f"{min(rates.values()):.1f} clips/s a core and more, checksums right")
