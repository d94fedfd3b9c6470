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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import ray.tune  # completely imported before a thread starts Ray while other modules are imported

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.options import to_dict
from trainable.core.parallel import cores
from tune.driver import ray_compat
from tune.driver.home import short_private_dir
from tune.planning.recipe_costs import largest_recipe
from tune.spec.sections import Resources
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import SweepConfig, conflicts

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
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the journal replaces Ray's snapshots; some are still written
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
        packages = [str(Path(__file__).parents[2] / name) for name in ("tune", "trainable")]
        ray.init(address=address, runtime_env={"py_modules": packages}, **options)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address {address}: Ray's authentication failed: {error}\n{TOKEN_ADVICE}") from None
    except (OSError, ValueError, RuntimeError) as error:
        if answers:  # Ray's own error does not say that the token was refused
            raise InputError(
                f"--address {address}: a server answers there, but Ray cannot connect to it ({error}); see the lines "
                f"above and `ray status` there. If they name an invalid token: {TOKEN_ADVICE}"
            ) from None
        raise InputError(f"--address {address}: no Ray cluster answers there ({error}); ask `ray status`") from None


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


def resolve_gpu(config: SweepConfig) -> SweepConfig:
    """Return the config with a number for `resources.gpu`, and print it if that was auto or not given.

    A number stays. If it is not given, it is 1 if the cluster has a GPU and train.device is not cpu, else 0. Auto is 0
    if the cluster has no GPU, else 1 / N: N trials share a GPU, see measure_auto.

    Raises:
        InputError: if no trial with a whole GPU fits on the cluster, or torch sees no GPU where auto is measured.
        ConfigErrors: if the config does not fit the number.
        RuntimeError: from Ray, if a trial fails to run for another reason than memory.
    """
    gpu, count = config.resources.gpu, ray.cluster_resources().get("GPU", 0)
    has = f"the cluster has {count:g} GPU{'s' * (count != 1)}" if count else "the cluster has no GPU"
    if gpu == 0 and count and config.fixed("device") != "cpu":
        logger.info(f"resources.gpu is 0: trials train on the CPU; {has}, see --set resources.gpu=1")
    if gpu not in ("auto", None):
        return config
    gpus: float = 0
    if gpu is None:
        gpus = default_gpu(config)
        has = "train.device is cpu" if config.fixed("device") == "cpu" else has
    elif count:
        gpus, has = measure_auto(config)
    logger.info(f"resources.gpu: {'not given, so it' if gpu is None else 'auto'} is {gpus:g} ({has})")
    config = config.with_gpu(gpus)
    if problems := list(conflicts(config)):
        raise ConfigErrors(*problems)
    return config


def default_gpu(config: SweepConfig) -> float:
    """Return `resources.gpu` if it is not given: 1 if the connected cluster has a GPU and trials may use it, else 0."""
    return 0 if config.fixed("device") == "cpu" else min(ray.cluster_resources().get("GPU", 0), 1)


def measure_auto(config: SweepConfig) -> tuple[float, str]:
    """Measure how many trials are to share a GPU, see best_count: on one GPU of the cluster, as soon as one is free.

    The recipe is the one of the space that needs most memory.

    Returns:
        The share of a GPU per trial, and the rates in words.

    Raises: as resolve_gpu.
    """
    from tune.driver.gpu_sharing import best_count, measure_sharing

    cpu = config.resources.cpu
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    Slots(config.with_gpu(1).resources)
    logger.info("resources.gpu is auto: measuring how many trials are to share a GPU, as soon as one is free")
    max_processes = min(int(node.get("CPU", 0) / node["GPU"]) // cpu for node in nodes)
    recipe = {**to_dict(largest_recipe(config)), "device": "cuda"}
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": cpu, "max_retries": 0}
    try:
        rates = ray.get(ray.remote(**options)(measure_sharing).remote(recipe, max_processes))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    reason = ", ".join(f"{count}: {rate:.1f} patches/s" for count, rate in rates.items()) or "none fits"
    return 1 / best_count(rates), reason


class Slots:
    """Counts how many trials the connected cluster can run at once, if it runs nothing else.

    Args:
        resources: of one trial; gpu is a number.

    Raises:
        InputError: if not even one trial fits.
    """

    def __init__(self, resources: Resources) -> None:
        cpu, gpu = resources.cpu, resources.gpu_share
        self.need = {"CPU": float(cpu), "GPU": gpu}
        self.checked_at, self.capacity = -60.0, 0
        if not self.count():
            raise InputError(
                f"resources ask for {cpu} CPUs and {gpu:g} GPUs per trial, on one node; {nodes_in_words()}; lower them "
                "with --set resources.gpu=... --set resources.cpu=..."
            )

    def count(self) -> int:
        """Return how many trials fit at once; counted again after 5 s, since nodes come and go."""
        if time.monotonic() - self.checked_at > 5:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.checked_at, self.capacity = time.monotonic(), sum(map(self.on_node, nodes))
        return self.capacity

    def on_node(self, resources: dict[str, float]) -> int:
        """Return how many trials fit on one node: a trial does not span two."""
        return min(slots_for(resources.get(kind, 0), need) for kind, need in self.need.items() if need)


def nodes_in_words() -> str:
    """Return what the nodes of the connected cluster offer to trials, those that offer the same together."""
    offers = Counter(
        tuple(node["Resources"].get(kind, 0) for kind in ("CPU", "GPU")) for node in ray.nodes() if node["Alive"]
    )
    texts = [f"{counted(count, 'node')} of {cpus:g} CPUs and {gpus:g} GPUs" for (cpus, gpus), count in offers.items()]
    return f"the cluster has {', '.join(texts)}"


def slots_for(have: float, need: float) -> int:
    """Return how many times `need` fits into `have`; a need below 1, a share of a GPU, never spans two GPUs."""
    return int(have) * int(1 / need + 1e-9) if need < 1 else int(have / need + 1e-9)
