"""What `voxtune compare` prints: trials or runs side by side, in columns that fit 80 characters if they are two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.console import duration
from trainable.core.counted import counted
from trainable.core.options import format_value
from trainable.evaluation.comparison import Comparison
from tune.analysis.option_range import setting_text, value_label
from tune.analysis.run_comparison import RunComparison
from tune.analysis.trial_comparison import CaseDifference, TrialComparison
from tune.run.results import Run, TrialResult
from tune.run.run_dir import confirm_command

NAME_WIDTH, MIN_COLUMN, GAP = 20, 12, 2
MAX_FACT = 22  # longer values of two runs do not fit beside each other
ONE_TRAINING = (
    "one training of each does not tell which recipe is better: another seed may give",
    "the opposite.",
)
ONE_SWEEP = (
    "two sweeps differ by luck too: one of each does not show which space or searcher",
    "is the better one.",
)


def trial_comparison_lines(run: Run, found: TrialComparison) -> list[str]:
    """Return trials of a run side by side, as lines."""
    trials = found.trials
    rows = [
        ["", *(f"trial {trial.number}" for trial in trials)],
        ["status", *(trial.status for trial in trials)],
        ["score", *(score_text(trial) for trial in trials)],
        *([region, *(dice_text(trial, region) for trial in trials)] for region in REGIONS),
        *([f"at rung {epoch}", *(rung_text(trial, epoch) for trial in trials)] for epoch in found.rungs),
        ["epochs", *(f"{trial.epoch} of {run.config.fixed('epochs')}" for trial in trials)],
        ["time", *(duration(trial.seconds) for trial in trials)],
        *[["GPU hours", *(f"{trial.gpu_hours:.2f}" for trial in trials)]] * bool(run.config.resources.gpu_share),
    ]
    options = [[name, *map(option_text, values)] for name, values in found.options.items()]
    lines = [*columns(rows), "", "recipe, where it differs:", *(columns(options) or ["  nowhere"])]
    for difference in found.differences:
        lines += ["", *case_lines(trials, difference)]
    if not found.differences:
        lines += ["", "no scores per case of both, so nothing is known of single cases"]
    lines += ["", *ONE_TRAINING]
    if run.ranking and run.best().finished:
        lines += ["To train the best ones again with new seeds:", f"  {confirm_command(run.folder)}"]
    return lines


def score_text(trial: TrialResult) -> str:
    """Return a trial's score and its epoch."""
    return "-" if trial.score is None else f"{trial.score:.4f}, epoch {trial.best_epoch}"


def dice_text(trial: TrialResult, region: str) -> str:
    """Return a trial's Dice of a region."""
    return f"{trial.dice[region]:.4f}" if trial.dice else "-"


def rung_text(trial: TrialResult, epoch: int) -> str:
    """Return a trial's best score up to a rung, and what was needed there if it was compared."""
    if (decided := trial.rungs.get(epoch)) is None:
        return "-"
    needed = "" if decided.needed is None else f" (needed {decided.needed:.4f})"
    return f"{decided.value:.4f}{needed}"


def option_text(value: Any) -> str:
    """Return the value of an option, "-" where it is inactive."""
    if value is None:
        return "-"
    return value_label(value) if isinstance(value, list) else format_value(value)


def case_lines(trials: Sequence[TrialResult], difference: CaseDifference) -> Iterator[str]:
    """Yield how the first trial's scores differ from another's, case by case."""
    first, other = trials[0], next(trial for trial in trials if trial.number == difference.other)
    epochs = f"epoch {first.best_epoch} and {other.best_epoch}"
    yield f"trial {first.number} minus trial {other.number}, Dice of {counted(difference.cases, 'case')} at {epochs}:"
    for column, comparison in difference.differences.items():
        yield f"  {column.removeprefix('dice_'):5} {interval_text(comparison)}"
    yield f"  higher in {difference.better} of {counted(difference.cases, 'case')}, lower in {difference.worse}"


