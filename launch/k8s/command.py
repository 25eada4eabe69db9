"""`launch k8s`: create the manifests of a job with kubectl, or print them."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.data_tools.overrides import require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import Job, JobRefused, check_job, prepare_job
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.kubectl import create_job
from kinemae.launch.k8s.manifests import CONFIG, MOUNT, Manifest, job_id, manifests, to_yaml
from kinemae.launch.supervisor.start import add_launcher


def add_to(parsers: Any) -> None:
    """Register `k8s`."""
    text = "create a job on a Kubernetes cluster as a TrainJob or JobSet; paths are those inside the pods"
    example = "k8s CLUSTER.yaml --dry-run -- pretrain CONFIG run_dir=/runs/a > job.yaml"
    add_launcher(parsers, "k8s", text, run, example)


def run(arguments: argparse.Namespace) -> int:
    """Check the config, then print the manifests or create them."""
    cluster = read_cluster(KubernetesCluster, *split_words(arguments.words))
    objects = job_manifests(cluster, arguments.job)
    _check_config(arguments.job, cluster)
    if arguments.dry_run:
        sys.stdout.write(to_yaml(objects))
        return 0
    create_job(job_id(cluster), objects)
    sys.stdout.write(f"created; to see its state: kinemae launch status k8s:{job_id(cluster)}\n")
    return 0


def job_manifests(cluster: KubernetesCluster, job_argv: list[str]) -> list[Manifest]:
    """All objects of a job, see `manifests`.

    Raises:
        ValueError: run_dir is not on a volume, or the job is not a training.
    """
    job = prepare_job(job_argv, cluster.environment, python=cluster.python, dry_run=False)
    config = Path(job.config).read_text(encoding="utf-8")
    return manifests(cluster, _in_pod(cluster, job).to_json(), config)


def _in_pod(cluster: KubernetesCluster, job: Job) -> Job:
    """The job with the paths inside the pods: the image's installed package, the ConfigMap's config."""
    run_dir = PurePosixPath(job.run_dir)
    volumes = [PurePosixPath(folder) for folder in cluster.volumes]
    is_kept = any(folder == run_dir or folder in run_dir.parents for folder in volumes)
    require(is_kept, "run_dir", "lie on one of `volumes`, or the run is lost with its pods", job.run_dir)
    argv = [f"{MOUNT}/{CONFIG}" if word == job.frozen_config else word for word in job.argv]
    policy = {"max_restarts": cluster.max_restarts, "stop_s": float(cluster.stop_s)}
    return replace(job, policy=policy, argv=argv, code="", cwd="/", config=f"{MOUNT}/{CONFIG}", commit=None)


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
