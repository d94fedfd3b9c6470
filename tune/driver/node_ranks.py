"""Processes that train together on several nodes of a Ray cluster: an actor per node starts them there."""

from __future__ import annotations

import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.rank_group import Member, RankGroup, start_process
from trainable.core.ranks import Launch
from tune.driver.cluster import nodes_in_words, slots_for

START_SECONDS = 300.0  # that the processes may take to import torch and to connect
SAY_SECONDS = 30.0  # without free nodes, before this is printed


class NodeProcesses:
    """A Ray actor that starts the processes of one node; they end with it."""

    def start(self, ranks: Sequence[int], threads: int, where: str, key: str) -> str:
        """Start these ranks, which connect to `where`, "HOST PORT", by a key; return the address of the node."""
        self.processes = dict[int, subprocess.Popen[bytes]]()
        for rank in ranks:
            process = start_process(f"{where} {rank}", threads, stdin=subprocess.PIPE)
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as pipe:  # it has died, which `watch` sees
                pipe.write(f"{key}\n".encode())
            self.processes[rank] = process
        return str(ray.util.get_node_ip_address())

    def watch(self) -> dict[int, int]:
        """Wait until a process has ended; return the exit codes of all that have, by rank."""
        while True:
            codes = {rank: code for rank, one in self.processes.items() if (code := one.poll()) is not None}
            if codes:
                return codes
            time.sleep(0.1)


class NodeProcess:
    """One of the processes of an actor, with the methods of a Popen that RankGroup uses."""

    def __init__(self, actor: Any, watch: Any, rank: int) -> None:
        self.actor, self.watch, self.rank = actor, watch, rank

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs. One that is lost with its node was killed."""
        if not ray.wait([self.watch], timeout=0)[0]:
            return None
        try:
            codes: dict[int, int] = ray.get(self.watch)
        except ray.exceptions.RayError:
            return -int(signal.SIGKILL)
        return codes.get(self.rank)

    def kill(self) -> None:
        """Kill all processes of the node."""
        with suppress(ray.exceptions.RayError):
            ray.kill(self.actor, no_restart=True)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until a process of the node has ended; return this one's exit code, 0 if it is another one."""
        ray.wait([self.watch], timeout=timeout)
        return self.poll() or 0


def node_need(local: int, *, cuda: bool, threads: int) -> dict[str, float]:
    """Return what the processes of one node need, by Ray's names; the arguments are those of group_on_nodes."""
    return {"CPU": float(local * threads)} | ({"GPU": float(local)} if cuda else {})


def refuse_too_few_nodes(nodes: int, need: dict[str, float]) -> None:
    """Raise InputError if fewer nodes of the connected cluster have what the processes of one need."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(all(slots_for(offer.get(kind, 0), count) for kind, count in need.items()) for offer in offers)
    if fitting < nodes:
        wanted = " and ".join(f"{count:g} {kind}" for kind, count in need.items())
        raise InputError(
            f"--nodes {nodes}: {counted(fitting, 'node')} of the cluster have {wanted}; {nodes_in_words()}; lower "
            "--nodes or --gpus"
        )


@contextmanager
def reserved_nodes(nodes: int, need: dict[str, float]) -> Iterator[PlacementGroup]:
    """Reserve what the processes of one node need on each of several nodes, as soon as they are free."""
    group = placement_group([need] * nodes, strategy="STRICT_SPREAD")
    said = False
    try:
        while not group.wait(timeout_seconds=SAY_SECONDS):
            if not said:
                logger.info(f"waits for {counted(nodes, 'free node')}; `ray status` shows who has them")
            said = True
        yield group
    finally:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(group)


@contextmanager
def group_on_nodes(nodes: int, local: int, *, cuda: bool, threads: int) -> Iterator[RankGroup]:
    """Yield a RankGroup with `local` processes on each of several nodes of the connected cluster, once they are free.

    threads: of the CPU, for each process.

    Raises:
        InputError: if the processes do not start.
    """
    need = node_need(local, cuda=cuda, threads=threads)
    host = str(ray.util.get_node_ip_address())
    with reserved_nodes(nodes, need) as reserved:
        start = partial(start_on_nodes, reserved=reserved, nodes=nodes, need=need, host=host)
        with RankGroup(nodes * local, cuda=cuda, threads=threads, start=start, local=local, host=host) as group:
            yield group


def start_on_nodes(
    launches: Sequence[Launch], threads: int, *, reserved: PlacementGroup, nodes: int, need: dict[str, float], host: str
) -> list[Member]:
    """Start processes on reserved nodes: the first ones on the first, and so on.

    host: the address of this machine, on which it waits for them; only who has the key is let in.

    Raises:
        InputError: if they do not start.
    """
    key, local = secrets.token_bytes(32), len(launches) // nodes
    actors = list[Any]()
    try:
        with Listener((host, 0), backlog=len(launches), authkey=key) as listener:
            where = f"{host} {listener.address[1]}"
            for node in range(nodes):
                place = PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=node)
                options: dict[str, Any] = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0)}
                make = ray.remote(**options, max_restarts=0, scheduling_strategy=place)(NodeProcesses)
                actors.append(make.remote())
            parts = [[one.rank for one in launches[node * local : (node + 1) * local]] for node in range(nodes)]
            started = [
                actor.start.remote(ranks, threads, where, key.hex()) for actor, ranks in zip(actors, parts, strict=True)
            ]
            places: list[str] = ray.get(started, timeout=START_SECONDS)
            watches = [actor.watch.remote() for actor in actors]
            connections = accept_all(listener, len(launches), watches)
    except (ray.exceptions.RayError, OSError, EOFError) as error:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        raise InputError(f"the processes on {counted(nodes, 'node')} have not started: {error}") from None
    return [
        Member(rank, NodeProcess(actors[rank // local], watches[rank // local], rank), connections[rank],
               f" on {places[rank // local]}")
        for rank in range(len(launches))
    ]  # fmt: skip


def accept_all(listener: Listener, count: int, watches: list[Any]) -> dict[int, Connection]:
    """Return the connections of this many processes, by rank, as they come.

    watches: of the nodes; one that returns means that a process has ended.

    Raises:
        OSError: if one ends before, or after START_SECONDS.
    """
    found, end = dict[int, Connection](), time.monotonic() + START_SECONDS
    arrived: SimpleQueue[tuple[int, Connection]] = SimpleQueue()
    threading.Thread(target=accept, args=(listener, count, arrived), daemon=True).start()
    while len(found) < count:
        if ray.wait(watches, timeout=0)[0]:
            raise OSError("one of them has ended; see Ray's logs on its node")
        if time.monotonic() > end:
            raise OSError(f"{len(found)} of {count} have connected within {START_SECONDS:g} s")
        with suppress(Empty):
            rank, connection = arrived.get(timeout=0.5)
            found[rank] = connection
    return found


def accept(listener: Listener, count: int, arrived: SimpleQueue[tuple[int, Connection]]) -> None:
    """Put this many connections into a queue, with the rank that each tells, until the listener is closed."""
    while count:
        try:
            connection = listener.accept()
            arrived.put((connection.recv(), connection))
            count -= 1
        except (AuthenticationError, EOFError):  # somebody without the key
            continue
        except OSError:
            return
