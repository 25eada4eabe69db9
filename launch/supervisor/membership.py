"""Nodes of a run: their store and their rendezvous, by torch.distributed.elastic.

The rendezvous counts rounds: in each, at least `min_nodes` and at most `max_nodes` of the agents take part.
Other agents wait as spare nodes. A run on one node needs neither a port nor torch.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

from kinemae.launch.supervisor.policy import ARRIVE_S, PolicyConfig

_KEEP_ALIVES = 3  # missing ones after which the rendezvous removes a node
_RETRY_S = 1.0
_LAST_CALL_S = 5  # wait for further nodes of a restart, which all begin it at once


class StoreLost(RuntimeError):
    """The store of the run does not respond: its node or the network to it is down."""


class TooFewNodes(Exception):
    """Fewer nodes than the run needs have joined in time."""


class Heartbeat:
    """A counter of another agent, which changes while that agent is alive. Hosts compare no clocks."""

    def __init__(self, value: str | None = None, *, changed_s: float | None = None):
        self._value = value
        self.changed_s = time.monotonic() if changed_s is None else changed_s

    def see(self, value: str | None) -> None:
        """Take a new reading of the counter."""
        if value != self._value:
            self._value, self.changed_s = value, time.monotonic()

    def is_silent(self, limit_s: float) -> bool:
        """Check whether the counter has not changed for a time."""
        return time.monotonic() - self.changed_s > limit_s


class MemoryStore:
    """The store of a run on one node: texts by key. No call waits for a key."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def set(self, key: str, text: str) -> None:
        """Set a key."""
        self._texts[key] = text

    def read(self, key: str) -> str | None:
        """The text of a key; None if it is not set."""
        return self._texts.get(key)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0, and return its value."""
        value = int(self._texts.get(key, "0")) + amount
        self._texts[key] = str(value)
        return value


class SharedStore:
    """A store of torch.distributed whose calls take a limited time, also if the network is down.

    A call runs in a thread: a request to a host that no longer responds waits for many minutes. `get` and
    `compare_set` are for `C10dRendezvousBackend`.
    """

    def __init__(self, store: Any, threads: ThreadPoolExecutor, limit_s: float):
        self._store, self._threads, self._limit_s = store, threads, limit_s

    def within(self, store: Any) -> "SharedStore":
        """The same connection with another prefix."""
        return SharedStore(store, self._threads, self._limit_s)

    def set(self, key: str, text: str) -> None:
        self._call("set", key, text)

    def read(self, key: str) -> str | None:
        return self._call("get", key).decode() if self._call("check", [key]) else None

    def add(self, key: str, amount: int) -> int:
        return int(self._call("add", key, amount))

    def get(self, key: str) -> bytes:
        return bytes(self._call("get", key))

    def compare_set(self, key: str, expected: str, text: str) -> bytes:
        return bytes(self._call("compare_set", key, expected, text))

    def _call(self, name: str, *arguments: Any) -> Any:
        call = self._threads.submit(getattr(self._store, name), *arguments)
        try:
            return call.result(self._limit_s)
        except (RuntimeError, TimeoutError) as error:
            reason = str(error).partition("\n")[0] or f"no response for {self._limit_s:g} s"
            raise StoreLost(f"the store of the run is lost ({reason})") from error


Store = MemoryStore | SharedStore


class Round(NamedTuple):
    """One round of the rendezvous: its own store, the number of this node, and that of all nodes."""

    store: Store
    node: int
    nodes: int


class SingleNode:
    """A run on one node. `store` is that of all rounds."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def join(self) -> Round:
        """Wait for the next round and take part. Raises `TooFewNodes` after a time, or `StoreLost`."""
        return Round(MemoryStore(), 0, 1)

    def leave(self) -> None:
        """Take no part in further rounds; the store stays."""


class ElasticNodes:
    """A run on several nodes, by the options of the agent. Raises `StoreLost` if the store is not reached."""

    def __init__(self, given: argparse.Namespace, policy: PolicyConfig):
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the processes have their own store
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no stacks of C++ after a lost connection
        import torch.distributed as dist
        from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

        dynamic_rendezvous.logger.setLevel(logging.ERROR)
        threads, timeout_s = ThreadPoolExecutor(1), policy.heartbeat_timeout_s
        run_id = given.run_id
        host, _, port = given.rendezvous.rpartition(":")
        limit = timedelta(seconds=timeout_s)
        options = {"is_master": given.serves, "wait_for_workers": False, "timeout": limit}
        try:  # in a thread: signals arrive meanwhile
            store = threads.submit(dist.TCPStore, host, int(port), **options).result()
        except RuntimeError as error:
            action, reason = "open" if given.serves else "reach", str(error).partition("\n")[0]
            place = f"the store of the run at {given.rendezvous}"
            raise StoreLost(f"cannot {action} {place} ({reason})") from error
        tcp = dist.PrefixStore(f"kinemae/{run_id}", store)
        self.store = SharedStore(tcp, threads, timeout_s)
        backend = c10d_rendezvous_backend.C10dRendezvousBackend(self.store, run_id)  # type: ignore[arg-type]
        join_s = policy.host_wait_s + _LAST_CALL_S + timeout_s  # lost nodes are removed first
        self._handler = dynamic_rendezvous.DynamicRendezvousHandler.from_backend(
            run_id,
            tcp,
            backend,
            given.nodes[0],
            given.nodes[1],
            local_addr=f"{given.node:06d}",  # nodes are numbered in the order of these texts
            timeout=dynamic_rendezvous.RendezvousTimeout(
                join=timedelta(seconds=join_s),
                last_call=timedelta(seconds=_LAST_CALL_S),
                heartbeat=limit,
            ),
            keep_alive_interval=max(1, int(timeout_s / _KEEP_ALIVES)),
            keep_alive_max_attempt=_KEEP_ALIVES,
        )

    def join(self) -> Round:
        from torch.distributed.elastic.rendezvous import api

        try:
            info = self._handler.next_rendezvous()
        except api.RendezvousTimeoutError as error:
            raise TooFewNodes from error
        except (api.RendezvousError, RuntimeError) as error:
            raise StoreLost(f"the rendezvous failed ({error})") from error
        return Round(self.store.within(info.store), info.rank, info.world_size)

    def leave(self) -> None:
        del self._handler  # its keep-alives end with it


Membership = SingleNode | ElasticNodes


def connect(given: argparse.Namespace, policy: PolicyConfig, is_over: Callable[[], bool]) -> Membership:
    """Reach the other nodes; the agent with the store may still start. Raises `StoreLost` if it does not."""
    until = time.monotonic() + ARRIVE_S
    while given.nodes[1] > 1:
        try:
            return ElasticNodes(given, policy)
        except StoreLost:
            if given.serves or is_over() or time.monotonic() > until:
                raise
            time.sleep(_RETRY_S)
    return SingleNode()
