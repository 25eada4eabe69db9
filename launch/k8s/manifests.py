"""Kubernetes manifests of a job, as plain values: Kubeflow's TrainJob and PyTorchJob, and a JobSet.

A node is a pod that runs `supervisor/agent.py`, which starts the processes. job.json and the config travel in
a ConfigMap: no argument of the job is part of a command, which Kubernetes would look through for `$(NAME)`.
Written for Kubeflow Trainer v2.3 (trainer.kubeflow.org/v1alpha1) with its JobSet (jobset.x-k8s.io/v1alpha2),
and for Kubeflow's training operator v1.9 (kubeflow.org/v1).
"""

from typing import Any

from kinemae.data_tools.exit_codes import FAILED, STOPPED
from kinemae.launch.k8s.cluster import KubernetesCluster

Manifest = dict[str, Any]

MOUNT = "/etc/kinemae"  # of the ConfigMap
CONFIG, JOB = "config.yaml", "job.json"
_GRACE_S = 30  # that a pod has on top of what its processes have to save
_KUBEFLOW_CONTAINER = "pytorch"  # its controller looks for a container and a port of these names
_KUBEFLOW_PORT = "pytorchjob-port"


def manifests(cluster: KubernetesCluster, job_text: str, config_text: str) -> list[Manifest]:
    """All objects of a job, in the order in which they are to be created."""
    entries = {JOB: job_text, CONFIG: config_text}
    config_map = {**_head("v1", "ConfigMap", cluster), "data": entries}
    build = {"trainjob": _train_job, "pytorchjob": _pytorch_job, "jobset": _job_set}[cluster.manifest]
    return [config_map, *build(cluster)]


def _train_job(cluster: KubernetesCluster) -> list[Manifest]:
    """A TrainJob and a runtime of its own, which holds the pod: what a TrainJob may change in a shared one
    has another name in each version of Kubeflow Trainer."""
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    template = {"spec": _job_set_spec(cluster, label)}
    runtime = {
        **_head("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", cluster),
        "spec": {"mlPolicy": {"numNodes": cluster.nodes, "torch": {}}, "template": template},
    }
    runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] = "torch"
    job = {
        **_head("trainer.kubeflow.org/v1alpha1", "TrainJob", cluster, is_job=True),
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
    head = _head("jobset.x-k8s.io/v1alpha2", "JobSet", cluster, is_job=True)
    return [{**head, "spec": {**_job_set_spec(cluster, {}), **_suspended(cluster)}}]


def _job_set_spec(cluster: KubernetesCluster, labels: dict[str, str]) -> Manifest:
    """One Job whose pods are the nodes. A stop with a checkpoint replaces its pod; a refusal ends everything;
    after a crash, all pods start again."""
    master = f"{cluster.name}-node-0-0.{cluster.name}:{cluster.port}"
    pod = _pod(cluster, "node", _agent(cluster, "supervisor/agent.py", "JOB_COMPLETION_INDEX", master))
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
            "rules": [
                {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
            ],
        },
        "replicatedJobs": [
            {
                "name": "node",
                "replicas": 1,
                "template": {**({"metadata": {"labels": labels}} if labels else {}), "spec": job},
            }
        ],
    }


def _pytorch_job(cluster: KubernetesCluster) -> list[Manifest]:
    agent = _agent(cluster, "k8s/pod.py", "RANK", "$(MASTER_ADDR):$(MASTER_PORT)")
    pod = _pod(cluster, _KUBEFLOW_CONTAINER, agent)
    port = {"name": _KUBEFLOW_PORT, "containerPort": cluster.port, "protocol": "TCP"}
    pod["containers"][0]["ports"] = [port]
    roles = {"Master": 1, "Worker": cluster.nodes - 1}
    replicas = {
        role: {"replicas": count, "restartPolicy": "ExitCode", "template": {"spec": pod}}
        for role, count in roles.items()
        if count
    }
    policy = {"backoffLimit": cluster.max_restarts, "cleanPodPolicy": "Running", **_suspended(cluster)}
    head = _head("kubeflow.org/v1", "PyTorchJob", cluster, is_job=True)
    return [{**head, "spec": {"runPolicy": policy, "pytorchReplicaSpecs": replicas}}]


def _agent(cluster: KubernetesCluster, script: str, index: str, master: str) -> list[str]:
    """The command of a pod; Kubernetes itself puts variables of the pod in the place of `$(NAME)`."""
    own = [cluster.python, "-P", f"{cluster.code}/kinemae/launch/{script}", f"{MOUNT}/{JOB}"]
    return [
        *(word.replace("$(", "$$(") for word in own),
        f"--node=$({index})",
        f"--nodes={cluster.nodes}",
        f"--processes={cluster.processes_per_node}",
        f"--master={master}",
        f"--stop-s={cluster.stop_s}",
    ]


def _pod(cluster: KubernetesCluster, container: str, command: list[str]) -> Manifest:
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
                "name": container,
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
    return {**pod, **_placing(cluster)}


def _placing(cluster: KubernetesCluster) -> Manifest:
    """Where pods may run, and as whom."""
    pulls = [{"name": name} for name in cluster.pull_secrets]
    tolerations = [{"key": key, "operator": "Exists"} for key in cluster.tolerations]
    given = {
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": tolerations,
        "imagePullSecrets": pulls,
        "serviceAccountName": cluster.service_account,
    }
    return {key: value for key, value in given.items() if value}


def _head(version: str, kind: str, cluster: KubernetesCluster, *, is_job: bool = False) -> Manifest:
    labels = {"app.kubernetes.io/name": "kinemae", "app.kubernetes.io/instance": cluster.name}
    if is_job and cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    metadata = {"name": cluster.name, "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _suspended(cluster: KubernetesCluster) -> Manifest:
    return {"suspend": True} if cluster.queue else {}
