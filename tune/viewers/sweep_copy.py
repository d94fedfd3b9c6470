"""What is copied of a sweep and its trials, whatever store it goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from trainable.core.errors import InputError
from trainable.core.options import option_names, to_dict
from trainable.training.tensorboard_tags import tagged
from trainable.training.training_log import read_rows
from tune.run.results import Run, TrialResult
from tune.search.journal import read_trials
from tune.viewers.trial_name import trial_name


@dataclass(frozen=True)
class TrialCopy:
    """What is copied of a trial.

    name: as in TensorBoard. options: its recipe. epochs: the numbers of each reported epoch, under TensorBoard's names.
    tags: how it ended, in words. start, end: None of a trial that was imported, or has not ended.
    """

    number: int
    name: str
    state: TrialState
    options: dict[str, Any]
    epochs: dict[int, dict[str, float]]
    score: float | None
    tags: dict[str, str]
    start: datetime | None
    end: datetime | None

    @property
    def last_epoch(self) -> int:
        """The last of its epochs; the best one of an imported trial, whose other epochs are in its own run only."""
        return max(self.epochs, default=int(self.tags["best_epoch"]))

    @property
    def stamp(self) -> str:
        """What changes when there is more to copy."""
        return f"{self.tags['status']} {self.last_epoch}"


def sweep_id(run: Run) -> str:
    """Return what names a sweep even after its folder was moved: its first attempt, else its folder's name."""
    return next(iter(run.config.record.attempts), run.folder.name)


def copies_of_trials(run: Run) -> list[TrialCopy]:
    """Return a copy of each trial of a run."""
    stored = {frozen.number: frozen for frozen in read_trials(run.folder, run.config.record.study)}
    default, copies = run.config.space.default_values(), []
    for trial in run.trials:
        recipe = to_dict(run.recipe(trial))
        copies.append(
            TrialCopy(
                number=trial.number,
                name=trial_name(trial.number, trial.values, default),
                state=trial.state,
                options={name: recipe[name] for name in option_names(role="recipe")} | {"seed": trial.seed},
                epochs={
                    int(row["epoch"]): tagged(numbers(row)) for row in read_rows(run.dir.trial(trial.number).metrics)
                },
                score=trial.score,
                tags=tags_of(trial),
                start=stored[trial.number].datetime_start,
                end=stored[trial.number].datetime_complete,
            )
        )
    return copies


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Return what is a number in a row of metrics.csv."""
    found = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except (TypeError, ValueError):  # an epoch that was not validated, or a word
            continue
    return found


def tags_of(trial: TrialResult) -> dict[str, str]:
    """Return how a trial ended, why, and where it comes from."""
    tags = {"status": trial.status, "best_epoch": str(trial.best_epoch)}
    epoch = None if trial.kept else trial.stop_epoch
    if epoch is not None and (decided := trial.rungs[epoch]).needed is not None:
        tags["reason"] = f"{decided.value:.4f} at rung {epoch}, where {decided.needed:.4f} was needed"
    if trial.error:
        tags["reason"] = trial.error
    if trial.imported_from:
        tags["imported_from"] = trial.imported_from
    return tags


def files_of_sweep(run: Run) -> list[Path]:
    """Return the files that are copied: what was asked, the report and the winner's recipe, as far as they exist."""
    return [path for path in (run.dir.config, run.dir.report, run.dir.best_config) if path.exists()]


def require_package(name: str) -> None:
    """Raise InputError if the package of an extra is not installed. name: of both."""
    if find_spec(name) is None:
        raise InputError(f"--to {name} needs the package {name}: pip install 'voxtune[{name}]'")
