"""Nodes that do not answer: what the last words of ssh, srun or a hung question mean."""

from launch.checks.findings import Finding, error
from launch.checks.nodes import Nodes

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
    (
        "Connection timed out",
        "look whether the machine is up and a firewall lets ssh through (ping, nc -z {name} 22)",
    ),
    ("timed out", "look whether the machine is up and a firewall lets ssh through (ping, nc -z {name} 22)"),
    (
        "No such file or directory",
        "set `python` in the cluster file to an interpreter that is there on every node",
    ),
    ("not found", "set `python` in the cluster file to an interpreter that is there on every node"),
    ("Invalid account", "correct `account` in the cluster file (sacctmgr show assoc user=$USER)"),
    ("invalid partition", "correct `partition` in the cluster file (sinfo -s)"),
    (
        "no answer within",
        "look whether it is up (ping); on Slurm, whether the queue is full (squeue --start)",
    ),
    (
        "Unable to allocate resources",
        "wait for the queue, ask for fewer nodes, or correct the cluster file (sinfo)",
    ),
)
_OF_QUESTIONS = {
    "python": "KineMAE needs Python 3.11 or newer there: set `python` in the cluster file to "
    "such an interpreter",
    "facts": "nvidia-smi or a file system hangs there (dmesg, ps aux | grep ' D '): leave the node out",
    "group": "torch hangs there: import it by hand, with the same environment",
    "write": "a network file system hangs there (mount, df): mount it anew or leave the node out",
    "look": "a network file system hangs there (mount, df): mount it anew or leave the node out",
    "lock": "the lock service of that file system does not answer (rpcinfo, mount options)",
    "read_shards": "a network file system hangs there (mount, df): mount it anew or leave the node out",
}


def silences(nodes: Nodes) -> list[Finding]:
    """An error for every node that fell silent or could not answer, with what its last words mean."""
    findings = []
    for node, (question, reason) in sorted(nodes.lost.items()):
        name = nodes.names[node]
        when = (
            "cannot be asked"
            if question in ("start", "python")
            else f"fell silent at the question {question!r}"
        )
        said = f"its python is {reason}" if question == "python" else reason
        findings.append(error(CHECK, f"{name} {when}: {said}", mend_of(name, question, reason), [name]))
    for node, question, reason in nodes.failures:
        name = nodes.names[node]
        text = f"{name} could not answer the question {question!r}: {reason}"
        findings.append(error(CHECK, text, mend_of(name, question, reason), [name]))
    return findings


def mend_of(name: str, question: str, reason: str) -> str:
    """What to do about a node's last words."""
    for words, mend in _MENDS if question == "start" else ():
        if words in reason:
            return mend.format(name=name)
    start = "start the probe by hand with the command that --dry-run prints, and mend what it says"
    return _OF_QUESTIONS.get(question, start)
