"""`launch k8s`: the manifests of a job on a Kubernetes cluster, applied with kubectl or printed."""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.launch.cluster import UsageError, read_cluster, require, split_words
from kinemae.launch.job import Job, JobRefused, describe, dry_run, prepare
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.manifests import CONFIG, MOUNT, manifests
from kinemae.launch.supervisor.start import add_launcher

_EXAMPLE = """examples:
  kinemae launch k8s configs/cluster/kubernetes.yaml --dry-run -- pretrain CONFIG run_dir=/runs/a > job.yaml
  kinemae launch k8s configs/cluster/kubernetes.yaml nodes=4 -- pretrain CONFIG run_dir=/runs/a"""


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `k8s`."""
    add_launcher(
        parsers,
        "k8s",
        run,
        about="a job on a Kubernetes cluster: TrainJob, PyTorchJob or JobSet",
        description="Make a job's manifests and create them with kubectl. Paths are those inside the pods.",
        epilog=_EXAMPLE,
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, then print or apply."""
    cluster = read_cluster(KubernetesCluster, *split_words(arguments.words))
    text = manifest_text(cluster, arguments.job)
    _check_here(arguments.job, cluster)
    if arguments.dry_run:
        sys.stdout.write(text)
        return 0
    if shutil.which("kubectl") is None:
        raise UsageError("kubectl is not on the PATH: --dry-run > job.yaml, then kubectl create -f job.yaml")
    ran = subprocess.run(["kubectl", "create", "-f", "-"], input=text, text=True)
    if ran.returncode != 0:
        raise UsageError("kubectl did not create the job; it says above why")
    sys.stdout.write(f"kubectl --namespace {cluster.namespace} get {cluster.manifest} {cluster.name}\n")
    return 0


def manifest_text(cluster: KubernetesCluster, job_argv: list[str]) -> str:
    """The YAML of all objects of a job.

    Raises:
        UsageError: run_dir is not on a volume, or the job is none.
    """
    job = prepare(job_argv, cluster.environment, python=cluster.python, is_checked=False)
    config = Path(job.config).read_text(encoding="utf-8")
    objects = manifests(cluster, describe(_inside(cluster, job)), config)
    return "---\n".join(
        yaml.dump(made, Dumper=_Dumper, sort_keys=False, allow_unicode=True) for made in objects
    )


def _inside(cluster: KubernetesCluster, job: Job) -> Job:
    """The job as the pods see it: code of the image, config of the ConfigMap."""
    run_dir = PurePosixPath(job.run_dir)
    volumes = [PurePosixPath(folder) for folder in cluster.volumes]
    is_kept = any(folder == run_dir or folder in run_dir.parents for folder in volumes)
    require(is_kept, "run_dir", "lie on one of `volumes`, or the run is lost with its pods", job.run_dir)
    frozen = str(job.path.parent)
    argv = [f"{MOUNT}/{CONFIG}" if word.startswith(f"{frozen}/config-") else word for word in job.argv]
    return replace(
        job, argv=argv, code=cluster.code, cwd=cluster.code, config=f"{MOUNT}/{CONFIG}", commit=None
    )


def _check_here(job_argv: list[str], cluster: KubernetesCluster) -> None:
    """Let the room refuse what it can refuse without the data, which is where the pods are.

    Raises:
        JobRefused: the config is wrong.
    """
    processes = cluster.nodes * cluster.processes_per_node
    try:
        dry_run(job_argv, cluster.environment, processes=processes, is_node=False)
    except JobRefused as refused:
        if refused.code != EXIT_DATA:
            raise
        sys.stderr.write("the data is not here: what depends on it is checked in the pods\n")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a person can read them; nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
