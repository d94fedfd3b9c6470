"""The Ray Tuner of one launch or resume."""

from __future__ import annotations

from functools import partial

import ray
from ray import tune as ray_tune
from ray.tune.error import TuneError

from trainable.core.errors import InputError
from trainable.core.storage import is_uri
from tune.driver.cluster import ray_compat
from tune.driver.processes.progress_board import BoardAddress
from tune.driver.processes.trial_fit import Fit
from tune.driver.processes.worker import run_trial
from tune.driver.scheduling.controller_compat import changed_controller
from tune.driver.scheduling.rung_scheduler import RungScheduler
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.scheduling.sweep_stopper import SweepStopper
from tune.run.results import Run
from tune.run.retention import NUM_TO_KEEP
from tune.spec.trial_spec import TrialSpec

CAUSES_TO_REPAIR = (OSError, InputError, ray.exceptions.RayError)  # after which the sweep can go on


def make_tuner(
    run: Run,
    fit: Fit,
    board: BoardAddress,
    searcher: OptunaSearcher,
    scheduler: RungScheduler,
    stopper: SweepStopper,
    callbacks: list[ray_tune.Callback],
) -> ray_tune.Tuner:
    """Return the Tuner of one launch or resume.

    It writes into a new folder, the last of the record's attempts, so that what the processes of a dead driver still
    write cannot mix with its files. board: address of a ProgressBoard.
    """
    resources, slots = run.config.resources, searcher.slots
    trainable = partial(train_trial, fit=fit, board=board)
    return ray_tune.Tuner(
        # A trial's own process is in the first bundle.
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory(slots.bundles, strategy=slots.strategy)),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=searcher.remaining,
            reuse_actors=resources.reuse_processes,
            trial_name_creator=lambda ray_trial: f"trial_{ray_trial.config['number']:04d}",
            trial_dirname_creator=lambda ray_trial: f"{ray_trial.config['number']:04d}",
        ),
        run_config=ray_tune.RunConfig(
            name=run.config.record.attempts[-1],
            storage_path=run.storage,
            failure_config=ray_tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=None if is_uri(run.storage) else NUM_TO_KEEP),
            callbacks=callbacks,
            stop=stopper,
            verbose=0,
        ),
    )


def train_trial(spec: TrialSpec, fit: Fit, board: BoardAddress | None = None) -> None:
    """Train a trial in this process; see run_trial."""
    with ray_compat.own_checkpoint_folders(), ray_compat.linked_checkpoints():
        run_trial(spec, fit, board)


def run_tuner(tuner: ray_tune.Tuner, stopper: SweepStopper) -> None:
    """Run the Tuner until its trials have ended or the stopper ends them.

    A full disk, a damaged file of a trial or a lost cluster also ends the sweep, whose trials can be resumed: this sets
    stopper.error. Errors of another cause are raised, unless a signal was received.
    """
    try:
        with changed_controller():
            tuner.fit()
    except (TuneError, OSError, ray.exceptions.RayError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CAUSES_TO_REPAIR):
            cause = cause.__cause__ or cause.__context__
        if cause is None and not stopper.signal:
            raise
        stopper.error = stopper.error or str(cause)
