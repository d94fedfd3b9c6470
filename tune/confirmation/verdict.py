"""What a confirmation says: is the best challenger better than the default, and which recipe is the final one?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.evaluation.comparison import Comparison
from tune.confirmation.race import DEFAULT, ArmScores, Race, compare_arms, mean_score

VERSION = 1  # of the JSON
Cases = Literal["validation", "test"]
Unit = Literal["seed", "training"]
# By score, such as dice_mean or dice_ET, and by recipe.
Scores = Mapping[str, Mapping[str, ArmScores]]

NOTHING_SELECTED = "reported only: nothing was selected by the test cases"


@dataclass(frozen=True)
class Arm:
    """A recipe of a confirmation.

    Attributes:
        name: of the recipe.
        trainings: number that its scores are of; of the validation cases, each seed is one whatever its folds.
        mean: by score, over trainings and cases; empty if none has ended.
        sd: by score, the deviation between trainings; NaN if there is one.
        dropped: why it is not in the race any more, else "".
        sweep_score: the score that it had in the sweep, None if it was no trial of it.
        curse: the sweep's score minus the confirmed one, None without either: what the sweep's luck had added.
    """

    name: str
    trainings: int
    mean: dict[str, float]
    sd: dict[str, float]
    dropped: str = ""
    sweep_score: float | None = None
    curse: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The best challenger against the default.

    Attributes:
        cases: that the scores are of.
        metric: the score that decides, as dice_mean.
        winner: the challenger with the best mean, of those in the race if any is; "" if there is none with a score.
        chosen: the final recipe; "" for test cases, which choose nothing.
        reason: why it was chosen, or that nothing was.
        ended: why the race ended; "" if it did not, or for test cases.
        comparisons: by score, the winner's minus the default's; empty if either has none.
        arms: the default, then the challengers by falling mean.
        words: the verdict as a sentence.
    """

    cases: Cases
    metric: str
    winner: str
    chosen: str
    reason: str
    ended: str
    comparisons: dict[str, Comparison]
    arms: tuple[Arm, ...]
    words: str

    @property
    def unit(self) -> Unit:
        """What Arm.trainings counts: seeds, whatever their folds; on test cases trainings, as each scores them all."""
        return unit_of(self.cases)

    @property
    def comparison(self) -> Comparison | None:
        """The comparison that decides; None if there is nothing to compare."""
        return self.comparisons.get(self.metric)

    @property
    def confirmed(self) -> bool:
        """Whether the winner is shown to be better than the default."""
        return self.comparison is not None and self.comparison.verdict == "better"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types; what cannot be estimated is null."""
        verdict = self.comparison.verdict if self.comparison else "not shown"
        return {"version": VERSION, "verdict": verdict, **_without_nan(asdict(self))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Verdict:
        """Return what `to_json` had written.

        Raises:
            InputError: if it was written by a newer version, or is something else.
        """
        if content.get("version") != VERSION:
            raise InputError(
                f"a verdict of version {content.get('version')}, but this voxtune reads version {VERSION}; "
                "read it with the voxtune that wrote it"
            )
        comparisons = {score: Comparison(**_with_nan(values)) for score, values in content["comparisons"].items()}
        arms = tuple(Arm(**(arm | {"sd": _with_nan(arm["sd"])})) for arm in content["arms"])
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        trainings = next((arm.trainings for arm in arms if arm.name == content["winner"]), 0)
        decides = comparisons.get(content["metric"])
        words = _words(decides, content["winner"], trainings, unit_of(content["cases"]))  # as this version says it
        return cls(**(fields | {"comparisons": comparisons, "arms": arms, "words": words}))


def unit_of(cases: Cases) -> Unit:
    """Return what the scores of a recipe on these cases are counted by, see Verdict.unit."""
    return "seed" if cases == "validation" else "training"


def make_verdict(
    scores: Scores, metric: str, race: Race, *, sweep_scores: Mapping[str, float] | None = None, take_best: bool = False
) -> Verdict:
    """Return the verdict on the validation cases, of the trainings by which the race has judged.

    Args:
        scores: of each region and their mean.
        metric: the one that the race was run by.
        race: as it ended, or stands.
        sweep_scores: by recipe that was a trial, its score in the sweep; only if that was on the same cases.
        take_best: choose the winner if its mean is higher than the default's, shown to be better or not.
    """
    arms = _summarise(scores, race.judged, race.dropped, metric, sweep_scores or {})
    winner = next((arm.name for arm in arms[1:] if arm.mean and (arm.name in race.alive or not race.alive)), "")
    trainings = race.judged.get(winner, 0)
    comparisons = _compare(scores, winner, trainings, race.confidence) if trainings else {}
    comparison = comparisons.get(metric)
    better = comparison is not None and comparison.verdict == "better"
    chosen, reason = _choose(winner, comparison, better and winner in race.alive, take_best)
    words = _words(comparison, winner, trainings, unit_of("validation"))
    return Verdict("validation", metric, winner, chosen, reason, race.ended, comparisons, arms, words)


def make_test_verdict(scores: Scores, metric: str, winner: str) -> Verdict:
    """Return the verdict on the test cases: one comparison, of the winner on the validation cases and the default.

    Args:
        scores: of the default and the winner.
        metric: as of the validation cases.
        winner: the recipe that was chosen there as the best challenger.
    """
    names = (DEFAULT, winner)
    trainings = min(len(scores[metric].get(name, ())) for name in names)
    comparisons = _compare(scores, winner, trainings, 0.95) if trainings else {}
    arms = _summarise(scores, dict.fromkeys(names, trainings), {}, metric, {})
    words = _words(comparisons.get(metric), winner, trainings, unit_of("test"))
    return Verdict("test", metric, winner, "", NOTHING_SELECTED, "", comparisons, arms, words)


def describe(comparison: Comparison, trainings: int, unit: Unit) -> str:
    """Return a comparison with the default as a sentence without its subject.

    Args:
        comparison: the difference to the default.
        trainings: per recipe, in this unit.
        unit: of trainings, see Verdict.unit.
    """
    number = f"{comparison.difference:.3f}"
    if math.isnan(comparison.low):
        return f"not shown: {number} against the default, by {lacking(trainings, unit)}"
    low, high = comparison.dice_low, comparison.dice_high
    interval = f"[{low:.3f}, {high:.3f}]"
    match comparison.verdict:
        case "better":
            return f"better than the default by {number} {interval}"
        case "worse":
            interval = f"[{-high:.3f}, {-low:.3f}]"
            return f"worse than the default by {-comparison.difference:.3f} {interval}"
    return f"not shown: {number} {interval} against the default; {what_would_tell(comparison, unit)}"


def lacking(trainings: int, unit: Unit) -> str:
    """Return what a difference without an interval has too few of; trainings: per recipe, in this unit."""
    return f"one {unit} per recipe: train at least two" if trainings == 1 else "too few cases"


def what_would_tell(comparison: Comparison, unit: Unit) -> str:
    """Return how many more seeds, or trainings, or cases would tell, if the difference stays."""
    more = []
    if (trainings := comparison.more_trainings) is not None:
        more.append(f"{counted(trainings, f'more {unit}')} per recipe")
    if (cases := comparison.more_cases) is not None:
        more.append(counted(cases, "more case"))
    if not more:
        return f"neither more {unit}s nor more cases would do"
    return f"about {' or '.join(more)} would tell"


def _words(comparison: Comparison | None, winner: str, trainings: int, unit: Unit) -> str:
    """Return the verdict in words."""
    if comparison is not None:
        return describe(comparison, trainings, unit)
    if not winner:
        return "not shown: no challenger has a score to compare with the default's"
    return f"not shown: {winner} or the default has no score yet"


def _choose(winner: str, comparison: Comparison | None, shown: bool, take_best: bool) -> tuple[str, str]:
    """Return the final recipe and the reason."""
    if shown:
        return winner, "shown to be better than the default"
    if take_best and comparison is not None and comparison.difference > 0:
        return winner, "the best mean, as --take_best asks, though not shown to be better than the default"
    return DEFAULT, "nothing could be compared" if comparison is None else "no challenger is shown to be better"


def _compare(scores: Scores, winner: str, trainings: int, confidence: float) -> dict[str, Comparison]:
    """Return the winner's difference to the default, of each score."""
    return {score: compare_arms(arms, winner, DEFAULT, trainings, confidence) for score, arms in scores.items()}


