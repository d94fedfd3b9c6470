"""The Ray cluster of a sweep: started on this machine or connected to, and how many trials fit on it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import ray.tune  # completely imported before a thread starts Ray while other modules are imported
from ray.util.placement_group import PlacementGroup, placement_group

import trainable
import tune
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.parallel import cores
from tune.driver.cluster import ray_compat
from tune.driver.cluster.autoscaler_compat import autoscales
from tune.driver.cluster.home import short_private_dir
from tune.spec.sections import Resources

# Bytes: of the 107 of a Unix socket's path Ray adds "/ray/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store".
LONGEST_TEMP_DIR = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
START_TIMEOUT = 120  # seconds in which the processes of a local cluster are to start
# Ray reads these when it starts; values that the user has set are kept.
RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # SweepStopper handles SIGINT and SIGTERM
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # seconds that a stopped trial may take to end
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # else processes start one by one; the searcher limits the trials
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the journal replaces Ray's snapshots, see controller_compat
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_gcs_server_port_wait_time_s": str(START_TIMEOUT),  # Ray's own 30 s are too short on a busy machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # one process per core, which trials do not use
}

# Ray starts a local cluster with token authentication. A token that is in no file keeps out other users of this
# machine. One per process, since Ray keeps the first that it reads.
LOCAL_TOKEN = secrets.token_hex(32)
TOKEN_ADVICE = (
    "this cluster requires its own token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token or "
    "RAY_AUTH_TOKEN_PATH to a copy of ~/.ray/auth_token of its head node (one in HOME here may be another cluster's)"
)


class Cluster:
    """A Ray cluster as a context: the one at an address, HOST:PORT, or for None a new one on this machine only.

    A thread connects or starts it, since that takes seconds in which the caller can import torch; `wait` returns when
    the cluster can be used. The end of the context ends a cluster that was started here, and only disconnects from one
    at an address.
    """

    def __init__(self, address: str | None = None) -> None:
        """Note the address.

        Raises:
            InputError: for an address of a Ray Client, or a temporary folder that Ray cannot use.
        """
        if address is not None and "://" in address:
            raise InputError(
                f"--address {address}: a Ray Client cannot drive a sweep; give HOST:PORT of the head node (6379 is "
                "Ray's port) on a machine of the cluster, or send the command there with `ray job submit`"
            )
        if address is None:
            shorten_temp_dir()
        self.address = address
        self.started, self.ended = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.address is None and "RAY_AUTH_MODE" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", LOCAL_TOKEN)
        threading.Thread(target=self._run, name="ray", daemon=True).start()
        return self

    def _run(self) -> None:
        try:
            start_ray(self.address)
        except BaseException as error:
            self.error = error
        self.started.set()
        self.ended.wait()  # Linux ends Ray's processes with the thread that has started them

    def wait(self) -> None:
        """Wait until the cluster can be used.

        Raises:
            InputError: if no cluster answers at the address, or it refuses this process; other errors of the start are
                raised as they are.
        """
        self.started.wait()
        if self.error is not None:
            raise self.error

    def __exit__(self, *_: object) -> None:
        self.started.wait()
        ray.shutdown()
        self.ended.set()
        if os.environ.get("RAY_AUTH_TOKEN") == LOCAL_TOKEN:
            for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):  # Ray sets the latter
                os.environ.pop(name, None)


def shorten_temp_dir() -> None:
    """Give Ray a folder below /tmp in place of a TMPDIR whose path is too long for Ray's sockets.

    Raises:
        InputError: if RAY_TMPDIR is too long; or as short_private_dir.
    """
    given = os.environ.get("RAY_TMPDIR")
    length = len(os.fsencode(given or tempfile.gettempdir()))
    if length <= LONGEST_TEMP_DIR:
        return
    if given:
        raise InputError(
            f"RAY_TMPDIR {given}: {length} bytes are too many for the sockets of Ray; expected a folder whose path has "
            f"at most {LONGEST_TEMP_DIR}, such as RAY_TMPDIR=/tmp"
        )
    os.environ["RAY_TMPDIR"] = str(short_private_dir())


def running_or_new(cluster: Cluster | None, address: str | None = None) -> AbstractContextManager[Cluster]:
    """Return a context of `cluster`, which is left as it is at the end, or if that is None a new Cluster(address)."""
    return nullcontext(cluster) if cluster is not None else Cluster(address)


def start_ray(address: str | None) -> None:
    """Connect to the cluster at an address, or for None start one on this machine.

    Call this in a thread other than the main one, in which Ray would handle SIGTERM.

    Raises:
        InputError: if no cluster answers at the address, or refuses this process; or this machine is too busy for one.
    """
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:  # "local": also if RAY_ADDRESS is set
        options |= {"num_cpus": cores(), "object_store_memory": 200 * 2**20}  # Ray itself counts all cores of a node
        start_local(options)
        return
    host, _, port = address.rpartition(":")
    answers = False
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
            answers = True
            ray_compat.refuse_wrong_token(address)
        ray.init(address=address, runtime_env={"py_modules": shipped_packages()}, **options)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address {address}: Ray's authentication failed: {error}\n{TOKEN_ADVICE}") from None
    except (OSError, ValueError, RuntimeError) as error:
        if answers:  # Ray's own error does not say that the token was refused
            raise InputError(
                f"--address {address}: a server answers there, but Ray cannot connect to it ({error}); see the lines "
                f"above and `ray status` there. If they name an invalid token: {TOKEN_ADVICE}"
            ) from None
        raise InputError(f"--address {address}: no Ray cluster answers there ({error}); ask `ray status`") from None


def shipped_packages() -> list[str]:
    """Return the folders of the packages that Ray copies to all nodes, so that they run the driver's code."""
    return [package.__path__[0] for package in (trainable, tune)]


