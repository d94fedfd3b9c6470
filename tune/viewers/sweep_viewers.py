"""Brings what TensorBoard and optuna-dashboard show of a sweep up to date."""

from __future__ import annotations

from tune.run.results import Run
from tune.search.journal import Journal
from tune.viewers.dashboard_notes import attach_pictures, describe_study, write_notes
from tune.viewers.tensorboard_runs import write_searched_options, write_winner


def begin_viewers(journal: Journal, run: Run) -> None:
    """Tell both what the sweep searches, before its first trial."""
    run.dir.artifacts.mkdir(exist_ok=True)  # which the dashboard is told to read from the start
    write_searched_options(run.dir, run.config)
    describe_study(journal, run)


def finish_viewers(journal: Journal, run: Run) -> None:
    """Give both the winner's pictures, and the dashboard a note on each trial that has none yet."""
    write_notes(journal, run, run.trials)
    if run.ranking:
        write_winner(run, run.best())
        attach_pictures(journal, run, run.best())
