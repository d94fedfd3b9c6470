"""Runs a set of trainings on all slots of a cluster, each in its own folder, so that all can go on after a kill.

A plan says which trainings are wanted; it is asked again after each that has ended. What is known of a training is in
its folder only, so that a second call, or another driver, goes on where the first one was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainable.core.locks import LOST_NODE_SECONDS, lock_folder, wait_for_exclusive_lock
from tune.driver.cluster.connection import Cluster, running_or_new
from tune.driver.measurement.trial_gpus import cluster_gpus, refuse_unknown_gpu
from tune.driver.training_set.process_pool import ProcessPool
from tune.driver.training_set.training_plan import Outcome, Plan, Training
from tune.driver.training_set.training_runner import TrainingRunner, TrainingsStopper
from tune.spec.sections import Resources
from tune.terminal.training_table import TrainingTable

__all__ = ["Outcome", "Plan", "Training", "run_trainings"]

WORKER_LOCK = ".workers"  # in the folder of the trainings: each process that trains holds a shared lock on it


def run_trainings(
    plan: Plan,
    folder: Path,
    resources: Resources,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    time_budget: float | None = None,
    contents_file: Path | None = None,
    check: Callable[[Cluster], None] = lambda cluster: None,
    resume_command: str,
) -> dict[str, Outcome]:
    """Run the trainings of a plan until all that are wanted have ended or the time budget is spent.

    A training goes on from its last checkpoint; one that has ended, in this call or an earlier one, is not run again.
    After an error it is restarted, resources.max_failures times; the death of its process counts as one only if no
    epoch was finished since its last start.

    Args:
        folder: locked meanwhile, and made if missing; on a file system that all nodes share.
        resources: of one training. A gpu that is auto or not given is a whole GPU if the cluster has one.
        cluster: an entered Cluster, which is left open; None for a new Cluster(address).
        time_budget: seconds, after which what still runs is ended, to go on later; None for no limit.
        contents_file: cases.json of the run; the cases must be those that it has. None to compare with none.
        check: called with the cluster once it answers; what it raises is passed on.
        resume_command: that the user types to go on.

    Returns:
        The outcome of each wanted training that has ended, by name; after the time budget perhaps not of all.

    Raises:
        InputError: if the folder is in use, not even one training fits on the cluster, or a training's folder has a
            training of other options.
        SystemExit: after a signal, a full disk, changed cases or a lost cluster; a message says how to go on.
    """
    stopper = TrainingsStopper(time_budget, resume_command)
    with lock_folder(folder):
        runner = TrainingRunner(plan, stopper, contents_file)
        if not runner.wanted:
            return runner.outcomes
        with running_or_new(cluster, address) as cluster, stopper.handle_signals():
            cluster.wait()
            check(cluster)
            wait_for_exclusive_lock(folder / WORKER_LOCK, LOST_NODE_SECONDS)
            with TrainingTable() as table:
                runner.run(ProcessPool(with_gpu_number(resources), folder / WORKER_LOCK), table)
            stopper.exit()
    return runner.outcomes


def with_gpu_number(resources: Resources) -> Resources:
    """Return resources whose gpu is a number: auto and None become 1 if the connected cluster has a GPU, else 0."""
    if resources.gpu not in ("auto", None):
        return resources
    refuse_unknown_gpu(resources.gpu)
    return resources.model_copy(update={"gpu": int(cluster_gpus() >= 1)})
