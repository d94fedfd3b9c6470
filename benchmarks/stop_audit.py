"""Is the printed share of false stops right? Simulated sweeps whose curves are complete, so that the truth is known.

    python benchmarks/stop_audit.py [--sweeps 200] [--trials 40] [--share 0.1 0.2 0.4 1.0]

Each sweep goes through the journal and the scheduler of a real one: ASHA with rungs at epochs 1 and 3 of 9, curves that
cross. Prints per audited share the true share of false stops, the mean of the printed ones, and in how many sweeps the
printed interval contains the truth of that sweep.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from trainable.core.console import make_console
from tune.analysis.stop_audit import StopAudit, audit_stops
from tune.driver.scheduling.rung_scheduler import RungScheduler
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.search.asha import CONTINUE, rung_epochs
from tune.search.journal import Journal
from tune.search.promotion import promote
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump

EPOCHS = 9


@dataclass(frozen=True)
class Outcome:
    """Of one sweep: the true share of false stops, and what the run says of it."""

    true_rate: float
    audit: StopAudit


def draw_curves(trials: int, seed: int) -> NDArray[np.float64]:
    """Return the best score so far of each trial after each epoch, (trials, EPOCHS); fast learners may end lower."""
    rng = np.random.default_rng(seed)
    final, speed = rng.uniform(0.5, 0.9, (trials, 1)), rng.uniform(0.5, 8.0, (trials, 1))
    curves = final * (1 - np.exp(-np.arange(1, EPOCHS + 1) / speed)) + rng.normal(0, 0.02, (trials, EPOCHS))
    return np.maximum.accumulate(curves.clip(0, 1), 1)


def make_config(trials: int, seed: int, stopping: dict[str, Any]) -> SweepConfig:
    """Return the config of a simulated sweep. stopping: what its early_stopping has besides the defaults."""
    return make_sweep_config(
        {
            "study": {"trials": trials, "seed": seed},
            "early_stopping": {"min_trials": 1, "margin": 0.0, **stopping},
            "searcher": {"type": "random"},
            "train": {"epochs": EPOCHS},
            "space": {"lr": {"loguniform": [1e-5, 1e-2]}},
        }
    )


def run_sweep(folder: Path, config: SweepConfig, curves: NDArray[np.float64], parallel: int = 4) -> Run:
    """Run a sweep of known curves through journal and scheduler, N trials at a time, in a new folder."""
    folder.mkdir(parents=True)
    RunDir(folder).config.write_text(dump(config))
    journal = Journal(folder, config)
    scheduler = RungScheduler(journal, config, lambda *_: None)
    journal.enqueue_first([config.space.default_params()])
    running: dict[int, int] = {}  # the epoch of each running trial, by number
    started = 0
    while running or started < len(curves):
        while len(running) < parallel and started < len(curves):
            running[journal.ask()[0]], started = 0, started + 1
        for number in list(running):
            running[number] += 1
            if report(journal, scheduler, number, running[number], curves[number]):
                journal.tell(number)
                del running[number]
        if not running and started == len(curves):
            running = dict.fromkeys(promote(journal), next(iter(rung_epochs(config)), 0))
    return read_run(folder)


def report(journal: Journal, scheduler: RungScheduler, number: int, epoch: int, curve: NDArray[np.float64]) -> bool:
    """Report an epoch of a trial as its process would. Returns whether the trial ends with it."""
    best = float(curve[epoch - 1])
    dice = {f"val_dice_{name}": best for name in ("mean", "WT", "TC", "ET")}
    end_reason = "epochs" if epoch == EPOCHS else ""
    row: Any = {"epoch": epoch, **dice, "best_score": best, "best_epoch": epoch, "end_reason": end_reason, "log": ""}
    if epoch > 1 and best == curve[epoch - 2]:
        row["best_epoch"] = int(np.argmax(curve == best)) + 1
    journal.record(number, row)
    return scheduler.decide(number, row) != CONTINUE or bool(end_reason)


def true_rate(run: Run, curves: NDArray[np.float64]) -> float:
    """Return the share of the trials that were or would have been stopped that is better at the end than the median."""
    passed = [curves[trial.number, -1] for trial in run.trials if trial.stop_epoch is None]
    stops = [trial for trial in run.trials if trial.stop_epoch is not None and trial.kept != "default"]
    return float(np.mean([curves[trial.number, -1] > median(passed) for trial in stops]))


def simulate(sweeps: int, trials: int, share: float, folder: Path, first_seed: int = 0) -> list[Outcome]:
    """Return the outcomes of sweeps that audit this share of their stops."""
    outcomes = []
    for seed in range(first_seed, first_seed + sweeps):
        curves = draw_curves(trials, seed)
        config = make_config(trials, seed, {"grace_period": 1, "reduction_factor": 3, "audit": share})
        run = run_sweep(folder / f"{share}_{seed}", config, curves)
        outcomes.append(Outcome(true_rate(run, curves), audit_stops(run)))
    return outcomes


def add_row(table: Table, share: float, outcomes: list[Outcome]) -> None:
    """Add the row of a share to the table."""
    told = [outcome for outcome in outcomes if outcome.audit.audited]
    covered = [outcome.audit.low <= outcome.true_rate <= outcome.audit.high for outcome in told]
    counts = np.mean([(outcome.audit.audited, outcome.audit.stops) for outcome in told], 0)
    true, printed = (np.array(rates) for rates in zip(*[(o.true_rate, o.audit.rate) for o in told], strict=True))
    error = (printed - true).std() / np.sqrt(len(told))
    table.add_row(
        f"{share:g}",
        f"{counts[0]:.1f} of {counts[1]:.1f}",
        f"{true.mean():.3f}",
        f"{printed.mean():.3f}",
        f"{(printed - true).mean():+.4f} +- {error:.4f}",
        f"{np.mean(covered):.3f} of {len(told)}",
    )


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--share", type=float, nargs="+", default=[0.1, 0.2, 0.4, 1.0])
    arguments = parser.parse_args()
    os.fsync = lambda handle: None  # type: ignore[assignment] # nothing is killed here, and it takes most of the time
    names = ("audit", "audited stops", "true rate", "mean printed rate", "difference", "truth in the interval")
    table = Table(*names, box=None)
    with tempfile.TemporaryDirectory() as folder:
        for index, share in enumerate(arguments.share):  # with other seeds in each row
            first = index * arguments.sweeps
            add_row(table, share, simulate(arguments.sweeps, arguments.trials, share, Path(folder), first))
    make_console().print(table)


if __name__ == "__main__":
    main()
