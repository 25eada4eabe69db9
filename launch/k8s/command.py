"""`launch k8s`: create the manifests of a job with kubectl, or print them."""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import Job, JobRefused, check_job, prepare_job
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.manifests import CONFIG, MOUNT, manifests
from kinemae.launch.supervisor.start import add_launcher


def add_to(parsers: Any) -> None:
    """Register `k8s`."""
    example = "k8s CLUSTER.yaml --dry-run -- pretrain CONFIG run_dir=/runs/a > job.yaml"
    add_launcher(parsers, "k8s", run, example)


def run(arguments: argparse.Namespace) -> int:
    """Check the config, then print the manifests or create them."""
    cluster = read_cluster(KubernetesCluster, *split_words(arguments.words))
    text = manifest_text(cluster, arguments.job)
    _check_config(arguments.job, cluster)
    if arguments.dry_run:
        sys.stdout.write(text)
        return 0
    if shutil.which("kubectl") is None:
        raise ConfigError(
            "no program kubectl; fix: add --dry-run > job.yaml, then kubectl create -f job.yaml"
        )
    ran = subprocess.run(["kubectl", "create", "-f", "-"], input=text, text=True)
    if ran.returncode != 0:
        raise ConfigError("kubectl could not create the job; see its message above")
    sys.stdout.write(f"kubectl --namespace {cluster.namespace} get {cluster.manifest} {cluster.name}\n")
    return 0


def manifest_text(cluster: KubernetesCluster, job_argv: list[str]) -> str:
    """The YAML of all objects of a job.

    Raises:
        ValueError: run_dir is not on a volume, or the job is not a training.
    """
    job = prepare_job(job_argv, cluster.environment, python=cluster.python, dry_run=False)
    config = Path(job.config).read_text(encoding="utf-8")
    objects = manifests(cluster, _in_pod(cluster, job).to_json(), config)
    return "---\n".join(
        yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True) for manifest in objects
    )


def _in_pod(cluster: KubernetesCluster, job: Job) -> Job:
    """The job with the paths inside the pods: the image's code, the ConfigMap's config."""
    run_dir = PurePosixPath(job.run_dir)
    volumes = [PurePosixPath(folder) for folder in cluster.volumes]
    is_kept = any(folder == run_dir or folder in run_dir.parents for folder in volumes)
    require(is_kept, "run_dir", "lie on one of `volumes`, or the run is lost with its pods", job.run_dir)
    argv = [f"{MOUNT}/{CONFIG}" if word == job.frozen_config else word for word in job.argv]
    return replace(
        job, argv=argv, code=cluster.code, cwd=cluster.code, config=f"{MOUNT}/{CONFIG}", commit=None
    )


def _check_config(job_argv: list[str], cluster: KubernetesCluster) -> None:
    """Run a dry run; accept its failure if only the data is missing, which is in the cluster.

    Raises:
        JobRefused: the config is wrong.
    """
    world_size = cluster.nodes * cluster.processes_per_node
    try:
        check_job(job_argv, cluster.environment, world_size=world_size, trains_here=False)
    except JobRefused as refused:
        if refused.code != EXIT_DATA:
            raise
        sys.stderr.write("the data is not on this machine: the pods check it\n")


class _Dumper(yaml.SafeDumper):
    """Writes multi-line texts as readable blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
