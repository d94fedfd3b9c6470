"""Checks a run by what lies in its folder alone: is anything lost, doubled or decided wrongly?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from trainable.core.errors import InputError
from trainable.training import checkpoint
from trainable.training.run_log import read_rows
from tune.run.results import Run, resolve_checkpoint
from tune.search.asha import cutoff
from tune.search.journal import STOP, progress_of, read_trials
from tune.search.journal_file import CREATE_TRIAL, JOURNAL, SET_STATE, SET_USER_ATTR

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
Finding = str


def verify(run: Run) -> dict[str, list[Finding]]:
    """What is wrong with a run, under the name of each check; nothing is written.

    Trials that were taken over from another run are that run's to verify.
    """
    trials = read_trials(run.folder, run.config.name)
    log = entries(run)
    own = [trial for trial in trials if "source" not in trial.user_attrs and "outside" not in trial.user_attrs]
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "trials, none lost or doubled": lambda: check_numbers(run, trials, log),
        "epochs, none lost or doubled": lambda: (text for trial in own for text in check_epochs(run, trial)),
        "states and scores, as the reports say": lambda: (text for trial in own for text in check_state(run, trial)),
        "decisions, right for what each rung held": lambda: check_decisions(run, trials, log),
        "checkpoints, of the epochs on record": lambda: (
            text for trial in own for text in check_checkpoints(run, trial)
        ),
        "RUN/best, the winner at its best epoch": lambda: check_best(run),
        "split.json, of the split that the sweep began with": lambda: check_split(run),
    }
    return {name: list(check()) for name, check in checks.items()}


def entries(run: Run) -> list[dict[str, Any]]:
    """The entries of the journal that belong to the run's study, with the number of the trial."""
    backend = JournalFileBackend(str(run.folder / JOURNAL))
    study = optuna.load_study(study_name=run.config.name, storage=JournalStorage(backend))
    names = {trial._trial_id: trial.number for trial in study.get_trials(deepcopy=False)}
    found, created = [], 0
    for entry in backend.read_logs(0):
        if entry["op_code"] == CREATE_TRIAL:  # Optuna gives ids in the order of these entries
            entry["trial_id"], created = created, created + 1
        if entry.get("trial_id") in names:
            found.append({**entry, "number": names[entry["trial_id"]]})
    return found


def check_numbers(run: Run, trials: list[FrozenTrial], log: list[dict[str, Any]]) -> Iterator[Finding]:
    """Numbers without gaps, no more trials than asked for, each told once."""
    if [trial.number for trial in trials] != list(range(len(trials))):
        yield f"the trials have the numbers {[trial.number for trial in trials]}"
    if lost := run.orphan_trial_dirs:
        yield f"the journal knows nothing of {', '.join(lost)}"
    if len(run.own_trials) > run.config.budget.trials:
        yield f"{len(run.own_trials)} trials, but study.trials is {run.config.budget.trials}"
    told: set[int] = set()
    for entry in log:
        if entry["op_code"] == SET_STATE and TrialState(entry["state"]) in FINISHED:
            if entry["number"] in told:
                yield f"trial {entry['number']} was told twice"
            told.add(entry["number"])


