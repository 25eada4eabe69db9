"""Kubernetes manifests of a job: Kubeflow's TrainJob, or a JobSet.

A node is a pod that runs `supervisor/agent.py`, which starts the processes. A ConfigMap holds job.json and
the config: no argument of the job is part of a command, in which Kubernetes would expand `$(NAME)`. Written
for Kubeflow Trainer v2.3 (trainer.kubeflow.org/v1alpha1) and JobSet v0.10+ (jobset.x-k8s.io/v1alpha2).
"""

import hashlib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from kinemae.data_tools.exit_codes import EXIT_STOPPED, FAILED
from kinemae.data_tools.overrides import require
from kinemae.launch.job import Job, prepare_job
from kinemae.launch.k8s.cluster import KubernetesCluster

Manifest = dict[str, Any]

MOUNT = "/etc/kinemae"  # of the ConfigMap
CONFIG, JOB = "config.yaml", "job.json"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # of each pod
RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"  # of each pod: earlier starts of the whole job
_TRAINER, _JOBSET = "trainer.kubeflow.org/v1alpha1", "jobset.x-k8s.io/v1alpha2"
_LINE = 100
_GRACE_S = 30  # time of a pod beyond the time in which its processes save


def job_manifests(cluster: KubernetesCluster, job_argv: list[str]) -> list[Manifest]:
    """All objects of a job in the order of their creation; the job is the last.

    Raises:
        ValueError: run_dir is not on a volume, or the job is not a training.
    """
    job = prepare_job(job_argv, cluster.environment, python=cluster.python, dry_run=False)
    config = Path(job.config).read_text(encoding="utf-8")
    entries = {JOB: _in_pod(cluster, job).to_json(), CONFIG: config}
    digest = hashlib.sha256("\0".join(entries.values()).encode()).hexdigest()
    source = f"{cluster.name}-{digest[:8]}"
    config_map = {**_header("v1", "ConfigMap", source, cluster), "immutable": True, "data": entries}
    if cluster.manifest == "trainjob":
        return [config_map, *_train_job(cluster, source)]
    return [config_map, _job(_JOBSET, "JobSet", cluster, _job_set_spec(cluster, source))]


def _in_pod(cluster: KubernetesCluster, job: Job) -> Job:
    """The job with the paths inside the pods: the image's installed package, the ConfigMap's config."""
    run_dir = PurePosixPath(job.run_dir)
    volumes = [PurePosixPath(folder) for folder in cluster.volumes]
    is_kept = any(folder == run_dir or folder in run_dir.parents for folder in volumes)
    require(is_kept, "run_dir", "lie on one of `volumes`, or the run is lost with its pods", job.run_dir)
    argv = [f"{MOUNT}/{CONFIG}" if word == job.frozen_config else word for word in job.argv]
    policy = {"max_restarts": cluster.max_restarts, "stop_s": float(cluster.stop_s)}
    return replace(job, policy=policy, argv=argv, code="", cwd="/", config=f"{MOUNT}/{CONFIG}", commit=None)


def _train_job(cluster: KubernetesCluster, source: str) -> list[Manifest]:
    """A TrainJob with its own TrainingRuntime, which holds the pod.

    The overrides of a shared runtime have other names in each version of Kubeflow Trainer.
    """
    job_set = _job_set_spec(cluster, source)
    job_set["replicatedJobs"][0]["template"]["metadata"] = {
        "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    }
    template = {**_own_metadata(cluster), "spec": job_set}
    runtime = {
        **_header(_TRAINER, "TrainingRuntime", source, cluster),
        "spec": {"mlPolicy": {"numNodes": cluster.nodes, "torch": {}}, "template": template},
    }
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": source}
    trainer = {"numNodes": cluster.nodes, "numProcPerNode": cluster.processes_per_node}
    return [runtime, _job(_TRAINER, "TrainJob", cluster, {"runtimeRef": reference, "trainer": trainer})]


def _job_set_spec(cluster: KubernetesCluster, source: str) -> Manifest:
    """One Job whose pods are the nodes. JobSet restarts all pods together, after the old ones have ended.

    The agents restart their processes after a crash. A stop with a checkpoint or a disruption restarts the
    pods uncounted, a final failure ends the job, and any other end of a pod restarts at most `max_restarts`
    times. JobSet knows a stop by its message alone: if Kubernetes changes the message, a stop ends the job,
    and a final failure is still not repeated.
    """
    codes = {"containerName": "node", "operator": "In", "values": sorted(FAILED | {EXIT_STOPPED})}
    disruption = [{"type": "DisruptionTarget", "status": "True"}]
    rules = [{"action": "FailJob", **on} for on in ({"onExitCodes": codes}, {"onPodConditions": disruption})]
    policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    job = {
        "completionMode": "Indexed",
        "completions": cluster.nodes,
        "parallelism": cluster.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": patched(_pod_template(cluster, source), cluster.patch),
    }
    return {
        "failurePolicy": {
            "maxRestarts": cluster.max_restarts,
            "rules": [
                {
                    "name": "stopped",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    **policy,
                    "onJobFailureMessagePatterns": [f"exit code {EXIT_STOPPED} ", "DisruptionTarget"],
                },
                {"name": "final", "action": "FailJobSet", **policy},
            ],
        },
        "replicatedJobs": [{"name": "node", "template": {"spec": job}}],
    }


def _pod_template(cluster: KubernetesCluster, source: str) -> Manifest:
    names = {folder: f"volume-{place}" for place, folder in enumerate(cluster.volumes)}
    claims = [
        {"name": names[folder], "persistentVolumeClaim": {"claimName": claim}}
        for folder, claim in cluster.volumes.items()
    ]
    mounts = {MOUNT: "job", "/dev/shm": "shm", **names}
    restart = f"metadata.labels['{RESTART_LABEL}']"
    node: Manifest = {
        "name": "node",
        "image": cluster.image,
        "command": _agent_command(cluster),
        "env": [{"name": "RESTART", "valueFrom": {"fieldRef": {"fieldPath": restart}}}],
        "resources": {"limits": dict(cluster.resources)},  # also the requests
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the last lines, for `launch status`
        "volumeMounts": [{"name": name, "mountPath": folder} for folder, name in mounts.items()],
    }
    if cluster.secrets:
        node["envFrom"] = [{"secretRef": {"name": name}} for name in cluster.secrets]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.stop_s + _GRACE_S,
        "containers": [node],
        "volumes": [
            {"name": "job", "configMap": {"name": source}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}},
            *claims,
        ],
    }
    return {**_own_metadata(cluster), "spec": spec}


