"""Reads a run: its trials, the best of them, the recipe to export."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.option_files import dump_yaml
from trainable.core.options import make_config, option_names, to_dict
from trainable.data.split import Split, load_split
from trainable.training.epoch_result import EndReason
from tune.run.run_dir import RunDir
from tune.search.journal import read_trials
from tune.search.trial_progress import Progress
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

STATUS_OF_COMPLETE = {
    EndReason.EPOCHS: "complete",
    EndReason.PATIENCE: "out of patience",
    EndReason.OUT_OF_MEMORY: "out of memory",
}


@dataclass(frozen=True)
class TrialResult:
    """A trial as the journal has it.

    score: its best validated metric. best_epoch: the epoch of that score, 0 if there is none. epoch: the last reported
    one. dice: Dice of each region at the best epoch. values: the searched options. seconds: training time over all
    attempts. checkpoint: its path below the run's storage, or a whole path if the trial was imported. cost: the second
    metric, if the sweep has one. imported_from: run and trial that it was imported from. outside_space: why it is not
    in the space any more. recipe: all options, only of a trial outside the space.
    """

    number: int
    state: TrialState
    end_reason: str
    score: float | None
    best_epoch: int
    epoch: int
    dice: dict[str, float]
    values: dict[str, Any]
    seconds: float
    checkpoint: str | None
    error: str
    seed: int = 0
    cost: float | None = None
    imported_from: str = ""
    outside_space: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_frozen(cls, frozen: FrozenTrial, config: SweepConfig) -> TrialResult:
        """Return a trial of the journal as a TrialResult."""
        attrs, progress = frozen.user_attrs, Progress.from_attrs(frozen.user_attrs)
        best = progress.best
        return cls(
            number=frozen.number,
            state=frozen.state,
            end_reason=progress.end_reason,
            score=progress.best_score,
            best_epoch=best.epoch if best else 0,
            epoch=progress.epoch,
            dice=best.dice if best else {},
            values=config.space.decode_params(frozen.params),
            seconds=progress.seconds,
            checkpoint=progress.checkpoint,
            seed=attrs.get("seed", config.seed + frozen.number),
            cost=config.cost_of(progress.seconds) if config.objective.cost else None,
            imported_from=attrs.get("source", ""),
            outside_space=attrs.get("outside", ""),
            recipe=attrs.get("recipe", {}),
            error=attrs.get("error", attrs.get("hung", "")) if frozen.state == TrialState.FAIL else "",
        )

    @property
    def finished(self) -> bool:
        """True if it ended by itself, so that its score is of a whole training."""
        return self.state == TrialState.COMPLETE and self.end_reason != EndReason.OUT_OF_MEMORY

    @property
    def status(self) -> str:
        """How it ended, in a word or two."""
        if self.state == TrialState.PRUNED:
            return "not finite" if self.end_reason == EndReason.NON_FINITE else "stopped early"
        if self.state == TrialState.COMPLETE:
            return STATUS_OF_COMPLETE[EndReason(self.end_reason)]
        if self.outside_space:
            return "outside the space"
        return "failed" if self.state == TrialState.FAIL else "running"


@dataclass(frozen=True)
class Run:
    """A run as it was read: its folder, its config and its trials so far."""

    dir: RunDir
    config: SweepConfig
    trials: list[TrialResult]

    @property
    def folder(self) -> Path:
        """The path of the run's folder."""
        return self.dir.path

    @property
    def storage(self) -> str:
        """Where Ray keeps the checkpoints: RUN/ray, unless launched with --storage."""
        return self.config.record.storage or str(self.dir.ray)

    @property
    def unfinished(self) -> bool:
        """True if there are trials to start or to go on with."""
        running = any(trial.state == TrialState.RUNNING for trial in self.trials)
        return running or len(self.own_trials) < self.config.budget.trials

    @property
    def own_trials(self) -> list[TrialResult]:
        """The trials that were not imported from another run."""
        return [trial for trial in self.trials if not trial.imported_from]

    @cached_property
    def ranking(self) -> list[TrialResult]:
        """Trials with a score, best first: those that ended by themselves before those that were stopped or still run.

        A stopped trial's score is of fewer epochs, so the two kinds are not compared with each other. A trial that ran
        out of memory is no candidate.
        """
        scored = [
            t
            for t in self.trials
            if t.score is not None and not t.outside_space and t.end_reason != EndReason.OUT_OF_MEMORY
        ]
        return sorted(scored, key=lambda t: (not t.finished, -(t.score or 0), t.number))

    def pareto_front(self) -> list[TrialResult]:
        """Return the finished trials that no other one beats in both score and cost, cheapest first."""
        ended = [trial for trial in self.ranking if trial.finished]
        front: list[TrialResult] = []
        for trial in sorted(ended, key=lambda t: (t.cost or 0.0, -(t.score or 0.0))):
            if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
                front.append(trial)
        return front

    def best(self) -> TrialResult:
        """Return the winner.

        Raises:
            InputError: if no trial has a score yet.
        """
        if not self.ranking:
            raise InputError(f"{self.folder}: no trial has a validated epoch yet; see `voxtune status {self.folder}`")
        return self.ranking[0]

    def trial(self, number: int) -> TrialResult:
        """Return the trial of that number.

        Raises:
            InputError: if there is none.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise InputError(f"{self.folder} has no trial {number}; it has {len(self.trials)}, from 0 on")

    def split(self) -> Split:
        """Read the cases of each part.

        Raises:
            InputError: if the file is missing, or is not the split that the run's scores belong to.
        """
        path = self.dir.split
        split = load_split(path)
        if split.digest() != self.config.record.split:
            raise InputError(f"{path} is not the split that the sweep began with; restore it")
        return split

    @property
    def orphan_trial_dirs(self) -> list[str]:
        """The folders of trials that are not in the journal, relative to the run's folder."""
        numbers = [path.name for path in sorted(self.dir.trials.glob("*")) if path.name.isdigit()]
        return [f"trials/{number}" for number in numbers if int(number) >= len(self.trials)]

    def recipe(self, trial: TrialResult) -> TrainConfig:
        """Return the options of a trial as it was trained, without those of where it ran."""
        if trial.recipe:
            return make_config(trial.recipe)
        return self.config.train_config(trial.values, seed=trial.seed)


