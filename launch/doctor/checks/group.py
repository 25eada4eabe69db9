"""Check the results of a real process group: correct sums, and the speed of its all-reduce."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinemae.launch.doctor.results import CheckResult, count, error, join_names, odd_ones, ok, warning

CHECK = "group"
# Fractions of the link's or the memory's speed below which something is wrong. NCCL reaches 0.8 and more of a
# link; Gloo copies through the CPU, one process at a time.
LEAST_OF_LINK = {"nccl": 0.5, "gloo": 0.1}
LEAST_OF_MEMORY = 0.01
# Stages of `probe/group.py` with their fixes.
_STAGES = {
    "starting": ("importing torch", "correct the error of `python -c 'import torch'` there"),
    "device": (
        "selecting a GPU",
        "install a build of torch for this driver (nvidia-smi shows its newest CUDA), and leave a GPU for "
        "each process in CUDA_VISIBLE_DEVICES",
    ),
    "joining": (
        "joining the group",
        "correct the ports, names and interfaces reported above; without such reports, set "
        "environment.GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or run with environment.NCCL_DEBUG=INFO",
    ),
    "summing": ("the first sums", "look for a link that drops large packets (ping -M do -s 8972)"),
    "timing": ("timed sums", "look for a link that drops large packets (ping -M do -s 8972)"),
}

Ranks = Mapping[str, Sequence[Mapping[str, Any]]]


def check_group(ranks: Ranks, backend: str, link_gbit: float | None) -> list[CheckResult]:
    """Evaluate the results of each node's ranks (`kinemae.launch.doctor.probe.group.group`).

    Args:
        backend: nccl or gloo.
        link_gbit: speed of the link between nodes, if known.
    """
    problems = [*_check_builds(ranks), *_check_unfinished(ranks), *_check_sums(ranks)]
    if problems:
        return problems
    world_size = sum(map(len, ranks.values()))
    text = f"{count(world_size, 'process')} with {backend}: all sums are correct"
    return [ok(CHECK, text), *_check_speed(ranks, world_size, backend, link_gbit)]


def _check_builds(ranks: Ranks) -> list[CheckResult]:
    results = []
    for library in ("torch", "cuda", "nccl"):
        versions = {name: str(own[0][library]) for name, own in ranks.items() if library in own[0]}
        if not versions:
            continue
        usual, others = odd_ones(versions)
        for version, nodes in others.items():
            text = f"torch on {join_names(nodes)} has {library} {version}, and {usual} on the other nodes"
            results.append(error(CHECK, text, "install the same build of torch on all nodes", nodes))
    return results


def _check_unfinished(ranks: Ranks) -> list[CheckResult]:
    """Report the ranks that stopped at the earliest stage; the others only waited for them."""
    order = [*_STAGES, "done"]
    unfinished = [
        (order.index(rank["stage"]), name, rank)
        for name, own in ranks.items()
        for rank in own
        if rank["stage"] != "done"
    ]
    if not unfinished:
        return []
    least = min(place for place, _, _ in unfinished)
    first = [entry for entry in unfinished if entry[0] == least]
    first = [entry for entry in first if "exit code" in entry[2]["failed"]] or first
    nodes = list(dict.fromkeys(name for _, name, _ in first))
    rank = first[0][2]
    stage, fix = _STAGES[rank["stage"]]
    lines = str(rank["failed"]).splitlines()
    reason = f"{lines[0]}{' ... ' + lines[-1] if len(lines) > 1 else ''}"
    return [error(CHECK, f"the group stopped at {stage} on {join_names(nodes)}: {reason}", fix, nodes)]


def _check_sums(ranks: Ranks) -> list[CheckResult]:
    wrong = {name: own for name, own in ranks.items() if any(rank.get("wrong") for rank in own)}
    if not wrong:
        return []
    owner = dict(enumerate(name for name, own in ranks.items() for _ in own))
    senders = [sender for own in ranks.values() for rank in own for sender in rank.get("wrong_from", [])]
    suspects = list(dict.fromkeys(owner[sender] for sender in senders))
    first = next(rank["wrong"] for own in wrong.values() for rank in own if rank.get("wrong"))
    source = f"values sent by {join_names(suspects)} arrive changed" if suspects else "the sender is unknown"
    return [
        error(
            CHECK,
            f"sums are wrong on {join_names(list(wrong))} ({first}); {source}",
            "leave these nodes out and test their memory, network cards and cables: gradients would be wrong",
            suspects or list(wrong),
        )
    ]


def _check_speed(ranks: Ranks, world_size: int, backend: str, link_gbit: float | None) -> list[CheckResult]:
    if world_size == 1:
        return []
    bus = min(rank["bus_mb_per_s"] for own in ranks.values() for rank in own)
    if len(ranks) == 1:
        most = min(rank["copy_mb_per_s"] for own in ranks.values() for rank in own)
        least, reference = LEAST_OF_MEMORY, f"memory copies at {most:.0f} MB/s"
        fix = "look for other programs (top), or for GPUs without a direct link (nvidia-smi topo -m)"
    elif link_gbit is None:
        return [ok("speed", f"all-reduce: {bus:.0f} MB/s; set link_gbit=... to compare it with the link")]
    else:
        most = link_gbit * 125
        least, reference = LEAST_OF_LINK[backend], f"a link of {link_gbit:g} Gbit/s"
        fix = (
            "check that the fast interface is used (NCCL_SOCKET_IFNAME, NCCL_IB_HCA) and its speed "
            "(ethtool); link_gbit=... sets the expected speed"
        )
    text = f"all-reduce: {bus:.0f} MB/s, {100 * bus / most:.0f} % of {reference}"
    if bus >= least * most:
        return [ok("speed", text)]
    return [warning("speed", f"{text}; expected at least {100 * least:.0f} %", fix)]
