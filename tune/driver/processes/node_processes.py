"""The processes of one node among those that train together: what starts them there, and each as its driver sees it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

from trainable.core.rank_group import start_process
from tune.driver.cluster import ray_compat
from tune.driver.processes.gpu_share import missing_gpu
from tune.driver.processes.network_interface import interface_of
from tune.driver.processes.node_trouble import NodeTroubleError


class NodeStarter:
    """A Ray actor that starts the processes of one node; they end with it."""

    def start(self, ranks: Sequence[int], threads: int, where: str, key: str) -> str:
        """Start these ranks, which connect to `where`, "HOST PORT", by a key; return the address of the node.

        Raises:
            NodeTroubleError: if torch does not see the GPUs that Ray has reserved here.
        """
        if (gpus := ray.get_gpu_ids()) and (missing := missing_gpu(len(gpus))):
            raise NodeTroubleError(missing)
        address = str(ray.util.get_node_ip_address())
        interface = interface_of(address)
        self.processes = dict[int, subprocess.Popen[bytes]]()
        for rank in ranks:
            process = start_process(f"{where} {rank}", threads, interface, stdin=subprocess.PIPE)
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as pipe:  # it has died, which `watch` sees
                pipe.write(f"{key}\n".encode())
            self.processes[rank] = process
        return address

    def watch(self) -> dict[int, int]:
        """Wait until a process has ended; return the exit codes of all that have, by rank."""
        while True:
            codes = {rank: code for rank, one in self.processes.items() if (code := one.poll()) is not None}
            if codes:
                return codes
            time.sleep(0.1)


class RemoteProcess:
    """One of the processes of an actor, as RankGroup uses it: with methods of a Popen."""

    def __init__(self, actor: Any, watch: Any, rank: int) -> None:
        self.actor, self.watch, self.rank, self.killed = actor, watch, rank, False

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs, or its end is not known.

        One that is lost with its node was killed. Of several that end on a node it is known of the first ones.
        """
        killed = -int(signal.SIGKILL)
        if not ray.wait([self.watch], timeout=0)[0]:
            return None
        try:
            codes: dict[int, int] = ray.get(self.watch)
        except ray.exceptions.RayError:
            return killed
        return codes.get(self.rank, killed if self.killed else None)

    def kill(self) -> None:
        """Kill the actor, and with it all processes of the node: they train together, and end together."""
        self.killed = True
        with suppress(ray.exceptions.RayError):
            ray.kill(self.actor, no_restart=True)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: if that is not known after `timeout` seconds.
        """
        ray.wait([self.watch], timeout=timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(f"process {self.rank}", timeout or 0)
        return code

    def is_lost(self) -> bool:
        """Return whether the node is lost."""
        return bool(ray_compat.lost_node(self.actor._actor_id.hex()))
