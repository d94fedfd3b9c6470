"""What is printed at the end of a launch or resume: what was found, against the default, and what it has cost."""

from __future__ import annotations

from trainable.core.brats import REGIONS
from trainable.core.console import duration, make_console, wrap_prose
from trainable.core.counted import counted
from trainable.core.logger import logger
from tune.analysis.outlook import outlook_lines
from tune.analysis.stop_audit import audit_lines
from tune.confirmation.status import confirmation_text
from tune.run.effort import Effort, measure_effort
from tune.run.results import Run, TrialResult
from tune.terminal.next_steps import print_next, sweep_steps
from tune.terminal.recipe_words import RecipeWords
from tune.terminal.sweep_header import count_lines
from tune.terminal.text_lines import flow
from tune.terminal.trial_lines import state_text


def print_outcome(run: Run, *, steps: bool = True) -> None:
    """Print the counts of a sweep's trials, what they have cost, the winner against the default, and what to type next.

    Without a score it prints where to look why. steps: print what to type next.
    """
    width = make_console().width
    logger.info("\n".join(["", *count_lines(run, width), *effort_lines(measure_effort(run), width)]))
    if skipped := run.config.record.skipped_cases:
        logger.info(f"{len(skipped)} bad cases were left out, see {run.dir.config}")
    if not run.unfinished and len(run.own_trials) < run.config.budget.trials:
        logger.info(f"the space has no other recipe, though study.trials is {run.config.budget.trials}")
    if run.ranking:
        logger.info("\n".join(["", *found_lines(run, width)]))
        prose = filter(None, [confirmation_text(run)[0], run.seen_line(), *audit_lines(run), *outlook_lines(run)])
        logger.info(wrap_prose("\n".join(prose)))
    else:
        trials = run.dir.trials / "*"
        logger.info(f"no trial has a score; see {trials}/error.txt and stdout.log")
    if steps:
        print_next(sweep_steps(run))


def effort_lines(effort: Effort, width: int) -> list[str]:
    """Return what a sweep has cost, what early stopping has saved, and what went into trials that led nowhere."""
    cost = [f"elapsed {duration(effort.elapsed)}" if effort.elapsed is not None else ""]
    on_gpu = effort.gpus_per_trial > 0
    cost.append(f"{effort.gpu_hours:.2f} GPU hours" if on_gpu else f"{duration(effort.trial_seconds)} of training")
    cost.append(counted(effort.epochs, "epoch"))
    lines = flow([", ".join(filter(None, cost))], width)
    if effort.saved_epochs:
        saved = f"early stopping saved {effort.saved_epochs} of {effort.full_epochs} epochs ({effort.saved_share:.0%})"
        lines += flow([saved, f"{effort.stopped_share:.0%} of the time went into trials that it stopped"], width)
    if effort.failed_seconds:
        share = effort.failed_seconds / effort.trial_seconds
        lines += flow([f"{share:.0%} of the time went into trials that failed, diverged or ran out of memory"], width)
    return lines


def found_lines(run: Run, width: int) -> list[str]:
    """Return the winner's scores above those of the default recipe, its recipe and its model."""
    winner, default = run.best(), run.default_trial
    lines = [f"{'':11}trial {'best at':>8}   score{''.join(f'{region:>8}' for region in REGIONS)}"]
    lines.append(score_line("best so far" if not winner.finished else "winner", winner, run))
    if default is not None and default.number != winner.number:
        lines.append(score_line("default", default, run))
        lines += [difference_line(winner, default)] * (winner.finished and default.finished)
    words = RecipeWords(run).short(winner)
    lines += ["", *flow(["recipe:", *words.split(" ")], width, between=" ", indent="    ")]
    if run.dir.best_model.exists():
        lines.append(f"model:  {run.dir.best_model}")
    return lines


def score_line(name: str, trial: TrialResult, run: Run) -> str:
    """Return a trial's score and Dice per region at its best epoch as a line; how it ended if not by itself."""
    epoch = f"{trial.best_epoch}/{run.config.fixed('epochs')}"
    score = "" if trial.score is None else f"{trial.score:.4f}"
    dice = "".join(f"{trial.dice[region]:8.4f}" if trial.dice else "" for region in REGIONS)
    ended = "" if trial.finished and not trial.kept else f"  {state_text(trial)}"
    return f"{name:11}{trial.number:>5} {epoch:>8}{score:>8}{dice}{ended}"


def difference_line(winner: TrialResult, default: TrialResult) -> str:
    """Return how much more the winner scores than the default, overall and per region."""
    score = (winner.score or 0.0) - (default.score or 0.0)
    dice = [winner.dice[region] - default.dice[region] for region in REGIONS if winner.dice and default.dice]
    return f"{'difference':11}{'':14}{score:+8.4f}{''.join(f'{value:+8.4f}' for value in dice)}"
