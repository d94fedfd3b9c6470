"""A trial on several GPUs or nodes: the processes that train it together, which its own process starts and keeps.

This module does without Ray, as those processes do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainable.core.config import TrainConfig
from trainable.core.device import device_name
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.core.locks import hold_shared_lock
from trainable.core.rank_group import RankGroup
from trainable.core.rank_link import RankLink
from trainable.core.ranks import gather, is_main
from trainable.data.prepare import Data
from trainable.train import train
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.step_progress import OnProgress, StepProgress
from tune.driver.node_trouble import NodeTroubleError, trouble_of_this_node
from tune.driver.run_cases import cases_as_begun, cases_of_training
from tune.driver.stack_dump import dump_stacks_of_hang
from tune.driver.trainer_memory import MAX_LEAKED_BYTES, TAKEN_MEMORY_PAUSE, GpuMemoryTakenError, free_memory
from tune.driver.trainer_thread import run_in_trainer_thread
from tune.spec.sections import processes_per_node
from tune.spec.trial_spec import TrialSpec

Fit = Callable[[TrainConfig, Data, Callable[[EpochResult], None], OnProgress], EpochResult]


class LeftMemoryError(RuntimeError):
    """The training before has left GPU memory occupied in one of the processes."""


def fit_to_storage(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None],
    on_progress: OnProgress | None = None,
) -> EpochResult:
    """Call fit with one file of checkpoints per epoch, since Ray copies it to the sweep's storage at once."""
    return fit(config, data, on_epoch_end, on_progress=on_progress, flush=False, one_file=True)


@dataclass(frozen=True)
class Places:
    """Where processes train together: as many on each of several nodes, the first ones on this one.

    cpu: number of CPU cores on each node, for all processes there.
    """

    nodes: int
    processes: int
    cpu: int

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, self.cpu // self.processes)


_groups: list[RankGroup] = []  # the one of this process, or none yet


def run_in_ranks(
    places: Places,
    work: Callable[..., Any],
    config: TrainConfig,
    *arguments: Any,
    on_message: Callable[[Any], object],
) -> Any:
    """Call RankGroup.run with `work(link, config, *arguments)`, in processes that are kept for the next training.

    They are replaced if the training before has left GPU memory occupied.

    Raises: as RankGroup.run; LostNodeError means that this process is to end, as its nodes are not all there.
    """
    try:
        return group_of(places, config).run(work, config, *arguments, on_message=on_message)
    except LeftMemoryError:
        return group_of(places, config).run(work, config, *arguments, on_message=on_message)
    except GpuMemoryTakenError:
        time.sleep(TAKEN_MEMORY_PAUSE)  # before it is restarted
        raise


def group_of(places: Places, config: TrainConfig) -> RankGroup:
    """Return this process's group, a new one if there is none that can be used."""
    if not (_groups and _groups[0].usable):
        end_ranks()
        # In a thread that lasts as long as this process does, as they end with it.
        _groups.append(run_in_trainer_thread(lambda: make_group(places, cuda=config.device != "cpu")))
    return _groups[0]


def make_group(places: Places, *, cuda: bool) -> RankGroup:
    """Return a new group of processes.

    Raises:
        NodeTroubleError: if torch does not see a GPU here for each process that is to be here.
        Others: as group_of_trial, if they are on several nodes.
    """
    from tune.driver.gpu_sharing import missing_gpu  # here, as it imports Ray
    from tune.driver.node_ranks import group_of_trial

    if cuda and (missing := missing_gpu(places.processes)):  # perhaps since the last training
        raise NodeTroubleError(missing)
    if places.nodes == 1:
        return RankGroup(places.processes, cuda=cuda, threads=places.threads)
    return group_of_trial(places.nodes, places.processes, cuda=cuda, threads=places.threads)


def end_ranks() -> None:
    """End the processes that this one has started to train together, if any."""
    while _groups:
        _groups.pop().close()


def fit_trial(
    spec: TrialSpec,
    recipe: TrainConfig,
    data: Data,
    fit: Fit,
    on_epoch_end: Callable[[EpochResult, str], None],
    on_progress: OnProgress,
    on_life: Callable[[], None],
) -> None:
    """Train a trial's recipe in several processes, one for each of its GPUs.

    on_epoch_end: called in this thread with each epoch's result and the name of the GPU; what it raises ends the
    training in all processes, and is raised. on_progress: called with the progress in between. on_life: called while
    another node prepares cases.

    Raises: as run_in_ranks.
    """

    def on_message(message: StepProgress | tuple[EpochResult, str] | None) -> None:
        if message is None:
            on_life()
        elif isinstance(message, StepProgress):
            on_progress(message)
        else:
            on_epoch_end(*message)

    places = Places(spec["nodes"], processes_per_node(spec["gpu_share"]), spec["cpu"])
    run_in_ranks(places, fit_rank, recipe, data, fit, spec, on_message=on_message)


def fit_rank(link: RankLink, recipe: TrainConfig, data: Data, fit: Fit, spec: TrialSpec) -> None:
    """Train a trial as one of its processes.

    Raises:
        LeftMemoryError, GpuMemoryTakenError: in place of running out of memory that the recipe could have.
        NodeTroubleError: if the cases cannot be used on this node.
    """
    with trouble_of_this_node():
        data = cases_as_begun(data, recipe, Path(spec["contents_file"]), lambda: link.tell(None))
    prepare_rank(Path(spec["lock_file"]))
    with dump_stacks_of_hang(Path(spec["stdout_log"]), spec["report_timeout"] if is_main() else None) as dump:

        def on_epoch_end(result: EpochResult) -> None:
            link.ask((result, device_name()))
            if dump is not None:
                dump.restart()

        name_memory_holders(lambda: fit(recipe, data, on_epoch_end, link.tell if is_main() else ignore))


def train_pooled_rank(link: RankLink, config: TrainConfig, contents_file: Path | None, lock_file: Path) -> EpochResult:
    """Train in the config's folder, not flushed, as one of the processes; `on_message` gets each epoch's result.

    contents_file: as for cases_of_training.

    Raises: as fit_rank and trainable.train.train.
    """
    with trouble_of_this_node():
        data = cases_of_training(config, contents_file)
    prepare_rank(lock_file)
    results = list[EpochResult]()
    try:
        name_memory_holders(lambda: results.append(train(config, data, link.ask, flush=False)))
    finally:
        free_memory()  # for the test cases, which another process may score on the same GPU
    return results[0]


def prepare_rank(lock_file: Path) -> None:
    """Hold a shared lock on a file until this process ends, and free what the training before has left.

    Raises:
        LeftMemoryError: if more than MAX_LEAKED_BYTES of GPU memory stay occupied in any of the processes.
    """
    hold_shared_lock(lock_file)
    if (left := max(gather(free_memory()))) > MAX_LEAKED_BYTES:
        raise LeftMemoryError(f"{left / 2**20:.0f} MiB of GPU memory were left by the training before")


def name_memory_holders(work: Callable[[], object]) -> None:
    """Call work(); if it runs out of GPU memory that other programs hold, raise GpuMemoryTakenError, which names them.

    Each process has a whole GPU.
    """
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        if taken := memory_taken_by_others(1):
            raise GpuMemoryTakenError(taken) from None
        raise


def ignore(progress: StepProgress) -> None:
    """Do nothing with the progress of another rank than 0."""
