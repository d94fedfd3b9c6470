"""Processes that train together on several nodes of a Ray cluster: an actor per node starts them there.

Which nodes these are, how their processes are reached, and a RankGroup of them; node_processes.py is what runs on each.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from queue import SimpleQueue
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.rank_group import LostNodeError, Member, RankDiedError, RankGroup, start_here
from trainable.core.ranks import Launch
from tune.driver.cluster import ray_compat
from tune.driver.cluster.connection import Slots, nodes_in_words
from tune.driver.cluster.wait_watch import LOOK_SECONDS, WaitWatch
from tune.driver.processes.network_interface import interface_of
from tune.driver.processes.node_processes import NodeStarter, RemoteProcess

START_SECONDS = 300.0  # that the processes may take to import torch and to connect
SILENT_SECONDS = 30  # after which a client that says nothing is dropped before it has shown the key


def node_need(local: int, *, cuda: bool, threads: int) -> dict[str, float]:
    """Return what the processes of one node need, by Ray's names; the arguments are those of group_on_nodes."""
    return {"CPU": float(local * threads)} | ({"GPU": float(local)} if cuda else {})


def refuse_too_few_nodes(nodes: int, need: dict[str, float]) -> None:
    """Raise InputError if fewer nodes of the connected cluster have what the processes of one need."""
    slots = Slots(need, nodes)
    if not slots.fitting():
        fitting, wanted = sum(map(bool, slots.on_nodes())), slots.need_in_words()
        with_gpus = sum(node["Resources"].get("GPU", 0) >= need.get("GPU", 0) for node in ray.nodes() if node["Alive"])
        cores = ": each process takes the CPU cores of the sweep's resources.cpu" * (with_gpus >= nodes)
        raise InputError(
            f"--nodes {nodes}: {counted(fitting, 'node')} of the cluster have {wanted}; {nodes_in_words()}; lower "
            f"--nodes or --gpus{cores}"
        )


@contextmanager
def reserved_nodes(nodes: int, need: dict[str, float]) -> Iterator[PlacementGroup]:
    """Reserve what the processes of one node need on each of several nodes, as soon as they are free; say the wait."""
    slots = Slots(need, nodes)
    group, watch = slots.reserve(), WaitWatch(slots, "training", lambda text, _: logger.info(text))
    try:
        while not group.wait(timeout_seconds=LOOK_SECONDS):
            watch.look()
        watch.end()
        yield group
    finally:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(group)


@contextmanager
def group_on_nodes(nodes: int, local: int, *, cuda: bool, threads: int) -> Iterator[RankGroup]:
    """Yield a RankGroup with `local` processes on each of several nodes of the connected cluster, once they are free.

    threads: of the CPU, for each process.

    Raises:
        RankDiedError: if a node or a process is lost while they start.
        InputError: if the processes do not start for another reason.
    """
    host = str(ray.util.get_node_ip_address())
    with reserved_nodes(nodes, node_need(local, cuda=cuda, threads=threads)) as reserved:
        start = partial(start_on_nodes, reserved=reserved, bundles=range(nodes), host=host)
        with RankGroup(nodes * local, cuda=cuda, threads=threads, start=start, local=local, host=host) as group:
            yield group


def group_of_trial(nodes: int, local: int, *, cuda: bool, threads: int) -> RankGroup:
    """Return a RankGroup of a trial: `local` processes here, and as many in each other bundle of its placement group.

    To be called in the trial's own process, which Ray has put into the first bundle; the arguments are those of
    group_on_nodes.

    Raises: as group_on_nodes.
    """
    reserved, host = get_current_placement_group(), str(ray.util.get_node_ip_address())
    assert reserved is not None

    def start(launches: Sequence[Launch], threads: int) -> list[Member]:
        own = start_here(launches[:local], threads, interface_of(host))
        try:
            return own + start_on_nodes(
                launches[local:], threads, reserved=reserved, bundles=range(1, nodes), host=host
            )
        except BaseException:
            for member in own:
                member.process.kill()
                member.process.wait()
            raise

    return RankGroup(nodes * local, cuda=cuda, threads=threads, start=start, local=local, host=host)


def other_nodes() -> list[str]:
    """Return the addresses of the nodes of this process's placement group, but for that of the first bundle."""
    node_of: dict[int, str] = ray.util.placement_group_table(get_current_placement_group())["bundles_to_node_id"]
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return [addresses.get(node, "a lost node") for bundle, node in sorted(node_of.items()) if bundle]


