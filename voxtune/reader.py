"""A run as tables and plain values."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainable.core.brats import REGIONS
from trainable.core.config import TrainConfig
from trainable.core.files import user_path
from trainable.training.case_scores import COLUMNS as CASE_COLUMNS
from trainable.training.case_scores import read_case_scores
from trainable.training.epoch_result import row_columns
from trainable.training.training_log import read_rows
from tune.run.results import Run, TrialResult, read_run
from tune.spec.sweep_config import SweepConfig

if TYPE_CHECKING:
    from pandas import DataFrame

INTEGERS = {"epoch", "best_epoch", "steps"}
TRIAL_COLUMNS = (
    *("number", "status", "end_reason", "score", "best_epoch", "epoch", "state"),
    *(f"dice_{region}" for region in REGIONS),
    *("seconds", "cost", "seed", "checkpoint", "error", "imported_from", "stop_epoch", "kept"),
)


def open(run_dir: str | Path) -> RunReader:
    """Read a run, finished or not. Open the run again to see what a running sweep has done since.

    Args:
        run_dir: the folder that `voxtune launch --out` made.

    Raises:
        InputError: if it is not the folder of a run, or its study.yaml or journal is missing or damaged.
    """
    return RunReader(read_run(user_path(run_dir)))


class RunReader:
    """A run with the trials that it had when it was opened; only `curves` and `case_scores` read files later.

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
            status, end_reason, score, best_epoch, epoch, state, dice_WT, dice_TC, dice_ET, seconds, cost, seed,
            checkpoint, error, imported_from, stop_epoch (the rung at which early stopping stopped the trial, or would
            have), kept (why it went on all the same: default or audit), and params_<option> for each searched option.
            What a trial lacks, such as the score and the Dice before a validated epoch or the value of an inactive
            option, is NaN or None; in end_reason, error, imported_from and kept "". Without pandas, a list of
            TrialResult.
        """
        if find_spec("pandas") is None:
            return list(self._run.trials)
        from pandas import DataFrame

        columns = [*TRIAL_COLUMNS, *(f"params_{parameter.name}" for parameter in self.config.space.parameters)]
        return DataFrame([trial_row(trial) for trial in self._run.trials], columns=columns)

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
        rows: list[dict[str, float | int | str | None]] = []
        for trial in self._run.trials:
            for row in read_rows(self._run.dir.trial(trial.number).metrics):
                rows.append({"trial": trial.number, **{name: parse(name, text) for name, text in row.items()}})
        if find_spec("pandas") is None:
            return rows
        from pandas import DataFrame

        return DataFrame(rows, columns=None if rows else ["trial", *row_columns()])

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


def trial_row(trial: TrialResult) -> dict[str, Any]:
    """Return a trial as a row: TRIAL_COLUMNS and params_<option>, without the Dice and options that it lacks."""
    return {
        **{name: getattr(trial, name) for name in ("number", "status", "end_reason", "score", "best_epoch", "epoch")},
        "state": trial.state.name,
        **{f"dice_{region}": score for region, score in trial.dice.items()},
        **{name: getattr(trial, name) for name in ("seconds", "cost", "seed", "checkpoint", "error", "imported_from")},
        **{name: getattr(trial, name) for name in ("stop_epoch", "kept")},
        **{f"params_{name}": value for name, value in trial.values.items()},
    }


def parse(name: str, text: str) -> float | int | str | None:
    """Return a value of metrics.csv with its type; None for an empty one, except end_reason, which is text."""
    if name == "end_reason":
        return text
    if not text:
        return None
    return int(text) if name in INTEGERS and text.isdigit() else float(text)