def start_local(options: dict[str, Any]) -> None:
    """Start a cluster on this machine.

    Raises:
        InputError: if the machine is too busy for that; other errors of the start are raised as they are.
    """
    try:
        with ray_compat.fewer_processes(), ray_compat.patient_start(START_TIMEOUT):
            ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray has no class of its own for it
        if "timed out during startup" not in str(error):
            raise
        raise InputError(
            f"Ray's processes have not started within {START_TIMEOUT} s: {os.getloadavg()[0]:.0f} processes compete "
            f"for this machine's {cores()} cores; try again when it is less busy"
        ) from None


class Slots:
    """What a trial, or a training, reserves on the connected cluster, and how many fit there if it runs nothing else.

    need: of each on each of its nodes, by Ray's names. nodes: their number. bundles, strategy: the same for a placement
    group. autoscales: nodes are added to the cluster as they are asked for.
    """

    def __init__(self, need: Mapping[str, float], nodes: int = 1) -> None:
        self.need, self.nodes = {kind: count for kind, count in need.items() if count}, nodes
        self.bundles, self.strategy = [self.need] * nodes, "STRICT_SPREAD" if nodes > 1 else "PACK"
        self.autoscales = autoscales()
        self.checked_at, self.capacity = -60.0, 0

    @classmethod
    def of(cls, resources: Resources) -> Slots:
        """Return the slots for trials with these resources; gpu is a number.

        Raises:
            InputError: if not even one trial fits, on a cluster to which no nodes are added.
        """
        cpu, gpu = resources.cpu, resources.gpu_share
        slots = cls({"CPU": float(cpu), "GPU": gpu}, resources.nodes)
        if not slots.count():
            keys = [*["nodes"] * (resources.nodes > 1), "gpu", "cpu"]
            raise InputError(
                f"resources ask for {cpu} CPUs and {gpu:g} GPUs per trial,{resources.on_nodes or ' on one node'}; "
                f"{nodes_in_words()}; lower them with {' '.join(f'--set resources.{key}=...' for key in keys)}"
            )
        return slots

    def count(self) -> int:
        """Return how many trials are to be started at once: as many as fit, see fitting.

        At least one where nodes are added: Ray tells the autoscaler what that one waits for.
        """
        return max(self.fitting(), int(self.autoscales))

    def reserve(self) -> PlacementGroup:
        """Reserve what one takes, as soon as it is free."""
        return placement_group(self.bundles, strategy=self.strategy)

    def need_in_words(self) -> str:
        """Return what one takes on each of its nodes, as "8 CPU and 1 GPU"."""
        return " and ".join(f"{count:g} {kind}" for kind, count in self.need.items())

    def fitting(self) -> int:
        """Return how many trials fit at once; counted again after 5 s, since nodes come and go."""
        if time.monotonic() - self.checked_at > 5:
            self.checked_at = time.monotonic()
            self.capacity = groups_on_nodes(self.on_nodes(), self.nodes)
        return self.capacity

    def on_nodes(self) -> list[int]:
        """Return of each node how many trials fit on it, or of how many trials it can have its part."""
        offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [min(slots_for(offer.get(kind, 0), need) for kind, need in self.need.items()) for offer in offers]


def groups_on_nodes(places: Sequence[int], size: int) -> int:
    """Return how many groups of `size` places on different nodes there can be at once; places: of each node."""
    count = sum(places) // size
    while sum(min(count, own) for own in places) < size * count:  # a group has no two places of one node
        count -= 1
    return count


def nodes_in_words() -> str:
    """Return what the nodes of the connected cluster offer to trials, those that offer the same together."""
    offers = Counter(
        tuple(node["Resources"].get(kind, 0) for kind in ("CPU", "GPU")) for node in ray.nodes() if node["Alive"]
    )
    texts = [
        f"{counted(count, 'node')} of {cpus:g} CPUs and {gpus:g} GPUs"
        for (cpus, gpus), count in sorted(offers.items(), reverse=True)
    ]
    return f"the cluster has {', '.join(texts)}"


def slots_for(have: float, need: float) -> int:
    """Return how many times `need` fits into `have`; a need below 1, a share of a GPU, never spans two GPUs."""
    return int(have) * int(1 / need + 1e-9) if need < 1 else int(have / need + 1e-9)
