"""The learning curves of a run's trials."""

from __future__ import annotations

from trainable.training.training_log import read_rows
from tune.run.results import Run, TrialResult


def trial_curve(run: Run, trial: TrialResult) -> dict[int, float]:
    """Return the score of each validated epoch of a trial, by epoch; {} before the first one.

    It is in the journal, but for a sweep with a cost, of which Optuna takes none: then metrics.csv has it.
    """
    if not run.config.objective.cost:
        return trial.intermediate
    score = run.config.objective.score
    rows = read_rows(run.dir.trial(trial.number).metrics)
    return {int(row["epoch"]): float(row[score]) for row in rows if row.get(score)}
