"""Jobs on a stand-in for a Kubernetes cluster: creation, ownership, status, logs, cancel."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.cluster import read_cluster
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.k8s.kubectl import create_job
from kinemae.launch.k8s.manifests import job_id, job_manifests
from kinemae.launch.record import Record
from tests.launch.test_k8s import DEMO, KINDS, SHIPPED

JOB = "research/{}/kinemae-base"


class FakeCluster:
    """The folder of `fake_kubectl.py`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def objects(self) -> dict[str, Any]:
        path = self._folder / "objects.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self._folder / "calls.jsonl").read_text().splitlines()]

    def set_conditions(self, target: str, *conditions: dict[str, str]) -> None:
        objects = self.objects()
        objects[target]["status"] = {"conditions": list(conditions)}
        (self._folder / "objects.json").write_text(json.dumps(objects))

    def set_pods(self, *statuses: dict[str, Any], restarts: int = 0) -> None:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": "kinemae-base",
            "jobset.sigs.k8s.io/restart-attempt": str(restarts),
        }
        pods = [
            {"metadata": {"name": f"kinemae-base-node-0-{index}", "labels": labels}, "status": status}
            for index, status in enumerate(statuses)
        ]
        (self._folder / "pods.json").write_text(json.dumps(pods))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    folder = tmp_path / "cluster"
    folder.mkdir()
    script = tmp_path / "bin" / "kubectl"
    script.parent.mkdir()
    command = shlex.join(
        [sys.executable, "-P", str(Path(__file__).with_name("fake_kubectl.py")), str(folder)]
    )
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return FakeCluster(folder)


def create(kind: str, *overrides: str, seed: int = 0) -> None:
    words = [f"manifest={kind}", "namespace=research", *overrides]
    config = read_cluster(KubernetesCluster, SHIPPED, words)
    create_job(job_id(config), job_manifests(config, ["pretrain", DEMO, "run_dir=/runs/a", f"seed={seed}"]))


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_owns_its_config_and_is_deleted_with_it(kind: str, cluster: FakeCluster) -> None:
    create(kind)
    *others, job = sorted(cluster.objects().values(), key=lambda made: str(made["kind"]).lower() == kind)
    assert len(others) == (2 if kind == "trainjob" else 1)
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": "kinemae-base"}
    for other in others:
        assert other["metadata"]["ownerReferences"] == [{**owner, "uid": job["metadata"]["uid"]}]
    assert main(["cancel", f"k8s:{JOB.format(kind)}"]) == 0
    assert cluster.objects() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_launch_of_a_name_is_refused_and_changes_nothing(kind: str, cluster: FakeCluster) -> None:
    create(kind)
    before = cluster.objects()
    with pytest.raises(
        ValueError, match=r"expected a new name, got 'kinemae-base'.*launch cancel k8s:research"
    ):
        create(kind, seed=1)
    assert cluster.objects() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_in_use_while_pods_of_a_deleted_job_save(kind: str, cluster: FakeCluster) -> None:
    cluster.set_pods({"phase": "Running"})
    with pytest.raises(ValueError, match="1 of its pods run"):
        create(kind)
    assert cluster.objects() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_after_a_deletion_uses_the_new_config(kind: str, cluster: FakeCluster) -> None:
    names = []
    for seed in (0, 1):
        create(kind, seed=seed)
        [config] = [made for made in cluster.objects().values() if made["kind"] == "ConfigMap"]
        assert f'"seed={seed}"' in config["data"]["job.json"]
        names.append(config["metadata"]["name"])
        assert main(["cancel", f"k8s:{JOB.format(kind)}"]) == 0
    assert names[0] != names[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_job_leaves_nothing_behind(kind: str, cluster: FakeCluster) -> None:
    with pytest.raises(ValueError, match=r"kubectl create failed: .*strict decoding error: unknown field"):
        create(kind, "image=refused")
    assert cluster.objects() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_cannot_own_its_objects_is_deleted_again(kind: str, cluster: FakeCluster) -> None:
    with pytest.raises(ValueError, match=r"kubectl apply failed: .*unable to return a response"):
        create(kind, "image=unowned")
    assert cluster.objects() == {}


def test_the_objects_of_a_faster_launch_of_the_same_job_stay(cluster: FakeCluster) -> None:
    with pytest.raises(ValueError, match=r"kubectl create failed: .*AlreadyExists"):
        create("jobset", "image=late")
    assert [made["kind"] for made in cluster.objects().values()] == ["ConfigMap"]


RUNNING, PENDING = {"phase": "Running"}, {"phase": "Pending"}
NO_NODE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "no nvidia.com/gpu",
}
NO_IMAGE = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}


