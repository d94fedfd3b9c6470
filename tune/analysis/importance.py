"""Which searched options explain how well trials did, and how sure that is.

A trial's outcome is its standing (standing.py), so that trials that early stopping has ended count too; raw scores of
different epochs could not be compared. Options are taken in turn, the most telling first: each explains a share of the
differences that the options before it have left, by an analysis of variance over its values, or over ranges of a
number; whether chance is excluded is tested by these and, of a number, by its trend. So an option that the searcher
happened to vary together with a better one gets no credit for it. From shares is taken what chance would explain
(epsilon squared); intervals are of a bootstrap over trials. An option is said to matter only if a test, corrected for
the number of options (Holm), excludes chance. One that is active in some trials only, as momentum with SGD, is judged
by these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tune.analysis.option_range import Edge, Tries, best_range, count_tries, find_edge
from tune.analysis.standing import comparable, measure_standings
from tune.run.results import Run, TrialResult
from tune.spec.kinds import Choice
from tune.spec.parameter import Parameter

Floats = NDArray[np.float64]
Ints = NDArray[np.int_]
Verdict = Literal["matters", "hardly matters", "too few trials"]

MIN_TRIALS = 20  # with fewer, an F-test over a few values tells nothing that lasts
MIN_PER_VALUE = 3  # a value that was tried less often is not judged
TRIALS_PER_RANGE, MAX_RANGES = 10, 8  # of a number: the ranges have equally many trials
CONFIDENCE = 0.95
SIGNIFICANCE = 0.02  # then about 1 sweep in 20 claims too much, see benchmarks/importance_calibration.py
LITTLE = 0.05  # an option hardly matters if the interval's upper end is at most this
DRAWS = 300


@dataclass(frozen=True)
class OptionImportance:
    """What the trials tell of one searched option.

    share: of the differences between trials that it explains, from 0 to 1; of the trials in which it is active. None,
    as low and high, the ends of its interval, if it cannot be estimated. verdict: what may be said. trials: number that
    were compared. when: the condition under which it is active, in words, "" if always. tries: how often each value, or
    third of its range, was tried. good: ends of the range that has the middle 80 % of the best quarter of the trials,
    or, of a choice, the value that the best quarter has most; None with fewer than MIN_TRIALS. winner: its value in the
    winner, None if it is inactive there, or there is no winner that trained to its end. edge: set if that is at an end
    of its range, or the best quarter of the trials piles up there.
    """

    name: str
    verdict: Verdict
    share: float | None
    low: float | None
    high: float | None
    trials: int
    when: str
    tries: tuple[Tries, ...]
    good: tuple[Any, ...] | None
    winner: Any
    edge: Edge | None

    @property
    def never_tried(self) -> list[str]:
        """The values, or thirds of the range, that no trial has tried."""
        return [item.label for item in self.tries if not item.tries]


@dataclass(frozen=True)
class Importances:
    """The importance of each searched option: first those that matter, then the others, each by falling share.

    trials: number that were compared. left_out: number of other trials, by status. confidence: of the intervals.
    """

    options: tuple[OptionImportance, ...]
    trials: int
    left_out: dict[str, int]
    confidence: float = CONFIDENCE

    @property
    def enough(self) -> bool:
        """Whether there are enough trials to say anything."""
        return self.trials >= MIN_TRIALS


def importances(run: Run) -> Importances:
    """Return which options of a run's space explain how well its trials did; the same trials give the same numbers."""
    trials = [trial for trial in run.trials if comparable(trial)]
    left_out = [trial.status for trial in run.trials if not comparable(trial)]
    standings = measure_standings(trials)
    parameters = run.config.space.parameters
    groups = {parameter.name: group_trials(parameter, trials) for parameter in parameters}
    numbers = {item.name: item for item in parameters if not isinstance(item.kind, Choice)}
    ranks = {name: rank_trials(parameter, trials) for name, parameter in numbers.items()}
    shares = explain(standings, groups, ranks) if len(trials) >= MIN_TRIALS else {}
    options = [describe(run, parameter, trials, standings, shares.get(parameter.name)) for parameter in parameters]
    rank = {name: place for place, name in enumerate(shares)}
    options.sort(key=lambda option: rank.get(option.name, len(rank)))
    return Importances(
        tuple(options), len(trials), {status: left_out.count(status) for status in sorted(set(left_out))}
    )