def interval_text(comparison: Comparison) -> str:
    """Return a difference with its interval, if there is one."""
    if comparison.low != comparison.low:
        return f"{comparison.difference:+.4f}, no interval from one case"
    return (
        f"{comparison.difference:+.4f} [{comparison.dice_low:+.4f}, {comparison.dice_high:+.4f}]"
        f" {comparison.confidence:.0%} interval over cases"
    )


def run_comparison_lines(found: RunComparison) -> list[str]:
    """Return runs side by side, as lines."""
    lines = [
        *columns([["", *found.names], *summary_rows(found)]),
        "",
        *meaning_lines(found),
        *search_lines(found),
        *milestone_lines(found),
    ]
    if found.recipes:
        options = [[name, *map(option_text, values)] for name, values in found.recipes.items()]
        lines += ["", "recipes of the winners, where they differ:", *columns(options)]
    rows = importance_rows(found)
    head = "share of the differences between trials that an option explains, 95% interval:"
    lines += ["", head, *(columns(rows) or ["  too few trials in each to tell"])]
    return [*lines, "", *ONE_SWEEP]


def summary_rows(found: RunComparison) -> list[list[str]]:
    """Return the size and the winner of each run."""
    winners = found.winners
    hours = "GPU hours" if found.on_gpu else "hours of training"
    return [
        ["trials", *(str(len(run.own_trials)) for run in found.runs)],
        [hours, *(f"{value:.2f}" for value in found.hours)],
        ["winner", *("-" if winner is None else f"trial {winner.number}" for winner in winners)],
        ["its score", *("-" if winner is None else score_text(winner) for winner in winners)],
    ]


def meaning_lines(found: RunComparison) -> Iterator[str]:
    """Yield whether the scores mean the same, and what differs if not."""
    if found.comparable:
        yield "same data, split and protocol: yes, scores can be compared"
        return
    yield "same data, split and protocol: NO, scores cannot be compared; different are:"
    yield from columns([[name, *map(setting_text, values)] for name, values in found.meaning.items()])


def search_lines(found: RunComparison) -> Iterator[str]:
    """Yield how they searched differently."""
    if found.search:
        yield "searched differently:"
        facts = {name: [setting_text(value) for value in values] for name, values in found.search.items()}
        short = {name: texts for name, texts in facts.items() if max(map(len, texts)) <= MAX_FACT}
        yield from columns([[name, *texts] for name, texts in short.items()])
        for name in (name for name in facts if name not in short):  # too long for columns
            yield f"  {name}"
            yield from (f"    {run}: {text}" for run, text in zip(found.names, facts[name], strict=True))


def milestone_lines(found: RunComparison) -> list[str]:
    """Return the best score of each run after the same effort, below an empty line; none if a run has no effort."""
    if not all(found.hours):
        return []
    unit = "GPU hours" if found.on_gpu else "hours of training"
    rows = [["after", *found.names, *["ahead"] * found.comparable]]
    for item in found.milestones:
        scores = ["-" if score is None else f"{score:.4f}" for score in item.best]
        ahead = "-" if item.ahead is None else found.names[item.ahead]
        rows.append([f"{item.hours:.2f} h", *scores, *[ahead] * found.comparable])
    return ["", f"best score of a finished trial, after the same number of {unit}:", *columns(rows)]


def importance_rows(found: RunComparison) -> list[list[str]]:
    """Return the share that each option explains in each run, of the options that matter in one."""
    by_run = [{option.name: option for option in item.options} for item in found.importances]
    names = [o.name for item in found.importances for o in item.options if o.verdict == "matters"]
    rows = []
    for name in dict.fromkeys(names):
        cells = []
        for options in by_run:
            option = options.get(name)
            if option is None:
                cells.append("not searched")
            elif option.share is None or option.verdict != "matters":
                cells.append(option.verdict)
            else:
                cells.append(f"{option.share:.2f} [{option.low:.2f}, {option.high:.2f}]")
        rows.append([name, *cells])
    return rows


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines of aligned columns."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    widths = [max(widths[0], NAME_WIDTH), *(max(width, MIN_COLUMN) for width in widths[1:])]
    gap = " " * GAP
    return [gap + gap.join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