def ended(code: int, message: str = "", *, sidecar: int = 0) -> dict[str, Any]:
    """A pod whose container, and one that `patch` has added, have ended."""
    end, other = {"exitCode": code, "message": message}, {"exitCode": sidecar, "message": "of the sidecar"}
    containers = [{"name": "proxy", "state": {"terminated": other}}]
    containers.append({"name": "node", "state": {"terminated": end}})
    return {"phase": "Failed", "containerStatuses": containers}


SUSPENDED = "suspended, as while it waits in a queue"


@pytest.mark.parametrize(
    ("condition", "pods", "expected"),
    [
        (None, [], ("pending", None, "0 of 0 pods run, restarts: 0")),
        (None, [RUNNING, RUNNING], ("running", None, "2 of 2 pods run, restarts: 3")),
        (
            None,
            [RUNNING, {**PENDING, "conditions": [NO_NODE]}],
            ("pending", None, "kinemae-base-node-0-1: pending, Unschedulable: no nvidia.com/gpu"),
        ),
        (
            None,
            [{**PENDING, "containerStatuses": [NO_IMAGE]}],
            ("pending", None, "kinemae-base-node-0-0: pending, ImagePullBackOff: no such image"),
        ),
        ("Suspended", [], ("pending", None, SUSPENDED)),
        ("Complete", [], ("ended", 0, "finished (exit code 0)")),
        ("Completed", [], ("ended", 0, "finished (exit code 0)")),
        ("Failed", [ended(75), ended(1), ended(3)], ("ended", 3, "data cannot be used (exit code 3)")),
        ("Failed", [ended(75), ended(1)], ("ended", 1, "failed: crashed (exit code 1)")),
        (
            "Failed",
            [ended(0), ended(1, "step 3\nlaunch: rank 3 on b failed\n")],
            ("ended", 1, "(exit code 1)\nstep 3\nlaunch: rank 3 on b failed"),
        ),
        ("Failed", [ended(1, "CUDA", sidecar=2)], ("ended", 1, "failed: crashed (exit code 1)\nCUDA")),
        ("Failed", [], ("ended", None, "reached max restarts")),
    ],
)
def test_the_state_of_a_job(
    condition: str | None,
    pods: list[dict[str, Any]],
    expected: tuple[str, int | None, str],
    cluster: FakeCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    create("trainjob")
    if condition:
        other = {"type": "StartupPolicyCompleted", "status": "False", "message": "no"}
        seen = {"type": condition, "status": "True", "message": "reached max restarts"}
        cluster.set_conditions("trainjob/kinemae-base", other, seen)
    cluster.set_pods(*pods, restarts=3)
    status = json.loads(output_of(capsys, "status", f"k8s:{JOB.format('trainjob')}", "--json"))
    state, code, message = expected
    assert (status["kind"], status["state"], status["code"]) == ("k8s", state, code)
    assert status["message"].startswith("research/trainjob/kinemae-base: ")
    assert status["message"].endswith(message)


def test_a_run_folder_names_its_job(
    tmp_path: Path, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    create("jobset")
    cluster.set_pods(RUNNING, RUNNING)
    run_dir = tmp_path / "run"
    Record(run_dir).begin(kind="k8s", job_id=JOB.format("jobset"), steps=30)
    (run_dir / "checkpoints" / "step-00000010").mkdir(parents=True)
    shown = output_of(capsys, "status", str(run_dir))
    assert "2 of 2 pods run" in shown and "checkpoints  10" in shown
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "rank-00003.log").write_text("from a file\n")
    assert output_of(capsys, "logs", str(run_dir), "--rank", "3") == "from a file\n"
    assert "it disappears when its pods have saved" in output_of(capsys, "cancel", str(run_dir))
    assert "deleted; launch it again to resume" in output_of(capsys, "status", str(run_dir))
    assert output_of(capsys, "logs", str(run_dir), "--rank", "3", "--follow") == "from a file\n"


def test_the_logs_of_a_job_are_those_of_rank_0(
    cluster: FakeCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    target = f"k8s:{JOB.format('jobset')}"
    assert main(["logs", target, "--lines", "7", "--follow"]) == 0
    assert capfd.readouterr().out == "step 3\n"
    assert cluster.calls()[-1][-2:] == ["--tail=7", "--follow"]
    assert main(["logs", target, "--rank", "3"]) == 2
    assert "--rank: expected 0 for a job's pods, got 3; fix: give the run folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "k8s:kinemae-base"], "expected k8s:NAMESPACE/trainjob/NAME"),
        (["cancel", f"k8s:{JOB.format('jobset')}"], "kubectl delete failed: .*not found"),
    ],
)
def test_a_wrong_job_is_refused(
    words: list[str], message: str, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_machine_without_kubectl_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in ("status", "logs", "cancel"):
        assert main([command, f"k8s:{JOB.format('jobset')}"]) == 2
        assert "no program kubectl; fix: install it" in capsys.readouterr().err
