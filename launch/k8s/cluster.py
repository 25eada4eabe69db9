"""Cluster file of `launch k8s`."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from kinemae.data_tools.overrides import require

# Pods are named NAME-node-0-0-xxxxx; a host name has at most 63 characters.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


@dataclass(frozen=True, kw_only=True)
class KubernetesCluster:
    """Cluster file of `launch k8s`; a node is a pod.

    Attributes:
        manifest: `trainjob` (Kubeflow Trainer) or `jobset`.
        name: name of the job and all its objects.
        namespace, service_account: of the job.
        nodes, processes_per_node: pods; processes of each, one per GPU.
        cpus_per_node, memory_per_node, gpus_per_node: resources of each pod.
        node_selector: labels of the nodes that may run the pods.
        tolerations: keys of the taints that the pods tolerate.
        port: port of the rendezvous.
        image: container image with python, the dependencies and the package.
        code: folder in the image that contains the package `kinemae/`.
        python: the interpreter in the image.
        gpu_resource: resource name of a GPU in the cluster.
        shm: size of /dev/shm, counted as memory; the default of a pod, 64 MB, is too small for data workers.
        volumes: folders in the pods, with the persistent volume claims to mount there.
        environment: variables of each process; the manifest shows them, so no secrets.
        secrets: Secrets whose entries become environment variables of the pods.
        pull_secrets: Secrets for the image registry.
        queue: Kueue's local queue; the job is created suspended.
        stop_s: seconds for a checkpoint after SIGTERM; the pod's grace period is longer.
        max_restarts: restarts of the whole job after crashes.
    """

    manifest: Literal["trainjob", "jobset"] = "trainjob"
    name: str = "kinemae"
    namespace: str = "default"
    image: str
    code: str = "/opt/kinemae"
    python: str = "python3"
    nodes: int = 1
    processes_per_node: int = 1
    cpus_per_node: str = "8"
    memory_per_node: str = "64Gi"
    gpus_per_node: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shm: str = "16Gi"
    volumes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    pull_secrets: list[str] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[str] = field(default_factory=list)
    service_account: str = ""
    queue: str = ""
    port: int = 29500
    stop_s: int = 120
    max_restarts: int = 3

    def __post_init__(self) -> None:
        require(bool(self.image.strip()), "image", "name a container image", self.image)
        form = "be 1 to 40 lower-case letters, digits and dashes, beginning with a letter"
        for key in ("name", "namespace"):
            require(_NAME.fullmatch(getattr(self, key)) is not None, key, form, getattr(self, key))
        for key in ("nodes", "processes_per_node"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "max_restarts"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        for key in ("cpus_per_node", "memory_per_node", "shm"):
            is_quantity = _QUANTITY.fullmatch(getattr(self, key)) is not None
            require(is_quantity, key, "be a Kubernetes quantity such as 8 or 64Gi", getattr(self, key))
        require(1024 <= self.port <= 65535, "port", "lie between 1024 and 65535", self.port)
        require(self.stop_s >= 1, "stop_s", "be at least 1", self.stop_s)
        for folder in (self.code, *self.volumes):
            is_absolute = PurePosixPath(folder).is_absolute()
            require(is_absolute, "code and volumes", "contain absolute folders inside the pods", folder)
        for name in self.environment:
            is_public = _SECRET.search(name) is None
            require(is_public, "environment", "contain no secrets; fix: use a Secret and `secrets`", name)
