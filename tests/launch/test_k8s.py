"""Kubernetes manifests: published schemas and expected text; their commands are executed."""

import copy
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinemae.launch.cluster import read_cluster
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.command import manifest_text
from tests.conftest import REPO, run_module
from tests.launch.fake_program import make_job, reports
from tests.launch.published_schemas import check
from tests.launch.test_slurm import EXPECTED, neutral

SHIPPED = REPO / "configs" / "cluster" / "kubernetes.yaml"
DEMO = str(REPO / "configs" / "pretrain" / "demo.yaml")
KINDS = ("trainjob", "jobset")
ALL_KEYS = [
    "secrets=[s3-reader]",
    "pull_secrets=[registry]",
    "tolerations=[nvidia.com/gpu]",
    "node_selector={zone: a}",
    "queue=research",
    "service_account=trainer",
]


def text_of(kind: str, *overrides: str) -> str:
    cluster = read_cluster(KubernetesCluster, SHIPPED, [f"manifest={kind}", *overrides])
    return manifest_text(cluster, ["pretrain", DEMO, "run_dir=/runs/a", 'x=it\'s $(a) "b"\nc: ä'])


def objects_of(kind: str, *overrides: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text_of(kind, *overrides)))


def pods_of(kind: str, *overrides: str) -> list[dict[str, Any]]:
    """Every PodSpec of the manifests."""

    def within(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, list):
            return [pod for entry in value for pod in within(entry)]
        if not isinstance(value, dict):
            return []
        return [value] if "containers" in value else within(list(value.values()))

    return within(objects_of(kind, *overrides))


@pytest.mark.parametrize("overrides", [[], ALL_KEYS], ids=["shipped", "all keys"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_object_matches_its_published_schema(kind: str, overrides: list[str]) -> None:
    objects = objects_of(kind, *overrides)
    assert len(objects) == (3 if kind == "trainjob" else 2)
    for made in objects:
        check(made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_reject_a_wrong_key_and_a_wrong_type(kind: str) -> None:
    made = objects_of(kind)[1]
    for path, value in ((["spec", "wrong"], 1), (["metadata", "name"], 3)):
        broken = copy.deepcopy(made)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValueError, match=r"wrong|name"):
            check(broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_prints_the_manifests(kind: str) -> None:
    assert neutral(text_of(kind)) == (EXPECTED / f"k8s_{kind}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_has_shared_memory_time_to_save_and_names_of_secrets_only(kind: str) -> None:
    for pod in pods_of(kind, *ALL_KEYS):
        assert {"medium": "Memory", "sizeLimit": "64Gi"} in [
            entry.get("emptyDir") for entry in pod["volumes"]
        ]
        assert pod["terminationGracePeriodSeconds"] > 120
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-reader"}}] and "env" not in container
        assert isinstance(container["command"], list)


def test_exit_codes_decide_about_restarts() -> None:
    spec = objects_of("jobset")[1]["spec"]
    rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in rules] == [
        ("FailJob", [2, 3, 4, 6]),
        ("Ignore", [130, 138, 143]),
    ]
    assert spec["failurePolicy"] == {
        "maxRestarts": 3,
        "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_node_is_one_pod(kind: str) -> None:
    objects = objects_of(kind, "nodes=1")
    for made in objects:
        check(made)
    assert len(pods_of(kind, "nodes=1")) == 1


@pytest.mark.processes
@pytest.mark.parametrize("code", [0, 1])
def test_the_command_of_a_pod_really_starts_its_processes(tmp_path: Path, code: int) -> None:
    """Run the pods' command on this machine, with the variables and mounts of Kubernetes."""
    job = make_job(tmp_path, "report", f"exit={code}")
    (tmp_path / "job.json").write_text(replace(job, argv=[*job.argv, "x=$(RANK)"]).to_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["nodes=1", "processes_per_node=2", f"code={job.code}", f"python={sys.executable}"]
    command = pods_of("jobset", *words)[0]["containers"][0]["command"]
    places = {
        "$(JOB_COMPLETION_INDEX)": "0",
        f"kinemae-base-node-0-0.kinemae-base:{29500}": f"127.0.0.1:{port}",
        "/etc/kinemae": str(tmp_path),
    }
    for name, value in places.items():
        command = [word.replace(name, value) for word in command]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code, ran.stderr
    lines = reports(job)
    assert code or [line["RANK"] for line in lines] == ["0", "1"]  # the first failure ends the others
    assert all("x=$(RANK)" in line["argv"] for line in lines)  # type: ignore[operator]


@pytest.mark.slow
def test_a_wrong_config_is_refused_here_and_absent_data_is_not(tmp_path: Path) -> None:
    words = ["launch", "k8s", str(SHIPPED), "nodes=1", "--dry-run", "--", "pretrain", DEMO, "run_dir=/runs/a"]
    ran = run_module(*words, "batch.global_clip=8", check=False)
    assert ran.returncode == 2 and "batch.global_clip" in ran.stderr and ran.stdout == ""
    fine = run_module(*words, "data.shards=/shards/train")
    assert "the data is not on this machine" in fine.stderr and "kind: TrainJob" in fine.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image=''", "image must name a container image"),
        (
            "name=Mine",
            "name must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter, got 'Mine'",
        ),
        ("manifest=pod", "manifest.*'pod'.*trainjob"),
        ("shm=64 GB", "shm must be a Kubernetes quantity such as 8 or 64Gi, got '64 GB'"),
        ("volumes.runs=claim", "code and volumes must contain absolute folders inside the pods, got 'runs'"),
        ("environment.AWS_SECRET_ACCESS_KEY=x", "environment must contain no secrets; fix: use a Secret"),
        ("port=80", "port must lie between 1024 and 65535, got 80"),
        ("volumes={/other: claim}", "run_dir must lie on one of `volumes`, or the run is lost with its pods"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_of("jobset", override)