def _summarise(
    scores: Scores,
    judged: Mapping[str, int],
    dropped: Mapping[str, str],
    metric: str,
    sweep_scores: Mapping[str, float],
) -> tuple[Arm, ...]:
    """Return the default and the challengers, these by falling mean of the metric."""
    arms = []
    for name, trainings in judged.items():
        taken = {score: by_arm[name][:trainings] for score, by_arm in scores.items()} if trainings else {}
        mean = {score: mean_score(arm) for score, arm in taken.items()}
        sd = {score: _deviation(arm) for score, arm in taken.items()}
        sweep_score = sweep_scores.get(name)
        curse = sweep_score - mean[metric] if sweep_score is not None and mean else None
        arms.append(Arm(name, trainings, mean, sd, dropped.get(name, ""), sweep_score, curse))
    return tuple(sorted(arms, key=lambda arm: (arm.name != DEFAULT, -arm.mean.get(metric, -math.inf))))


def _deviation(arm: ArmScores) -> float:
    """Return the deviation of the mean score between trainings, NaN if there is one."""
    means = [mean_score([seed]) for seed in arm]
    return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def _without_nan(value: Any) -> Any:
    """Return the same with None for each NaN, and lists for tuples."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same with NaN for each None, except where None has a meaning."""
    return {
        name: math.nan if value is None and not name.startswith("more_") else value for name, value in values.items()
    }
