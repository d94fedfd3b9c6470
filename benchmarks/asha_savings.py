"""What early stopping saved and what it cost: the trials of a sweep once more, all of them to their last epoch.

    python benchmarks/asha_savings.py RUN [--out RUN_without]

The second sweep gets the same recipes, seeds, split and data; only ASHA is off. Prints both side by side.
"""

import argparse
from pathlib import Path

from rich.table import Table

from trainable.core.console import duration, make_console
from tune.driver.sweep import launch
from tune.run.results import Run, read_run
from tune.search.journal import read_trials
from tune.spec.sections import EarlyStopping


def without_asha(run: Path, out: Path) -> Run:
    """Run the trials of a sweep again without early stopping."""
    config = read_run(run).config
    budget = config.budget.model_copy(update={"trials": len(read_trials(run))})
    config = config.model_copy(update={"early_stopping": EarlyStopping(type="none"), "budget": budget})
    params = tuple(trial.params for trial in read_trials(run))
    return launch(config, out, params=params)


def compare(run: Run, other: Run) -> Table:
    """Epochs, seconds in trials and the best score of both."""
    table = Table("", "epochs", "time in trials", "best score", "trial", box=None, header_style="bold")
    for name, each in (("with ASHA", run), ("without", other)):
        epochs, seconds = sum(t.epoch for t in each.trials), sum(t.seconds for t in each.trials)
        best = each.best()
        table.add_row(name, str(epochs), duration(seconds), f"{best.score:.4f}", str(best.number))
    return table


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = (arguments.out or arguments.run.with_name(arguments.run.name + "_without")).resolve()
    run, other = read_run(arguments.run.resolve()), without_asha(arguments.run.resolve(), out)
    console = make_console()
    console.print(compare(run, other))
    epochs, all_epochs = (sum(trial.epoch for trial in each.trials) for each in (run, other))
    console.print(f"ASHA took {all_epochs - epochs} of {all_epochs} epochs fewer ({1 - epochs / all_epochs:.0%})")
    same = [t.number for t, u in zip(run.trials, other.trials, strict=True) if t.values == u.values]
    console.print(f"{len(same)} of {len(run.trials)} trials have the same recipe in both")


if __name__ == "__main__":
    main()
