"""A trial, or a training of a set, on several GPUs or nodes: what each of the processes does that train it together.

This module does without Ray, as those processes do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.device import device_name
from trainable.core.rank_link import RankLink
from trainable.core.ranks import is_main
from trainable.data.prepare import Data
from trainable.train import train
from trainable.training.epoch_result import EpochResult
from trainable.training.step_progress import OnProgress, StepProgress
from tune.driver.processes.kept_ranks import Places, name_memory_holders, prepare_rank, run_in_ranks
from tune.driver.processes.node_trouble import trouble_of_this_node
from tune.driver.processes.run_cases import cases_as_begun, cases_of_training
from tune.driver.processes.stack_dump import dump_stacks_of_hang
from tune.driver.processes.trainer_memory import free_memory
from tune.driver.processes.trial_fit import Fit
from tune.spec.sections import processes_per_node
from tune.spec.trial_spec import TrialSpec


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


def ignore(progress: StepProgress) -> None:
    """Do nothing with the progress of another rank than 0."""
