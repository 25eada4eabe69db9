"""Cluster file of `launch k8s`."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from kinemae.data_tools.overrides import require

# Pods are named NAME-node-0-0-xxxxx; a host name has at most 63 characters.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class KubernetesCluster:
    """Cluster file of `launch k8s`; a node is a pod.

    Attributes:
        manifest: `trainjob` (Kubeflow Trainer) or `jobset`.
        name: name of the job; its other objects are named NAME-DIGEST.
        namespace: namespace of all objects.
        image: container image in which `python -m kinemae` runs.
        python: the interpreter in the image.
        nodes, processes_per_node: pods; processes of each, one per GPU.
        resources: requests and limits of each pod, as in `{nvidia.com/gpu: 8, rdma/hca: 1}`.
        shm: size of /dev/shm, counted as memory; the default of a pod, 64 MB, is too small for data workers.
        volumes: folders in the pods, with the persistent volume claims to mount there.
        environment: variables of each process; the manifest shows them, so no secrets.
        secrets: Secrets whose entries become environment variables of the pods.
        labels, annotations: of the job, its JobSet and its pods.
        queue: Kueue's local queue; the job is created suspended.
        patch: changes of the pod template, see `patched` in `manifests.py`.
        port: port of the agents' store.
        stop_s: seconds for a checkpoint after SIGTERM; the pod's grace period is longer.
        max_restarts: restarts in a row without a new checkpoint; also restarts of all pods.
    """

    manifest: Literal["trainjob", "jobset"] = "trainjob"
    name: str = "kinemae"
    namespace: str = "default"
    image: str
    python: str = "python3"
    nodes: int = 1
    processes_per_node: int = 1
    resources: dict[str, str] = field(default_factory=lambda: {"cpu": "8", "memory": "64Gi"})
    shm: str = "16Gi"
    volumes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    queue: str = ""
    patch: dict[str, Any] = field(default_factory=dict)
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
        require(self.max_restarts >= 0, "max_restarts", "be at least 0", self.max_restarts)
        require(1024 <= self.port <= 65535, "port", "lie between 1024 and 65535", self.port)
        require(self.stop_s >= 1, "stop_s", "be at least 1", self.stop_s)
        for folder in self.volumes:
            is_absolute = PurePosixPath(folder).is_absolute()
            require(is_absolute, "volumes", "contain absolute folders inside the pods", folder)
        for name in self.environment:
            is_public = _SECRET.search(name) is None
            require(is_public, "environment", "contain no secrets; fix: use a Secret and `secrets`", name)
