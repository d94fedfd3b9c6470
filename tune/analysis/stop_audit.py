"""How often early stopping is wrong: from the trials that would have been stopped and went on to their end.

A stop is false if the trial, trained to its end, scores above the median of the trials that were let through to theirs.
The audit draws the trials that go on at random, so that their share of false stops estimates that of all stops; the
default recipe goes on too, but is no random sample, and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from trainable.training.epoch_result import EndReason
from tune.run.results import Run, TrialResult
from tune.search.asha import rung_epochs

MIN_TRIALS = 4  # of a rank correlation
MAX_RUNGS = 5  # of which a rank correlation is printed
CONFIDENCE = 0.95


@dataclass(frozen=True)
class StopAudit:
    """What a run says of its stops.

    stops: number of trials that were stopped or would have been, without the default recipe's. pending: how many of
    them go on and have not ended. audited: how many of them went on to a known end. false: how many of those were false
    stops. better_than_best: how many of those score above the best of the trials that were let through. low, high:
    Wilson's interval of the share of false stops; NaN if nothing is audited. correlations: Spearman's rank correlation
    of the values at each rung with the scores at the end, by epoch; NaN if too few trials tell. default: number of the
    trial of the default recipe and the epoch at which it would have been stopped; None if it would not.
    """

    stops: int
    pending: int
    audited: int
    false: int
    better_than_best: int
    low: float
    high: float
    correlations: dict[int, float] = field(default_factory=dict)
    default: tuple[int, int] | None = None

    @property
    def rate(self) -> float:
        """The share of false stops among the audited ones; NaN if nothing is audited."""
        return self.false / self.audited if self.audited else math.nan


def audit_stops(run: Run) -> StopAudit:
    """Return what the trials of a run, but for imported ones, say of its stops.

    While no trial has been let through to its end, there is nothing to compare with, and nothing counts as audited.
    """
    trials = [trial for trial in run.own_trials if not trial.outside_space]
    passed = [score for trial in trials if trial.stop_epoch is None and (score := finished_score(trial)) is not None]
    stops = [trial for trial in trials if trial.stop_epoch is not None and trial.kept != "default"]
    kept = [trial for trial in stops if trial.kept]
    scores = [score for trial in kept if (score := end_score(trial)) is not None]
    audited = scores if passed else []
    false = sum(score > median(passed) for score in audited)
    low, high = wilson_interval(false, len(audited))
    return StopAudit(
        stops=len(stops),
        pending=sum(trial.state == TrialState.RUNNING for trial in kept),
        audited=len(audited),
        false=false,
        better_than_best=sum(score > max(passed) for score in audited),
        low=low,
        high=high,
        correlations={epoch: rung_correlation(trials, epoch) for epoch in rung_epochs(run.config)},
        default=next(((t.number, t.stop_epoch) for t in trials if t.kept == "default" and t.stop_epoch), None),
    )


def finished_score(trial: TrialResult) -> float | None:
    """Return the score of a trial that trained to its end; None for another one."""
    return trial.score if trial.finished else None


def end_score(trial: TrialResult) -> float | None:
    """Return the score of a trial that trained to its end; -inf if it diverged or ran out of memory before.

    None if its end is unknown: it was stopped, has failed or has not ended.
    """
    if trial.finished:
        return trial.score
    hopeless = trial.end_reason in (EndReason.NON_FINITE, EndReason.OUT_OF_MEMORY)
    return -math.inf if hopeless and trial.state != TrialState.RUNNING else None


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share at CONFIDENCE; NaN, NaN if the count is 0.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953. scipy has it too, but takes half a second to import.
    """
    if not count:
        return math.nan, math.nan
    z, share = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (centre - half if successes else 0.0), (centre + half if successes < count else 1.0)


