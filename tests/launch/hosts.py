"""Several hosts on one machine: network namespaces on a bridge, each with its own address and sshd.

They share the file system, the clock and the processors; the network between them is real and can be
disconnected. Needs root, iproute2 and openssh-server.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SSHD = "/usr/sbin/sshd"
_WAIT_S = 20.0


def why_no_hosts() -> str | None:
    """Reason for which this machine cannot provide several hosts; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "ssh", "ssh-keygen", SSHD) if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine (iproute2, openssh-client, openssh-server)"
    name = f"kinemae-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass(kw_only=True)
class Host:
    """One host: a namespace with the interface `eth0`.

    Attributes:
        name: its address.
        outside: the other end of its virtual cable, on the bridge.
        sshd: the command that starts its ssh server.
    """

    name: str
    namespace: str
    outside: str
    sshd: list[str] = field(default_factory=list)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs a command on the host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def start(self) -> None:
        """Start its ssh server, also after `kill`; return when it accepts connections."""
        self.reconnect()
        subprocess.run(self.inside(*self.sshd), check=True)
        until = time.monotonic() + _WAIT_S
        while subprocess.run(
            self.inside("bash", "-c", ": < /dev/tcp/127.0.0.1/22"), capture_output=True
        ).returncode:
            assert time.monotonic() < until, f"no sshd on {self.name}"
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """Ids of all processes on the host."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(word) for word in listed.stdout.split()]

    def kill(self) -> None:
        """Simulate a power failure: SIGKILL to all processes, and no packets until `start`."""
        self.disconnect()
        while running := self.processes():
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    def disconnect(self) -> None:
        """Unplug the cable: packets are dropped without an error."""
        _ip("link", "set", self.outside, "down")

    def reconnect(self) -> None:
        """Plug the cable in."""
        _ip("link", "set", self.outside, "up")


@dataclass(kw_only=True)
class Network:
    """Hosts on a bridge, with this machine.

    Attributes:
        ssh: options for ssh, as `ssh: [...]` in a cluster file has them.
        environment: variables of processes on the hosts.
    """

    hosts: list[Host]
    ssh: list[str]
    environment: dict[str, str]

    def overrides(self, slots: int = 1) -> list[str]:
        """The overrides of `launch ssh`."""
        named = ", ".join(f"{host.name}: {slots}" for host in self.hosts)
        set_there = [f"environment.{name}={value}" for name, value in self.environment.items()]
        return [f"hosts={{{named}}}", f"ssh=[{', '.join(self.ssh)}]", *set_there]


@contextmanager
def hosts_on_this_machine(folder: Path, count: int = 2) -> Iterator[Network]:
    """Start hosts and end them on exit; `folder` holds their keys."""
    mark = f"{os.getpid() % 0xFFFF:x}"
    bridge, subnet = f"kb{mark}", f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
    hosts = [
        Host(name=f"{subnet}.{number}", namespace=f"kinemae-{mark}-{number}", outside=f"kv{mark}-{number}")
        for number in range(1, count + 1)
    ]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        ssh = _make_keys(folder, hosts)
        for host in hosts:
            _plug_in(host, bridge)
            host.sshd = [SSHD, "-f", str(_configure_sshd(folder, host))]
            host.start()
        yield Network(
            hosts=hosts, ssh=ssh, environment={"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        )
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):  # it may not have started
                host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)
            subprocess.run(["ip", "link", "delete", host.outside], capture_output=True)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _plug_in(host: Host, bridge: str) -> None:
    _ip("netns", "add", host.namespace)
    _ip("link", "add", host.outside, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("link", "set", host.outside, "master", bridge, "up")
    for words in (["address", "add", f"{host.name}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        _ip("-n", host.namespace, *words)
    _ip("-n", host.namespace, "link", "set", "lo", "up")


def _make_keys(folder: Path, hosts: list[Host]) -> list[str]:
    """Create a key for all hosts and one for the user; return the options of ssh to use only them."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text("".join(f"{host.name} {kind} {key}\n" for host in hosts))
    options = {"UserKnownHostsFile": folder / "known_hosts", "StrictHostKeyChecking": "yes"}
    settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["-F", "none", "-i", str(folder / "user_key"), *settings]


def _configure_sshd(folder: Path, host: Host) -> Path:
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it
    path = folder / f"sshd_{host.name}"
    path.write_text(
        f"ListenAddress 0.0.0.0\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\n"
        f"PidFile {folder / 'pid_of'}_{host.name}\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n"
        "PasswordAuthentication no\nMaxStartups 50\n"
    )
    return path
