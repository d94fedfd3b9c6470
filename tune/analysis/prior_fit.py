"""What earlier runs say of the best value of each option: priors, fitted to their best trials, for another sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.idle_options import why_idle
from trainable.core.options import format_value, option_info, option_names
from tune.analysis.standing import comparable, measure_standings
from tune.run.results import Run, TrialResult
from tune.spec.kinds import Choice, Kind
from tune.spec.parameter import Branch, Parameter
from tune.spec.prior import Confidence, NumberPrior, Prior, WeightsPrior
from tune.spec.space import DEFAULTS, Space
from tune.spec.sweep_file import yaml_line

BEST_SHARE = 4  # one of so many comparable trials is among the best
MIN_TRIALS = 12  # comparable trials of a run, so that the best are three or more
MIN_BEST = 3  # best trials with an option before it gets a prior
NO_PRIOR = 4  # so many trials that say nothing are added to the best ones
EVEN_DEVIATION = 12**-0.5  # standard deviation of even draws, as a share of the range
CLEAR = 1.5  # the likeliest choice must be so many times likelier than the least likely one
NARROWER = 0.8  # the values of a number deviate less than so much of what all trials' do, or they are not clear
MORE_OFTEN = 1.25  # the likeliest choice is at least so many times as frequent among the best trials as among all
LIMITS: tuple[tuple[Confidence, float], ...] = (("high", 0.10), ("medium", 0.18), ("low", 0.25))  # largest deviations

NamedValues = tuple[str, dict[str, Any]]  # the name of a run, and the searched options of one of its trials


@dataclass(frozen=True)
class FittedBranch:
    """One range of an option with what is known of it. reason: in words; prior: None if the trials say nothing."""

    branch: Branch
    prior: Prior | None
    reason: str


def fit_priors(runs: Sequence[Run]) -> list[tuple[Parameter, list[FittedBranch]]]:
    """Return the options of the last run's space, each range with its prior.

    A prior describes where the best quarter of each run's comparable trials lies, shrunk towards no prior. There is
    none where all comparable trials lie there too, since they were drawn from a prior. Trials of the other runs count
    where their values are in a range of the last run's space, and neither these nor the options that their run fixes
    contradict its fixed options.

    Raises:
        InputError: a run has fewer than MIN_TRIALS comparable trials.
    """
    runs = [run for run in runs if not fixed_otherwise(run, runs[-1])]
    best = [(run.folder.name, trial.values) for run in runs for trial in best_trials(run)]
    tried = [(run.folder.name, trial.values) for run in runs for trial in run.trials if comparable(trial)]
    space = runs[-1].config.space
    return [(p, [fit_branch(space, p, branch, best, tried) for branch in p.branches]) for p in space.parameters]


def fixed_otherwise(run: Run, last: Run) -> str:
    """Return which option of the recipes a run fixes at another value than the last run: "optimizer is sgd, not adam".

    "" if there is none. Options that cannot act in the last run, or that follow the number of epochs, may differ.
    """
    here, there = last.config.space.constants, run.config.space.constants
    for name in option_names(role="recipe", over_epochs=""):
        if name not in here or name not in there or here[name] == there[name]:
            continue
        idle = option_info(name).acts_if.keys() <= here.keys() and why_idle(name, DEFAULTS | here)
        if not idle:
            return f"{name} is {format_value(there[name])}, not {format_value(here[name])}"
    return ""


def best_trials(run: Run) -> list[TrialResult]:
    """Return the best quarter of a run's comparable trials, by standing.

    Raises:
        InputError: there are fewer than MIN_TRIALS.
    """
    trials = [trial for trial in run.trials if comparable(trial)]
    if len(trials) < MIN_TRIALS:
        raise InputError(
            f"{run.folder}: {counted(len(trials), 'trial')} can be compared, which says too little of where the best "
            f"recipes are; expected {MIN_TRIALS} or more that trained to their end or were stopped early"
        )
    order = np.argsort(-measure_standings(trials), kind="stable")
    return [trials[index] for index in order[: len(trials) // BEST_SHARE].tolist()]


def fit_branch(
    space: Space, parameter: Parameter, branch: Branch, best: Sequence[NamedValues], tried: Sequence[NamedValues]
) -> FittedBranch:
    """Return a range with its prior.

    Args:
        space: of the last run.
        parameter: the option.
        branch: its range.
        best: the run's name and the searched options of each of the best trials.
        tried: of each comparable trial.
    """
    found = values_in(space, parameter, branch, best)
    if len(found) < MIN_BEST:
        return FittedBranch(branch, None, f"says nothing: {counted(len(found), 'best trial')} in this range")
    values, runs = [value for _, value in found], ", ".join(dict.fromkeys(run for run, _ in found))
    kind = branch.kind
    prior: Prior | None
    prior, said = fit_choice(kind, values) if isinstance(kind, Choice) else fit_number(kind, values)
    of = f"of {len(found)} best trials of {runs}"
    if prior and not is_clear(kind, values, [value for _, value in values_in(space, parameter, branch, tried)]):
        return FittedBranch(branch, None, f"says nothing: {said} {of}, much as of all trials")
    return FittedBranch(branch, prior, f"{said} {of}" if prior else f"says nothing: {said} {of}")


def values_in(
    space: Space, parameter: Parameter, branch: Branch, trials: Sequence[NamedValues]
) -> list[tuple[str, Any]]:
    """Return the run's name and the option's value of each trial in a range that fits the fixed options of a space."""
    name, fixed = parameter.name, space.constants
    return [
        (run, values[name])
        for run, values in trials
        if name in values
        and all(fixed.get(other, value) == value for other, value in values.items())
        and parameter.branch(fixed | values) is branch
        and branch.kind.contains(values[name])
    ]


def is_clear(kind: Kind, best: Sequence[Any], tried: Sequence[Any]) -> bool:
    """Return whether the best trials' values are clearly other than those of all trials, which a prior may have drawn.

    A number's are if they deviate less from their median, with NO_PRIOR values added that deviate as all do; a choice's
    if the likeliest one is more frequent.
    """
    if isinstance(kind, Choice):
        top = max(kind.values, key=best.count)
        return best.count(top) / len(best) >= MORE_OFTEN * tried.count(top) / len(tried)
    squares = [np.square(np.array(s) - np.median(s)) for s in ([kind.to_unit(v) for v in vs] for vs in (best, tried))]
    of_all = float(squares[1].mean())
    deviation = (float(squares[0].sum()) + NO_PRIOR * of_all) / (len(best) + NO_PRIOR)
    return deviation < NARROWER**2 * of_all


def fit_choice(kind: Choice, values: Sequence[Any]) -> tuple[WeightsPrior | None, str]:
    """Return the weights of a choice, 1 for the least likely value, and what they are based on."""
    counts = [sum(value == other for other in values) for value in kind.values]
    added = NO_PRIOR / len(counts)
    weights = [count + added for count in counts]
    top = int(np.argmax(counts))
    said = f"{kind.values[top]}: {counts[top]}"
    if max(weights) < CLEAR * min(weights):
        return None, said
    return WeightsPrior(tuple(round(weight / min(weights), 1) for weight in weights)), said


def fit_number(kind: Kind, values: Sequence[float]) -> tuple[NumberPrior | None, str]:
    """Return the prior of a number, at the median of the values, and what it is based on.

    Its confidence follows from their spread around the median, to which NO_PRIOR even draws are added.
    """
    shares = np.array([kind.to_unit(value) for value in values])
    centre = float(np.median(shares))
    squares = float(((shares - centre) ** 2).sum()) + NO_PRIOR * EVEN_DEVIATION**2
    deviation = (squares / (len(values) + NO_PRIOR)) ** 0.5
    inside = [value for value, share in zip(values, shares, strict=True) if abs(share - centre) <= deviation]
    said = f"{min(inside):.3g} to {max(inside):.3g}: {len(inside)}" if inside else "spread over the range: 0"
    confidence = next((word for word, limit in LIMITS if deviation <= limit), None)
    if confidence is None:
        return None, said
    at = kind.from_unit(min(max(centre, 0.0), 1 - 1e-9))
    rounded: Any = float(f"{at:.2g}")
    return NumberPrior(rounded if kind.contains(rounded) and not isinstance(at, int) else at, confidence), said


def prior_lines(runs: Sequence[Run]) -> list[str]:
    """Return the section `space:` with the priors as YAML to paste, each with its reason in a comment.

    Raises:
        InputError: the trials say nothing of any option, or a run has too few.
    """
    fitted = fit_priors(runs)
    if not any(branch.prior for _, branches in fitted for branch in branches):
        names = ", ".join(str(run.folder) for run in runs)
        raise InputError(f"{names}: the best trials are spread as evenly as all; they say nothing of any option")
    reasons = {run.folder.name: fixed_otherwise(run, runs[-1]) for run in runs}
    sizes = ", ".join(f"{run.folder.name}: {len(best_trials(run))}" for run in runs if not reasons[run.folder.name])
    lines = [f"# Where the best quarter of the comparable trials is ({sizes}), shrunk towards no prior"]
    lines += [f"# Without {name}, in which {reason}" for name, reason in reasons.items() if reason]
    lines.append("space:")
    for parameter, branches in fitted:
        lines.append(f"  {parameter.name}:")
        single = len(branches) == 1
        for each in branches:
            entry = replace(each.branch, prior=each.prior).to_dict()
            for index, (key, value) in enumerate(entry.items()):
                mark = "    " if single else "    - " if index == 0 else "      "
                comment = f"  # {each.reason}" if key == "prior" else ""
                lines.append(f"{mark}{key}: {yaml_line(value)}{comment}")
            if each.prior is None:
                lines.append(f"{'    ' if single else '      '}# {each.reason}")
    return lines
