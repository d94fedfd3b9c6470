"""What the driver of a sweep needs as its trials grow in number: time to open a run, propose, report ends, list.

    python benchmarks/growth.py [--trials 10 100 1000 10000] [--paused]

The journal of a run is filled with ended trials of the brats space, nine epochs each with a score, a third complete;
then the driver's own functions are timed on it, medians of five. Times of proposals are CPU times, by searcher. With
--paused those that were stopped wait at a rung instead, as with `early_stopping: promote`.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from rich.table import Table

from trainable.core.brats import REGIONS
from trainable.core.console import make_console
from tune.run.results import read_run
from tune.search.journal import Journal
from tune.search.journal_file import JOURNAL
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump, load_sweep_config

EPOCHS = 9
SEARCHERS = "bayes", "tpe", "random"


def fill(journal: Journal, study: SweepConfig, trials: int) -> None:
    """Add trials, as the driver would have left them."""
    stopped = ("PAUSE", TrialState.RUNNING) if study.early_stopping.type == "promote" else ("STOP", TrialState.PRUNED)
    samples = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    rng = np.random.default_rng(0)
    made = []
    for number in range(trials):
        asked = samples.ask()
        study.space.suggest(asked)
        complete = number % 3 == 0
        scores = np.sort(rng.uniform(0.2, 0.9, EPOCHS if complete else 1 + number % 5)).tolist()
        best = {"epoch": len(scores), "score": scores[-1], "dice": dict.fromkeys(REGIONS, scores[-1])}
        progress = {"epoch": len(scores), "seconds": 60.0, "end_reason": "epochs" if complete else "", "best": best}
        decision, state = ("CONTINUE", TrialState.COMPLETE) if complete else stopped
        rungs = {str(1 if complete else len(scores)): {"value": scores[0], "decision": decision}}
        made.append(
            create_trial(
                state=state,
                value=None if state == TrialState.RUNNING else scores[-1],
                params=asked.params,
                distributions=asked.distributions,
                user_attrs={"progress": {**progress, "checkpoint": None, "device": "GPU"}, "rungs": rungs},
                intermediate_values=dict(enumerate(scores, 1)),
            )
        )
    journal.study.add_trials(made)


def median(work: Callable[[], Any], times: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(times):
        started = clock()
        work()
        taken.append(clock() - started)
    return 1000 * statistics.median(taken)


def median_proposal(folder: Path, study: SweepConfig, searcher: str) -> float:
    """CPU milliseconds of a proposal."""
    config = study.model_copy(update={"searcher": study.searcher.model_copy(update={"type": searcher})})
    journal = Journal(folder, config)
    journal.ask()  # reads what was added
    return median(journal.ask, 7, time.process_time)


def measure(folder: Path, study: SweepConfig, trials: int) -> list[str]:
    """A row of the table."""
    folder.mkdir()
    (folder / "study.yaml").write_text(dump(study))
    journal = Journal(folder, study)
    fill(journal, study, trials)
    proposals = [median_proposal(folder, study, searcher) for searcher in SEARCHERS]
    journal = Journal(folder, study)
    numbers = [journal.ask()[0] for _ in range(5)]
    row = {"epoch": 1, "best_score": 0.5, "best_epoch": 1, "end_reason": "epochs", "time_this_iter_s": 1.0}
    row |= {f"val_dice_{name}": 0.5 for name in ("mean", *REGIONS)}
    record = median(lambda: journal.record(numbers[-1], {**row, "epoch": len(numbers) + int(time.time())}))
    tell = median(lambda: journal.record(numbers[-1], row) or journal.tell(numbers.pop()))
    opened = median(lambda: read_run(folder), 3)
    run = read_run(folder)
    rank = median(lambda: replace(run).ranking)  # a new one, since it keeps its ranking
    size = (folder / JOURNAL).stat().st_size / 2**20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = (*proposals, record, tell, opened, rank)
    return [str(trials), *(f"{value:.1f}" for value in times), f"{size:.1f}", f"{memory:.0f}"]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--paused", action="store_true")
    asked = parser.parse_args()
    study = load_sweep_config("brats", ["study.trials=100000", *["early_stopping.type=promote"] * asked.paused])
    proposals = (f"propose, {searcher}, ms" for searcher in SEARCHERS)
    columns = "trials", *proposals, "record a report", "tell", "open a run", "rank it", "journal, MiB"
    table = Table(*columns, "driver's peak, MiB", box=None, header_style="bold")
    with tempfile.TemporaryDirectory() as scratch:
        for trials in asked.trials:
            table.add_row(*(row := measure(Path(scratch) / str(trials), study, trials)))
            print(row, file=sys.stderr, flush=True)
    print(__doc__)
    make_console().print(table)


if __name__ == "__main__":
    main()
