"""How good is voxtune's search at the budget of 8 to 64 trainings, compared with what a user could pick instead?

    PYTHONPATH=.:benchmarks OMP_NUM_THREADS=1 python -m search_quality [--benches unet scan] [--arms NAME ...]

Nothing is trained: a benchmark turns a recipe into a curve of scores, and a sweep runs in simulated time. voxtune's
arms are voxtune's own code. docs/search.md says what the benchmarks, arms and columns are. Each result is kept in a
file, so that a second call goes on where the first ended; an arm whose package is missing is left out, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from search_quality import checks
from search_quality.arms import ARMS, BENCHES, STAGES, Stage
from search_quality.recorded import CACHE
from search_quality.simulator import sweep
from search_quality.table import Key, Results, table_lines

Task = tuple[str, int, str, int, tuple[int, ...]]  # bench, workers, arm, seed, budgets


def silence() -> None:
    """Use one thread, and print nothing but the table."""
    torch.set_num_threads(1)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def run_one(task: Task) -> tuple[Key, dict[str, Any]]:
    """Return what an arm reaches on a benchmark with a seed, and how long that took in CPU seconds."""
    bench_name, workers, arm_name, seed, budgets = task
    silence()
    began = time.process_time()
    try:
        bench = BENCHES[bench_name](seed)
        marks = sweep(bench, ARMS[arm_name](bench, seed), seed, workers, list(budgets))
    except ImportError as error:
        return (bench_name, workers, arm_name, seed), {"missing": str(error)}
    regret = {name: (bench.best - bench.final(recipe)) * bench.unit for name, recipe in
              (("default", bench.default), ("start", bench.start))}  # fmt: skip
    return (bench_name, workers, arm_name, seed), {"marks": marks, "seconds": time.process_time() - began, **regret}


def read_results(path: Path) -> Results:
    """Return the results in a file; those of the same key join their budgets."""
    results: Results = {}
    for line in path.open() if path.exists() else ():
        key, record = json.loads(line)
        known = results.setdefault(tuple(key), record)
        known["marks"] |= record["marks"]
    return results


def missing_tasks(stages: list[Stage], seeds: range, results: Results) -> Iterator[Task]:
    """Yield what is not in the results yet, in the order of the stages."""
    for stage in stages:
        for seed in seeds:
            for arm in stage.arms:
                known = results.get((stage.bench, stage.workers, arm, seed), {"marks": {}})["marks"]
                budgets = tuple(budget for budget in stage.budgets if f"{budget}" not in known)
                if budgets:
                    yield stage.bench, stage.workers, arm, seed, budgets


def run_all(tasks: list[Task], path: Path, jobs: int) -> None:
    """Run the tasks and append each result to the file."""
    left_out: dict[str, str] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, contextlib.ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.Pool(jobs)) if jobs > 1 else None
        for key, record in pool.imap_unordered(run_one, tasks) if pool else map(run_one, tasks):
            if "missing" in record:
                left_out[key[2]] = record["missing"]
                continue
            file.write(json.dumps([key, record], default=float) + "\n")
            file.flush()
    for arm, reason in left_out.items():
        print(f"left out: {arm}: {reason}", file=sys.stderr)


def chosen_stages(benches: list[str], arms: list[str], workers: int | None, budgets: list[int]) -> list[Stage]:
    """Return the stages of these benches, arms, workers and budgets; named ones need no entry in STAGES."""
    if not benches and not arms:
        return list(STAGES)
    found = [
        Stage(s.bench, s.workers, s.budgets, tuple(arm for arm in s.arms if not arms or arm in arms))
        for s in STAGES
        if (not benches or s.bench in benches) and (workers is None or s.workers == workers) and not budgets
    ]
    if arms and (budgets or not any(stage.arms for stage in found)):
        found = [
            Stage(bench, workers or 4, tuple(budgets or (8, 16, 32)), tuple(arms)) for bench in benches or ("unet",)
        ]
    return found


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", nargs="*", default=[], choices=list(BENCHES))
    parser.add_argument("--arms", nargs="*", default=[], choices=list(ARMS), metavar="NAME")
    parser.add_argument("--workers", type=int, help="trials at a time")
    parser.add_argument("--budgets", nargs="*", type=int, default=[], help="in whole trainings")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--readings", nargs="*", default=[], help="other ways to name the winner to show, or all")
    parser.add_argument("--results", type=Path, default=CACHE / "results.jsonl")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--check", action="store_true", help="only the checks of the simulator")
    asked = parser.parse_args()
    silence()
    if asked.check:
        print("\n".join(checks.run_checks()))
        return
    stages = chosen_stages(asked.benches, asked.arms, asked.workers, asked.budgets)
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    if not asked.table:
        run_all(list(missing_tasks(stages, seeds, read_results(asked.results))), asked.results, asked.jobs)
    results = {key: record for key, record in read_results(asked.results).items() if key[3] in seeds}
    print("\n".join(table_lines(results, asked.readings)))
    seconds = sum(record["seconds"] for record in results.values())
    print(
        f"\n{len(results)} sweeps, {seconds / 60:.0f} min of CPU; optuna {optuna.__version__}, numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
