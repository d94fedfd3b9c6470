"""Adapter: lets Ray Tune draw trials from the Optuna journal."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from trainable.core.options import to_dict
from tune.driver.cluster.connection import Slots
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.run.results import Run, resolve_checkpoint
from tune.run.retention import Retention
from tune.run.suggestions import enqueue_suggestions
from tune.search.journal import Journal
from tune.search.promotion import OnDecision, promote
from tune.spec.trial_spec import TrialSpec


class OptunaSearcher(Searcher):
    """Hands out the interrupted trials, then new ones, no more than can run at once.

    A trial is drawn when a slot is free, so that its proposal knows all that ended before it. Trials that pause are
    handed out again once `promote` has chosen them.
    """

    def __init__(self, journal: Journal, run: Run, slots: Slots, storage: StorageWatch) -> None:
        super().__init__()
        self.storage = storage
        config = run.config
        self.journal, self.run, self.config, self.slots = journal, run, config, slots
        self.run_options = {"split_file": run.dir.split, "cache_dir": config.record.cache_dir}
        if not config.resources.gpu_share:
            self.run_options["device"] = "cpu"  # Ray leaves GPUs visible to processes that requested none
        self.interrupted = journal.reattach()
        self.new = config.trials_left(len(journal.own_trials()), journal.tried(journal.trials()))
        self.number_by_ray_id: dict[str, int] = {}  # of the running trials

    def promote(self, on_decision: OnDecision) -> None:
        """Have the best of the paused trials handed out, if no trial is still to come to the rung; see promotion.py.

        To be called while no trial runs.
        """
        if not self.new:
            promoted = promote(self.journal, on_decision)
            self.interrupted += [(number, self.journal.values(number)) for number in promoted]

    @property
    def remaining(self) -> int:
        """Return how many trials are still to be handed out."""
        return len(self.interrupted) + self.new

    def suggest(self, trial_id: str) -> Any:
        """Return the spec of the next trial, FINISHED after the last. Called by Ray.

        None while no slot is free, or while new trials wait for the startup trials.
        """
        if not self.remaining:
            return Searcher.FINISHED
        if len(self.number_by_ray_id) >= self.slots.count():
            return None
        if not self.interrupted and self.startup_pending():
            return None
        if self.interrupted:
            number, values = self.interrupted.pop(0)
        else:
            enqueue_suggestions(self.run.dir, self.journal)
            number, values = self.journal.ask()
            self.new -= 1
        self.number_by_ray_id[trial_id] = number
        # The seed depends on the trial's number, not on when it runs; the split is fixed by split_file.
        recipe = self.config.train_config(values, seed=self.config.seed + number, **self.run_options)
        spec: TrialSpec = {
            "number": number,
            "recipe": to_dict(recipe),
            "checkpoints": self.checkpoints_of(number),
            "cpu": self.config.resources.cpu,
            "gpu_share": self.config.resources.gpu_share,
            "nodes": self.config.resources.nodes,
            "lock_file": str(self.run.dir.worker_lock),
            "stdout_log": str(self.run.dir.trial(number).stdout),
            "report_timeout": self.config.resources.report_timeout,
            "data": self.config.record.data,
            "contents_file": str(self.run.dir.contents),
        }
        return dict(spec)

    def checkpoints_of(self, number: int) -> dict[str, str]:
        """Return the folders or URIs of a trial's checkpoints, newest first, by their paths below the storage."""
        newest = self.journal.progress(number).checkpoint
        if newest is None:
            return {}
        earlier = list[str]()
        with suppress(OSError):  # of a storage that does not answer; the trial's process says so
            earlier = Retention(self.run).earlier(number, newest)
        return {path: resolve_checkpoint(self.run.storage, path) for path in (newest, *earlier)}

    def startup_pending(self) -> bool:
        """Return whether wait_for_startup is set, startup_trials are handed out, and fewer have ended or paused."""
        searcher = self.config.searcher
        if not searcher.wait_for_startup:
            return False
        trials = self.journal.trials()
        ended = sum(trial.state != TrialState.RUNNING for trial in trials) + len(self.journal.paused())
        return ended < searcher.startup_trials <= len(trials)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: RungScheduler has recorded it, also the report of a stop, for which Ray does not call this."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report to Optuna how a trial ended, and free its slot. Called by Ray.

        A trial that cannot write its checkpoints any more has not failed: it goes on when the sweep is resumed.
        """
        self.journal.tell(self.number_by_ray_id.pop(trial_id), failed=error and not self.storage.lost())

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a resumed sweep is a new Tuner over the same journal."""
        raise AssertionError("voxtune does not restore Ray's snapshots")
