"""What this project changes in Ray Tune's controller, which has no setting for it: each method once, with its reason.

A method that Ray does not have any more stays unchanged; tests/test_ray_compat.py fails then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.tune.experiment import Trial

from trainable.core.logger import logger
from tune.driver.cluster import ray_compat

Method = Callable[..., Any]


@contextmanager
def changed_controller() -> Iterator[None]:
    """Run Ray Tune in this context with a controller that does what the functions below say."""
    controller = getattr(importlib.import_module("ray.tune.execution.tune_controller"), "TuneController", None)
    changes = {
        "_trial_task_failure": one_failure_per_death,
        "_maybe_reuse_cached_actor": keep_starting_processes,
        "checkpoint": only_a_last_snapshot,
        "_get_trial_checkpoints": no_trials_in_snapshots,
    }
    with ExitStack() as stack:
        stack.enter_context(deletion_in_background())
        for name, change in changes.items():
            if (plain := getattr(controller, name, None)) is not None:
                setattr(controller, name, change(plain))
                stack.callback(setattr, controller, name, plain)
        yield


@contextmanager
def deletion_in_background() -> Iterator[None]:
    """Delete checkpoints that Ray does not keep in a thread, which has ended when this context has.

    Deleting one of 357 MiB takes 0.1 s; in the driver's own thread all trials that report would wait that long.
    """
    manager: Any = importlib.import_module("ray.train._internal.checkpoint_manager")
    plain = getattr(manager, "_delete_fs_path", None)
    with ThreadPoolExecutor(1, "deletion") as thread:
        if plain is not None:
            manager._delete_fs_path = lambda **place: thread.submit(delete_folder, **place)
        try:
            yield
        finally:
            if plain is not None:
                manager._delete_fs_path = plain


def delete_folder(fs: Any, fs_path: str) -> None:
    """Delete a folder of a file system of pyarrow, which Retention may be deleting too; a failure is printed."""
    try:
        fs.delete_dir(fs_path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning(f"{fs_path} could not be deleted: {error}")


def one_failure_per_death(fail: Method) -> Method:
    """Let a process that dies when it is to take the next trial fail it once, and one that its node took along never.

    Ray has made two calls of such a process by then. After the error of the first the trial waits for its restart, and
    after that of the second Ray fails a trial that waits for good. A trial that is lost with its node, as in a
    preemption, has not failed: it goes on elsewhere, whatever resources.max_failures says. Ray itself counts so, but
    only of a node that an autoscaler has announced.
    """

    def fail_once(self: Any, trial: Trial, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.RayActorError):
            if trial.status == Trial.PENDING:
                return  # its restart is scheduled
            if host := ray_compat.lost_node(exception.actor_id):
                text = f"the loss of its node {host}, which is no failure of the trial"
                exception = ray.exceptions.RayActorError(exception.actor_id, text, preempted=True)
        fail(self, trial, exception)

    return fail_once


def keep_starting_processes(reuse: Method) -> Method:
    """Do not give a trial whose own process is being started a process that a new trial can take.

    Ray would end the process that is being started, although its slot is free: with trials shorter than the start of a
    process, slots of a new node stayed empty as long as the sweep ran. If no new trial waits, as after nodes are lost,
    the process that is being started may wait for the very slot of the free one, so that Ray's way is right.
    """

    def reuse_unless_starting(self: Any, trial: Trial) -> bool:
        started_for = self._trial_to_actor
        if trial in started_for and any(other not in started_for for other in self._pending_trials):
            return False
        return bool(reuse(self, trial))

    return reuse_unless_starting


def only_a_last_snapshot(save: Method) -> Method:
    """Write Ray's snapshot of the sweep at its end only, when Ray looks for it.

    The journal replaces it. Ray would write it whenever a trial has more checkpoints than it may keep, which takes the
    longer the more trials there were.
    """

    def save_if_last(self: Any, force: bool = False, wait: bool = False) -> None:
        if force:
            save(self, force=force, wait=wait)

    return save_if_last


def no_trials_in_snapshots(_: Method) -> Method:
    """Leave the trials out of Ray's snapshot: each would take some milliseconds."""
    return lambda self: {}
