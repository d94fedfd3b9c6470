"""What this project uses of Ray that is not in Ray's documented interface: each name once, with a fallback.

tests/test_ray_compat.py runs a small sweep of plain Ray Tune and asserts all of it, so that an upgrade of Ray that
changes one of them fails there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import ray
from ray.tune.experiment import Trial

ANSWER_SECONDS = 1.0  # in which a process that is there accepts a connection
ATTEMPTS, PAUSE_SECONDS = 3, 1.0  # before a process counts as gone that does not answer
NOT_PLACED = ("PENDING", "RESCHEDULING")  # states of a placement group, the latter after the loss of a node
JOB_DIGITS = 8  # hex digits of the id of a job, with which those of its placement groups end


def _local_node() -> Any:
    """Return Ray's record of the cluster that this process has started; None if there is none."""
    worker = getattr(getattr(ray, "_private", None), "worker", None)
    return getattr(worker, "_global_node", None)


@contextlib.contextmanager
def fewer_processes() -> Iterator[None]:
    """Have ray.init start no monitor of an autoscaler, no monitor of logs and no server of a dashboard, all unused.

    Each takes 1 s of CPU time or more to start, ray.init waits for the third, and ray.shutdown 1 s for the first. They
    are started if Ray does not have these names any more.
    """
    private = getattr(ray, "_private", None)
    module: Any = getattr(private, "parameter", None)
    node: Any = getattr(getattr(private, "node", None), "Node", None)
    params, start_api_server = getattr(module, "RayParams", None), getattr(node, "start_api_server", None)
    options = {"no_monitor": True, "include_log_monitor": False}
    if not (params and start_api_server and options.keys() <= signature(params).parameters.keys()):
        yield
        return
    module.RayParams = partial(params, **options)
    node.start_api_server = lambda self, **_: setattr(self, "_webui_url", "")
    try:
        yield
    finally:
        module.RayParams, node.start_api_server = params, start_api_server


@contextlib.contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Have ray.init wait this long for its processes: Ray's own 30 s are too short on a busy machine.

    Ray asks for the node that it starts until there is one, and gives up after a failed answer past the 30 s. It keeps
    to them if it does not have this name any more.
    """
    services: Any = getattr(getattr(ray, "_private", None), "services", None)
    get_node = getattr(services, "get_node", None)
    if get_node is None:
        yield
        return
    end = time.monotonic() + seconds

    def wait_for_node(*args: Any, **options: Any) -> Any:
        while True:
            try:
                return get_node(*args, **options)
            except RuntimeError:  # there is none yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


KNOCK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"


def refuse_wrong_token(address: str) -> None:
    """Ask a cluster whether it accepts the token of this process, or that there is none; ray.init tries for minutes.

    Nothing is asked if Ray does not have these names any more.

    Raises:
        ray.exceptions.AuthenticationError: it does not, or this process is to have a token and has none.
    """
    setup = "ray._private.authentication.authentication_token_setup"
    names = [("ray._raylet", "GcsClient"), (setup, "ensure_token_if_auth_enabled")]
    names.append((setup, "maybe_enable_token_auth_if_token_available"))
    try:
        client, ensure_token, find_token = (getattr(importlib.import_module(module), name) for module, name in names)
    except (ImportError, AttributeError):
        return
    find_token(warn_if_disabled=False)  # these two as ray.init does it
    ensure_token(create_token_if_missing=False)  # without a token the client would abort this process
    try:
        client(address=address)
    except ray.exceptions.AuthenticationError:
        raise
    except ray.exceptions.RayError:  # of which ray.init tells
        return


@contextlib.contextmanager
def stranger(address: str | None) -> Iterator[Callable[[], bool]]:
    """Let a process without a token knock at a cluster; yield a function that waits, and tells whether it was let in.

    The answer is False for None, which is a cluster of this process, and if Ray does not have these names any more.
    """
    if address is None:
        yield lambda: False
        return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    with subprocess.Popen(
        [sys.executable, "-c", KNOCK, address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment | {"RAY_AUTH_MODE": "disabled"},
    ) as process:  # fmt: skip
        try:
            yield lambda: process.wait() == 0
        finally:
            process.kill()


def started_here() -> bool:
    """Return whether this process has started its cluster, on this machine only; False if Ray does not tell."""
    is_head = getattr(_local_node(), "is_head", None)
    return is_head is not None and bool(is_head())


def cluster_died() -> bool:
    """Return whether a process of the cluster that this process has started has ended, or nothing answers at its head.

    False if this process has no cluster, or Ray does not tell.
    """
    dead_processes = getattr(_local_node(), "dead_processes", None)
    if started_here() and dead_processes is not None:
        return bool(dead_processes())
    if not ray.is_initialized():  # Ray would start a cluster to tell where it is
        return False
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return is_silent(host, int(port))


def is_silent(host: str, port: int) -> bool:
    """Return whether nothing answers at an address, several times in a row: a packet may be lost, a head be busy."""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS * bool(attempt))
        if answers(host, port):
            return False
    return True


def answers(host: str, port: int) -> bool:
    """Return whether a process at an address accepts a connection within ANSWER_SECONDS."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


_lost_nodes: set[str] = set()  # their ids; Ray takes none back


