"""All trials: their learning curves with rungs and stops, and a table to pick them from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tune.report.blocks import Section, Table, TrialBrowser
from tune.report.chart_style import group_of
from tune.report.overview import run_name
from tune.report.sweep_data import SweepData, score_text, share_text, value_text
from tune.run.results import TrialResult
from tune.search.asha import rung_epochs

OUTCOMES = {"complete": "trained to the end", "stopped": "stopped early", "running": "not ended", "failed": "failed"}


def trials_section(data: SweepData) -> Section | None:
    """Return the section, None without a trial."""
    if not data.run.trials:
        return None
    statuses = [group for group in OUTCOMES if any(group_of(trial) == group for trial in data.run.trials)]
    options = [parameter.name for parameter in data.run.config.space.parameters]
    browser = TrialBrowser(curves_sentence(data), statuses, OUTCOMES, options, trial_table(data), data.score_name)
    return Section("trials", "Learning curves and trials", curves_sentence(data), [browser])


def curves_sentence(data: SweepData) -> str:
    """Return how the trials ended, and what early stopping saved, in a sentence."""
    counts = Counter(group_of(trial) for trial in data.run.own_trials)
    total = sum(counts.values())
    if not counts["stopped"]:
        ends = ", ".join(f"{counts[group]} {OUTCOMES[group]}" for group in OUTCOMES if counts[group])
        return f"Of {total} trials: {ends}."
    effort = data.effort
    rungs = ", ".join(map(str, rung_epochs(data.run.config)[:8]))
    lead = f"Early stopping ended {counts['stopped']} of {total} trials and saved {share_text(effort.saved_share)}"
    failed = f"; {counts['failed']} failed, diverged or ran out of memory" if counts["failed"] else ""
    return (
        f"{lead} of the epochs, by comparing trials at epochs {rungs}; {counts['complete']} trained to the end{failed}."
    )


def trial_table(data: SweepData) -> Table:
    """Return a row per trial, best first, then those without a score."""
    ranked = data.run.ranking
    known = {trial.number for trial in ranked}
    trials = [*ranked, *(trial for trial in data.run.trials if trial.number not in known)]
    rows = [trial_row(data, trial) for trial in trials]
    cost = data.run.config.objective.cost
    columns = ["trial", "ended", "epochs", data.score_name, "at epoch", "minutes", *[f"cost: {cost}"] * bool(cost)]
    columns.append("recipe, where it differs from the default")
    marked = 0 if data.winner is not None else None
    return Table("All trials, best first", columns, rows, "llrrrr" + "r" * bool(cost) + "l", marked)


def trial_row(data: SweepData, trial: TrialResult) -> list[str]:
    """Return a trial's row."""
    ended = trial.status + {"": "", "default": " (protected)", "audit": " (audited)"}[trial.kept]
    ended += f" (of {run_name(Path(trial.imported_from))})" if trial.imported_from else ""
    epochs, best_epoch = f"{trial.epoch}/{data.epochs}", str(trial.best_epoch or "")
    minutes, cost = f"{trial.seconds / 60:,.1f}", [] if trial.cost is None else [f"{trial.cost:,.0f}"]
    recipe = data.recipe_line(trial)
    return [str(trial.number), ended, epochs, score_text(trial.score), best_epoch, minutes, *cost, recipe]


def trial_data(data: SweepData) -> dict[str, Any]:
    """Return what the page's script needs of all trials: their ends, recipes and curves.

    Recipes are lists of the indices of values, a list of texts per option, with -1 for an option that does not act.
    """
    options = [parameter.name for parameter in data.run.config.space.parameters]
    texts: dict[str, dict[str, int]] = {name: {} for name in options}
    trials = []
    for trial in data.run.trials:
        values = trial.recipe or trial.values
        recipe = [
            texts[name].setdefault(value_text(values[name]), len(texts[name])) if name in values else -1
            for name in options
        ]
        stop = trial.rungs.get(trial.stop_epoch) if trial.stop_epoch is not None else None
        needed = "" if stop is None or stop.needed is None else f"{stop.needed:.4f} was needed"
        epochs, scores = data.curves.get(trial.number, ([], []))
        trials.append(
            {"n": trial.number, "g": group_of(trial), "s": trial.status, "r": recipe}
            | {"e": epochs, "v": scores, "needed": needed}
        )
    winner, default = data.winner, data.run.default_trial
    return {
        "options": [{"name": name, "values": list(texts[name])} for name in options],
        "trials": trials,
        "winner": winner.number if winner else None,
        "default": default.number if default else None,
        "rungs": list(rung_epochs(data.run.config))[:30],
        "epochs": data.epochs,
        "score": data.score_name,
    }
