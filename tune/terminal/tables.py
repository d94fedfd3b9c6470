"""What a sweep has found, as tables and lines on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from trainable.core.brats import REGIONS
from trainable.core.console import make_console, wrap_prose
from trainable.core.counted import counted
from trainable.core.logger import logger
from trainable.core.options import format_value, to_dict
from tune.confirmation.status import confirmation_line
from tune.run.results import Run, TrialResult
from tune.search.asha import rung_epochs
from tune.spec.sweep_config import SweepConfig
from tune.terminal.recipe_words import RecipeWords
from tune.terminal.sweep_header import progress_text, state_counts
from tune.terminal.text_lines import as_lines, flow
from tune.terminal.trial_lines import COLOURS, state_text


def dice_table(run: Run, trials: Sequence[TrialResult], width: int) -> list[Text]:
    """Return a line per trial: epochs, scores at its best epoch, state, cost if the sweep has one, recipe.

    If trials that trained to their end are ranked by their late_score, there is a column of it, empty for the others.

    Args:
        trials: the lines, in this order.
        width: columns; the recipe, of which only what differs from the default is shown, has what is left.
    """
    words, epochs, costs = RecipeWords(run), run.config.fixed("epochs"), any(t.cost is not None for t in trials)
    by_late = run.ranked_by_late and any(trial.finished for trial in trials)
    rows = [["trial", "epoch", "best at", "score", *["late"] * by_late, *REGIONS, *["cost in s"] * costs]]
    for trial in trials:
        dice = [f"{trial.dice[region]:.4f}" if trial.dice else "" for region in REGIONS]
        score = "" if trial.score is None else f"{trial.score:.4f}"
        cost = "" if trial.cost is None else f"{trial.cost:.1f}"
        late = "" if trial.late_score is None or not trial.finished else f"{trial.late_score:.4f}"
        at = [str(trial.number), f"{trial.epoch}/{epochs}", str(trial.best_epoch or "")]
        rows.append([*at, score, *[late] * by_late, *dice, *[cost] * costs])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [" ".join(f"{text:>{size}}" for text, size in zip(row, widths, strict=True)) for row in rows]
    states = ["state", *map(state_text, trials)]
    state_width = max(map(len, states))
    recipes = ["recipe", *map(words.short, trials)]
    lines = [
        Text(f"{numbers} {state:{state_width}} {recipe}")
        for numbers, state, recipe in zip(left, states, recipes, strict=True)
    ]
    lines[0].stylize("bold")
    start = len(left[0]) + 1
    for line, trial in zip(lines[1:], trials, strict=True):
        line.stylize(COLOURS[trial.state], start, start + state_width)
    return as_lines(lines, width)


def recipe_table(run: Run, trial: TrialResult) -> Table:
    """Return a table of a trial's searched options next to those of the default recipe, that of trial 0.

    Those that differ are at the top, in bold.
    """
    table = Table("option", f"trial {trial.number}", "default", box=None, header_style="bold", padding=(0, 1, 0, 0))
    default, recipe = to_dict(run.config.base_config()), to_dict(run.recipe(trial))
    searched = [name for name in recipe if name in trial.values]
    for name in sorted(searched, key=lambda name: recipe[name] == default[name]):
        style = "" if recipe[name] == default[name] else "bold"
        table.add_row(name, exact_value(recipe[name]), exact_value(default[name]), style=style)
    return table


def exact_value(value: object) -> str:
    """Return a value of a recipe as text: a float with 6 significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else format_value(value)


def print_space(config: SweepConfig) -> None:
    """Print the search space as a table, and how the sweep will search it."""
    columns = ["option", "kind", "range", "when", *["prior"] * config.space.has_prior]
    table = Table(*columns, box=None, header_style="bold")
    for row in config.space.describe():
        table.add_row(*row[: len(columns)])
    make_console().print(table)
    rungs = ", ".join(map(str, rung_epochs(config)))
    at = "epochs" if "," in rungs else "epoch"
    stopping = f"{config.early_stopping.type} at {at} {rungs}" if rungs else "no early stopping"
    if rungs and config.early_stopping.audit:
        stopping += f", {100 * config.early_stopping.audit:g} % of the stops audited"
    gpu = "1 GPU, if there is one," if config.resources.gpu is None else f"{format_value(config.resources.gpu)} GPU"
    resources = f"{config.resources.cpu} CPU, {gpu}{config.resources.on_nodes} per trial"
    budget = f"{config.budget.trials} trials of up to {config.fixed('epochs')} epochs"
    parts = [f"{budget};", f"{config.searcher.type};", f"{stopping};", resources]
    logger.info("\n".join(["", *flow(parts, make_console().width, between=" ")]))
    if (recipes := config.space.recipes) is not None and len(recipes) < config.budget.trials:
        logger.info(f"the space has {len(recipes)} recipes: the sweep ends when each has been tried")
    if config.unmodelled_options:
        unmodelled = ", ".join(config.unmodelled_options)
        logger.info(f"{config.searcher.type} cannot model {unmodelled}: drawn at random")


def summary_line(run: Run) -> str:
    """Return how many own trials are in which state, how many were imported, and the epochs of the own ones."""
    if not run.own_trials:
        return progress_text(run)
    epochs = counted(sum(trial.epoch for trial in run.own_trials), "epoch")
    return f"{progress_text(run)}: {', '.join(state_counts(run))}; {epochs}"


def summary_lines(run: Run) -> str:
    """Return the summary_line, and below it what is known of the scores.

    That is a line on cases that the pretrained weights have seen, if there are any, and once all trials have ended, or
    the target is reached, one on the confirmation of the winner.
    """
    confirmed = "" if run.unfinished and not run.target_reached else confirmation_line(run)
    return "\n".join(filter(None, [summary_line(run), run.seen_line(), confirmed]))


def print_best(run: Run, top: int) -> None:
    """Print the `top` best trials, the Pareto front if the sweep has a cost, and the winner's recipe_table.

    Raises:
        InputError: if no trial has a score yet.
    """
    console, winner, objective = make_console(), run.best(), run.config.objective
    logger.info(wrap_prose(summary_lines(run)))
    lines = dice_table(run, run.ranking[:top], console.width)
    if objective.cost:
        late = "late " if run.ranked_by_late else ""
        title = f"Pareto front: no other trial has more {late}{objective.score} for fewer {objective.cost}"
        lines += [Text(""), *as_lines([title], console.width), *dice_table(run, run.pareto_front(), console.width)]
    for line in [*lines, Text("")]:
        console.print(line)
    console.print(recipe_table(run, winner))
