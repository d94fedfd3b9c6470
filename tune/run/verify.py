"""Checks a run by the files in its folder: is anything lost, duplicated or decided wrongly?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from trainable.core.errors import InputError
from trainable.data.split import evenly_spaced
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from trainable.training.epoch_result import EndReason
from trainable.training.training_dir import BEST
from trainable.training.training_log import read_rows
from tune.run.journal_entries import read_entries
from tune.run.results import Run, resolve_checkpoint
from tune.run.verify_decisions import check_decisions
from tune.search.journal import read_trials
from tune.search.journal_file import SET_STATE
from tune.search.trial_progress import Progress, stopped_at

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from trainable.evaluation.metrics import Scores

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
Finding = str


def verify(run: Run) -> dict[str, list[Finding]]:
    """Return the findings of each check by its name, an empty list for a check that the run passes; nothing is written.

    Epochs, states and checkpoints are checked only of the trials in the run's space that ran here: not of imported
    ones, which `verify` of their own run checks, nor of those that a changed space excludes.

    Raises:
        InputError: if the journal is missing or damaged.
    """
    trials = read_trials(run.folder, run.config.record.study)
    entries = read_entries(run)
    own = [trial for trial in trials if "source" not in trial.user_attrs and "outside" not in trial.user_attrs]
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "trials, none lost or duplicated": lambda: check_numbers(run, trials, entries),
        "epochs, none lost or duplicated": lambda: (text for trial in own for text in check_epochs(run, trial)),
        "scores per case, whose means are those of metrics.csv": lambda: check_case_scores(run, own),
        "states and scores, those of the reports": lambda: (text for trial in own for text in check_state(run, trial)),
        "decisions, right for the scores at each rung": lambda: check_decisions(run.config, trials, entries),
        "checkpoints, of the epochs in the journal": lambda: (
            text for trial in own for text in check_checkpoints(run, trial)
        ),
        "RUN/best, the winner at its best epoch": lambda: check_best(run),
        "split.json, the split that the sweep began with": lambda: check_split(run),
        "cases, those that the sweep began with in every trial": lambda: check_data(run, own),
    }
    return {name: list(check()) for name, check in checks.items()}


def check_numbers(run: Run, trials: list[FrozenTrial], entries: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that trial numbers have no gaps, that each trial's folder has its trial in the journal, and the counts.

    At most study.trials trials may be the run's own, and each trial may be reported to Optuna as ended only once.
    """
    if [trial.number for trial in trials] != list(range(len(trials))):
        yield f"the trials have the numbers {[trial.number for trial in trials]}"
    if lost := run.orphan_trial_dirs:
        yield f"the journal has no trial for {', '.join(lost)}"
    if len(run.own_trials) > run.config.budget.trials:
        yield f"{len(run.own_trials)} trials, but study.trials is {run.config.budget.trials}"
    ended: set[int] = set()
    for entry in entries:
        if entry["op_code"] == SET_STATE and TrialState(entry["state"]) in FINISHED:
            if entry["number"] in ended:
                yield f"trial {entry['number']} was reported to Optuna as ended twice"
            ended.add(entry["number"])