def check_epochs(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """Each validated epoch once, in the journal and with the same score in metrics.csv."""
    val_freq, last = run.config.fixed("val_freq"), run.config.fixed("epochs")
    reached = progress_of(trial.user_attrs)["epoch"]
    wanted = [epoch for epoch in range(1, reached + 1) if epoch % val_freq == 0 or epoch == last]
    rows = {int(row["epoch"]): row for row in read_rows(run.trial_dir(trial.number) / "metrics.csv")}
    score = run.config.objective.score
    scored = [epoch for epoch in rows if rows[epoch].get(score) and epoch <= reached]
    ended = progress_of(trial.user_attrs)["end_reason"]
    if ended in ("patience", "non_finite"):
        wanted = [epoch for epoch in wanted if epoch in scored or epoch < reached]
    if scored != wanted:
        yield f"trial {trial.number}: metrics.csv has scores of epochs {scored}, expected {wanted}"
    if run.config.objective.cost is None:
        values = trial.intermediate_values
        if [epoch for epoch in values if epoch <= reached] != wanted:
            yield f"trial {trial.number}: the journal has scores of epochs {list(values)}, expected {wanted}"
        for epoch in set(values) & set(scored):
            if float(rows[epoch][score]) != values[epoch]:
                said = f"{values[epoch]} in the journal, {rows[epoch][score]} in metrics.csv"
                yield f"trial {trial.number} epoch {epoch}: {said}"


def check_state(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """The state that follows from the reports; the score of the best epoch."""
    progress, attrs = progress_of(trial.user_attrs), trial.user_attrs
    stopped = [int(rung) for rung, record in attrs.get("rungs", {}).items() if record["decision"] == STOP]
    if trial.state == TrialState.RUNNING:
        return
    expected = TrialState.COMPLETE if progress["end_reason"] else TrialState.FAIL
    if stopped or progress["end_reason"] == "non_finite":
        expected = TrialState.PRUNED
    if trial.state == TrialState.FAIL and not attrs.get("error") and not attrs.get("hung"):
        yield f"trial {trial.number} failed without an error on record"
    if trial.state != expected:
        yield f"trial {trial.number} is {trial.state.name}, expected {expected.name}"
    if stopped and progress["epoch"] != stopped[0]:
        yield f"trial {trial.number} was stopped at epoch {stopped[0]} and went on to {progress['epoch']}"
    values, best = trial.intermediate_values, progress["best"]
    if values and (best["score"] != max(values.values()) or values[best["epoch"]] != best["score"]):
        yield f"trial {trial.number}: best is {best['score']} at {best['epoch']}, its scores are {values}"
    if trial.state == TrialState.COMPLETE and progress["end_reason"] != "oom" and trial.values[0] != best["score"]:
        yield f"trial {trial.number} is told with {trial.values[0]}, its best score is {best['score']}"


def check_decisions(run: Run, trials: list[FrozenTrial], log: list[dict[str, Any]]) -> Iterator[Finding]:
    """The decisions of early stopping, replayed in the order of the journal, for what the rung held at that moment."""
    rungs: dict[int, dict[int, float]] = {rung: {} for rung in run.config.rungs}
    for entry in log:
        number, given = entry["number"], entry.get("user_attr" if entry["op_code"] == SET_USER_ATTR else "user_attrs")
        for name, record in ((given or {}).get("rungs") or {}).items():
            rung, value = rungs.setdefault(int(name), {}), record["value"]
            if number in rung:
                continue
            stop = value < cutoff(list(rung.values()), run.config.early_stopping)
            if entry["op_code"] == SET_USER_ATTR and stop != (record["decision"] == STOP):
                yield f"trial {number} at rung {name}: {record['decision']} with {value}, the rung held {rung}"
            rung[number] = value
    for trial in trials:
        progress = progress_of(trial.user_attrs)
        passed = [rung for rung in run.config.rungs if rung <= progress["epoch"]]
        if progress["end_reason"] and passed and passed[-1] == progress["epoch"]:
            passed.pop()  # it ended there by itself
        recorded = sorted(map(int, trial.user_attrs.get("rungs", {})))
        pending = trial.state == TrialState.RUNNING and passed[:-1] == recorded
        if "outside" not in trial.user_attrs and recorded != passed and not pending:
            yield f"trial {trial.number} came to epoch {progress['epoch']}, decided were the rungs {recorded}"


def check_checkpoints(run: Run, trial: FrozenTrial) -> Iterator[Finding]:
    """On a local storage: a running trial's last checkpoint is whole, a finished one's is of its best epoch."""
    progress = progress_of(trial.user_attrs)
    place = resolve_checkpoint(run.storage, progress["checkpoint"] or "")
    if "://" in place or progress["checkpoint"] is None or trial.state == TrialState.FAIL:
        return
    running = trial.state == TrialState.RUNNING
    if not running and (trial.state != TrialState.COMPLETE or progress["end_reason"] == "oom"):
        return
    expected = progress["epoch"] if running else progress["best"]["epoch"]
    try:
        path = checkpoint.find_checkpoint(Path(place) if running else Path(place) / checkpoint.BEST)
        epoch = checkpoint.load_checkpoint(path)["epoch"]
    except InputError as error:
        yield f"trial {trial.number}: {error}"
        return
    if epoch != expected:
        yield f"trial {trial.number}: {path} is of epoch {epoch}, expected {expected}"


def check_split(run: Run) -> Iterator[Finding]:
    """Its file is there, with the cases that the run's scores are of."""
    try:
        run.split()
    except InputError as error:
        yield str(error)


def check_best(run: Run) -> Iterator[Finding]:
    """RUN/best holds the best trial's model, once no trial runs."""
    if not run.ranking or run.unfinished or run.best().checkpoint is None:
        return
    best, model = run.best(), run.folder / "best" / checkpoint.BEST
    if not model.is_file():
        yield f"{model} is missing; expected the model of trial {best.number}"
        return
    try:
        loaded = checkpoint.load_checkpoint(model)
    except InputError as error:
        yield str(error)
        return
    found, expected = (loaded["epoch"], loaded["best_score"]), (best.best_epoch, best.score)
    if found != expected:
        yield f"{model} has (epoch, score) {found}, expected {expected}"
