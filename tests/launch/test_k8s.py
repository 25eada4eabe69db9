"""Kubernetes manifests: published schemas, expected text, the patch; the pods' command is executed."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinemae.launch.cluster import read_cluster
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.manifests import job_manifests, to_yaml
from kinemae.launch.record import read_record
from tests.conftest import REPO, run_module
from tests.launch.fake_program import make_job, reports
from tests.launch.published_schemas import check
from tests.launch.test_slurm import EXPECTED, neutral

SHIPPED = REPO / "configs" / "cluster" / "kubernetes.yaml"
DEMO = str(REPO / "configs" / "pretrain" / "demo.yaml")
KINDS = ("trainjob", "jobset")
PATCH = """
metadata: {labels: {team: video}}
spec:
  hostNetwork: true
  priorityClassName: training
  securityContext: {fsGroup: 1000}
  tolerations: [{key: nvidia.com/gpu, operator: Exists}]
  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [
    {topologyKey: rack, labelSelector: {matchLabels: {team: video}}}]}}
  initContainers: [{name: warm, image: busybox, command: ["true"]}]
  containers:
  - name: node
    securityContext: {capabilities: {add: [IPC_LOCK]}}
    volumeMounts: [{name: nvme, mountPath: /nvme}]
  - {name: exporter, image: dcgm}
  volumes: [{name: nvme, hostPath: {path: /nvme}}]
