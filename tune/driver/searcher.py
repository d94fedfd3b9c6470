"""Optuna behind Ray Tune, told the truth about stopped trials."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from trainable.core.options import to_dict
from tune.driver.cluster import Slots
from tune.driver.worker import TrialSpec
from tune.run.results import Run, resolve_checkpoint
from tune.search.journal import Journal

WORKERS = ".workers"  # held in RUN by the processes of its trials


class OptunaSearcher(Searcher):
    """Hands interrupted trials out first, then new ones, no more than can run at once.

    A trial is asked for when a slot is free, so that its proposal knows all that ended before it.
    """

    def __init__(self, journal: Journal, run: Run, slots: Slots) -> None:
        super().__init__()
        config = run.config
        self.journal, self.run, self.config, self.slots = journal, run, config, slots
        self.places = {"split_file": run.folder / "split.json", "cache_dir": config.record["cache_dir"]}
        if not config.resources.gpu_share:
            self.places["device"] = "cpu"  # Ray leaves the GPUs of a machine visible to what asked for none
        self.interrupted = journal.reattach()
        self.new = max(0, config.budget.trials - len(journal.own_trials()))
        self.number_by_ray_id: dict[str, int] = {}  # Ray's id of each trial that is out -> its number

    @property
    def remaining(self) -> int:
        """Trials still to be handed out."""
        return len(self.interrupted) + self.new

    def suggest(self, trial_id: str) -> Any:
        """The spec of the next trial; None while no slot is free; FINISHED after the last."""
        if not self.remaining:
            return Searcher.FINISHED
        if len(self.number_by_ray_id) >= self.slots.count():
            return None
        if not self.interrupted and self.startup_pending():
            return None
        if self.interrupted:
            number, values = self.interrupted.pop(0)
        else:
            number, values = self.journal.ask()
            self.new -= 1
        self.number_by_ray_id[trial_id] = number
        # a seed of its own, from its number and not from when it ran; the split is fixed by split_file
        recipe = self.config.train_config(values, seed=self.config.seed + number, **self.places)
        checkpoint = self.journal.progress(number)["checkpoint"]
        spec: TrialSpec = {
            "number": number,
            "recipe": to_dict(recipe),
            "checkpoint": checkpoint and resolve_checkpoint(self.run.storage, checkpoint),
            "threads": self.config.resources.cpu,
            "gpu_share": self.config.resources.gpu_share,
            "held": str(self.run.folder / WORKERS),
        }
        return dict(spec)

    def startup_pending(self) -> bool:
        """Must a new trial wait, so that the sampler proposes all but startup_trials?"""
        searcher, trials = self.config.searcher, self.journal.trials()
        ended = sum(trial.state != TrialState.RUNNING for trial in trials)
        return searcher.wait_for_startup and ended < searcher.startup_trials <= len(trials)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: RungScheduler has recorded it, also the result that carries a stop, which never comes here."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        self.journal.tell(self.number_by_ray_id.pop(trial_id), failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: resume is a new Tuner over the same journal."""
        raise AssertionError("voxtune does not restore Ray's snapshots")
