"""A run as tables and plain values."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trainable.core.config import TrainConfig
from trainable.core.files import user_path
from trainable.training.case_scores import COLUMNS as CASE_COLUMNS
from trainable.training.case_scores import read_case_scores
from tune.analysis.curve_rows import curve_columns, curve_rows
from tune.analysis.importance import Importances, importances
from tune.analysis.trial_rows import trial_columns, trial_rows
from tune.run.effort import Effort, measure_effort
from tune.run.events import Event, read_events
from tune.run.results import Run, TrialResult, read_run
from tune.spec.sweep_config import SweepConfig
from tune.terminal.tables import summary_line
from voxtune.summary_html import summary_html

if TYPE_CHECKING:
    from pandas import DataFrame


def open(run_dir: str | Path) -> RunReader:
    """Read a run, finished or not. Open the run again to see what a running sweep has done since.

    Args:
        run_dir: the folder that `voxtune launch --out` made.

    Raises:
        InputError: if it is not the folder of a run, or its study.yaml or journal is missing or damaged.
    """
    return RunReader(read_run(user_path(run_dir)))


class RunReader:
    """A run with the trials that it had when it was opened; only curves, scores per case and events are read later.

    A notebook shows it as its counts, its cost and its best trials.

    Attributes:
        folder: path of the run.
        config: what was requested: `config.objective`, `.budget`, `.searcher`, `.early_stopping`, `.space`, `.train`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.folder: Path = run.folder
        self.config: SweepConfig = run.config

    def trials(self) -> DataFrame | list[TrialResult]:
        """Return all trials in the order of their numbers.

        Returns:
            With pandas installed, a DataFrame with one row per trial and these columns, also without trials: number,
            status, end_reason, reason (why it ended, in words), score, best_epoch, epoch, state, dice_WT, dice_TC,
            dice_ET, per rung rung_<epoch>_value, _needed and _decision (the score compared there, what was needed to
            go on, and what was decided), stop_epoch (the rung at which early stopping stopped the trial, or would
            have), kept (why it went on all the same: default or audit), seconds, gpu_hours, cost, seed, checkpoint,
            error, imported_from, started and ended (UTC, ISO 8601), and params_<option> for each searched option. What
            a trial lacks, such as the score and the Dice before a validated epoch or the value of an inactive option,
            is NaN or None; in end_reason, reason, error, imported_from and kept "". Without pandas, a list of
            TrialResult. `voxtune trials` writes the same table.
        """
        if find_spec("pandas") is None:
            return list(self._run.trials)
        from pandas import DataFrame

        return DataFrame(trial_rows(self._run), columns=trial_columns(self.config))

    def best(self) -> TrialResult:
        """Return the winner, as `voxtune best` prints it.

        Raises:
            InputError: if no trial has a score yet.
        """
        return self._run.best()

    def recipe(self, number: int | None = None) -> TrainConfig:
        """Return all options of a trial, or of the winner if number is None.

        Options that the sweep sets per launch (output_dir, cache_dir, split_file, device) are as in the YAML, or at
        their defaults.

        Raises:
            InputError: if there is no trial of this number, or no trial has a score yet.
        """
        return self._run.recipe(self.best() if number is None else self._run.trial(number))

    def curves(self) -> DataFrame | list[dict[str, float | int | str | None]]:
        """Return the reported epochs of all trials: the columns of metrics.csv and `trial`, the trial's number.

        Returns:
            With pandas installed, a DataFrame with one row per trial and epoch, else a list of dicts. What an epoch
            lacks, such as the scores of one that was not validated, is None, in a DataFrame NaN; a row of a list lacks
            the columns that its trial's metrics.csv does not have. Before the first report there are no rows.
        """
        rows = curve_rows(self._run)
        if find_spec("pandas") is None:
            return rows
        from pandas import DataFrame

        return DataFrame(rows, columns=curve_columns(rows))

    def case_scores(self, number: int) -> DataFrame | list[dict[str, float | int | str]]:
        """Return the Dice of each validation case at each validated epoch of a trial.

        Returns:
            With pandas installed, a DataFrame with one row per epoch and case, in the order of both, else a list of
            dicts. Columns: epoch, case, dice_WT, dice_TC, dice_ET, dice_mean. No rows before the first validated
            epoch, and of an imported trial, whose own run has them.

        Raises:
            InputError: if there is no trial of this number, or the file is damaged.
        """
        path = self._run.dir.trial(self._run.trial(number).number).case_scores
        rows: list[dict[str, float | int | str]] = [
            {"epoch": epoch, "case": case, **scores}
            for epoch, of_epoch in read_case_scores(path).items()
            for case, scores in of_epoch.items()
        ]
        if find_spec("pandas") is None:
            return rows
        from pandas import DataFrame

        return DataFrame(rows, columns=list(CASE_COLUMNS))

    def importances(self) -> Importances:
        """Return which options explain how well trials did, with intervals, as `voxtune importance` prints it.

        `.options` has an item per searched option; `pandas.DataFrame(run.importances().options)` is a table of them.
        """
        return importances(self._run)

    def effort(self) -> Effort:
        """Return what the trials have cost: GPU hours, what early stopping saved, what led nowhere."""
        return measure_effort(self._run)

    def events(self) -> list[Event]:
        """Return what has happened in the sweep, in its order; [] for a run of an older version.

        `pandas.DataFrame(run.events())` is a table of them.
        """
        return read_events(self._run.dir.events)

    def __repr__(self) -> str:
        """Return the folder, the number of trials and the best score."""
        best = self._run.ranking[0] if self._run.ranking else None
        winner = f"; best {best.score:.4f} (trial {best.number})" if best else ""
        return f"<run {self.folder}: {summary_line(self._run)}{winner}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return summary_html(self._run)