def rung_correlation(trials: Sequence[TrialResult], epoch: int) -> float:
    """Return Spearman's rank correlation of the values at a rung with the scores at the end, as if none were stopped.

    Each audited trial stands for the stopped ones too: its weight is the number of stops per audited trial.

    Returns:
        NaN if fewer than MIN_TRIALS trials have both, or all are equal in one of the two; also if there are stops and
        none was audited: those that were let through differ too little from each other to tell.
    """
    stops = sum(trial.stop_epoch is not None and trial.kept != "default" for trial in trials)
    audited = sum(trial.kept == "audit" and trial.finished for trial in trials)
    known = [trial for trial in trials if trial.finished and epoch in trial.rungs]
    if len(known) < MIN_TRIALS or (stops and not audited):
        return math.nan
    weights = np.array([stops / audited if trial.kept == "audit" else 1.0 for trial in known])
    values = np.array([trial.rungs[epoch].value for trial in known])
    return weighted_spearman(values, np.array([trial.score for trial in known], float), weights)


def weighted_spearman(first: NDArray[np.float64], second: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two samples, (n,) each, in which item i counts weights[i] times.

    Ties have their mean rank. NaN if all items are equal in one of the two.
    """

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        _, places = np.unique(values, return_inverse=True)
        counts = np.bincount(places, weights)
        centred = (np.cumsum(counts) - counts / 2)[places]
        return np.asarray(centred - np.average(centred, weights=weights))

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    one, other = ranks(first), ranks(second)
    return float(weights @ (one * other) / math.sqrt((weights @ one**2) * (weights @ other**2)))


def audit_lines(run: Run) -> list[str]:
    """Return what audit_stops finds, as lines; none without an audit if the default recipe was let through."""
    audit, lines = audit_stops(run), list[str]()
    if run.config.early_stopping.audit and not audit.stops:
        lines.append("audit: no trial was to be stopped so far (the default recipe is not counted)")
    elif run.config.early_stopping.audit or audit.audited or audit.pending:
        lines += [count_line(audit), false_stops_line(audit), correlation_line(audit)]
    if audit.default is not None:
        number, epoch = audit.default
        lines.append(f"trial {number}, the default recipe, would have been stopped at epoch {epoch}; it is protected")
    return lines


def count_line(audit: StopAudit) -> str:
    """Return how many trials were to be stopped, and how many of these were trained to their end."""
    chosen = f"audit: {audit.stops} {'trial was' if audit.stops == 1 else 'trials were'} to be stopped"
    drawn = [f"{audit.audited} trained to the end"] * bool(audit.audited)
    drawn += [f"{audit.pending} not ended yet"] * bool(audit.pending)
    return f"{chosen} (the default recipe is not counted); drawn of them to go on: {', '.join(drawn) or 'none so far'}"


def false_stops_line(audit: StopAudit) -> str:
    """Return the share of false stops with its interval, and what it is."""
    if not audit.audited:
        return "false stops: unknown until such a trial and one that was never to be stopped have ended"
    rate, low, high = (f"{100 * value:.0f}" for value in (audit.rate, audit.low, audit.high))
    interval = f"{rate} %, {100 * CONFIDENCE:.0f} % interval {low} to {high} %"
    return (
        f"false stops: {audit.false} of {audit.audited} ({interval}) ended above the median of the trials that were "
        f"never to be stopped; {audit.better_than_best} above the best of these"
    )


def correlation_line(audit: StopAudit) -> str:
    """Return the rank correlations of the rungs, of MAX_RUNGS at most: the median rule has one at each epoch."""
    known = [f"{value:.2f} at epoch {epoch}" for epoch, value in audit.correlations.items() if not math.isnan(value)]
    if not known:
        few = f"too few trials to tell; it takes {MIN_TRIALS} that ended, and an audited one if any was to be stopped"
        return f"do early scores predict the final ones? {few}"
    shown = sorted({round(place) for place in np.linspace(0, len(known) - 1, MAX_RUNGS)})
    ranks = ", ".join(known[place] for place in shown)
    return f"do early scores predict the final ones? Their rank correlation (1: the same order) is {ranks}"
