"""All that is known of one trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from trainable.core.options import to_dict
from tune.run.curves import trial_curve
from tune.run.events import Event, read_events
from tune.run.results import Run, TrialResult, resolve_checkpoint
from tune.search.asha import Decision, Kept

LOG_LINES = 10
LOG_BYTES = 20_000  # read from the end of a log


@dataclass(frozen=True)
class RungResult:
    """What early stopping decided on a trial at a rung.

    epoch: of the rung. value: what the trial was compared by. needed: the lowest score with which it would have gone
    on, None if it was compared with none. among: number of other trials that it was compared with. decision, kept: see
    RungDecision.
    """

    epoch: int
    value: float
    needed: float | None
    among: int
    decision: Decision
    kept: Kept


@dataclass(frozen=True)
class TrialDetail:
    """All that is known of one trial.

    status: in a few words, as `voxtune status` has it. reason: why it ended, as a sentence. score, best_epoch: of its
    best validated epoch, None and 0 without one. epochs: of a whole training. seconds: of training, over all attempts.
    gpu_hours: 0 on a CPU. recipe: all options that can be searched or fixed. differing: names of the searched ones that
    are not as in the default recipe. curve: score by validated epoch. files: its files that exist, by what they are.
    log: the last lines that it has printed. events: what happened to it.
    """

    number: int
    status: str
    reason: str
    epoch: int
    epochs: int
    score: float | None
    best_epoch: int
    dice: dict[str, float]
    seconds: float
    gpu_hours: float
    seed: int
    imported_from: str
    error: str
    searched: dict[str, Any]
    differing: tuple[str, ...]
    recipe: dict[str, Any]
    default: dict[str, Any]
    curve: dict[int, float]
    rungs: tuple[RungResult, ...]
    files: dict[str, str]
    log: tuple[str, ...]
    events: tuple[Event, ...]


def trial_detail(run: Run, number: int) -> TrialDetail:
    """Return all that is known of a trial.

    Raises:
        InputError: if the run has no such trial.
    """
    trial = run.trial(number)
    recipe, default = to_dict(run.recipe(trial)), to_dict(run.config.base_config())
    return TrialDetail(
        number=number,
        status=trial.status,
        reason=reason(run, trial),
        epoch=trial.epoch,
        epochs=run.config.fixed("epochs"),
        score=trial.score,
        best_epoch=trial.best_epoch,
        dice=trial.dice,
        seconds=trial.seconds,
        gpu_hours=trial.gpu_hours,
        seed=trial.seed,
        imported_from=trial.imported_from,
        error=trial.error,
        searched=trial.values,
        differing=tuple(name for name in trial.values if recipe[name] != default[name]),
        recipe=recipe,
        default=default,
        curve=trial_curve(run, trial),
        rungs=rung_results(trial),
        files=existing_files(run, trial),
        log=last_lines(run.dir.trial(number).stdout),
        events=tuple(event for event in read_events(run.dir.events) if event.trial == number),
    )


def rung_results(trial: TrialResult) -> tuple[RungResult, ...]:
    """Return what was decided at each rung that a trial has reached, in their order."""
    return tuple(
        RungResult(epoch, rung.value, rung.needed, rung.among, rung.decision, rung.kept)
        for epoch, rung in sorted(trial.rungs.items())
    )


def reason(run: Run, trial: TrialResult) -> str:
    """Return why a trial has ended, or that it has not, as a sentence."""
    epochs = run.config.fixed("epochs")
    if trial.status == "stopped early" and trial.stop_epoch is not None:
        rung = trial.rungs[trial.stop_epoch]
        needed = "" if rung.needed is None else f", {rung.needed:.4f} was needed"
        return f"stopped early at epoch {trial.stop_epoch} of {epochs}: {rung.value:.4f}{needed}"
    if trial.status == "failed":
        return f"failed at epoch {trial.epoch} of {epochs}: {trial.error}"
    if trial.outside_space:
        return f"outside the space: {trial.outside_space}"
    if trial.paused:
        return f"paused at epoch {trial.epoch} of {epochs} until all trials are there; the best ones go on then"
    if trial.state == TrialState.RUNNING:
        return f"{trial.status}; epoch {trial.epoch} of {epochs} is reported"
    kept = {"": "", "default": ", protected from early stopping", "audit": ", audited instead of stopped"}[trial.kept]
    return f"{trial.status} at epoch {trial.epoch} of {epochs}{kept}"


def existing_files(run: Run, trial: TrialResult) -> dict[str, str]:
    """Return the paths of a trial's files that exist, or are at a URI, by what they are."""
    folder = run.dir.trial(trial.number)
    files = {
        "recipe": folder.config,
        "scores per epoch": folder.metrics,
        "scores per case": folder.case_scores,
        "log": folder.stdout,
        "traceback": folder.error,
    }
    found = {name: str(path) for name, path in files.items() if path.exists()}
    if trial.checkpoint is not None:
        checkpoint = resolve_checkpoint(run.storage, trial.checkpoint)
        if "://" in checkpoint or Path(checkpoint).exists():
            found["checkpoint"] = checkpoint
    if run.ranking and run.best().number == trial.number and run.dir.best_model.exists():
        found["model"] = str(run.dir.best_model)
    return found


def last_lines(path: Path) -> tuple[str, ...]:
    """Return the last LOG_LINES lines of a log that are not empty; none without a file."""
    if not path.exists():
        return ()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    return tuple(line for line in text.splitlines() if line.strip())[-LOG_LINES:]