def ensure_run(run_dir: Path) -> RunDir:
    """Return the folder as that of a run.

    Raises:
        InputError: if it has no study.yaml.
    """
    paths = RunDir(run_dir)
    if not paths.config.exists():
        name = paths.config.name
        raise InputError(f"{run_dir}: no {name} there; expected the folder that `voxtune launch --out` made")
    return paths


def read_run(run_dir: Path, config: SweepConfig | None = None) -> Run:
    """Read a run, finished or not. config: what is about to be written to its study.yaml, else what is there."""
    paths = ensure_run(run_dir)
    config = config or load_sweep_config(paths.config)
    trials = [TrialResult.from_frozen(frozen, config) for frozen in read_trials(run_dir, config.record.study)]
    return Run(paths, config, trials)


def export_recipe(run: Run, trial: TrialResult, path: Path) -> None:
    """Write a trial's recipe as YAML, and print the command that trains it."""
    path.write_text(recipe_text(run, trial))
    logger.info(f"wrote {path}: voxtune train --config {shlex.quote(str(path))} --data_dir DIR")


def recipe_text(run: Run, trial: TrialResult) -> str:
    """Return what of a trial's recipe is not the default, as YAML for `voxtune train` and `voxtune retrain --config`.

    It names the sweep's split: the trial's own seed would draw another one, with cases in it that selected the trial.
    """
    recipe = to_dict(run.recipe(trial), changed_only=True)
    left_out = option_names(role="run", exported=False)
    recipe = {name: value for name, value in recipe.items() if name not in left_out}
    recipe["split_file"] = str(run.dir.split.resolve())
    score = "no score"
    if trial.score is not None:
        score = f"{run.config.objective.score} {trial.score:.4f} at epoch {trial.best_epoch}"
    return f"# trial {trial.number}: {score}\n" + dump_yaml(recipe)


def resolve_checkpoint(storage: str, path: str) -> str:
    """Return the folder or URI of a checkpoint from its path in the journal.

    The path is relative to the run's storage; that of an imported trial is whole already.
    """
    if path.startswith("/") or "://" in path:
        return path
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}"