def check_epochs(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """Check that metrics.csv has scores of the epochs that were to be validated, and of no other up to the last.

    In a sweep without a cost the journal must have the same scores.
    """
    val_freq, last = run.config.fixed("val_freq"), run.config.fixed("epochs")
    progress = Progress.from_attrs(trial.user_attrs)
    reached = progress.epoch
    expected = [epoch for epoch in range(1, reached + 1) if epoch % val_freq == 0 or epoch == last]
    try:
        rows = {int(row["epoch"]): row for row in read_rows(run.dir.trial(trial.number).metrics)}
    except InputError as error:
        yield f"trial {trial.number}: {error}"
        return
    score = run.config.objective.score
    scored = [epoch for epoch in rows if rows[epoch].get(score) and epoch <= reached]
    if progress.end_reason in (EndReason.PATIENCE, EndReason.NON_FINITE):
        expected = [epoch for epoch in expected if epoch in scored or epoch < reached]
    if scored != expected:
        yield f"trial {trial.number}: metrics.csv has scores of epochs {scored}, expected {expected}"
    if run.config.objective.cost is None:
        values = trial.intermediate_values
        if [epoch for epoch in values if epoch <= reached] != expected:
            yield f"trial {trial.number}: the journal has scores of epochs {list(values)}, expected {expected}"
        for epoch in set(values) & set(scored):
            if float(rows[epoch][score]) != values[epoch]:
                differ = f"{values[epoch]} in the journal, {rows[epoch][score]} in metrics.csv"
                yield f"trial {trial.number} epoch {epoch}: {differ}"


def check_case_scores(run: Run, trials: list[FrozenTrial]) -> Iterator[Finding]:
    """Check that each case_scores.csv has the validated cases at the epochs of metrics.csv, with the means there.

    Epochs that an older version has reported, without scores per case, are not expected.
    """
    try:
        cases = evenly_spaced(run.split().val, run.config.fixed("val_cases"))
    except InputError:  # which check_split reports
        return
    for trial in trials:
        progress = Progress.from_attrs(trial.user_attrs)
        paths = run.dir.trial(trial.number)
        name = f"trial {trial.number}: {paths.case_scores.name}"
        try:
            scores, metrics = read_case_scores(paths.case_scores), read_rows(paths.metrics)
        except InputError as error:
            yield f"trial {trial.number}: {error}"
            continue
        rows = {int(row["epoch"]): row for row in metrics if row.get(run.config.objective.score)}
        reached = [epoch for epoch in rows if epoch <= progress.epoch]
        reported = reached[max(0, len(reached) - progress.case_scores) :]
        if lost := [epoch for epoch in reported if epoch not in scores]:
            yield f"{name} has no scores of epochs {lost}"
        counted = [epoch for epoch in scores if epoch <= progress.epoch]  # a kill may have cut off a later report
        if unknown := [epoch for epoch in counted if epoch not in rows]:
            yield f"{name} has scores of epochs {unknown}, which metrics.csv does not have"
        for epoch in (epoch for epoch in counted if epoch in rows):
            yield from (f"{name} epoch {epoch}: {text}" for text in compare_means(scores[epoch], rows[epoch], cases))


def compare_means(scores: dict[str, Scores], row: dict[str, str], cases: list[str]) -> Iterator[Finding]:
    """Check that an epoch has scores of the validated cases, with the means in its row of metrics.csv."""
    if list(scores) != cases:
        differ = [name for name in {**scores, **dict.fromkeys(cases)} if (name in scores) != (name in cases)]
        which = f", differing in {', '.join(differ[:3])}" if differ else ", in another order"
        yield f"scores of {len(scores)} cases, expected the {len(cases)} that are validated{which}"
        return
    for name in SCORE_COLUMNS:
        mean = float(np.mean([of_case[name] for of_case in scores.values()]))
        if mean != float(row[f"val_{name}"]):
            yield f"the mean of {name} is {mean}, in metrics.csv it is {row[f'val_{name}']}"


def check_state(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """Check an ended trial's state and score against what the journal has of its epochs and of how it ended.

    The score must be the best of its epochs; of a running trial only the seconds are checked.
    """
    progress, attrs = Progress.from_attrs(trial.user_attrs), trial.user_attrs
    stopped = stopped_at(attrs)
    if progress.seconds < 0:
        yield f"trial {trial.number} took {progress.seconds:g} s, expected 0 or more: the clock was set while it ran"
    if trial.state == TrialState.RUNNING:
        return
    expected = TrialState.COMPLETE if progress.end_reason else TrialState.FAIL
    if stopped or progress.end_reason == EndReason.NON_FINITE:
        expected = TrialState.PRUNED
    if trial.state == TrialState.FAIL and not attrs.get("error") and not attrs.get("hung"):
        yield f"trial {trial.number} failed without an error in the journal"
    if trial.state != expected:
        yield f"trial {trial.number} is {trial.state.name}, expected {expected.name}"
    if stopped and progress.epoch != stopped:
        yield f"trial {trial.number} was stopped at epoch {stopped} and went on to {progress.epoch}"
    values = {epoch: value for epoch, value in trial.intermediate_values.items() if epoch <= progress.epoch}
    best, score = progress.best, progress.best_score
    if values and (best is None or score != max(values.values()) or values[best.epoch] != score):
        yield f"trial {trial.number}: best is {score} at {best and best.epoch}, its scores are {values}"
    scored = trial.state == TrialState.COMPLETE and progress.end_reason != EndReason.OUT_OF_MEMORY
    if scored and trial.values[0] != score:
        yield f"trial {trial.number} was reported to Optuna with {trial.values[0]}, its best score is {score}"


def check_checkpoints(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """Check that a running trial's last checkpoint is of its last epoch, and a finished one's of its best epoch.

    Nothing is checked on a URI, nor of trials that failed, were stopped or ran out of memory.
    """
    from trainable.training import checkpoint  # here: torch takes seconds to import

    progress = Progress.from_attrs(trial.user_attrs)
    folder = resolve_checkpoint(run.storage, progress.checkpoint or "")
    if "://" in folder or progress.checkpoint is None or trial.state == TrialState.FAIL:
        return
    running = trial.state == TrialState.RUNNING
    if not running and (trial.state != TrialState.COMPLETE or progress.end_reason == EndReason.OUT_OF_MEMORY):
        return
    expected = progress.epoch if running else progress.best and progress.best.epoch
    try:
        path = checkpoint.find_checkpoint(Path(folder) if running else Path(folder) / BEST)
        epoch = checkpoint.load_checkpoint(path)["epoch"]
    except InputError as error:
        yield f"trial {trial.number}: {error}"
        return
    if epoch != expected:
        yield f"trial {trial.number}: {path} is of epoch {epoch}, expected {expected}"


def check_split(run: Run) -> Iterator[Finding]:
    """Check that split.json is intact and is the split that the run began with."""
    try:
        run.split()
    except InputError as error:
        yield str(error)


def check_data(run: Run, trials: list[FrozenTrial]) -> Iterator[Finding]:
    """Check that each trial was scored on the cases that the run began with; not of trials of an older version."""
    for trial in trials:
        data = Progress.from_attrs(trial.user_attrs).data
        if data is not None and data != run.config.record.data:
            yield f"trial {trial.number} was scored on cases with the hash {data}, expected {run.config.record.data}"


def check_best(run: Run) -> Iterator[Finding]:
    """Check that RUN/best has the winner's checkpoint of its best epoch, once all study.trials trials have ended."""
    from trainable.training import checkpoint  # here: torch takes seconds to import

    if not run.ranking or run.unfinished or run.best().checkpoint is None:
        return
    best, model = run.best(), run.dir.best_model
    if not model.is_file():
        yield f"{model} is missing; expected the model of trial {best.number}"
        return
    try:
        state = checkpoint.load_checkpoint(model)
    except InputError as error:
        yield str(error)
        return
    actual, expected = (state["epoch"], state["best_score"]), (best.best_epoch, best.score)
    if actual != expected:
        yield f"{model} has (epoch, score) {actual}, expected {expected}"
