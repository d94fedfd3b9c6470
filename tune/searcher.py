"""Optuna behind Ray Tune, told the truth about stopped trials."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from trainable.options import plain
from trainable.trial import TrialSpec
from tune.cluster import Slots
from tune.journal import Journal
from tune.results import Run, place_in

WORKERS = ".workers"  # held in RUN by the processes of its trials


class StudySearcher(Searcher):
    """Hands interrupted trials out first, then new ones, no more than can run at once.

    A trial is asked for when a slot is free, so that its proposal knows all that ended before it.
    """

    def __init__(self, journal: Journal, run: Run, slots: Slots) -> None:
        super().__init__()
        study = run.study
        self.journal, self.run, self.study, self.slots = journal, run, study, slots
        self.places = {"split_file": run.folder / "split.json", "cache_dir": study.record["cache_dir"]}
        if not study.resources.gpu_share:
            self.places["device"] = "cpu"  # Ray leaves the GPUs of a machine visible to what asked for none
        self.interrupted = journal.reattach()
        self.new = max(0, study.study.trials - len(journal.own_trials()))
        self.numbers: dict[str, int] = {}  # Ray's id of each trial that is out -> its number

    @property
    def left(self) -> int:
        """Trials still to be handed out."""
        return len(self.interrupted) + self.new

    def suggest(self, trial_id: str) -> Any:
        """The spec of the next trial; None while no slot is free; FINISHED after the last."""
        if not self.left:
            return Searcher.FINISHED
        if len(self.numbers) >= self.slots.count():
            return None
        if not self.interrupted and self.starting_up():
            return None
        if self.interrupted:
            number, values = self.interrupted.pop(0)
        else:
            number, values = self.journal.ask()
            self.new -= 1
        self.numbers[trial_id] = number
        # a seed of its own, from its number and not from when it ran; the split is fixed by split_file
        recipe = self.study.train_config(values, seed=self.study.study.seed + number, **self.places)
        checkpoint = self.journal.progress(number)["checkpoint"]
        spec: TrialSpec = {
            "number": number,
            "recipe": plain(recipe),
            "checkpoint": checkpoint and place_in(self.run.storage, checkpoint),
            "threads": self.study.resources.cpu,
            "gpu_share": self.study.resources.gpu_share,
            "held": str(self.run.folder / WORKERS),
        }
        return dict(spec)

    def starting_up(self) -> bool:
        """Must a new trial wait, so that the sampler proposes all but startup_trials?"""
        searcher, trials = self.study.searcher, self.journal.trials()
        ended = sum(trial.state != TrialState.RUNNING for trial in trials)
        return searcher.wait_for_startup and ended < searcher.startup_trials <= len(trials)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: RungScheduler has recorded it, also the result that carries a stop, which never comes here."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        self.journal.tell(self.numbers.pop(trial_id), failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: resume is a new Tuner over the same journal."""
        raise AssertionError("voxtune does not restore Ray's snapshots")
