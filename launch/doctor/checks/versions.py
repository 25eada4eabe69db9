"""Check that all nodes have the same interpreter and packages, and enough cores, memory and limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinemae.launch.doctor.results import CheckResult, count, error, join_names, odd_ones, or_ok, warning

# The dependencies of KineMAE and of its extra `train` (pyproject.toml).
PACKAGES = (
    *("torch", "torchvision", "deepspeed", "webdataset", "braceexpand", "omegaconf", "tensorboard"),
    *("av", "pyarrow", "fsspec", "opencv-python-headless", "safetensors", "scipy", "pillow", "jinja2"),
    *("tqdm", "numpy", "pyyaml", "scikit-learn", "torchmetrics"),
)
# Packages whose versions change results or protocols.
MUST_BE_EQUAL = ("torch", "deepspeed")
GIB = 1 << 30
LEAST_MEMORY = 2 * GIB  # of a process of the smallest model and its data worker
LEAST_FILES = 4096

Reports = Mapping[str, Mapping[str, Any]]


def check_versions(machines: Reports) -> list[CheckResult]:
    """Compare interpreters and packages; `machines` holds the replies of `probe.machine`."""
    pythons = {name: str(machine["python"]) for name, machine in machines.items()}
    results = _compare("python", pythons, machines, is_error=True)
    for package in PACKAGES:
        versions = {name: machine["packages"].get(package) for name, machine in machines.items()}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            python = machines[missing[0]]["executable"]
            text = f"{package} is not installed on {join_names(missing)} for {python}"
            fix = f"install KineMAE there ({python} -m pip install ...), or set `python` in the cluster file"
            results.append(error("versions", text, fix, missing))
        present = {name: str(version) for name, version in versions.items() if version is not None}
        results += _compare(package, present, machines, is_error=package in MUST_BE_EQUAL)
    first = next(iter(machines.values()))
    torch, deepspeed = first["packages"].get("torch"), first["packages"].get("deepspeed")
    text = f"python {first['python']}, torch {torch}, deepspeed {deepspeed}"
    return or_ok(results, "versions", f"{text}, and {len(PACKAGES) - 2} other packages")


def _compare(name: str, versions: dict[str, str], machines: Reports, *, is_error: bool) -> list[CheckResult]:
    if not versions:
        return []
    usual, others = odd_ones(versions)
    result = error if is_error else warning
    return [
        result(
            "versions",
            f"{name} is {version} on {join_names(nodes)}, and {usual} on the other nodes",
            f"install {name} {usual} for {machines[nodes[0]]['executable']} there, or set `python` in the "
            "cluster file to a shared environment",
            nodes,
        )
        for version, nodes in others.items()
    ]


def check_machines(machines: Reports, processes: Mapping[str, int], has_gpus: bool) -> list[CheckResult]:
    """Compare cores, memory and limits of each node with the needs of its processes."""
    results = []
    for name, machine in machines.items():
        number = count(processes[name], "process")
        problems = {
            f"has {count(machine['cores'], 'core')} for {number}": (
                machine["cores"] < processes[name],
                "ask the scheduler for more cores, or start fewer processes",
            ),
            f"has {machine['memory_bytes'] / GIB:.1f} GiB of free memory for {number}": (
                machine["memory_bytes"] < processes[name] * LEAST_MEMORY,
                "ask for more memory, or lower the number of data workers",
            ),
            f"allows {machine['open_files']} open files per process (ulimit -Hn), fewer than {LEAST_FILES}": (
                (machine["open_files"] or LEAST_FILES) < LEAST_FILES,
                "raise `nofile` in /etc/security/limits.conf, or LimitNOFILE of sshd or slurmd",
            ),
            f"allows {(machine['locked_bytes'] or 0) >> 10} KiB of locked memory (ulimit -l)": (
                has_gpus and (machine["locked_bytes"] or GIB) < GIB,
                "set `memlock` to unlimited in /etc/security/limits.conf or LimitMEMLOCK of slurmd",
            ),
            f"has {machine['shared_memory_bytes'] >> 20} MiB in /dev/shm, which NCCL uses": (
                has_gpus and machine["shared_memory_bytes"] < GIB,
                "mount a larger /dev/shm, such as --shm-size of a container",
            ),
        }
        for text, (is_problem, fix) in problems.items():
            if is_problem:
                results.append(warning("machine", f"{name} {text}", fix, [name]))
    least = min(machine["memory_bytes"] for machine in machines.values()) / GIB
    cores = min(machine["cores"] for machine in machines.values())
    return or_ok(results, "machine", f"at least {cores} cores and {least:.0f} GiB of free memory per node")


def check_paths(machines: Reports, paths: Sequence[str]) -> list[CheckResult]:
    """Check that every node has the job's folders."""
    results = []
    for path in paths:
        nodes = [name for name, machine in machines.items() if path in machine["missing"]]
        if nodes:
            text = f"there is no {path} on {join_names(nodes)}"
            results.append(error("folder", text, "launch the job from a folder that all nodes share", nodes))
    return results