def start_on_nodes(
    launches: Sequence[Launch], threads: int, *, reserved: PlacementGroup, bundles: Sequence[int], host: str
) -> list[Member]:
    """Start processes in these bundles of a placement group: the first ones in the first bundle, and so on.

    host: the address of this machine, on which it waits for them; only who has the key is let in.

    Raises: as group_on_nodes.
    """
    key, local = secrets.token_bytes(32), len(launches) // len(bundles)
    actors = [actor_in(reserved, bundle) for bundle in bundles]
    node_of = {launch.rank: index // local for index, launch in enumerate(launches)}
    try:
        with socket.create_server((host, 0)) as listener:
            where = f"{host} {listener.getsockname()[1]}"
            started = [
                actor.start.remote([rank for rank, node in node_of.items() if node == own], threads, where, key.hex())
                for own, actor in enumerate(actors)
            ]
            places = answers_of(started, reserved)
            watches = [actor.watch.remote() for actor in actors]
            connections = accept_all(listener, key, len(launches), watches)
    except (ray.exceptions.RayError, RankDiedError, OSError, EOFError) as error:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        raise reason_of(error, len(bundles)) from None
    members = []
    for rank, node in node_of.items():
        process = RemoteProcess(actors[node], watches[node], rank)
        members.append(Member(rank, process, connections[rank], f" on {places[node]}", process.is_lost))
    return members


def actor_in(reserved: PlacementGroup, bundle: int) -> Any:
    """Return a NodeStarter with all that a bundle of a placement group has."""
    need = reserved.bundle_specs[bundle]
    options: dict[str, Any] = {"num_cpus": need.get("CPU", 0), "num_gpus": need.get("GPU", 0), "max_restarts": 0}
    place = PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=bundle)
    return ray.remote(**options, scheduling_strategy=place)(NodeStarter).remote()


def answers_of(started: Sequence[Any], reserved: PlacementGroup) -> list[str]:
    """Return what the actors in a placement group answer.

    Raises:
        LostNodeError: if a node of the group is lost, so that an actor cannot be started.
        ray.exceptions.RayError: if an actor fails, or has not answered after START_SECONDS.
    """
    end, waiting = time.monotonic() + START_SECONDS, list(started)
    while waiting and time.monotonic() < end:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1)
        if waiting and not reserved.wait(1):  # else it has all its nodes
            raise LostNodeError("the loss of a node while processes start there")
    return list(ray.get(list(started), timeout=0.1))


def reason_of(error: Exception, nodes: int) -> Exception:
    """Return why the processes on N nodes have not started: a RankDiedError if trying again may help. nodes: N."""
    if isinstance(error, RankDiedError):
        return error
    if isinstance(cause := getattr(error, "cause", None), InputError):
        return cause
    text = f"the processes on {counted(nodes, 'node')} have not started: {error}"
    if not isinstance(error, ray.exceptions.RayActorError):
        return InputError(text)
    lost = ray_compat.lost_node(error.actor_id)
    return LostNodeError(f"the loss of node {lost} while processes start there") if lost else RankDiedError(text)


def accept_all(listener: socket.socket, key: bytes, count: int, watches: list[Any]) -> dict[int, Connection]:
    """Return the connections of this many processes, by rank, as they come.

    Port scanners and health checks may connect too: each client has a separate thread, so that none delays the
    processes, whatever it sends.

    Args:
        key: that the processes have.
        watches: of the nodes; one that returns means that a process has ended.

    Raises:
        RankDiedError: if one ends before.
        OSError: after START_SECONDS.
    """
    found, end = dict[int, Connection](), time.monotonic() + START_SECONDS
    arrived: SimpleQueue[tuple[int, Connection]] = SimpleQueue()
    listener.settimeout(0.1)
    while len(found) < count:
        if ended := ray.wait(watches, timeout=0)[0]:
            ray.get(ended)  # which raises if the node was lost
            raise RankDiedError("a process that was to train with others has died as it started; see Ray's logs")
        if time.monotonic() > end:
            raise OSError(f"{len(found)} of {count} have connected within {START_SECONDS:g} s")
        try:
            client, _ = listener.accept()
            threading.Thread(target=let_in, args=(client, key, arrived), daemon=True).start()
        except TimeoutError:
            pass
        except (OSError, RuntimeError):  # of one client, or too many of them for the limits of files and threads
            time.sleep(0.1)
        while not arrived.empty():
            rank, connection = arrived.get()
            found[rank] = connection
    return found


def let_in(client: socket.socket, key: bytes, arrived: SimpleQueue[tuple[int, Connection]]) -> None:
    """Put the connection of a process that has the key into a queue, with the rank that it tells; drop other clients.

    Nothing is unpickled before the client has shown that it has the key.
    """
    connection = Connection(client.detach())
    try:
        limit_silence(connection, SILENT_SECONDS)
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        rank = connection.recv()
        limit_silence(connection, 0)
    except Exception as error:  # whatever a stranger sends
        connection.close()
        logger.debug(f"a client that is no process of this training was dropped: {error!r}")
    else:
        arrived.put((rank, connection))


def limit_silence(connection: Connection, seconds: int) -> None:
    """Have each wait for the other end of a connection fail after this time; 0 for no limit."""
    client = socket.socket(fileno=connection.fileno())
    try:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            client.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    finally:
        client.detach()  # the connection closes it
