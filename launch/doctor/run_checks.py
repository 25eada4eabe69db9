"""Run all checks of the doctor: query the nodes step by step and evaluate their replies."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.launch.doctor.checks.devices import check_devices, has_gpus
from kinemae.launch.doctor.checks.folders import check_locks, check_shards, check_shared, check_written
from kinemae.launch.doctor.checks.network import INTERFACE_VARIABLES
from kinemae.launch.doctor.checks.versions import PACKAGES, check_machines, check_paths, check_versions
from kinemae.launch.doctor.probe import folders as local_folders
from kinemae.launch.doctor.probes import Probes
from kinemae.launch.doctor.rendezvous import check_rendezvous
from kinemae.launch.doctor.results import CheckResult, error
from kinemae.launch.doctor.targets import Target

HERE = "this machine"
_FOLDER_S, _VISIBLE_S = 15.0, 4.0


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Folders to check besides the nodes.

    Attributes:
        run_dir: a folder that all nodes share and write to.
        shards: data sets that all nodes read.
        paths: other folders that every node must have.
        checkpoint_bytes: size of all kept checkpoints, if known.
    """

    run_dir: str | None = None
    shards: Sequence[str] = ()
    paths: Sequence[str] = ()
    checkpoint_bytes: int | None = None


@dataclass
class Session:
    """Target, probes, and the replies so far by node name, as `--json` prints them."""

    target: Target
    probes: Probes
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def name(self, node: int) -> str:
        """The name of a node."""
        return self.probes.names[node]

    def ask(self, request: str, arguments: Mapping[int, dict[str, Any]], limit_s: float) -> dict[str, Any]:
        """See `Probes.ask`; record the replies, and return them by node name."""
        replies = self.probes.ask(request, arguments, limit_s)
        for node, reply in replies.items():
            self.reports.setdefault(self.name(node), {})[request] = reply
        return {self.name(node): reply for node, reply in replies.items()}

    def ask_all(self, request: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a request with the same arguments to all nodes."""
        return self.ask(request, {node: dict(arguments) for node in self.probes.present()}, limit_s)


def run_checks(target: Target, options: DoctorOptions) -> tuple[list[CheckResult], dict[str, dict[str, Any]]]:
    """Check all nodes; return the results, and the replies of each node."""
    names = target.names or [f"node {number}" for number in range(len(target.processes))]
    with ExitStack() as stack:
        if target.end is not None:
            stack.callback(target.end)
        probes = stack.enter_context(closing(Probes(names, target.commands, target.environment)))
        session = Session(target=target, probes=probes)
        results = list(_checks(session, options))
        return [*probes.unreachable(), *results], session.reports


def _checks(session: Session, options: DoctorOptions) -> Iterator[CheckResult]:
    target, probes = session.target, session.probes
    hello = probes.hello(target.start_s)
    if target.pending_reason is not None:
        probes.explain_start(target.pending_reason)
    if not target.names:
        for node, reply in hello.items():
            probes.names[node] = reply["name"]
    facts = session.ask_all(
        "facts", 45, packages=PACKAGES, variables=INTERFACE_VARIABLES, paths=list(options.paths)
    )
    if not facts:
        return
    machines = {name: fact["machine"] for name, fact in facts.items()}
    devices = {name: fact["devices"] for name, fact in facts.items()}
    networks = {name: fact["network"] for name, fact in facts.items()}
    processes = dict(zip(probes.names, target.processes, strict=True))
    yield from check_versions(machines)
    yield from check_devices(devices, processes)
    yield from check_machines(machines, processes, any(map(has_gpus, devices.values())))
    yield from check_paths(machines, options.paths)
    environments = {name: machine["environment"] for name, machine in machines.items()}
    yield from check_rendezvous(session, networks, environments, is_cuda=all(map(has_gpus, devices.values())))
    if options.run_dir is not None:
        yield from _check_run_dir(session, options.run_dir, options.checkpoint_bytes)
    for folder in options.shards:
        yield from check_shards(folder, session.ask_all("read_shards", _FOLDER_S, folder=folder, parts=4))


def _check_run_dir(session: Session, run_dir: str, needed_bytes: int | None) -> Iterator[CheckResult]:
    """Write a file from every node and this machine to a new folder; then check that all see all files."""
    token = secrets.token_hex(8)
    created = [folder for folder in (Path(run_dir), *Path(run_dir).parents) if not folder.exists()]
    folder = Path(run_dir) / f"doctor-{token}"
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        text = f"{HERE} cannot create a folder in {run_dir}: {problem.strerror}"
        yield error("folder", text, "set a run_dir that can be written, or correct its permissions", [HERE])
        return
    files = {node: f"node-{node:05d}" for node in session.probes.present()}
    try:
        yield from _check_shared(session, str(folder), files, token, needed_bytes)
    finally:
        local_folders.clean(folder=str(folder), names=["here", "lock", *files.values()])
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _check_shared(
    session: Session, folder: str, files: Mapping[int, str], token: str, needed_bytes: int | None
) -> Iterator[CheckResult]:
    own = local_folders.write(folder=folder, name="here", token=token)
    each = {node: {"folder": folder, "name": name, "token": token} for node, name in files.items()}
    written = session.ask("write", each, _FOLDER_S)
    run_dir = str(Path(folder).parent)
    yield from check_written(run_dir, written or {HERE: own}, needed_bytes)
    failed = {name for name, reply in written.items() if "failed" in reply}
    writers = {
        files[node]: session.name(node)
        for node in files
        if session.name(node) in written and session.name(node) not in failed
    }
    if not writers:
        return
    count = len(writers)
    writers |= {} if "failed" in own else {"here": HERE}
    looking = {"folder": folder, "names": list(writers), "token": token}
    unseen = session.ask_all("look", _FOLDER_S + _VISIBLE_S, wait_s=_VISIBLE_S, **looking)
    unseen[HERE] = local_folders.look(**looking, wait_s=1.0)  # type: ignore[arg-type]
    by_name = {
        name: {writers[file]: state for file, state in states.items()} for name, states in unseen.items()
    }
    shared = check_shared(run_dir, by_name, count)
    yield from shared
    if count > 1 and all(result.level == "ok" for result in shared):
        states: dict[str, str] = {}
        for node in session.probes.present():  # in turn: the first one gets the lock
            replies = session.ask("lock", {node: {"path": f"{folder}/lock"}}, _FOLDER_S)
            states |= {name: reply["state"] for name, reply in replies.items()}
        yield from check_locks(run_dir, states)
    session.probes.ask(
        "clean", {node: {"folder": folder, "names": list(writers)} for node in files}, _FOLDER_S
    )
