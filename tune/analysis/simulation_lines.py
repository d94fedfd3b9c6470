"""What `voxtune simulate` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tune.analysis.simulate import ReplayedTrial, Simulation
from tune.search.asha import rung_epochs

MAX_LOST = 10  # that are listed


def simulation_lines(result: Simulation) -> list[str]:
    """Return what the other stopper would have stopped, lost and cost, and what is unknown, as lines."""
    rungs = ", ".join(map(str, rung_epochs(result.config)))
    low, high = result.epochs
    recorded = sum(trial.recorded.epoch for trial in result.trials)
    cost = f"{low}" if low == high else f"{low} to {high}"
    lines = [
        f"early stopping: {result.config.early_stopping.type} at epochs {rungs}" if rungs else "early stopping: none",
        f"stopped: {len(result.stopped)} of {len(result.trials)} trials{by_epoch(result.stopped)}",
        f"trained: {cost} epochs, {recorded} in the recorded sweep",
        *lost_lines(result),
    ]
    if result.unsure:
        unsure = ", ".join(str(trial.recorded.number) for trial in result.unsure)
        lines.append(f"unknown: whether these would be stopped, as scores they are compared with are missing: {unsure}")
    if result.missing:
        epochs = Counter(trial.missing for trial in result.missing)
        where = ", ".join(f"{count} after epoch {epoch}" for epoch, count in sorted(epochs.items()))
        trials = "1 trial that" if len(result.missing) == 1 else f"{len(result.missing)} trials that"
        lines.append(f"unknown: the scores of {trials} may go on where the recorded sweep has no more: {where}")
    return lines


def by_epoch(stopped: Sequence[ReplayedTrial]) -> str:
    """Return at which epochs how many trials are stopped, in brackets; "" if none is."""
    epochs = Counter(trial.stop for trial in stopped)
    counts = ", ".join(f"{count} at epoch {epoch}" for epoch, count in sorted(epochs.items()))
    return f" ({counts})" * bool(stopped)


def lost_lines(result: Simulation) -> list[str]:
    """Return which of the trials that trained to their end would be lost, by rank, and the best score that stays."""
    finished = result.finished
    if not finished:
        return ["no trial has trained to its end: what would be lost is unknown"]
    lost, kept = [], []
    for rank, trial in enumerate(finished, 1):
        name = f"  rank {rank}: trial {trial.recorded.number}, {trial.recorded.score:.4f},"
        if trial.stop is not None:
            latest = " at the latest" if trial.may_stop not in (None, trial.stop) else ""
            lost.append(f"{name} stopped at epoch {trial.stop}{latest}")
        elif trial.kept is not None:
            epoch, why = trial.kept
            kept.append(f"{name} at epoch {epoch}, {'drawn by the audit' if why == 'audit' else 'the default recipe'}")
    lines = [f"lost: {len(lost)} of the {len(finished)} trials that trained to their end", *first_lines(lost)]
    if kept:
        lines += [f"below a cutoff, but not stopped: {len(kept)} of them", *first_lines(kept)]
    return [*lines, best_line(result, finished)]


def first_lines(group: Sequence[str]) -> list[str]:
    """Return the first MAX_LOST of these lines, best first, and how many more there are."""
    return [*group[:MAX_LOST], *[f"  and {len(group) - MAX_LOST} more of lower rank"] * (len(group) > MAX_LOST)]


def best_line(result: Simulation, finished: Sequence[ReplayedTrial]) -> str:
    """Return the best score that certainly stays, and what becomes of the recorded best. finished: best first."""
    winner, best = finished[0], next((trial.recorded for trial in finished if trial.goes_on), None)
    known = "at least " if result.missing or result.unsure else ""
    text = "unknown" if best is None else f"{known}{best.score:.4f} of trial {best.number}"
    if winner.goes_on:
        return f"best score: {text}, as recorded"
    recorded = f"the recorded best, {winner.recorded.score:.4f} of trial {winner.recorded.number},"
    fate = f"{recorded} is stopped" if winner.stop is not None else f"whether {recorded} is stopped is unknown"
    return f"best score: {text}; {fate}"
