"""`launch k8s`: create, query and cancel jobs by kubectl, whose errors become a `ConfigError`."""

import argparse
import json
import re
import subprocess
import sys
from contextlib import suppress
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_DATA, EXIT_STOPPED, FAILED, describe_exit
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import read_cluster
from kinemae.launch.job import JobRefused, check_job, config_index
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.manifests import JOBSET_LABEL, RESTART_LABEL, Manifest, job_id, job_manifests, to_yaml

_TIMEOUT_S, _SHOWN_LINES = 60, 5
_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def run_k8s(arguments: argparse.Namespace) -> int:
    """Check the config, then print the manifests or create them."""
    config_index(arguments.job)  # refuses a wrong job before slow imports
    cluster = read_cluster(KubernetesCluster, arguments.cluster, arguments.overrides)
    objects = job_manifests(cluster, arguments.job)
    world_size = cluster.nodes * cluster.processes_per_node
    try:
        check_job(arguments.job, cluster.environment, world_size=world_size, trains_here=False)
    except JobRefused as refused:
        if refused.code != EXIT_DATA:
            raise
        sys.stderr.write("the data is not on this machine: the pods check it\n")
    if arguments.dry_run:
        sys.stdout.write(to_yaml(objects))
        return 0
    create_job(job_id(cluster), objects)
    sys.stdout.write(f"created; to see its state: kinemae launch status k8s:{job_id(cluster)}\n")
    return 0


def create_job(job: str, objects: list[Manifest]) -> None:
    """Create the objects of a job. The job owns the others: they are deleted with it.

    A TrainJob is refused without its runtime, so the others come first and get their owner afterwards.

    Raises:
        ValueError: the job exists, or kubectl failed; what was created is deleted again.
    """
    namespace, target, name = _parts(job)
    cancel = f"fix: set another name, or run `kinemae launch cancel k8s:{job}` and wait for the pods"
    if _kubectl(namespace, "get", target, "--ignore-not-found", "--output=name"):
        raise ConfigError(f"name: expected a new name, got {name!r}: {job} exists; {cancel}")
    if pods := _pods(namespace, name):
        raise ConfigError(f"name: expected a new name, got {name!r}: {len(pods)} of its pods run; {cancel}")
    others = objects[:-1]
    try:
        _kubectl(namespace, "apply", "--filename=-", given=to_yaml(others))
        created = _kubectl(namespace, "create", "--filename=-", "--output=json", given=to_yaml(objects[-1:]))
        made = json.loads(created)
        owner = {key: made[key] for key in ("apiVersion", "kind")}
        owner |= {key: made["metadata"][key] for key in ("name", "uid")}
        for other in others:
            other["metadata"]["ownerReferences"] = [owner]
        _kubectl(namespace, "apply", "--filename=-", given=to_yaml(others))
    except (ConfigError, KeyboardInterrupt) as error:
        if "AlreadyExists" not in str(error):  # another launch of the same name and config uses the objects
            with suppress(ConfigError):  # the first error is the one to report
                words = ("delete", "--filename=-", "--ignore-not-found", "--wait=false")
                _kubectl(namespace, *words, given=to_yaml(objects))
        raise


