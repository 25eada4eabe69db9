"""Do all nodes run the same interpreter, packages, code, environment? Did a killed build leave a lock?"""

import shlex
from collections.abc import Mapping
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, error, named, odd_ones, ok, or_ok, warning

CHECK = "versions"
# What an import of KineMAE needs (pyproject.toml), and what travels with it.
PACKAGES = (
    "torch",
    "torchvision",
    "deepspeed",
    "webdataset",
    "omegaconf",
    "tensorboard",
    "av",
    "pyarrow",
    "fsspec",
    "opencv-python-headless",
    "safetensors",
    "scikit-learn",
    "scipy",
    "pillow",
    "jinja2",
    "tqdm",
    "numpy",
    "pyyaml",
)
# Other versions of these on one node may compute otherwise, or speak another protocol.
MUST_BE_EQUAL = ("torch", "deepspeed")
VARIABLES = ("NCCL_", "GLOO_", "TORCH_", "OMP_", "MKL_", "CUDA_", "DS_", "KINEMAE_", "PYTHON")
_BUILD_S = 600

Reports = Mapping[str, Mapping[str, Any]]


def check_versions(machines: Reports) -> list[Finding]:
    """Compare interpreters and packages; `machines` holds each node's answer of `probe.machine`."""
    pythons = {name: str(machine["python"]) for name, machine in machines.items()}
    findings = _compare("python", pythons, machines, is_error=True)
    for package in PACKAGES:
        versions = {name: machine["packages"].get(package) for name, machine in machines.items()}
        without = [name for name, version in versions.items() if version is None]
        if without:
            findings.append(_lacking(package, without, machines))
        present = {name: str(version) for name, version in versions.items() if version is not None}
        findings += _compare(package, present, machines, is_error=package in MUST_BE_EQUAL)
    first = next(iter(machines.values()))
    told = ", ".join(f"{package} {first['packages'].get(package)}" for package in ("torch", "deepspeed"))
    return or_ok(findings, CHECK, f"python {first['python']}, {told}, and {len(PACKAGES) - 2} other packages")


def _compare(what: str, versions: dict[str, str], machines: Reports, *, is_error: bool) -> list[Finding]:
    if not versions:
        return []
    usual, others = odd_ones(versions)
    say = error if is_error else warning
    return [
        say(
            CHECK,
            f"{what} is {version} on {named(nodes)}, and {usual} on the other nodes",
            f"install {what}{' ' if what == 'python' else '=='}{usual} there, or let every node use one "
            f"shared environment (`python` in the cluster file); "
            f"there it is {machines[nodes[0]]['executable']}",
            nodes,
        )
        for version, nodes in others.items()
    ]


def _lacking(package: str, nodes: list[str], machines: Reports) -> Finding:
    python = machines[nodes[0]]["executable"]
    return error(
        CHECK,
        f"{package} is not installed on {named(nodes)}, for {python}",
        f"install KineMAE there ({python} -m pip install ...), or set `python` in the cluster file to the "
        "interpreter of an environment that has it",
        nodes,
    )


def check_code(machines: Reports) -> list[Finding]:
    """Compare the installed KineMAE; jobs run the run folder's own copy, so that nothing depends on it."""
    digests = {name: machine["code"] for name, machine in machines.items() if machine["code"]}
    if not digests:
        return [ok("code", "KineMAE is installed nowhere; jobs bring their own copy in the run folder")]
    usual, others = odd_ones(digests)
    findings = [
        warning(
            "code",
            f"the KineMAE installed on {named(nodes)} is {digest}, and {usual} on the other nodes; "
            "launched jobs run the copy in the run folder, commands typed there run the other one",
            f"bring {named(nodes)} to the same commit, or uninstall it there",
            nodes,
        )
        for digest, nodes in others.items()
    ]
    return or_ok(findings, "code", f"KineMAE {usual} wherever it is installed")


def check_environment(machines: Reports) -> list[Finding]:
    """Name variables that steer torch, NCCL, Gloo, OpenMP or CUDA and differ between nodes."""
    names = sorted({name for machine in machines.values() for name in machine["environment"]})
    findings = []
    for name in names:
        values = {node: machine["environment"].get(name, "(unset)") for node, machine in machines.items()}
        usual, others = odd_ones(values)
        for value, nodes in others.items():
            findings.append(
                warning(
                    "environ",
                    f"{name} is {value} on {named(nodes)}, and {usual} on the other nodes",
                    f"set {name} under `environment` in the cluster file, or remove it from the "
                    "shell's start-up "
                    "files there",
                    nodes,
                )
            )
    told = f"{len(names)} variables that matter, equal everywhere" if names else "no variables that matter"
    return or_ok(findings, "environ", told)


def check_build_locks(machines: Reports) -> list[Finding]:
    """Locks in torch's cache of compiled extensions: whoever builds the same one waits for ever."""
    findings = []
    for name, machine in machines.items():
        for lock in machine["build_locks"]:
            age = "still be running" if lock["age_s"] < _BUILD_S else "have been killed"
            findings.append(
                warning(
                    "builds",
                    f"{lock['path']} on {name} is {lock['age_s'] / 60:.0f} minutes old: a build of a torch "
                    f"extension must {age}; a job that builds it too waits until the lock goes",
                    f"if no build runs there, remove it: rm {shlex.quote(lock['path'])}",
                    [name],
                )
            )
    return or_ok(findings, "builds", "no locks of killed builds in torch's extension cache")
