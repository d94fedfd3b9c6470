"""How long a sweep will go on, as a range: its rest is simulated many times, from what its trials have shown so far."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from optuna.trial import TrialState

from tune.run.results import Run, TrialResult
from tune.search.asha import cutoff_rule, rung_epochs
from tune.spec.sections import EarlyStopping

FEWEST_SIMULATIONS, SIMULATIONS = 40, 200
SIMULATED_TRIALS = 20_000  # in all simulations of a look: a tenth of a second
RANGE = (0.05, 0.95)  # quantiles of the simulated ends
PRIOR_WEIGHT = 2.0  # trials that went on at a rung as the rule has it, next to those that were seen
RECENT = 3  # trials per slot whose speed counts as that of now
DRIFT = 0.15  # least relative error of the speed: the load of a machine changes
TREND_SHARE, MOST_TREND = 0.5, 0.4  # how much of the trend of the speed goes on, and the most that counts
GAP_SECONDS = 1.0  # between two trials in a slot


@dataclass(frozen=True)
class Seen:
    """What the trials of a run have shown.

    speeds: seconds per epoch of the latest trials, relative to their median. pace: seconds per epoch that are expected
    from now on, of the median trial. drift: standard deviation of the logarithm of how much that may change. stopped,
    passed: at each rung the number of trials that were stopped there and that went on. expected: how many of them the
    rule would have let go on, see share_that_passes. early: epochs of trials that ended before their last epoch for
    another reason. ended: number of trials that have ended.
    """

    speeds: NDArray[np.float64]
    pace: float
    drift: float
    stopped: dict[int, int]
    passed: dict[int, int]
    expected: dict[int, float]
    early: tuple[int, ...]
    ended: int


@dataclass(frozen=True)
class Rest:
    """What is left of a sweep.

    done: epochs that the running trials and those that are still to be started have done, (trials,). protected: which
    of them early stopping does not stop, (trials,). running, paused: numbers of trials.
    """

    done: NDArray[np.int64]
    protected: NDArray[np.bool_]
    running: int
    paused: int


def estimate_time_left(run: Run, slots: int) -> tuple[float, float] | None:
    """Return the seconds that the sweep is likely to go on at least and at most; None until an epoch is reported.

    In 9 of 10 sweeps the end should be between the two; benchmarks/eta_coverage.py measures it. The trials' speed is
    that of the latest ones, with an error that grows with how much it has changed so far; the share that is stopped at
    each rung is as seen, or before much is seen as the rule has it.

    slots: number of trials that run at once.
    """
    begun = [trial for trial in run.own_trials if trial.epoch and trial.seconds > 0]
    if not begun:
        return None
    seen = what_was_seen(run, begun, slots)
    rng = np.random.default_rng([run.config.seed, len(begun), len(run.own_trials)])
    sweeps = max(FEWEST_SIMULATIONS, min(SIMULATIONS, SIMULATED_TRIALS // (run.trials_left + 1)))
    rest = rest_of(run)
    ends = [simulate_rest(run, seen, rest, slots, rng) for _ in range(sweeps)]
    low, high = np.quantile(ends, RANGE)
    return float(low), float(high)


def what_was_seen(run: Run, begun: Sequence[TrialResult], slots: int) -> Seen:
    """Return what the trials have shown; begun: those that have reported an epoch."""
    pace = np.array([trial.seconds / trial.epoch for trial in begun])
    recent = pace[-max(RECENT * slots, 4) :]
    ended = [trial for trial in run.own_trials if trial.state != TrialState.RUNNING]
    last = run.config.fixed("epochs")
    stopped: dict[int, int] = {}
    passed: dict[int, int] = {}
    for trial in run.own_trials:
        for epoch, decided in trial.rungs.items():
            counts = stopped if decided.decision == "STOP" else passed
            counts[epoch] = counts.get(epoch, 0) + 1
    stopping, expected = run.config.early_stopping, dict[int, float]()
    for index, epoch in enumerate(rung_epochs(run.config)):
        there = stopped.get(epoch, 0) + passed.get(epoch, 0)
        expected[epoch] = sum(share_that_passes(stopping, index, before) for before in range(there))
    early = [t.epoch for t in ended if t.epoch < last and not any(d.decision == "STOP" for d in t.rungs.values())]
    trend, drift = trend_of(pace, len(recent))
    return Seen(
        recent / np.median(recent),
        float(np.median(recent)) * math.exp(trend),
        drift,
        stopped,
        passed,
        expected,
        tuple(early),
        len(ended),
    )


def trend_of(pace: NDArray[np.float64], block: int) -> tuple[float, float]:
    """Return by how much the logarithm of the speed is expected to change until the end, and the standard deviation.

    pace: seconds per epoch of each trial, in their order. block: number of trials that count as of one time.
    """
    blocks = [float(np.median(pace[max(0, end - block) : end])) for end in range(len(pace), 0, -block)][::-1]
    steps = np.diff(np.log(blocks))
    spread = float(np.log(pace).std() / math.sqrt(min(len(pace), block))) if len(pace) > 1 else 0.5
    if not len(steps):
        return 0.0, max(DRIFT, spread)
    trend = float(np.clip(np.median(steps), -MOST_TREND, MOST_TREND))
    return trend * TREND_SHARE, max(DRIFT, spread, float(np.sqrt(np.mean(steps**2))))


def rest_of(run: Run) -> Rest:
    """Return what is left of a sweep."""
    unfinished = [trial for trial in run.own_trials if trial.state == TrialState.RUNNING]
    running = [trial for trial in unfinished if not trial.paused]
    done = np.array([trial.epoch for trial in running] + [0] * run.trials_left)
    protected = np.array([is_protected(run, trial) for trial in running] + [False] * run.trials_left)
    return Rest(done, protected, len(running), len(unfinished) - len(running))


def simulate_rest(run: Run, seen: Seen, rest: Rest, slots: int, rng: Generator) -> float:
    """Return the seconds until the last trial has ended, in one simulation."""
    last, rungs, done, running = run.config.fixed("epochs"), rung_epochs(run.config), rest.done, rest.running
    ends = draw_ends(done, last, chances_of_trials(run, rest, seen, rng), rng)
    if seen.early:
        fails = rng.random(len(done)) < rng.beta(0.2 + len(seen.early), 1 + seen.ended - len(seen.early))
        ends = np.where(fails, np.minimum(ends, rng.choice(np.asarray(seen.early), len(done))), ends)
    pauses = done < rungs[0] if run.config.early_stopping.type == "promote" and rungs else np.zeros(len(done), bool)
    ends[pauses] = np.minimum(ends[pauses], rungs[0] if rungs else last)
    left = (ends - done).clip(0).astype(float)
    unreported = rng.uniform(0, run.config.fixed("val_freq"), running)  # epochs since a trial's last report
    left[:running] = (left[:running] - unreported).clip(0)
    pace = seen.pace * math.exp(rng.normal(0, seen.drift))
    seconds = (left * pace * rng.choice(seen.speeds, len(done))).tolist()
    end = last_end(seconds[:running], seconds[running:], slots)
    at_rung = int(pauses.sum()) + rest.paused
    if not at_rung:
        return end
    promoted = -(-at_rung // run.config.early_stopping.reduction_factor) + run.config.protect_default
    return end + last_end([], (pace * (last - rungs[0]) * rng.choice(seen.speeds, promoted)).tolist(), slots)


def last_end(running: Sequence[float], waiting: Sequence[float], slots: int) -> float:
    """Return the seconds until the last trial has ended, given those that each has left, the waiting ones in order."""
    free = [*sorted(running, reverse=True)[:slots], *[0.0] * (slots - len(running))]
    heapq.heapify(free)
    for length in waiting:
        heapq.heapreplace(free, free[0] + GAP_SECONDS + length)
    return max([*free, *running])


def chances_of_trials(run: Run, rest: Rest, seen: Seen, rng: Generator) -> dict[int, NDArray[np.float64]]:
    """Return the chance that each running and each future trial is stopped, (trials,), by the epoch of the rung."""
    if run.config.early_stopping.type == "promote":
        return {}
    return {epoch: np.where(rest.protected, 0.0, chance) for epoch, chance in stop_chances(run, seen, rng).items()}


def draw_ends(
    done: NDArray[np.int64], last: int, chances: dict[int, NDArray[np.float64]], rng: Generator
) -> NDArray[np.int64]:
    """Return the epochs at which trials end, (trials,), that have done so many.

    chances: that each is stopped at a rung, (trials,), by the rung's epoch.
    """
    ends = np.full(len(done), last)
    for epoch, chance in chances.items():
        stopped = (rng.random(len(done)) < chance) & (done < epoch) & (ends == last)
        ends[stopped] = epoch
    return ends


def is_protected(run: Run, trial: TrialResult) -> bool:
    """Return whether early stopping does not stop a trial: it is the default recipe, or was kept already."""
    default = run.default_trial
    return bool(trial.kept) or (run.config.protect_default and default is not None and default.number == trial.number)


def stop_chances(run: Run, seen: Seen, rng: Generator) -> dict[int, float]:
    """Return for each rung a chance that a trial is stopped there, drawn from what is known of it.

    It is that of the rule, see share_that_passes, times how often trials went on there against what the rule would have
    expected of them: the first ones at a rung go on more often than later ones.
    """
    stopping, left, chances = run.config.early_stopping, run.trials_left, dict[int, float]()
    rungs = rung_epochs(run.config)
    for index, epoch in enumerate(rungs):
        stopped, passed = seen.stopped.get(epoch, 0), seen.passed.get(epoch, 0)
        ratio = rng.gamma(PRIOR_WEIGHT + passed) / (PRIOR_WEIGHT + seen.expected[epoch])
        coming = stopped + passed + left // (2 * (1 if stopping.type == "median" else stopping.reduction_factor**index))
        chances[epoch] = 1 - min(0.98, ratio * share_that_passes(stopping, index, coming))
    return chances


def share_that_passes(stopping: EarlyStopping, rung: int, before: int) -> float:
    """Return the expected share of trials that go on at a rung, counted from 0, where so many were before.

    That of the ranks if trials come in any order; at a later rung of the median rule most go on, having done so before.
    """
    quantile, least = cutoff_rule(stopping)
    if before < least:
        return 1.0
    share = (1 + (before - 1) * (1 - quantile)) / (before + 1)
    return 0.85 if stopping.type == "median" and rung else share
