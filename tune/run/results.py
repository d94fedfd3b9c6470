"""Reads a run: its trials, the best of them, their recipes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import is_locked
from trainable.core.options import make_config, words_of
from trainable.data.split import Split, load_split, seen_line
from trainable.training.epoch_result import EndReason
from tune.run.ranking import late_score, rank, ranked_score, ranks_by_late
from tune.run.run_dir import RunDir
from tune.search.asha import PAUSE, Kept, RungDecision
from tune.search.journal import read_trials
from tune.search.trial_progress import Progress, known_scores, rung_decisions
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

    state: Optuna's. end_reason: a value of EndReason, "" unless the trial ended by itself. score: the highest of its
    validated epochs, None without one. best_epoch: the epoch of that score, 0 without one. epoch: the last reported
    one, 0 before it. dice: Dice per region at the best epoch, empty without one. values: the searched options. seconds:
    training time over all attempts. gpu_seconds: the same times the GPUs, or the share of one, that the trial had; 0 on
    a CPU. checkpoint: path of the last one below the run's storage, or a whole path or URI if the trial was imported;
    None without one. error: what made the trial fail, in one line, else "". cost: the second metric, if the sweep has
    one. imported_from: run and number under which an imported trial ran first, else "". outside_space: why the trial is
    not in the space any more, else "". recipe: all options of a trial outside the space, else empty. waits: for
    resources, or for a free slot. rungs: what early stopping decided, by epoch. interrupted: it has not ended, and
    nothing drives it. intermediate: score of each validated epoch, of the last ones if the sweep has a cost, see
    known_scores. late_score: mean of the last quarter of a training's validations, see ranking; None without a score.
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
    gpu_seconds: float = 0.0
    cost: float | None = None
    imported_from: str = ""
    outside_space: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    waits: bool = False
    rungs: dict[int, RungDecision] = field(default_factory=dict)
    interrupted: bool = False
    intermediate: dict[int, float] = field(default_factory=dict)
    late_score: float | None = None

    @classmethod
    def from_frozen(cls, frozen: FrozenTrial, config: SweepConfig, *, driven: bool = True) -> TrialResult:
        """Return a trial of a run's study as a TrialResult; config: the run's. driven: a process drives the sweep."""
        attrs, progress = frozen.user_attrs, Progress.from_attrs(frozen.user_attrs)
        best, scores, gpu_seconds = progress.best, known_scores(frozen), progress.all_gpu_seconds(config)
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
            gpu_seconds=gpu_seconds,
            cost=config.cost_of(progress.seconds, gpu_seconds) if config.objective.cost else None,
            imported_from=attrs.get("source", ""),
            outside_space=attrs.get("outside", ""),
            recipe=attrs.get("recipe", {}),
            waits=attrs.get("waits", False),
            rungs=rung_decisions(attrs),
            error=attrs.get("error", attrs.get("hung", "")) if frozen.state == TrialState.FAIL else "",
            interrupted=frozen.state == TrialState.RUNNING and not driven,
            intermediate=scores,
            late_score=late_score(scores, config),
        )

    @property
    def gpu_hours(self) -> float:
        """The GPU hours of the trial; 0 on a CPU. One that shares a GPU counts with its share."""
        return self.gpu_seconds / 3600

    @property
    def finished(self) -> bool:
        """True if the trial trained to its end, by epochs or patience, so that its score is of a whole training."""
        return self.state == TrialState.COMPLETE and self.end_reason != EndReason.OUT_OF_MEMORY

    @property
    def stop_epoch(self) -> int | None:
        """The rung at which the trial was stopped, or would have been if it were not kept; None if it was let through.

        See RungDecision for what kept means.
        """
        return next((epoch for epoch in sorted(self.rungs) if self.rungs[epoch].is_stop), None)

    @property
    def paused(self) -> bool:
        """Whether the trial waits at a rung until early stopping has decided on it."""
        return self.state == TrialState.RUNNING and any(rung.decision == PAUSE for rung in self.rungs.values())

    @property
    def kept(self) -> Kept:
        """Why the trial went on though it would have been stopped; "" if it was stopped or let through."""
        return next((decided.kept for decided in self.rungs.values() if decided.kept), "")

    @property
    def status(self) -> str:
        """How the trial ended, in a few words; "running", "waiting", "paused" or "interrupted" if it has not."""
        if self.state == TrialState.PRUNED:
            return "not finite" if self.end_reason == EndReason.NON_FINITE else "stopped early"
        if self.state == TrialState.COMPLETE:
            return STATUS_OF_COMPLETE[EndReason(self.end_reason)]
        if self.outside_space:
            return "outside the space"
        if self.state == TrialState.FAIL:
            return "failed"
        if self.paused:
            return "paused"
        if self.interrupted:
            return "interrupted"
        return "waiting" if self.waits else "running"


@dataclass(frozen=True)
class Run:
    """A run as it was read: its folder, its config and its trials so far. driven: a process drives its sweep."""

    dir: RunDir
    config: SweepConfig
    trials: list[TrialResult]
    driven: bool = True

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
        """True if a trial still runs or was interrupted, or if some are still to be started."""
        return self.trials_left > 0 or any(trial.state == TrialState.RUNNING for trial in self.trials)

    @property
    def target_reached(self) -> bool:
        """True if a finished trial has study.target, after which no more are started."""
        target = self.config.budget.target
        return target is not None and any(t.finished and (t.score or 0.0) >= target for t in self.own_trials)

    @cached_property
    def trials_left(self) -> int:
        """Number of trials that are still to be started."""
        tried = (trial.values for trial in self.trials if not trial.outside_space)
        return self.config.trials_left(len(self.own_trials), tried)

    @cached_property
    def own_trials(self) -> list[TrialResult]:
        """The trials that were not imported from another run."""
        return [trial for trial in self.trials if not trial.imported_from]

    @cached_property
    def ranking(self) -> list[TrialResult]:
        """Trials with a score, best first; see rank."""
        return rank(self.trials, self.config)

    @cached_property
    def ranked_by_late(self) -> bool:
        """Whether finished trials are ranked by their late_score."""
        return ranks_by_late(self.ranking, self.config)

    @cached_property
    def default_trial(self) -> TrialResult | None:
        """The first own trial that tries the default recipe; None if none does.

        A sweep does not try again what it has imported. So without an own trial it is an imported one, if possible one
        that trained to its end.
        """
        default = self.config.space.default_values()
        tried = [trial for trial in self.trials if not trial.outside_space and trial.values == default]
        imported = [trial for trial in tried if trial.imported_from]
        own = (trial for trial in tried if not trial.imported_from)
        return next(own, min(imported, key=lambda trial: not trial.finished, default=None))

    def pareto_front(self) -> list[TrialResult]:
        """Return the finished trials that rank above every cheaper or equally cheap one, cheapest first.

        Of trials with the same scores and cost, the one of the lowest number is returned; without a cost, the winner.
        Empty if no trial has finished.
        """
        ended, front = [trial for trial in self.ranking if trial.finished], list[TrialResult]()
        by_late = self.ranked_by_late
        for trial in sorted(ended, key=lambda t: t.cost or 0.0):  # of equal costs as ranked
            if not front or ranked_score(trial, by_late=by_late) > ranked_score(front[-1], by_late=by_late):
                front.append(trial)
        return front

    def best(self) -> TrialResult:
        """Return the winner: the first of `ranking`, which was stopped or still runs while no trial has finished.

        Raises:
            InputError: if no trial has a score yet.
        """
        if not self.ranking:
            command = f"voxtune status {shlex.quote(str(self.folder))}"
            raise InputError(f"{self.folder}: no trial has a validated epoch yet; see `{command}`")
        return self.ranking[0]

    def trial(self, number: int) -> TrialResult:
        """Return the trial of that number.

        Raises:
            InputError: if the run has no such trial.
        """
        if (trial := next((trial for trial in self.trials if trial.number == number), None)) is not None:
            return trial
        known = f"it has {len(self.trials)}, from 0 on" if self.trials else "none has started"
        raise InputError(f"{self.folder} has no trial {number}; {known}")

    def split(self) -> Split:
        """Return the cases of each part, read from split.json.

        Raises:
            InputError: if the file is missing or damaged, or is not the split that the run began with.
        """
        path = self.dir.split
        split = load_split(path)
        if split.digest() != self.config.record.split:
            raise InputError(f"{path} is not the split that the sweep began with; restore it")
        return split

    def require_file(self, option: str) -> None:
        """Raise InputError if a path option of the sweep names a file that is not there any more."""
        path = self.config.fixed(option)
        if path is not None and str(path) not in words_of(option) and not Path(path).exists():
            raise InputError(f"{path} is not there any more, and {self.folder} needs it as its {option}; restore it")

    def seen_line(self) -> str:
        """Return how many cases that score trials were seen by the pretrained weights, as a line; "" if none was."""
        seen = self.config.record.seen_cases
        return seen_line(seen, load_split(self.dir.split)) if seen else ""

    @property
    def orphan_trial_dirs(self) -> list[str]:
        """The folders of trials that are not in the journal, relative to the run's folder."""
        numbers = [path.name for path in sorted(self.dir.trials.glob("*")) if path.name.isdigit()]
        return [f"trials/{number}" for number in numbers if int(number) >= len(self.trials)]

    def recipe(self, trial: TrialResult) -> TrainConfig:
        """Return the options of a trial as it was trained, except those that a launch sets per machine.

        cache_dir, split_file and device are as `train:` has them, or at their defaults.
        """
        if trial.recipe:
            return make_config(trial.recipe)
        return self.config.train_config(trial.values, seed=trial.seed)


