"""The doctor's round: asks the nodes, step by step, and has every answer judged."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.launch.doctor.checks.devices import check_devices, has_gpus
from kinemae.launch.doctor.checks.findings import Finding, error
from kinemae.launch.doctor.checks.folders import (
    check_decoding,
    check_locks,
    check_shards,
    check_shared,
    check_written,
)
from kinemae.launch.doctor.checks.machine import check_clocks, check_machines, check_paths
from kinemae.launch.doctor.checks.nodes import Nodes
from kinemae.launch.doctor.checks.rendezvous import meet
from kinemae.launch.doctor.checks.sessions import Round, Target
from kinemae.launch.doctor.checks.unreachable import silences
from kinemae.launch.doctor.checks.versions import (
    PACKAGES,
    VARIABLES,
    check_build_locks,
    check_code,
    check_environment,
    check_versions,
)
from kinemae.launch.doctor.probe import folders as own_folders

HEAD = "this machine"  # where the doctor itself runs
_CLOCK_ASKS = 3
_FOLDER_S, _SEEN_S, _DECODE_S = 15.0, 4.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What besides the nodes is to be looked at.

    Attributes:
        run_dir: the folder that all nodes share and write to.
        shards: a data set that all nodes read.
        paths: other folders that every node must have.
        checkpoint_bytes: what the checkpoints that are kept at a time will take.
    """

    run_dir: str | None = None
    shards: Sequence[str] = ()
    paths: Sequence[str] = ()
    checkpoint_bytes: int | None = None


def examine(target: Target, wishes: Wishes) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Go round all nodes.

    Returns:
        The findings in the order of the round, and what each node reported.
    """
    names = target.names or [f"node {number}" for number in range(len(target.processes))]
    with ExitStack() as stack:
        if target.end is not None:
            stack.callback(target.end)
        nodes = stack.enter_context(closing(Nodes(names, target.commands, target.environment)))
        at = Round(target=target, nodes=nodes)
        findings = list(_steps(at, wishes))
        return [*silences(nodes), *findings], at.reports


def _steps(at: Round, wishes: Wishes) -> Iterator[Finding]:
    hello = at.nodes.hello(at.target.start_s)
    if at.target.why_not_started is not None:
        at.nodes.explain_start(at.target.why_not_started)
    if not at.target.names:
        for node, said in hello.items():
            at.nodes.names[node] = said["name"]
    at.keep("hello", hello)
    asked = at.everybody(packages=PACKAGES, variables=VARIABLES, paths=list(wishes.paths))
    facts = at.keep("facts", at.nodes.ask("facts", asked, 45))
    if not facts:
        return
    machines = {name: fact["machine"] for name, fact in facts.items()}
    devices = {name: fact["devices"] for name, fact in facts.items()}
    processes = dict(zip(at.nodes.names, at.target.processes, strict=True))
    is_cuda = any(map(has_gpus, devices.values()))
    yield from check_versions(machines)
    yield from check_code(machines)
    yield from check_environment(machines)
    yield from check_build_locks(machines)
    yield from check_devices(devices, processes)
    yield from check_machines(machines, processes, is_cuda)
    missing = {
        path: [name for name, own in machines.items() if path in own["missing"]] for path in wishes.paths
    }
    yield from check_paths(missing)
    yield from check_clocks({HEAD: 0.0, **_clocks(at)})
    networks = {name: fact["network"] for name, fact in facts.items()}
    environments = {name: machine["environment"] for name, machine in machines.items()}
    yield from meet(at, networks, environments, is_cuda=all(map(has_gpus, devices.values())))
    if wishes.run_dir is not None:
        yield from _run_dir(at, wishes.run_dir, wishes.checkpoint_bytes)
    for folder in wishes.shards:
        answers = at.nodes.ask("read_shards", at.everybody(folder=folder, parts=4), _FOLDER_S)
        found = at.keep(f"shards {folder}", answers)
        yield from check_shards(folder, found)
        if all("failed" not in answer for answer in found.values()):
            asked = at.everybody(folder=folder, limit_s=_DECODE_S)
            clips = at.keep(f"clips {folder}", at.nodes.ask("decode", asked, _DECODE_S + 15))
            yield from check_decoding(folder, clips)


def _clocks(at: Round) -> dict[str, float]:
    """Seconds that each node is ahead of this machine, by the quickest of some questions."""
    best: dict[int, tuple[float, float]] = {}
    for node in at.nodes.present():
        for _ in range(_CLOCK_ASKS):
            sent = time.time()
            answer = at.nodes.ask("clock", {node: {}}, 5)
            trip = time.time() - sent
            if node in answer and trip < best.get(node, (float("inf"), 0.0))[0]:
                best[node] = trip, answer[node]["time_s"] - sent - trip / 2
    told = at.keep(
        "clock", {node: {"trip_s": trip, "ahead_s": ahead} for node, (trip, ahead) in best.items()}
    )
    return {name: clock["ahead_s"] for name, clock in told.items()}


def _run_dir(at: Round, run_dir: str, wanted_bytes: int | None) -> Iterator[Finding]:
    """Everybody writes, then everybody looks; this machine too, since it writes the job's description."""
    token = secrets.token_hex(8)
    made = [folder for folder in (Path(run_dir), *Path(run_dir).parents) if not folder.exists()]
    folder = Path(run_dir) / f"doctor-{token}"
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        yield error(
            "folder",
            f"{HEAD} cannot make a folder in {run_dir}: {problem.strerror}",
            "choose a run_dir that can be written, or mend its permissions",
            [HEAD],
        )
        return
    names = {node: f"node-{node:05d}" for node in at.nodes.present()}
    try:
        yield from _shared(at, str(folder), names, token, wanted_bytes)
    finally:
        own_folders.clean(folder=str(folder), names=["head", "lock", *names.values()])
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _shared(
    at: Round, folder: str, names: Mapping[int, str], token: str, wanted_bytes: int | None
) -> Iterator[Finding]:
    own = own_folders.write(folder=folder, name="head", token=token)
    each = {node: {"folder": folder, "name": name, "token": token} for node, name in names.items()}
    written = at.keep("write", at.nodes.ask("write", each, _FOLDER_S))
    run_dir = str(Path(folder).parent)
    yield from check_written(run_dir, written or {HEAD: own}, wanted_bytes)
    files = {
        names[node]: at.name(node)
        for node in names
        if "failed" not in written.get(at.name(node), {"failed": 1})
    }
    if not files:
        return
    writers = len(files)
    files |= {} if "failed" in own else {"head": HEAD}
    looking = {"folder": folder, "names": list(files), "token": token, "wait_s": _SEEN_S}
    unseen = at.keep("look", at.nodes.ask("look", at.everybody(**looking), _FOLDER_S + _SEEN_S))
    unseen[HEAD] = own_folders.look(**{**looking, "wait_s": 1.0})  # type: ignore[arg-type]
    by_name = {
        name: {files[file]: state for file, state in states.items()} for name, states in unseen.items()
    }
    shared = check_shared(run_dir, by_name, writers)
    yield from shared
    if len(files) > 2 and all(finding.level == "ok" for finding in shared):
        states: dict[str, str] = {}
        for node in at.nodes.present():  # one after another: the first one gets it
            states |= at.keep("lock", at.nodes.ask("lock", {node: {"path": f"{folder}/lock"}}, _FOLDER_S))
        yield from check_locks(run_dir, {name: answer["state"] for name, answer in states.items()})  # type: ignore[index]
    at.nodes.ask("clean", at.everybody(folder=folder, names=list(files)), _FOLDER_S)