"""
ALL_KEYS = [
    "resources.rdma/hca=1",
    "secrets=[s3-reader]",
    "labels={kueue.x-k8s.io/priority-class: high}",
    "annotations={alpha.jobset.sigs.k8s.io/exclusive-topology: rack}",
    "queue=research",
    f"patch={json.dumps(yaml.safe_load(PATCH))}",
]


def text_of(kind: str, *overrides: str) -> str:
    cluster = read_cluster(KubernetesCluster, SHIPPED, [f"manifest={kind}", *overrides])
    return to_yaml(job_manifests(cluster, ["pretrain", DEMO, "run_dir=/runs/a", 'x=it\'s $(a) "b"\nc: ä']))


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
def test_all_objects_but_the_config_fit_on_a_page(kind: str) -> None:
    config, job = text_of(kind).split("---\n", 1)
    assert "kind: ConfigMap" in config and len(job.splitlines()) <= {"trainjob": 64, "jobset": 50}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_has_shared_memory_time_to_save_and_names_of_secrets_only(kind: str) -> None:
    for pod in pods_of(kind, *ALL_KEYS):
        assert {"medium": "Memory", "sizeLimit": "64Gi"} in [
            entry.get("emptyDir") for entry in pod["volumes"]
        ]
        assert pod["terminationGracePeriodSeconds"] > 120
        node = pod["containers"][0]
        assert node["envFrom"] == [{"secretRef": {"name": "s3-reader"}}]
        assert [variable["name"] for variable in node["env"]] == ["RESTART"]
        assert isinstance(node["command"], list)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_merges_mappings_and_named_entries_into_the_pod(kind: str) -> None:
    [plain], [pod] = pods_of(kind), pods_of(kind, *ALL_KEYS)
    node, exporter = pod["containers"]
    assert exporter == {"name": "exporter", "image": "dcgm"}
    assert node["image"] == plain["containers"][0]["image"]
    assert node["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert node["volumeMounts"][:-1] == plain["containers"][0]["volumeMounts"]
    assert pod["volumes"] == [*plain["volumes"], {"name": "nvme", "hostPath": {"path": "/nvme"}}]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "dnsPolicy" not in plain
    limits = node["resources"]["limits"]
    assert limits == {"cpu": "96", "memory": "900Gi", "nvidia.com/gpu": "8", "rdma/hca": "1"}


def test_a_patch_removes_and_replaces() -> None:
    patch = "patch={spec: {terminationGracePeriodSeconds: 900, restartPolicy: null}}"
    [pod] = pods_of("jobset", patch)
    assert pod["terminationGracePeriodSeconds"] == 900 and "restartPolicy" not in pod


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_annotations_are_on_the_job_its_jobset_and_its_pods(kind: str) -> None:
    _, *_, job = objects = objects_of(kind, *ALL_KEYS)
    jobset = job if kind == "jobset" else objects[1]["spec"]["template"]
    pods = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    for part in (job, jobset, pods):
        assert part["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
        assert part["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "rack"}
    assert pods["metadata"]["labels"]["team"] == "video"
    # Kueue would manage a pod with this label on its own.
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research" and job["spec"]["suspend"]
    assert "kueue.x-k8s.io/queue-name" not in pods["metadata"]["labels"]


def test_exit_codes_decide_about_restarts() -> None:
    spec = objects_of("jobset")[1]["spec"]
    rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules] == [
        ("FailJob", [2, 3, 4, 6, 75]),
        ("FailJob", None),  # DisruptionTarget: evicted or preempted
    ]
    # The message that Kubernetes' Job controller writes into the condition of the failed Job.
    message = (
        "Container node for pod a/a-node-0-1-x failed with exit code {} matching FailJob rule at index {}"
    )
    disrupted = "Pod a/a-node-0-1-x has condition DisruptionTarget matching FailJob rule at index 1"
    stopped, final = spec["failurePolicy"]["rules"]
    assert (stopped["action"], final["action"]) == ("RestartJobSetAndIgnoreMaxRestarts", "FailJobSet")

    def is_stop(text: str) -> bool:
        return any(re.search(pattern, text) for pattern in stopped["onJobFailureMessagePatterns"])

    assert is_stop(disrupted) and is_stop(message.format(75, 2))
    assert not any(is_stop(message.format(code, 0)) for code in (2, 3, 4, 6))
    assert spec["failurePolicy"]["maxRestarts"] == 3


def test_the_config_map_is_named_by_its_content_and_used_by_the_pods() -> None:
    cluster = read_cluster(KubernetesCluster, SHIPPED, [])
    names = set()
    for seed in (1, 1, 2):
        config, runtime, job = job_manifests(cluster, ["pretrain", DEMO, "run_dir=/runs/a", f"seed={seed}"])
        name = config["metadata"]["name"]
        template = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        assert template["spec"]["volumes"][0]["configMap"]["name"] == name
        assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == name
        assert job["metadata"]["name"] == "kinemae-base" and config["immutable"]
        names.add(name)
    assert len(names) == 2


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
    run_dir = tmp_path / "volume" / "run"  # does not exist before the first start
    given = replace(job, argv=[*job.argv, "x=$(RANK)"], policy={"max_restarts": 1}, run_dir=str(run_dir))
    (tmp_path / "job.json").write_text(given.to_json())
    words = ["nodes=1", "processes_per_node=2", f"python={sys.executable}"]
    command = pods_of("jobset", *words)[0]["containers"][0]["command"]
    places = {
        "$(JOB_COMPLETION_INDEX)": "0",
        "$(RESTART)": "18",
        "kinemae-base-node-0-0.kinemae-base": "127.0.0.1",
        "/etc/kinemae": str(tmp_path),
    }
    for name, value in places.items():
        command = [word.replace(name, value) for word in command]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code, ran.stderr
    lines = reports(job)
    assert code or [line["RANK"] for line in lines] == ["0", "1"]  # the first failure ends the others
    assert {line["MASTER_ADDR"] for line in lines} == {"127.0.0.1"}
    record = read_record(run_dir)
    assert record["attempt"] == 1 + code
    assert (record["kind"], record["job_id"]) == ("k8s", "default/jobset/kinemae-base")
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
        ("gpus_per_node=8", "config key gpus_per_node: unknown key; did you mean resources"),
        ("volumes.runs=claim", "volumes must contain absolute folders inside the pods, got 'runs'"),
        ("environment.AWS_SECRET_ACCESS_KEY=x", "environment must contain no secrets; fix: use a Secret"),
        ("port=80", "port must lie between 1024 and 65535, got 80"),
        ("patch={hostNetwork: true}", "patch must contain metadata and spec of the pods.*got {'hostNetwork'"),
        ("patch={spec: null}", "patch must contain metadata and spec of the pods"),
        ("patch={spec: {containers: {name: node}}}", "patch.spec.containers must be a list of the container"),
        (
            "patch={spec: {containers: [{name: trainer, tty: true}]}}",
            "patch.spec.containers must be .* and further ones with their images, got .*'trainer'",
        ),
        ("volumes={/other: claim}", "run_dir must lie on one of `volumes`, or the run is lost with its pods"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_of("jobset", override)
