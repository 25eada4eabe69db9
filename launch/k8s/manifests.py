"""Kubernetes manifests of a job: Kubeflow's TrainJob, or a JobSet.

A node is a pod that runs `supervisor/agent.py`, which starts the processes. A ConfigMap holds job.json and
the config: no argument of the job is part of a command, in which Kubernetes would expand `$(NAME)`. Written
for Kubeflow Trainer v2.3 (trainer.kubeflow.org/v1alpha1) and its JobSet (jobset.x-k8s.io/v1alpha2).
"""

from typing import Any

from kinemae.data_tools.exit_codes import FAILED, STOPPED
from kinemae.launch.k8s.cluster import KubernetesCluster

Manifest = dict[str, Any]

MOUNT = "/etc/kinemae"  # of the ConfigMap
CONFIG, JOB = "config.yaml", "job.json"
_GRACE_S = 30  # time of a pod beyond the time in which its processes save


def manifests(cluster: KubernetesCluster, job_text: str, config_text: str) -> list[Manifest]:
    """All objects of a job, in the order of their creation."""
    entries = {JOB: job_text, CONFIG: config_text}
    config_map = {**_metadata("v1", "ConfigMap", cluster), "data": entries}
    build = _train_job if cluster.manifest == "trainjob" else _job_set
    return [config_map, *build(cluster)]


def _train_job(cluster: KubernetesCluster) -> list[Manifest]:
    """A TrainJob with its own TrainingRuntime, which holds the pod.

    The overrides of a shared runtime have other names in each version of Kubeflow Trainer.
    """
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    template = {"spec": _job_set_spec(cluster, label)}
    runtime = {
        **_metadata("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", cluster),
        "spec": {"mlPolicy": {"numNodes": cluster.nodes, "torch": {}}, "template": template},
    }
    runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] = "torch"
    job = {
        **_metadata("trainer.kubeflow.org/v1alpha1", "TrainJob", cluster, is_job=True),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": cluster.name,
            },
            "trainer": {"numNodes": cluster.nodes, "numProcPerNode": cluster.processes_per_node},
            **_suspended(cluster),
        },
    }
    return [runtime, job]


def _job_set(cluster: KubernetesCluster) -> list[Manifest]:
    header = _metadata("jobset.x-k8s.io/v1alpha2", "JobSet", cluster, is_job=True)
    return [{**header, "spec": {**_job_set_spec(cluster, {}), **_suspended(cluster)}}]


def _job_set_spec(cluster: KubernetesCluster, labels: dict[str, str]) -> Manifest:
    """One Job whose pods are the nodes.

    A stop with a checkpoint replaces its pod, a final failure ends the job, a crash restarts all pods.
    """
    master = f"{cluster.name}-node-0-0.{cluster.name}:{cluster.port}"
    pod = _pod(cluster, _agent_command(cluster, master))
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": sorted(FAILED)}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": sorted(STOPPED)}},
    ]
    job = {
        "completionMode": "Indexed",
        "completions": cluster.nodes,
        "parallelism": cluster.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": {"restartPolicy": "Never", **pod}},
    }
    return {
        "failurePolicy": {
            "maxRestarts": cluster.max_restarts,
            "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [
            {
                "name": "node",
                "replicas": 1,
                "template": {**({"metadata": {"labels": labels}} if labels else {}), "spec": job},
            }
        ],
    }


def _agent_command(cluster: KubernetesCluster, master: str) -> list[str]:
    """The command of a pod; Kubernetes expands `$(NAME)`."""
    script = f"{cluster.code}/kinemae/launch/supervisor/agent.py"
    words = [cluster.python, "-P", script, f"{MOUNT}/{JOB}"]
    return [
        *(word.replace("$(", "$$(") for word in words),
        "--node=$(JOB_COMPLETION_INDEX)",
        f"--nodes={cluster.nodes}",
        f"--processes={cluster.processes_per_node}",
        f"--master={master}",
        f"--stop-s={cluster.stop_s}",
    ]


def _pod(cluster: KubernetesCluster, command: list[str]) -> Manifest:
    names = {folder: f"volume-{place}" for place, folder in enumerate(cluster.volumes)}
    resources = {"cpu": cluster.cpus_per_node, "memory": cluster.memory_per_node}
    if cluster.gpus_per_node:
        resources[cluster.gpu_resource] = str(cluster.gpus_per_node)
    claims = [
        {"name": names[folder], "persistentVolumeClaim": {"claimName": claim}}
        for folder, claim in cluster.volumes.items()
    ]
    pod: Manifest = {
        "terminationGracePeriodSeconds": cluster.stop_s + _GRACE_S,
        "containers": [
            {
                "name": "node",
                "image": cluster.image,
                "command": command,
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "volumeMounts": [
                    {"name": "job", "mountPath": MOUNT, "readOnly": True},
                    {"name": "shm", "mountPath": "/dev/shm"},
                    *({"name": name, "mountPath": folder} for folder, name in names.items()),
                ],
            }
        ],
        "volumes": [
            {"name": "job", "configMap": {"name": cluster.name}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}},
            *claims,
        ],
    }
    if cluster.secrets:
        pod["containers"][0]["envFrom"] = [{"secretRef": {"name": name}} for name in cluster.secrets]
    return {**pod, **_scheduling(cluster)}


def _scheduling(cluster: KubernetesCluster) -> Manifest:
    """Node selection, image secrets and service account."""
    pulls = [{"name": name} for name in cluster.pull_secrets]
    tolerations = [{"key": key, "operator": "Exists"} for key in cluster.tolerations]
    given = {
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": tolerations,
        "imagePullSecrets": pulls,
        "serviceAccountName": cluster.service_account,
    }
    return {key: value for key, value in given.items() if value}


def _metadata(version: str, kind: str, cluster: KubernetesCluster, *, is_job: bool = False) -> Manifest:
    labels = {"app.kubernetes.io/name": "kinemae", "app.kubernetes.io/instance": cluster.name}
    if is_job and cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    metadata = {"name": cluster.name, "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _suspended(cluster: KubernetesCluster) -> Manifest:
    return {"suspend": True} if cluster.queue else {}