def describe(
    run: Run, parameter: Parameter, trials: Sequence[TrialResult], standings: Floats, share: Share | None
) -> OptionImportance:
    """Return what is known of an option; share: None if it cannot be estimated."""
    name = parameter.name
    active = np.array([name in trial.values for trial in trials], bool)
    values = [trial.values[name] for trial in trials if name in trial.values]
    winner = run.ranking[0] if run.ranking and run.ranking[0].finished else None
    value = winner.values.get(name) if winner else None
    by_number = {trial.number: standing for trial, standing in zip(trials, standings, strict=True)}
    if len(trials) == 1:  # there is no other that it could beat
        by_number = {}
    branch, same = parameter.branches[0], active
    if parameter.varies:  # the ends are those of the winner's range, or, without a winner, of the first
        constants = run.config.space.constants
        branch = (winner and parameter.branch(constants | winner.values)) or branch
        same = np.array([parameter.branch(constants | trial.values) is branch for trial in trials], bool) & active
    enough = len(values) >= MIN_TRIALS
    judged, standing = (values, standings[active]) if enough else ([], standings[:0])
    in_range = [t.values[name] for t, is_same in zip(trials, same, strict=True) if is_same] if enough else []
    return OptionImportance(
        name=name,
        verdict=share.verdict if share else "too few trials",
        share=share.share if share else None,
        low=share.low if share else None,
        high=share.high if share else None,
        trials=len(values),
        when=parameter.condition(),
        tries=count_tries(parameter, run.trials, by_number),
        good=best_range(parameter, judged, standing) if enough else None,
        winner=value,
        edge=find_edge(parameter, branch, value, in_range, standings[same] if enough else standings[:0]),
    )


@dataclass(frozen=True)
class Share:
    """The share of the differences that an option explains, with its interval, and whether chance is excluded."""

    share: float
    low: float
    high: float
    matters: bool

    @property
    def verdict(self) -> Verdict:
        """What may be said of the option."""
        if self.matters:
            return "matters"
        return "hardly matters" if self.high <= LITTLE else "too few trials"


def group_trials(parameter: Parameter, trials: Sequence[TrialResult]) -> Ints:
    """Return the group of each trial, (trials,), from 0: its value, or the range that its number is in.

    -1 for a trial that is left out: the option is inactive in it, or its value was tried less than MIN_PER_VALUE times.
    """
    groups = np.full(len(trials), -1)
    active = [place for place, trial in enumerate(trials) if parameter.name in trial.values]
    values = [trials[place].values[parameter.name] for place in active]
    ranges = min(MAX_RANGES, max(2, len(values) // TRIALS_PER_RANGE))
    distinct = {repr(value): value for value in values}
    if isinstance(parameter.kind, Choice) or len(distinct) <= ranges:
        found = np.array([list(distinct).index(repr(value)) for value in values], int)
    else:
        found = np.searchsorted(np.quantile(values, np.arange(1, ranges) / ranges), values, "right")
    counts = np.bincount(found, minlength=1) if values else np.zeros(1, int)
    kept = np.flatnonzero(counts >= MIN_PER_VALUE)
    renumbered = np.full(len(counts), -1)
    renumbered[kept] = np.arange(len(kept))
    if values:
        groups[active] = renumbered[found]
    return groups


def rank_trials(parameter: Parameter, trials: Sequence[TrialResult]) -> Floats:
    """Return the rank of each trial's number, (trials,), the mean one of ties; nan where the option is inactive."""
    from scipy.stats import rankdata  # here: each verb would wait for it

    values = [trial.values.get(parameter.name, np.nan) for trial in trials]
    return rankdata(values, nan_policy="omit") if values else np.empty(0)


def explain(
    standings: Floats, groups: dict[str, Ints], ranks: Mapping[str, Floats] | None = None, seed: int = 0
) -> dict[str, Share]:
    """Return the share that each option explains: first those that matter, then the others, each by falling share.

    Args:
        standings: (trials,).
        groups: by option, of group_trials; options of fewer than two groups are left out.
        ranks: of rank_trials, by option whose trend is tested too.
        seed: of the bootstrap.
    """
    judged = {name: of for name, of in groups.items() if of.max(initial=-1) > 0}
    order, mattering = choose_order(standings, judged, ranks or {})
    count = len(standings)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    weights = np.vstack([np.ones(count), drawn])  # the trials themselves, then the draws
    whole = rest = np.tile(standings, (len(weights), 1))
    shares = {}
    for name, factor in order.items():
        variance = analyse(rest, weights, factor)
        total = analyse(whole, weights, factor).total
        share = np.divide(variance.explained, total, out=np.zeros(len(weights)), where=total > 0)
        draws = share[1:] - (share[1:].mean() - share[0])  # drawing trials again adds to what noise seems to explain
        low, high = np.clip(np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]), 0, 1)
        shares[name] = Share(float(np.clip(share[0], 0, 1)), float(low), float(high), name in mattering)
        if name in mattering:
            rest = rest - variance.fitted
    ranked = sorted(shares, key=lambda name: (name not in mattering, -shares[name].share))
    return {name: shares[name] for name in ranked}


