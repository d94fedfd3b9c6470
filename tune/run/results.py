"""Reads a run: its trials, the best of them, the recipe to export."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import dump_yaml, fields_of_role, make_config, to_dict
from trainable.data.split import Split, load_split
from tune.search.journal import progress_of, read_trials
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class TrialResult:
    """A trial as the journal knows it.

    score: its best validated metric; dice: of each region at that epoch; cost: the second metric, where one is asked
    for; source: the run and trial that it was taken over from; outside: why it does not lie in the space any more;
    recipe: all options of one that does not.
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

    @property
    def finished(self) -> bool:
        """Did it end by itself, so that its score is of a whole training?"""
        return self.state == TrialState.COMPLETE and self.end_reason != "oom"

    @property
    def status(self) -> str:
        """How it ended, in a word or two."""
        if self.state == TrialState.PRUNED:
            return "not finite" if self.end_reason == "non_finite" else "stopped early"
        if self.state == TrialState.COMPLETE:
            return {"epochs": "complete", "patience": "out of patience", "oom": "out of memory"}[self.end_reason]
        if self.outside_space:
            return "outside the space"
        return "failed" if self.state == TrialState.FAIL else "running"


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path
    config: SweepConfig
    trials: list[TrialResult]

    @property
    def storage(self) -> str:
        """Where Ray keeps the checkpoints: RUN/ray, unless --storage said otherwise."""
        return self.config.record.get("storage") or str(self.folder / "ray")

    @property
    def unfinished(self) -> bool:
        """Are there trials to start, or to go on with?"""
        running = any(trial.state == TrialState.RUNNING for trial in self.trials)
        return running or len(self.own_trials) < self.config.budget.trials

    @property
    def own_trials(self) -> list[TrialResult]:
        """The trials that were not taken over from another run."""
        return [trial for trial in self.trials if not trial.imported_from]

    @cached_property
    def ranking(self) -> list[TrialResult]:
        """Trials with a score, best first: those that ended by themselves before those that were stopped or still run.

        A stopped trial's score is of fewer epochs, so the two kinds are not compared with each other. One that ran out
        of memory is no candidate.
        """
        scored = [t for t in self.trials if t.score is not None and not t.outside_space and t.end_reason != "oom"]
        return sorted(scored, key=lambda t: (not t.finished, -(t.score or 0), t.number))

    def pareto_front(self) -> list[TrialResult]:
        """Of the trials that ended by themselves those that no other betters in score and cost, cheapest first."""
        ended = [trial for trial in self.ranking if trial.finished]
        front: list[TrialResult] = []
        for trial in sorted(ended, key=lambda t: (t.cost or 0.0, -(t.score or 0.0))):
            if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
                front.append(trial)
        return front

    def best(self) -> TrialResult:
        """The winner.

        Raises:
            InputError: where no trial has a score yet.
        """
        if not self.ranking:
            raise InputError(f"{self.folder}: no trial has a validated epoch yet; see `voxtune status {self.folder}`")
        return self.ranking[0]

    def trial(self, number: int) -> TrialResult:
        """The trial of that number."""
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise InputError(f"{self.folder} has no trial {number}; it has {len(self.trials)}, from 0 on")

    def split(self) -> Split:
        """The cases of each part.

        Raises:
            InputError: where its file is missing, or not that of the run's scores.
        """
        path = self.folder / "split.json"
        split = load_split(path)
        if split.digest() != self.config.record["split"]:
            raise InputError(f"{path} is not the split that the sweep began with; restore it")
        return split

    @property
    def orphan_trial_dirs(self) -> list[str]:
        """The folders of trials that the journal knows nothing of."""
        numbers = [path.name for path in sorted(self.folder.glob("trials/*")) if path.name.isdigit()]
        return [f"trials/{number}" for number in numbers if int(number) >= len(self.trials)]

    def trial_dir(self, number: int) -> Path:
        """The folder of a trial's files."""
        return self.folder / "trials" / f"{number:04d}"

    def recipe(self, trial: TrialResult) -> TrainConfig:
        """The options of a trial, as it was trained, without where it ran."""
        if trial.recipe:
            return make_config(trial.recipe)
        return self.config.train_config(trial.values, seed=trial.seed)


def study_file(folder: Path) -> Path:
    """The study.yaml of a run, or InputError for a folder that has none."""
    path = folder / STUDY_FILE
    if not path.exists():
        raise InputError(f"{folder}: no {STUDY_FILE} there; expected the folder that `voxtune launch --out` made")
    return path


def read_run(folder: Path, config: SweepConfig | None = None) -> Run:
    """Read a run, finished or not. study: what is about to be written to its study.yaml."""
    path = study_file(folder)
    config = config or load_sweep_config(path)
    trials = read_trials(folder, config.name)
    return Run(folder, config, [summarise(trial, config) for trial in trials])


def summarise(trial: FrozenTrial, config: SweepConfig) -> TrialResult:
    """A trial of the journal as a TrialResult."""
    attrs, progress = trial.user_attrs, progress_of(trial.user_attrs)
    best = progress["best"]
    return TrialResult(
        number=trial.number,
        state=trial.state,
        end_reason=progress["end_reason"],
        score=best.get("score"),
        best_epoch=best.get("epoch", 0),
        epoch=progress["epoch"],
        dice=best.get("dice", {}),
        values=config.space.decode_params(trial.params),
        seconds=progress["seconds"],
        checkpoint=progress["checkpoint"],
        seed=attrs.get("seed", config.seed + trial.number),
        cost=config.cost_of(progress) if config.objective.cost else None,
        imported_from=attrs.get("source", ""),
        outside_space=attrs.get("outside", ""),
        recipe=attrs.get("recipe", {}),
        error=attrs.get("error", attrs.get("hung", "")) if trial.state == TrialState.FAIL else "",
    )


def recipe_text(run: Run, trial: TrialResult) -> str:
    """A trial's recipe as YAML, for `train.py --config` and `voxtune retrain --config`: what is not the default.

    With the sweep's split: the trial's own seed would draw another one, of cases that it was selected by.
    """
    recipe = to_dict(run.recipe(trial), changed_only=True)
    where = set(fields_of_role("run")) - {"num_workers", "pretrained"}
    recipe = {name: value for name, value in recipe.items() if name not in where}
    recipe["split_file"] = str((run.folder / "split.json").resolve())
    score = "no score"
    if trial.score is not None:
        score = f"{run.config.objective.score} {trial.score:.4f} at epoch {trial.best_epoch}"
    return f"# trial {trial.number}: {score}\n" + dump_yaml(recipe)


def resolve_checkpoint(storage: str, path: str) -> str:
    """Where a checkpoint lies that the journal names by its path below the run's storage, a folder or a URI.

    That of a trial taken over from another run is named by its whole path.
    """
    if path.startswith("/") or "://" in path:
        return path
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}"
