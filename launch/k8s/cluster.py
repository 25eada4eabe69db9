"""The cluster file of `launch k8s`: what may stand in it, and what is refused by name."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from kinemae.launch.cluster import require

# Pods are called NAME-node-0-0-xxxxx, and a host's name has at most 63 letters.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


@dataclass(frozen=True, kw_only=True)
class KubernetesCluster:
    """A cluster file for `launch k8s`; a node is a pod.

    Attributes:
        manifest: `trainjob` (Kubeflow Trainer), `pytorchjob` (Kubeflow's training operator) or `jobset`.
        name: of the job and all that belongs to it.
        image: holds python, the dependencies, and the packages.
        code: the folder in the image where the packages are.
        python: the interpreter in the image.
        gpu_resource: what a GPU is called by the cluster.
        shm: size of /dev/shm, in memory and counted as such; a plain pod has 64 MB, too few for loaders.
        volumes: folders in the pods and the persistent volume claims that are mounted there.
        environment: for each process; no secrets, which the manifest would show.
        secrets: Secrets whose entries become environment variables of the pods.
        pull_secrets: Secrets for the image's registry.
        queue: Kueue's local queue; the job is then created suspended.
        stop_s: seconds that a stop has to save; the pod's grace period is longer.
        max_restarts: starts of the whole job after a crash.
    """

    manifest: Literal["trainjob", "pytorchjob", "jobset"] = "trainjob"
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
        what = "be 1 to 40 lower-case letters, digits and dashes, a letter first"
        for key in ("name", "namespace"):
            require(_NAME.fullmatch(getattr(self, key)) is not None, key, what, getattr(self, key))
        for key in ("nodes", "processes_per_node"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "max_restarts"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        for key in ("cpus_per_node", "memory_per_node", "shm"):
            is_quantity = _QUANTITY.fullmatch(getattr(self, key)) is not None
            require(is_quantity, key, "be a quantity of Kubernetes, as in 8 or 64Gi", getattr(self, key))
        require(1024 <= self.port <= 65535, "port", "lie between 1024 and 65535", self.port)
        require(self.stop_s >= 1, "stop_s", "be at least 1", self.stop_s)
        for folder in (self.code, *self.volumes):
            is_absolute = PurePosixPath(folder).is_absolute()
            require(is_absolute, "code and volumes", "name absolute folders inside the pods", folder)
        for name in self.environment:
            is_open = _SECRET.search(name) is None
            require(is_open, "environment", "hold no secrets: put it in a Secret named under `secrets`", name)
