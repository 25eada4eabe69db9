"""What the ranks of a real process group found: are sums right, is the link as fast as it should be?"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, counted, error, named, odd_ones, ok, or_ok, warning

CHECK = "group"
# Shares of what the link or the memory could give, below which something is wrong and not merely slow. NCCL
# reaches 0.8 and more of a link; Gloo copies through the CPU, one process at a time.
LEAST_OF_LINK = {"nccl": 0.5, "gloo": 0.1}
LEAST_OF_MEMORY = 0.01
LEAST_OF_MEDIAN = 0.5
_STAGES = {
    "starting": "importing torch",
    "device": "taking a GPU",
    "joining": "joining the group",
    "summing": "the first sums",
    "timing": "timed sums",
    "pairing": "meeting in pairs",
}

Ranks = Mapping[str, Sequence[Mapping[str, Any]]]


def check_group(ranks: Ranks, backend: str, link_gbit: float | None) -> list[Finding]:
    """Read what each node's ranks found (`kinemae.launch.doctor.probe.group.group`), in order of their ranks.

    Args:
        backend: nccl or gloo.
        link_gbit: what the link between nodes gives; None where it is not known.
    """
    findings = [*_versions(ranks), *_unfinished(ranks), *_wrong(ranks)]
    done = {
        name: [rank for rank in own if rank["stage"] == "done"]
        for name, own in ranks.items()
        if any(rank["stage"] == "done" for rank in own)
    }
    if findings or not done:
        return findings
    world = sum(map(len, ranks.values()))
    told = f"{counted(world, 'process')} over {backend}: every sum is right"
    return [ok(CHECK, told), *_speed(done, world, backend, link_gbit), *_slow_nodes(done)]


def _versions(ranks: Ranks) -> list[Finding]:
    findings = []
    for what in ("torch", "cuda", "nccl"):
        versions = {name: str(own[0][what]) for name, own in ranks.items() if what in own[0]}
        if not versions:
            continue
        usual, others = odd_ones(versions)
        for version, nodes in others.items():
            text = f"torch on {named(nodes)} brings {what} {version}, and {usual} on the other nodes"
            findings.append(error(CHECK, text, f"install the same build of torch on {named(nodes)}", nodes))
    return findings


def _unfinished(ranks: Ranks) -> list[Finding]:
    """The ranks that got least far are told; the others only waited for them."""
    order = [*_STAGES, "done"]
    stuck = [
        (order.index(rank["stage"]), name, rank)
        for name, own in ranks.items()
        for rank in own
        if rank["stage"] != "done"
    ]
    if not stuck:
        return []
    least = min(place for place, _, _ in stuck)
    crashed = [entry for entry in stuck if entry[0] == least and "exit code" in entry[2]["failed"]]
    guilty = crashed or [entry for entry in stuck if entry[0] == least]
    nodes = list(dict.fromkeys(name for _, name, _ in guilty))
    _, _, rank = guilty[0]
    reason = str(rank["failed"]).splitlines()
    return [
        error(
            CHECK,
            f"the group did not get past {_STAGES[rank['stage']]} on {named(nodes)}: "
            f"{reason[0]}{' ... ' + reason[-1] if len(reason) > 1 else ''}",
            _mend_of(rank["stage"]),
            nodes,
        )
    ]


def _mend_of(stage: str) -> str:
    if stage == "starting":
        return "on that node, mend what `python -c 'import torch'` says with the cluster file's python"
    if stage == "device":
        return (
            "install a build of torch that fits the driver (nvidia-smi names the newest CUDA it takes), and "
            "see that CUDA_VISIBLE_DEVICES leaves a GPU for each process"
        )
    if stage == "joining":
        return (
            "mend what is said above of ports, names and interfaces; if all of that is well, set "
            "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, or run with NCCL_DEBUG=INFO under `environment`"
        )
    return (
        "the group came up and then stood still: look for a link that drops large "
        "packets (ping -M do -s 8972)"
    )


def _wrong(ranks: Ranks) -> list[Finding]:
    sums = {name: own for name, own in ranks.items() if any(rank.get("wrong") for rank in own)}
    if not sums:
        return []
    owner = {number: name for number, name in enumerate(name for name, own in ranks.items() for _ in own)}
    senders = [sender for own in ranks.values() for rank in own for sender in rank.get("wrong_from", [])]
    blamed = list(dict.fromkeys(owner[sender] for sender in senders))
    says = next(rank["wrong"] for own in sums.values() for rank in own if rank.get("wrong"))
    whose = f"what {named(blamed)} sent arrives changed" if blamed else "no single sender could be named"
    return [
        error(
            CHECK,
            f"sums over the group come out wrong on {named(list(sums))} ({says}); {whose}",
            "take the named nodes out and test their memory, network cards and cables; a run "
            "would learn from "
            "wrong gradients without a word",
            blamed or list(sums),
        )
    ]


def _speed(done: Ranks, world: int, backend: str, link_gbit: float | None) -> list[Finding]:
    if world == 1:
        return []
    bus = min(rank["bus_mb_per_s"] for own in done.values() for rank in own)
    if len(done) == 1:
        most = min(rank["copy_mb_per_s"] for own in done.values() for rank in own)
        least, against = LEAST_OF_MEMORY, f"memory copies at {most:.0f} MB/s"
        mend = (
            "look for other work on this machine (top), or for GPUs without a direct link "
            "(nvidia-smi topo -m)"
        )
    elif link_gbit is None:
        return [
            ok("speed", f"all-reduce: {bus:.0f} MB/s; set link_gbit=... to have it held against the link"),
        ]
    else:
        most = link_gbit * 125
        least, against = LEAST_OF_LINK[backend], f"a link of {link_gbit:g} Gbit/s"
        mend = (
            "see that the fast interface is taken (NCCL_SOCKET_IFNAME, NCCL_IB_HCA), its negotiated speed "
            "(ethtool), and what else uses it; link_gbit=... corrects what is expected"
        )
    text = f"all-reduce: {bus:.0f} MB/s, {100 * bus / most:.0f} % of {against}"
    if bus >= least * most:
        return [ok("speed", text)]
    return [warning("speed", f"{text}; at least {100 * least:.0f} % were expected", mend)]


def _slow_nodes(done: Ranks) -> list[Finding]:
    """With three nodes or more: a node all of whose pairs are slow is the slow one, not its partners."""
    best = {
        name: max(own[0]["pairs"].values())
        for name, own in done.items()
        if own[0].get("local", 0) == 0 and own[0].get("pairs")
    }
    if len(best) < 3:
        return []
    usual = median(best.values())
    slow = [name for name, rate in best.items() if rate < LEAST_OF_MEDIAN * usual]
    findings = [
        warning(
            "speed",
            f"{name} exchanges at most {best[name]:.0f} MB/s with any other node, the others "
            f"{usual:.0f} MB/s",
            f"look at the cable, the port and the card of {name} (ethtool, ip -s link), or leave it out",
            [name],
        )
        for name in slow
    ]
    return or_ok(findings, "speed", f"pairs of nodes exchange {min(best.values()):.0f} MB/s or more")
