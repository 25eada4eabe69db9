"""Nodes that do not answer: what the last words of ssh, srun or a hung question mean."""

from collections.abc import Iterable

from kinemae.launch.doctor.checks.findings import Finding, error, named
from kinemae.launch.doctor.checks.nodes import Nodes

CHECK = "reach"
# What stands in the last words -> what to do. The first that fits is taken.
_MENDS = (
    ("Permission denied", "let this account log in there without a password: ssh-copy-id {name}"),
    ("Host key verification failed", "make the host known first: ssh-keyscan {name} >> ~/.ssh/known_hosts"),
    (
        "Could not resolve hostname",
        "correct the name in the cluster file, or make it known (DNS, /etc/hosts)",
    ),
    ("Connection refused", "start sshd there, or name its port: ssh: [-p, '2222'] in the cluster file"),
    ("No route to host", "look at the link and at the routes to it (ping, ip route)"),
    ("timed out", "look whether the machine is up and a firewall lets ssh through (ping, nc -z {name} 22)"),
    (
        "No such file or directory",
        "set `python` in the cluster file to an interpreter that is there on every node",
    ),
    ("not found", "set `python` in the cluster file to an interpreter that is there on every node"),
    ("Invalid account", "correct `account` in the cluster file (sacctmgr show assoc user=$USER)"),
    ("ccount", "set `account` in the cluster file (sacctmgr show assoc user=$USER)"),
    ("time limit", "set `time` in the cluster file within the partition's limit (sinfo -o '%P %l')"),
    ("invalid qos", "correct `qos` in the cluster file (sacctmgr show qos)"),
    ("Invalid qos", "correct `qos` in the cluster file (sacctmgr show qos)"),
    ("invalid partition", "correct `partition` in the cluster file (sinfo -s)"),
    (
        "no answer within",
        "look whether it is up (ping); on Slurm, whether the queue is full (squeue --start)",
    ),
    (
        "Unable to allocate resources",
        "wait for the queue, ask for fewer nodes, or correct `account`, `partition`, `qos` or `time` in the "
        "cluster file (sinfo, sacctmgr show assoc user=$USER)",
    ),
)
_OF_QUESTIONS = {
    "queue": "wait, ask for fewer nodes=N, leave a node out (extra: [--exclude=NAME]), or give a drained one "
    "back: scontrol update nodename=NAME state=resume",
    "python": "KineMAE needs Python 3.11 or newer there: set `python` in the cluster file to "
    "such an interpreter",
    "facts": "nvidia-smi or a file system hangs there (dmesg, ps aux | grep ' D '): leave the node out",
    "group": "torch hangs there: import it by hand, with the same environment",
    **dict.fromkeys(
        ("write", "look", "read_shards"),
        "a network file system hangs there (mount, df): mount it anew or leave the node out",
    ),
    "lock": "the lock service of that file system does not answer (rpcinfo, mount options)",
}


def silences(nodes: Nodes) -> list[Finding]:
    """An error for nodes that fell silent or could not answer, with what their last words mean."""
    findings = []
    for (question, reason), lost in _together(nodes.lost.items()).items():
        names = [nodes.names[node] for node in lost]
        if question == "queue":
            findings.append(error(CHECK, reason, _OF_QUESTIONS["queue"], names))
            continue
        when = "cannot be asked" if question in ("start", "python") else f"fell silent at {question!r}"
        said = f"python there is {reason}" if question == "python" else reason
        findings.append(
            error(CHECK, f"{named(names)} {when}: {said}", mend_of(names[0], question, reason), names)
        )
    failures = ((node, (question, reason)) for node, question, reason in nodes.failures)
    for (question, reason), failed in _together(failures).items():
        names = [nodes.names[node] for node in failed]
        text = f"{named(names)} could not answer {question!r}: {reason}"
        findings.append(error(CHECK, text, mend_of(names[0], question, reason), names))
    return findings


def _together(of_nodes: Iterable[tuple[int, tuple[str, str]]]) -> dict[tuple[str, str], list[int]]:
    """Nodes by what became of them: a cluster behind one wrong option is one finding."""
    together: dict[tuple[str, str], list[int]] = {}
    for node, fate in sorted(of_nodes):
        together.setdefault(fate, []).append(node)
    return together


def mend_of(name: str, question: str, reason: str) -> str:
    """What to do about a node's last words."""
    for words, mend in _MENDS if question == "start" else ():
        if words in reason:
            return mend.format(name=name)
    start = "start the probe by hand as --dry-run prints it, and mend what it says"
    return _OF_QUESTIONS.get(question, start)
