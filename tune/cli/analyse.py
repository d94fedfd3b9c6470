"""The verbs that analyse a sweep: which options matter, how trials and sweeps differ, and tables for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from tune.analysis.curve_rows import curve_columns, curve_rows
from tune.analysis.importance import importances
from tune.analysis.json_output.compare import runs_compared, trials_compared
from tune.analysis.json_output.importance import importance_output
from tune.analysis.prior_fit import prior_lines
from tune.analysis.run_comparison import compare_runs
from tune.analysis.table_files import STDOUT, Format, write_table
from tune.analysis.trial_comparison import compare_trials
from tune.analysis.trial_rows import trial_columns, trial_rows
from tune.cli.command import RunFolder, app
from tune.cli.json_flag import Json, print_json
from tune.run.results import read_run
from tune.terminal.comparison_lines import run_comparison_lines, trial_comparison_lines
from tune.terminal.importance_lines import importance_lines

FORMAT_OPTIONS = ("--csv", "--json", "--parquet")
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write CSV; without FILE on the screen.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON, see docs/json.md.")]
ParquetFile = Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write Parquet.")]


class TableVerb(TyperCommand):
    """A verb whose --csv, --json and --parquet may stand without FILE, for standard output."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return what is left of the words of the command line when options are taken from them."""
        words = []
        for word, following in pairwise([*args, "--end"]):
            no_file = following.startswith("-") and following != str(STDOUT)
            words += [word, str(STDOUT)] if word in FORMAT_OPTIONS and no_file else [word]
        return super().parse_args(ctx, words)


@app.command(epilog="Example: voxtune importance RUN")
def importance(run: RunFolder, json_: Json = False) -> None:
    """Show which options explain how well trials did, how sure that is, and what was tried how often."""
    result = read_run(run)
    found = importances(result)
    if json_:
        print_json(importance_output(result, found))
    else:
        logger.info("\n".join(importance_lines(result, found)))


@app.command(epilog="Example: voxtune prior RUN1 RUN2")
def prior(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of sweeps, also of other data.")],
) -> None:
    """Print priors for the next sweep, fitted to where the best trials of earlier ones are, as YAML to paste."""
    refuse_twice(runs)
    logger.info("\n".join(prior_lines([read_run(folder) for folder in runs])))


@app.command(cls=TableVerb, epilog="Example: voxtune trials RUN --csv trials.csv")
def trials(run: RunFolder, csv: CsvFile = None, json: JsonFile = None, parquet: ParquetFile = None) -> None:
    """Write all trials as a table: scores, reasons, rung decisions, times, options; by default CSV on the screen."""
    result = read_run(run)
    write_tables("trials", trial_rows(result), trial_columns(result.config), csv, json, parquet)


@app.command(cls=TableVerb, epilog="Example: voxtune curves RUN --csv curves.csv")
def curves(run: RunFolder, csv: CsvFile = None, json: JsonFile = None, parquet: ParquetFile = None) -> None:
    """Write the reported epochs of all trials as a table, one row per trial and epoch; by default CSV on the screen."""
    rows = curve_rows(read_run(run))
    write_tables("curves", rows, curve_columns(rows), csv, json, parquet)


def write_tables(
    name: str,
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    csv: Path | None,
    json: Path | None,
    parquet: Path | None,
) -> None:
    """Write a table in each format that is wanted, as CSV to standard output if none is; print what was written."""
    wanted: dict[Format, Path | None] = {"csv": csv, "json": json, "parquet": parquet}
    files = {form: path for form, path in wanted.items() if path is not None} or {"csv": STDOUT}
    if list(files.values()).count(STDOUT) > 1:
        raise InputError("only one format can go to standard output; give files for the others")
    for form, path in files.items():
        write_table(path, form, rows, columns, f"voxtune/{name}/1")
        if STDOUT not in files.values():
            logger.info(f"wrote {path}: {counted(len(rows), 'row')}, {counted(len(columns), 'column')}")


@app.command(epilog="Example: voxtune compare RUN 3 1")
def compare(
    run: RunFolder,
    others: Annotated[
        list[str],
        typer.Argument(metavar="N...|RUN...", help="Numbers of trials, or folders of other sweeps."),
    ],
    json_: Json = False,
) -> None:
    """Compare trials of a sweep, or sweeps: recipes, scores at the same effort, and what the difference tells."""
    if all(word.isdecimal() for word in others):
        if len(others) < 2:
            raise InputError(f"one trial, {others[0]}; expected two or more, such as `voxtune compare {run} 3 1`")
        result = read_run(run)
        trials = compare_trials(result, [int(word) for word in others])
        output, lines = trials_compared(result, trials), trial_comparison_lines(result, trials)
    else:
        refuse_unlike(run, others)
        runs = compare_runs([read_run(folder) for folder in (run, *map(Path, others))])
        output, lines = runs_compared(runs), run_comparison_lines(runs)
    if json_:
        print_json(output)
    else:
        logger.info("\n".join(lines))


def refuse_unlike(run: Path, others: Sequence[str]) -> None:
    """Raise InputError if a number of a trial stands among folders of sweeps, or a sweep is given twice."""
    if numbers := [word for word in others if word.isdecimal() and not Path(word).is_dir()]:
        raise InputError(
            f"{numbers[0]} is the number of a trial, the others are folders of sweeps; expected trials of one sweep, "
            f"such as `voxtune compare {run} 3 1`, or sweeps only"
        )
    refuse_twice([run, *map(Path, others)])


def refuse_twice(folders: Sequence[Path]) -> None:
    """Raise InputError if one of these sweeps is given twice."""
    for place, folder in enumerate(folders):
        if folder.resolve() in [earlier.resolve() for earlier in folders[:place]]:
            raise InputError(f"{folder} is given twice; expected different sweeps")
