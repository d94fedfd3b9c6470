"""The Ray cluster of a sweep: started on this machine or connected to, and what fits on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from trainable.config import InputError
from tune.study import StudyConfig

# Ray reads these when it starts; what the user has set stays.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a local cluster listens on this machine only
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even where it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ending handles it, and SIGTERM
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial may take a while to end its reading processes
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def cluster(study: StudyConfig, address: str | None) -> Iterator[Slots]:
    """A Ray cluster, that of `address` or one of this machine alone, with room for a trial at least."""
    start_ray(address)
    try:
        slots = Slots(study)
        if not slots.count():
            cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
            raise InputError(
                f"resources ask for {study.resources.cpu} CPUs and {study.resources.gpu:g} GPUs a trial; the cluster "
                f"has {cpus:g} and {gpus:g} in all; lower them with --set resources.gpu=... --set resources.cpu=..."
            )
        yield slots
    finally:
        ray.shutdown()


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:  # "local": also where RAY_ADDRESS is set
        with own_sigterm():
            ray.init(address="local", include_dashboard=False, object_store_memory=200 * 2**20, **options)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        packages = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "trainable")]
        with own_sigterm():
            ray.init(address=address, runtime_env={"py_modules": packages}, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error}); ask `ray status`") from None


def ray_died() -> bool:
    """Has a process ended of the cluster that this process has started?"""
    node = ray._private.worker._global_node
    return node is not None and bool(node.dead_processes())


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does in this process: Ray's own handler would end it with exit code 1."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class Slots:
    """How many trials the cluster can run at once, asked anew every few seconds."""

    def __init__(self, study: StudyConfig) -> None:
        self.need = {"CPU": float(study.resources.cpu), "GPU": study.resources.gpu}
        self.asked, self.known = -60.0, 0

    def count(self) -> int:
        """Trials that fit at once."""
        if time.monotonic() - self.asked > 5:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.asked, self.known = time.monotonic(), sum(map(self.on_node, nodes))
        return self.known

    def on_node(self, resources: dict[str, float]) -> int:
        """Trials that fit on one node: a trial does not span two."""
        return min(int(resources.get(kind, 0) / need + 1e-9) for kind, need in self.need.items() if need)
