"""The Ray cluster of a sweep: started on this machine or connected to, and what fits on it."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import optuna
import ray.tune  # all of it, before others are imported beside the thread that starts Ray

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from tune.spec.space import Problems
from tune.spec.sweep_config import SweepConfig, conflicts

SAMPLED_RECIPES = 200  # recipes, to find a large one
# Ray reads these when it starts; what the user has set stays.
RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even where it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ending handles it, and SIGTERM
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial may take a while to end
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # else one process starts after the other; the searcher asks for what fits
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Ray's snapshots by time: the journal stands for them; some are forced still
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process a core, which a trial does not use
}

# Of a local cluster, which Ray itself starts with token authentication: a token that no file holds keeps other users of
# this machine out. One per process, since Ray keeps the first that it reads.
LOCAL_TOKEN = secrets.token_hex(32)
TOKEN_ADVICE = (
    "this cluster requires its own token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token or "
    "RAY_AUTH_TOKEN_PATH to a copy of ~/.ray/auth_token of its head node (one in HOME here may be another cluster's)"
)


class Cluster:
    """A Ray cluster, as a context: that of an address, or one of this machine alone.

    It starts in a thread, since that takes seconds in which the caller can import torch; wait() returns when it can be
    used. The context may be entered again inside: the outermost end is the end.

    Raises:
        InputError: by wait(), where no cluster answers at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self.started, self.ended = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.depth = 0

    def __enter__(self) -> Self:
        self.depth += 1
        if self.depth == 1:
            for name, value in RAY_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            if self.address is None and "RAY_AUTH_MODE" not in os.environ:
                os.environ["RAY_AUTH_TOKEN"] = LOCAL_TOKEN
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
        """Until it can be used."""
        self.started.wait()
        if self.error is not None:
            raise self.error

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.started.wait()
            end_ray()
            self.ended.set()
            if os.environ.get("RAY_AUTH_TOKEN") == LOCAL_TOKEN:
                for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):  # Ray sets the latter
                    os.environ.pop(name, None)


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine; not in the main thread, where Ray would handle SIGTERM."""
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:  # "local": also where RAY_ADDRESS is set
        ray.init(address="local", include_dashboard=False, object_store_memory=200 * 2**20, **options)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    answers = False
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
            answers = True
        packages = [str(Path(__file__).parents[2] / name) for name in ("tune", "trainable")]
        ray.init(address=address, runtime_env={"py_modules": packages}, **options)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address {address}: Ray's authentication failed: {error}\n{TOKEN_ADVICE}") from None
    except (OSError, ValueError, RuntimeError) as error:
        if answers:  # Ray's own error does not say that its token was refused
            raise InputError(
                f"--address {address}: a server answers there, but Ray cannot connect to it ({error}); see the lines "
                f"above and `ray status` there. If they name an invalid token: {TOKEN_ADVICE}"
            ) from None
        raise InputError(f"--address {address}: no Ray cluster answers there ({error}); ask `ray status`") from None


def end_ray() -> None:
    """Leave the cluster, or end the one that this process has started."""
    node = ray._private.worker._global_node
    if node is not None:
        node.kill_monitor(check_alive=False)  # it does not end when it is asked to, for which Ray waits a second
    ray.shutdown()


def ray_died() -> bool:
    """Has a process ended of the cluster that this process has started?"""
    node = ray._private.worker._global_node
    return node is not None and bool(node.dead_processes())


def resolve_auto_gpu(config: SweepConfig, say: Callable[[str], None]) -> SweepConfig:
    """The study with a number in the place of `resources.gpu: auto`: as many trials share a GPU as train fastest.

    Measured on one GPU of the cluster for the recipe of the space that asks for most memory; 0 where it has no GPU.
    """
    resources = config.resources
    if resources.gpu == 0 and config.fixed("device") != "cpu" and (count := ray.cluster_resources().get("GPU")):
        say(f"resources.gpu is 0: trials train on the CPU; the cluster has {count:g} GPUs, see --set resources.gpu=1")
    if resources.gpu != "auto":
        return config
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    gpus: float = 0
    said = "the cluster has no GPU"
    if nodes:
        from tune.driver.gpu_sharing import best_count, measure_sharing

        Slots(config.with_gpu(1))
        say("resources.gpu is auto: measuring how many trials are to share a GPU, as soon as one is free")
        most = min(int(node.get("CPU", 0) / node["GPU"]) // resources.cpu for node in nodes)
        recipe = {**to_dict(largest_recipe(config)), "device": "cuda"}
        options: dict[str, Any] = {"num_gpus": 1, "num_cpus": resources.cpu, "max_retries": 0}
        rates = ray.get(ray.remote(**options)(measure_sharing).remote(recipe, most))
        count = best_count(rates)
        gpus = 1 / count if count > 1 else 1
        said = ", ".join(f"{count}: {rate:.1f} patches/s" for count, rate in rates.items()) or "none fits"
    say(f"resources.gpu: auto is {gpus:g} ({said})")
    config = config.with_gpu(gpus)
    if found := list(conflicts(config)):
        raise Problems(*found)
    return config


def largest_recipe(config: SweepConfig) -> TrainConfig:
    """Of some recipes drawn from the space, the one that asks for most GPU memory by a rule of thumb."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    drawn = optuna.create_study(sampler=sampler)
    configs = [config.train_config(config.space.suggest(drawn.ask())) for _ in range(SAMPLED_RECIPES)]
    return max([config.base_config(), *configs], key=estimate_memory)


def estimate_memory(config: TrainConfig) -> float:
    """What the activations of a network take, in no unit: enough to compare two recipes."""
    width = 4 if config.amp == "off" else 2
    kept = 0.4 if config.gradient_checkpointing else 1.0
    blocks = 1.2 if config.residual else 1.0
    return config.batch_size * math.prod(config.target_shape) * config.base_channels * width * kept * blocks


class Slots:
    """How many trials the cluster can run at once, asked anew every few seconds.

    Raises:
        InputError: where it has not room for one.
    """

    def __init__(self, config: SweepConfig) -> None:
        cpu, gpu = config.resources.cpu, config.resources.gpu_share
        self.need = {"CPU": float(cpu), "GPU": gpu}
        self.checked_at, self.capacity = -60.0, 0
        if not self.count():
            cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
            raise InputError(
                f"resources ask for {cpu} CPUs and {gpu:g} GPUs a trial; the cluster has {cpus:g} and {gpus:g} in all; "
                "lower them with --set resources.gpu=... --set resources.cpu=..."
            )

    def count(self) -> int:
        """Trials that fit at once."""
        if time.monotonic() - self.checked_at > 5:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.checked_at, self.capacity = time.monotonic(), sum(map(self.on_node, nodes))
        return self.capacity

    def on_node(self, resources: dict[str, float]) -> int:
        """Trials that fit on one node: a trial does not span two."""
        return min(slots_for(resources.get(kind, 0), need) for kind, need in self.need.items() if need)


def slots_for(have: float, need: float) -> int:
    """How often a need fits; shares of one are not taken from two."""
    return int(have) * int(1 / need + 1e-9) if need < 1 else int(have / need + 1e-9)
