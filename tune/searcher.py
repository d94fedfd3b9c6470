"""Optuna behind Ray Tune, told the truth about stopped trials."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.tune.search import Searcher

from trainable.options import plain
from trainable.trial import TrialSpec
from tune.journal import Journal
from tune.results import Run, place_in
from tune.study import StudyConfig


class StudySearcher(Searcher):
    """Hands interrupted trials out first, then new ones, no more than can run at once.

    A trial is asked for when a slot is free, so that its proposal knows all that ended before it.
    """

    def __init__(self, journal: Journal, run: Run, slots: Slots) -> None:
        super().__init__()
        study = run.study
        self.journal, self.run, self.study, self.slots = journal, run, study, slots
        self.data = {"split_file": run.folder / "split.json", "cache_dir": study.record["cache_dir"]}
        self.interrupted = journal.reattach()
        self.new = max(0, study.study.trials - len(journal.trials()))
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
        if self.interrupted:
            number, values = self.interrupted.pop(0)
        else:
            number, values = self.journal.ask()
            self.new -= 1
        self.numbers[trial_id] = number
        # a seed of its own, from its number and not from when it ran; the split is fixed by split_file
        recipe = self.study.train_config(values, seed=self.study.study.seed + number, **self.data)
        checkpoint = self.journal.attrs(number).get("checkpoint")
        spec: TrialSpec = {
            "number": number,
            "recipe": plain(recipe),
            "checkpoint": checkpoint and place_in(self.run.storage, checkpoint),
            "threads": self.study.resources.cpu,
        }
        return dict(spec)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Asha has recorded it, also the result that carries a stop, which never comes here."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        self.journal.tell(self.numbers.pop(trial_id), failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: resume is a new Tuner over the same journal."""
        raise AssertionError("voxtune does not restore Ray's snapshots")


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