def ensure_run(run_dir: Path) -> RunDir:
    """Return the paths in a run's folder.

    Raises:
        InputError: if the folder has no study.yaml.
    """
    paths = RunDir(run_dir)
    if not paths.config.exists():
        name = paths.config.name
        if is_locked(run_dir):
            raise InputError(f"{run_dir}: the sweep is being started and has no {name} yet; ask again in a minute")
        raise InputError(f"{run_dir}: no {name} there; expected the folder that `voxtune launch --out` made")
    return paths


def read_run(run_dir: Path, config: SweepConfig | None = None) -> Run:
    """Return a run as it is now, also while its sweep runs.

    Args:
        run_dir: its folder.
        config: the one to read the trials by, if it is about to replace that in study.yaml; None to read study.yaml.

    Raises:
        InputError: if the folder has no study.yaml, or if the journal is missing, or if one of the two is damaged.
    """
    paths = ensure_run(run_dir)
    config = config or load_sweep_config(paths.config)
    driven = is_locked(run_dir)
    trials = read_trials(run_dir, config.record.study)
    return Run(paths, config, [TrialResult.from_frozen(frozen, config, driven=driven) for frozen in trials], driven)


def resolve_checkpoint(storage: str, path: str) -> str:
    """Return the folder or URI of a checkpoint.

    Args:
        storage: the run's.
        path: from the journal, relative to the storage; that of an imported trial is whole and returned as it is.
    """
    if path.startswith("/") or "://" in path:
        return path
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}"
