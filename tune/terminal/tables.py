"""What a sweep has found, as tables and lines on the console."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import TrialState
from rich.table import Table

from trainable.core.brats import REGIONS
from trainable.core.console import make_console
from trainable.core.logger import logger
from trainable.core.options import format_value, to_dict
from tune.run.confirm_status import confirmation_line
from tune.run.results import Run, TrialResult
from tune.run.stop_audit import audit_lines
from tune.search.asha import Kept, rung_epochs
from tune.spec.sweep_config import SweepConfig

COLOURS = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
    TrialState.RUNNING: "cyan",
}
KEPT: dict[Kept, str] = {"": "", "default": "protected", "audit": "audited"}  # notes on trials that were not stopped


def short_value(value: object) -> str:
    """Return a value of a recipe as short text: a float with 3 significant digits, other values in lower case."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short_value, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def trial_table(trials: Sequence[TrialResult], epochs: int, *, title: str = "", recipes: bool = True) -> Table:
    """Return a table with a row per trial: epoch reached, scores at its best epoch, state, cost if the sweep has one.

    Args:
        trials: the rows, in this order.
        epochs: of a whole training, shown after the epoch reached.
        title: above the table; "" for none.
        recipes: also show the searched values.
    """
    table = Table(title=title or None, box=None, header_style="bold", padding=(0, 1), title_justify="left")
    for name in ("trial", "epoch", "best at", *REGIONS, "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    costs = any(trial.cost is not None for trial in trials)
    if costs:
        table.add_column("cost in s", justify="right", no_wrap=True)
    if recipes:
        table.add_column("recipe", overflow="fold")
    for trial in trials:
        dice = [f"{trial.dice[region]:.4f}" if trial.dice else "" for region in REGIONS]
        score = "" if trial.score is None else f"{trial.score:.4f}"
        best_at = str(trial.best_epoch or "")
        row = [str(trial.number), f"{trial.epoch}/{epochs}", best_at, *dice, score]
        notes = filter(None, (KEPT[trial.kept], Path(trial.imported_from).name))
        row.append(f"[{COLOURS[trial.state]}]{trial.status}{''.join(f' ({note})' for note in notes)}[/]")
        if costs:
            row.append("" if trial.cost is None else f"{trial.cost:.1f}")
        if recipes:
            row.append(" ".join(f"{name}={short_value(value)}" for name, value in trial.values.items()))
        table.add_row(*row)
    return table


def recipe_diff_table(run: Run, trial: TrialResult) -> Table:
    """Return a table of a trial's searched options next to those of trial 0's recipe, in the column "default".

    Values that differ from trial 0's are bold.
    """
    table = Table("option", f"trial {trial.number}", "default", box=None, header_style="bold", title_justify="left")
    default = to_dict(run.config.base_config())
    for name, value in to_dict(run.recipe(trial)).items():
        if name in trial.values:
            changed = value != default[name]
            table.add_row(name, f"[bold]{value}[/]" if changed else str(value), str(default[name]))
    return table


def print_space(config: SweepConfig) -> None:
    """Print the search space as a table, and how the sweep will search it."""
    table = Table("option", "kind", "range", "when", box=None, header_style="bold")
    for row in config.space.describe():
        table.add_row(*row)
    make_console().print(table)
    rungs = ", ".join(map(str, rung_epochs(config)))
    stopping = f"{config.early_stopping.type} at epochs {rungs}" if rungs else "no early stopping"
    if rungs and config.early_stopping.audit:
        stopping += f", {100 * config.early_stopping.audit:g} % of the stops audited"
    gpu = "1 GPU, if there is one," if config.resources.gpu is None else f"{format_value(config.resources.gpu)} GPU"
    resources = f"{config.resources.cpu} CPU, {gpu} per trial"
    budget = f"{config.budget.trials} trials of up to {config.fixed('epochs')} epochs"
    logger.info(f"\n{budget}; {config.searcher.type}; {stopping}; {resources}")
    if (recipes := config.space.recipes) is not None and len(recipes) < config.budget.trials:
        logger.info(f"the space has {len(recipes)} recipes: the sweep ends when each has been tried")
    if config.unmodelled_options:
        unmodelled = ", ".join(config.unmodelled_options)
        logger.info(f"{config.searcher.type} cannot model {unmodelled}: drawn at random")


def summary_line(run: Run) -> str:
    """Return how many own trials are in which state, how many were imported, and the epochs of the own ones."""
    own = run.own_trials
    states = [trial.status for trial in own]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    epochs = sum(trial.epoch for trial in own)
    imported = f", {len(run.trials) - len(own)} more of earlier runs" if len(own) < len(run.trials) else ""
    return f"{len(own)} of {len(own) + run.trials_left} trials{imported}: {', '.join(parts)}; {epochs} epochs"


def summary_lines(run: Run) -> str:
    """Return the summary_line, and below it what is known of the scores.

    That is a line on cases that the pretrained weights have seen, if there are any, and once all trials have ended, or
    the target is reached, one on the confirmation of the winner.
    """
    confirmed = "" if run.unfinished and not run.target_reached else confirmation_line(run)
    return "\n".join(filter(None, [summary_line(run), run.seen_line(), confirmed]))


def print_outcome(run: Run) -> None:
    """Print the counts of a sweep's trials, the winner and what to type next; without a score, where to look why."""
    logger.info(f"\n{summary_lines(run)}")
    if skipped := run.config.record.skipped_cases:
        logger.info(f"{len(skipped)} bad cases were left out, see {run.dir.config}")
    if not run.unfinished and len(run.own_trials) < run.config.budget.trials:
        logger.info(f"the space has no other recipe, though study.trials is {run.config.budget.trials}")
    if not run.ranking:
        trials = run.dir.trials / "*"
        logger.info(f"no trial has a score; see {trials}/error.txt and stdout.log")
        return
    make_console().print(trial_table([run.best()], run.config.fixed("epochs"), title="best trial"))
    for line in audit_lines(run):
        logger.info(line)
    for verb in ("best", "retrain"):
        logger.info(f"next: voxtune {verb} {shlex.quote(str(run.folder))}")


def print_trials(run: Run) -> None:
    """Print the counts of a sweep's trials, a table of all, and how often early stopping is wrong."""
    logger.info(summary_lines(run))
    make_console().print(trial_table(run.trials, run.config.fixed("epochs")))
    for line in audit_lines(run):
        logger.info(line)


def print_best(run: Run, top: int) -> None:
    """Print the `top` best trials, the Pareto front if the sweep has a cost, and the winner's recipe_diff_table.

    Raises:
        InputError: if no trial has a score yet.
    """
    console, winner, objective, epochs = make_console(), run.best(), run.config.objective, run.config.fixed("epochs")
    logger.info(summary_lines(run))
    console.print(trial_table(run.ranking[:top], epochs))
    if objective.cost:
        title = f"Pareto front: no other trial has more {objective.score} for fewer {objective.cost}"
        console.print(trial_table(run.pareto_front(), epochs, title=title))
    console.print(recipe_diff_table(run, winner))