def choose_order(
    standings: Floats, groups: dict[str, Ints], ranks: Mapping[str, Floats]
) -> tuple[dict[str, Factor], set[str]]:
    """Return the options in the order in which they are taken, and those that chance does not explain.

    Each option taken is the one whose test, of what the ones before have left, is the most significant. Once a first
    one is taken, the others are also tried within its groups: which optimizer is good depends on the lr.
    """
    rest, taken = standings[None], dict[str, Factor]()
    left = {name: [Factor(of)] for name, of in groups.items()}
    while left:
        best = {name: most_telling(rest, factors, ranks.get(name)) for name, factors in left.items()}
        name = min(best, key=lambda name: best[name][0])
        chance, factor = best[name]
        if chance >= SIGNIFICANCE / len(left):
            return taken | {name: factor for name, (_, factor) in best.items()}, set(taken)
        rest = rest - analyse(rest, np.ones_like(rest), factor).fitted
        del left[name]
        if not taken:
            left = {other: [*factors, cross(groups[name], groups[other])] for other, factors in left.items()}
        taken[name] = factor
    return taken, set(taken)


def most_telling(values: Floats, factors: Sequence[Factor], ranks: Floats | None) -> tuple[float, Factor]:
    """Return the factor that explains values (1, trials) the most significantly, and the chance of the best test.

    ranks: of a number; its trend is one more test, on behalf of the first factor. It finds what ranges of equally many
    trials blur, as TPE tries good numbers the most.
    """
    chances = [analyse(values, np.ones_like(values), factor).chance for factor in factors]
    if ranks is not None:
        chances.append(trend_chance(values[0], ranks))
    best = chances.index(min(chances))
    return len(chances) * min(chances), factors[best % len(factors)]


def trend_chance(values: Floats, ranks: Floats) -> float:
    """Return the probability that values without a trend would seem to rise or fall with the ranks as much."""
    from scipy.special import fdtrc  # here: each verb would wait for it

    active = ~np.isnan(ranks)
    if active.sum() < MIN_TRIALS or np.ptp(values[active]) == 0 or np.ptp(ranks[active]) == 0:
        return 1.0
    explained = np.corrcoef(values[active], ranks[active])[0, 1] ** 2
    degrees = active.sum() - 2
    return float(fdtrc(1, degrees, degrees * explained / max(1 - explained, 1e-12)))


@dataclass(frozen=True)
class Factor:
    """What divides the trials into groups.

    groups: of each trial, (trials,), -1 if it is left out. known: number of sets of groups whose mean is 0 already.
    """

    groups: Ints
    known: int = 1


def cross(first: Ints, second: Ints) -> Factor:
    """Return the factor of the groups of an option within those of the first one, of which at most 3 are kept apart."""
    coarse = np.where(first >= 0, first * min(3, first.max() + 1) // (first.max() + 1), -1)
    crossed = np.where((coarse >= 0) & (second >= 0), coarse * (second.max() + 1) + second, -1)
    used, compact = np.unique(crossed, return_inverse=True)
    return Factor(compact - int(used[0] == -1), len(np.unique(coarse[coarse >= 0])))


@dataclass(frozen=True)
class Variance:
    """An analysis of variance over the groups of a factor, for each of several weightings of the trials.

    fitted: (weightings, trials), what the group of a trial explains of its value; 0 for those left out. total,
    explained: (weightings,), sums of squares; explained is unbiased and may be below 0. chance: of the first weighting,
    the probability that groups which do not differ would seem to differ as much.
    """

    fitted: Floats
    total: Floats
    explained: Floats
    chance: float


def analyse(values: Floats, weights: Floats, factor: Factor) -> Variance:
    """Return the analysis of variance of values (weightings, trials), of the trials that are in a group."""
    from scipy.special import fdtrc  # here: each verb would wait for it

    groups = factor.groups
    member = (groups[:, None] == np.arange(max(groups.max(), 0) + 1)).astype(float)
    counts, sums = weights @ member, (weights * values) @ member
    means = sums / np.maximum(counts, 1)
    count = counts.sum(1)
    mean = sums.sum(1) / np.maximum(count, 1)
    total = (weights * values**2) @ member.sum(1) - count * mean**2
    between = (counts * means**2).sum(1) - count * mean**2
    used = (counts > 0).sum(1)
    df_between, df_within = np.maximum(used - factor.known, 0), np.maximum(count - used, 1)
    within = np.maximum(total - between, 0) / df_within
    fitted = np.where(groups >= 0, means[:, np.maximum(groups, 0)] - mean[:, None], 0.0)
    ratio = between[0] / max(df_between[0], 1) / within[0] if within[0] > 0 else 0.0
    chance = float(fdtrc(df_between[0], df_within[0], ratio)) if df_between[0] else 1.0
    return Variance(fitted, total, between - df_between * within, chance)
