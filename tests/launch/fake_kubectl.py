"""A stand-in for kubectl and the cluster behind it: objects in a file, every word of a command checked.

It refuses a TrainJob without its runtime, a second object of a name, the image `refused`, the image `late` as
if another launch were faster, and owners of the objects of a job with the image `unowned`. It deletes what a
deleted object owns. It does not start pods: a test writes `pods.json`. `python fake_kubectl.py FOLDER ...`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(sys.argv[1])
OBJECTS, PODS, CALLS = FOLDER / "objects.json", FOLDER / "pods.json", FOLDER / "calls.jsonl"


def fail(message: str) -> None:
    sys.stderr.write(f"Error from server {message}\n")
    sys.exit(1)


def main(words: list[str]) -> None:
    with CALLS.open("a") as file:
        file.write(json.dumps(words) + "\n")
    objects: dict[str, Any] = json.loads(OBJECTS.read_text()) if OBJECTS.exists() else {}
    namespace, verb, *rest = words
    assert namespace == "--namespace=research", words
    answer = {"get": get, "apply": apply, "create": create, "delete": delete, "logs": logs}[verb](
        rest, objects
    )
    OBJECTS.write_text(json.dumps(objects))
    sys.stdout.write(answer)


def get(words: list[str], objects: dict[str, Any]) -> str:
    if words[0] == "pods":
        selector, output = words[1:]
        assert selector.startswith("--selector=") and output == "--output=json", words
        label, _, value = selector.removeprefix("--selector=").partition("=")
        pods = json.loads(PODS.read_text()) if PODS.exists() else []
        return json.dumps({"items": [pod for pod in pods if pod["metadata"]["labels"].get(label) == value]})
    target, missing, output = words
    assert missing == "--ignore-not-found" and output in ("--output=name", "--output=json"), words
    found = objects.get(target)
    return "" if found is None else f"{target}\n" if output == "--output=name" else json.dumps(found)


def read() -> dict[str, Any]:
    given = [one for one in yaml.safe_load_all(sys.stdin) if one]
    assert all(one["metadata"]["namespace"] == "research" for one in given)
    return {f"{one['kind'].lower()}/{one['metadata']['name']}": one for one in given}


def apply(words: list[str], objects: dict[str, Any]) -> str:
    assert words == ["--filename=-"], words
    given = read()
    if any("ownerReferences" in one["metadata"] for one in given.values()) and '"unowned"' in json.dumps(
        objects
    ):
        fail("(Timeout): the server was unable to return a response in the time allotted")
    for name, one in given.items():
        one["metadata"]["uid"] = objects.get(name, {}).get("metadata", {}).get("uid", f"uid of {name}")
        objects[name] = one
    return "applied\n"


def create(words: list[str], objects: dict[str, Any]) -> str:
    assert words == ["--filename=-", "--output=json"], words
    [(name, one)] = read().items()
    if name in objects:
        fail(f"(AlreadyExists): {name} already exists")
    spec = one["spec"]
    if one["kind"] == "TrainJob":
        runtime = f"trainingruntime/{spec['runtimeRef']['name']}"
        if runtime not in objects:
            fail("(Forbidden): specified trainingRuntime must be created before the TrainJob is created")
        spec = objects[runtime]["spec"]["template"]["spec"]
    image = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["image"]
    if image == "late":
        fail(f"(AlreadyExists): {name} already exists")
    if image == "refused":
        fail('(BadRequest): strict decoding error: unknown field "spec.hostNetwrk"')
    one["metadata"]["uid"] = f"uid of {name}"
    objects[name] = one
    return json.dumps(one)


def delete(words: list[str], objects: dict[str, Any]) -> str:
    if words[0] == "--filename=-":
        assert words[1:] == ["--ignore-not-found", "--wait=false"], words
        gone = list(read())
    else:
        assert words[1:] == ["--cascade=foreground", "--wait=false"], words
        gone = words[:1]
        if words[0] not in objects:
            fail(f"(NotFound): {words[0]} not found")
    uids = {objects[name]["metadata"]["uid"] for name in gone if name in objects}
    for name, one in list(objects.items()):
        owners = {owner["uid"] for owner in one["metadata"].get("ownerReferences", [])}
        if name in gone or owners & uids:
            del objects[name]
    return "deleted\n"


def logs(words: list[str], objects: dict[str, Any]) -> str:
    selector, container, tail, *follow = words
    assert selector.startswith("--selector=jobset.sigs.k8s.io/jobset-name="), words
    assert selector.endswith(",batch.kubernetes.io/job-completion-index=0"), words
    assert container == "--container=node" and tail.startswith("--tail=") and follow in ([], ["--follow"]), (
        words
    )
    return "step 3\n"


if __name__ == "__main__":
    main(sys.argv[2:])