def _agent_command(cluster: KubernetesCluster) -> list[str]:
    """The command of a pod; Kubernetes expands `$(NAME)`."""
    words = [cluster.python, "-P", "-m", "kinemae.launch.supervisor.agent", f"{MOUNT}/{JOB}"]
    return [
        *(word.replace("$(", "$$(") for word in words),
        "--node=$(JOB_COMPLETION_INDEX)",
        "--run-id=$(RESTART)",
        f"--nodes={cluster.nodes}:{cluster.nodes}",
        f"--agents={cluster.nodes}",
        f"--node-slots={cluster.processes_per_node}",
        f"--rendezvous={cluster.name}-node-0-0.{cluster.name}:{cluster.port}",
        f"--job-id={job_id(cluster)}",
    ]


def job_id(cluster: KubernetesCluster) -> str:
    """The name of a job in the record of its run, and after `k8s:` for `launch status`."""
    return f"{cluster.namespace}/{cluster.manifest}/{cluster.name}"


def patched(template: Manifest, patch: Manifest) -> Manifest:
    """Merge the key `patch` of a cluster file into the pod template. Kubernetes refuses unknown fields.

    Mappings merge, null removes a key, lists of objects with a `name` merge by this name (containers,
    volumes, volumeMounts, env), and every other value replaces.

    Raises:
        ValueError: another key than `metadata` and `spec`, or a container without an image.
    """
    is_template = set(patch) <= {"metadata", "spec"} and all(isinstance(one, dict) for one in patch.values())
    require(is_template, "patch", "contain metadata and spec of the pods, as {spec: {...}}", patch)
    merged: Manifest = _merged(template, patch)
    containers = merged["spec"].get("containers")
    is_complete = _is_named(containers) and all("image" in container for container in containers)
    expected = "be a list of the container `node` and further ones with their images"
    require(is_complete, "patch.spec.containers", expected, containers)
    if merged["spec"].get("hostNetwork"):  # else the name of the first pod does not resolve
        merged["spec"].setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    return merged


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        merged = {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
        return {key: value for key, value in merged.items() if value is not None}
    if _is_named(old) and _is_named(new):
        entries = {entry["name"]: entry for entry in old}
        entries |= {entry["name"]: _merged(entries.get(entry["name"]), entry) for entry in new}
        return list(entries.values())
    return new


def _is_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value)


def _job(version: str, kind: str, cluster: KubernetesCluster, spec: Manifest) -> Manifest:
    header = _header(version, kind, cluster.name, cluster)
    header["metadata"]["labels"] |= cluster.labels
    if cluster.annotations:
        header["metadata"]["annotations"] = cluster.annotations
    if cluster.queue:
        header["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = cluster.queue
        spec = {"suspend": True, **spec}
    return {**header, "spec": spec}


def _own_metadata(cluster: KubernetesCluster) -> Manifest:
    given = {"labels": dict(cluster.labels), "annotations": dict(cluster.annotations)}
    metadata = {key: value for key, value in given.items() if value}
    return {"metadata": metadata} if metadata else {}


def _header(version: str, kind: str, name: str, cluster: KubernetesCluster) -> Manifest:
    labels = {"app.kubernetes.io/instance": cluster.name}
    metadata = {"name": name, "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def to_yaml(objects: list[Manifest]) -> str:
    """The manifests as a stream of YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_LINE)


class _Dumper(yaml.SafeDumper):
    """Writes short collections and lists of words in flow style, long texts as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_data(self, data: Any) -> yaml.Node:
        node = super().represent_data(data)
        if isinstance(data, str) and "\n" in data:
            node.style = "|"
        elif isinstance(data, dict | list):
            is_words = isinstance(data, list) and all(isinstance(entry, str) for entry in data)
            text = repr(data).replace("'", "")  # about as long as in YAML
            node.flow_style = is_words or (len(text) <= _LINE and r"\n" not in text)
        return node