def job_state(job: str) -> dict[str, Any]:
    """The `state`, exit `code` and `message` of a job, as `launch status` shows them."""
    namespace, target, name = _parts(job)
    shown = _kubectl(namespace, "get", target, "--ignore-not-found", "--output=json")
    if not shown:
        return {"state": "ended", "code": None, "message": f"{job}: deleted; launch it again to resume"}
    conditions = json.loads(shown).get("status", {}).get("conditions", [])
    true = {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
    if true.keys() & {"Complete", "Completed"}:
        return {"state": "ended", "code": 0, "message": f"{job}: {describe_exit(0)} (exit code 0)"}
    pods = _pods(namespace, name)
    if "Failed" in true:
        end = _failed(pods) or {}
        code, log = end.get("exitCode"), end.get("message", "").splitlines()[-_SHOWN_LINES:]
        reason = true["Failed"].get("message", "failed")
        reason = reason if code is None else f"{describe_exit(code)} (exit code {code})"
        return {"state": "ended", "code": code, "message": "\n".join([f"{job}: {reason}", *log])}
    if "Suspended" in true:
        return {"state": "pending", "message": f"{job}: suspended, as while it waits in a queue"}
    waiting = [pod for pod in pods if pod["status"].get("phase") != "Running"]
    restarts = max((int(pod["metadata"]["labels"].get(RESTART_LABEL, 0)) for pod in pods), default=0)
    lines = [f"{job}: {len(pods) - len(waiting)} of {len(pods)} pods run, restarts: {restarts}"]
    lines += [f"{pod['metadata']['name']}: {_reason(pod)}" for pod in waiting[:10]]
    return {"state": "running" if pods and not waiting else "pending", "message": "\n".join(lines)}


def cancel_job(job: str) -> str:
    """Delete a job; its pods save a checkpoint. Return a message.

    The job's name stays in use until its pods have ended: two jobs of a name would share their host names.
    """
    namespace, target, _ = _parts(job)
    _kubectl(namespace, "delete", target, "--cascade=foreground", "--wait=false")
    return f"{job}: deleted; it disappears when its pods have saved a checkpoint and ended"


def print_logs(job: str, *, rank: int, lines: int, follow: bool) -> int:
    """Print the output of rank 0, the only rank that its pod prints; return kubectl's exit code."""
    namespace, _, name = _parts(job)
    if rank:
        raise ConfigError(
            f"--rank: expected 0 for a job's pods, got {rank}; fix: give the run folder instead of {job}"
        )
    selector = f"--selector={JOBSET_LABEL}={name},{_INDEX_LABEL}=0"
    words = ["logs", selector, "--container=node", f"--tail={lines}", *(["--follow"] if follow else [])]
    return _run(namespace, *words).returncode


def _run(namespace: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["kubectl", f"--namespace={namespace}", *words], text=True, **options)
    except FileNotFoundError as error:
        fix = "install it, or use `launch k8s --dry-run` and another client"
        raise ConfigError(f"no program kubectl; fix: {fix}") from error


def _kubectl(namespace: str, *words: str, given: str = "") -> str:
    """The output of kubectl."""
    try:
        ran = _run(namespace, *words, input=given, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"kubectl {words[0]} did not end within {_TIMEOUT_S} s; fix: check `kubectl cluster-info`"
        ) from error
    if ran.returncode != 0:
        raise ConfigError(f"kubectl {words[0]} failed: {ran.stderr.strip()}")
    return ran.stdout.strip()


def _parts(job: str) -> tuple[str, str, str]:
    """Namespace, KIND/NAME and NAME of a job, see `manifests.job_id`."""
    match = re.fullmatch(r"([^/]+)/((?:trainjob|jobset)/([^/]+))", job)
    if match is None:
        raise ConfigError(f"expected k8s:NAMESPACE/trainjob/NAME or k8s:NAMESPACE/jobset/NAME, got k8s:{job}")
    return match[1], match[2], match[3]


def _pods(namespace: str, name: str) -> list[dict[str, Any]]:
    """The pods of a job and of earlier jobs of its name."""
    shown = _kubectl(namespace, "get", "pods", f"--selector={JOBSET_LABEL}={name}", "--output=json")
    pods: list[dict[str, Any]] = json.loads(shown)["items"]
    return pods


def _failed(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The end of the pod that explains a failed job: a final failure before a crash before a stop."""
    containers = [one for pod in pods for one in pod["status"].get("containerStatuses", [])]
    ends = [one["state"].get("terminated", {}) for one in containers if one["name"] == "node"]
    ends = [end for end in ends if end.get("exitCode")]
    return min(
        ends, key=lambda end: (end["exitCode"] not in FAILED, end["exitCode"] == EXIT_STOPPED), default=None
    )


def _reason(pod: dict[str, Any]) -> str:
    """Why a pod does not run: its container waits for an image or a volume, or no node fits."""
    status = pod["status"]
    states = [container["state"].get("waiting", {}) for container in status.get("containerStatuses", [])]
    notes = [*states, *(part for part in status.get("conditions", []) if part["status"] == "False")]
    known = [
        f"{note['reason']}: {note.get('message', '')}".rstrip(": ") for note in notes if "reason" in note
    ]
    return ", ".join([str(status.get("phase")).lower(), *known[:1]])