def lost_node(actor_id: str | None) -> str:
    """Return the address of the node that a process ran on, if that node is lost; "" if it answers or is not known.

    actor_id: of the process, in hex digits; None if Ray does not tell. A node is lost if Ray says so, which takes it
    half a minute, or if nothing answers at the node's port, see is_silent. That is asked once for all of its processes.
    """
    private = getattr(ray, "_private", None)
    actors = getattr(getattr(private, "state", None), "actors", None)
    known = actors(actor_id) or {} if actors is not None and actor_id is not None else {}
    number = known.get("Address", {}).get("NodeID")
    node = next((node for node in ray.nodes() if node["NodeID"] == number), None)
    if node is None:
        return ""
    if number in _lost_nodes:
        return str(node["NodeManagerAddress"])
    host, port, end = node["NodeManagerAddress"], node["NodeManagerPort"], time.monotonic() + ANSWER_SECONDS
    alive = node["Alive"]
    while alive and time.monotonic() < end:  # its processes may end a moment before it
        alive = not is_silent(host, port)
        time.sleep(0.1)
    if alive:
        return ""
    _lost_nodes.add(number)
    return str(host)


@contextlib.contextmanager
def linked_checkpoints() -> Iterator[None]:
    """In this context, in a trial's process, have a report link its checkpoint into the storage in place of copying it.

    A trial writes each checkpoint to a new file, so that a link keeps what it was. Ray copies as before if the two
    folders are not on one file system of this machine, or if it does not have these names.
    """
    module: Any = importlib.import_module("ray.train._internal.storage")
    context: Any = getattr(module, "StorageContext", None)
    persist = getattr(context, "persist_current_checkpoint", None)
    if persist is None:
        yield
        return

    def link(self: Any, checkpoint: Any) -> Any:
        names = [path.name for path in Path(checkpoint.path).iterdir()] if is_local(checkpoint.filesystem) else []
        if not (names and is_local(self.storage_filesystem)):
            return persist(self, checkpoint)
        folder, linked = Path(self.checkpoint_fs_path), list[Path]()
        try:
            self._check_validation_file()
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                os.link(Path(checkpoint.path) / name, folder / name)
                linked.append(folder / name)
        except (OSError, AttributeError):
            for path in linked:  # else Ray would write into the file that is linked
                path.unlink()
            return persist(self, checkpoint)
        return checkpoint.__class__(filesystem=self.storage_filesystem, path=self.checkpoint_fs_path)

    context.persist_current_checkpoint = link
    try:
        yield
    finally:
        context.persist_current_checkpoint = persist


@contextlib.contextmanager
def own_checkpoint_folders() -> Iterator[None]:
    """In this context, in a trial's process, write each checkpoint into a folder that no other process writes into.

    A trial goes on elsewhere if Ray gives its node up. Its process there may come back, as after a pause of the
    machine, and write the checkpoint that it was about to write: by Ray's names, as checkpoint_000003 for the fourth,
    into that of the other process. Ray's names are kept if it does not have these.
    """
    context: Any = getattr(importlib.import_module("ray.train._internal.storage"), "StorageContext", None)
    plain = getattr(context, "checkpoint_dir_name", None)
    if not isinstance(plain, property) or plain.fget is None:
        yield
        return
    get_name, own = plain.fget, secrets.token_hex(4)
    context.checkpoint_dir_name = property(lambda self: f"{get_name(self)}_{own}")
    try:
        yield
    finally:
        context.checkpoint_dir_name = plain


def is_local(filesystem: Any) -> bool:
    """Return whether a file system of pyarrow is this machine's."""
    return getattr(filesystem, "type_name", "") == "local"


def actor_of(ray_trial: Trial) -> Any:
    """Return the handle of the process that runs a trial; None if it has none, or Ray does not tell."""
    return getattr(getattr(ray_trial, "temporary_state", None), "ray_actor", None)


def allow_one_more_restart(ray_trial: Trial) -> None:
    """Let Ray restart a trial once more than resources.max_failures says."""
    ray_trial.max_failures += 1  # Ray compares it with the trial's failures when one occurs


def forbid_restarts(ray_trial: Trial) -> None:
    """Make the next failure of a trial its last."""
    ray_trial.max_failures = 0


def waiting_reservations() -> int:
    """Return how many of the placement groups of this program Ray has not placed yet; 0 if it does not tell.

    The id of a placement group ends with that of its job.
    """
    job = ray.get_runtime_context().get_job_id()
    groups = ray.util.placement_group_table()
    return sum(group.get("state") in NOT_PLACED for name, group in groups.items() if name.endswith(job))


def live_jobs() -> dict[str, dict[str, Any]]:
    """Return what Ray knows of the programs that use the cluster now, by the id of their job; {} if it does not tell.

    Of each there are Entrypoint, the command line, DriverPid and DriverIPAddress.
    """
    private = getattr(ray, "_private", None)
    jobs = getattr(getattr(private, "state", None), "jobs", None)
    return {job["JobID"]: job for job in jobs() if not job["IsDead"]} if jobs is not None else {}


def reserved_by_job() -> dict[str, Counter[str]]:
    """Return what the jobs have reserved in placement groups, by Ray's names, by the id of the job."""
    reserved: dict[str, Counter[str]] = {}
    for name, group in ray.util.placement_group_table().items():
        if group.get("state") == "CREATED":
            for bundle in group.get("bundles", {}).values():
                reserved.setdefault(name[-JOB_DIGITS:], Counter()).update(bundle)
    return reserved


def checkpoint_name(result: dict[str, Any]) -> str | None:
    """Return the name of a report's checkpoint in the folder of its trial; None for a report without a checkpoint."""
    return result.get("checkpoint_dir_name")
