"""100 trials with all ends and faults mixed, in processes that run one after the other; then in a new process each.

    python tests/drills/fault_drill.py [--trials 100] [--seed 0]

No trial may be left RUNNING or be lost, each must end as its fault demands, and its scores must equal those of a
process that ran only this trial.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import faulty, small_sweep
from optuna.trial import FrozenTrial, TrialState

from trainable.core.config import TrainConfig
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data
from tune.driver.sweep import launch
from tune.run.results import read_run
from tune.run.verify import verify
from tune.search.journal import read_trials

# How many of 100 trials have each fault, and how they may end; the others end by themselves or are stopped early.
FAULTS = {
    "out of memory": (12, {"COMPLETE"}),
    "not finite": (8, {"PRUNED"}),
    "error": (8, {"FAIL", "PRUNED"}),  # stopped early in its second life, before the second error
    "error once": (6, {"COMPLETE", "PRUNED"}),
    "kill once": (6, {"COMPLETE", "PRUNED"}),
    "hang": (5, {"FAIL"}),
}


def sweep(folder: Path, data: Data, data_dir: Path, faults: dict[int, str], trials: int, *, reuse: bool) -> Path:
    """Run one sweep, two trials at a time on two cores. Returns its folder."""
    config = small_sweep(
        data,
        data_dir,
        study={"trials": trials},
        early_stopping={"type": "asha", "grace_period": 2, "reduction_factor": 2, "min_trials": 1},
        resources={"report_timeout": 20, "reuse_processes": reuse},
    )
    return launch(config, folder, fit=faulty(faults)).folder


def ended_wrong(trials: list[FrozenTrial], faults: dict[int, str]) -> list[str]:
    """Return the trials that did not end as their fault demands."""
    found = []
    for trial in trials:
        allowed = FAULTS.get(faults.get(trial.number, ""), (0, {"COMPLETE", "PRUNED"}))[1]
        infeasible = faults.get(trial.number) == "out of memory"
        if trial.state.name not in allowed or bool(trial.constraints) != infeasible:
            found.append(f"trial {trial.number} ({faults.get(trial.number, 'no fault')}) is {trial.state.name}")
    return found


def different(warm: list[FrozenTrial], fresh: list[FrozenTrial]) -> list[str]:
    """Return the trials with different parameters, or with different scores at epochs that both have."""
    found = []
    for one, other in zip(warm, fresh, strict=True):
        common = one.intermediate_values.keys() & other.intermediate_values.keys()
        values = [[trial.intermediate_values[epoch] for epoch in sorted(common)] for trial in (one, other)]
        if one.params != other.params or values[0] != values[1]:
            found.append(f"trial {one.number}: {values}")
    return found


def main() -> int:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count = {fault: share * arguments.trials // 100 for fault, (share, _) in FAULTS.items()}
    names = [fault for fault, number in count.items() for _ in range(number)]
    numbers = random.Random(arguments.seed).sample(range(arguments.trials), len(names))
    faults = dict(zip(numbers, names, strict=True))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_phantoms(folder / "data", cases=8, shape=(48, 48, 40), workers=1)
        data = prepare_data(TrainConfig(data_dir=folder / "data", cache_dir=folder / "cache"), quiet=True)
        found: dict[bool, list[FrozenTrial]] = {}
        lines, wrong = [], []
        for reuse in (True, False):
            started = time.monotonic()
            run = sweep(folder / f"run_{reuse}", data, folder / "data", faults, arguments.trials, reuse=reuse)
            found[reuse] = read_trials(run)
            states = dict(Counter(trial.state.name for trial in found[reuse]))
            what = "one after the other" if reuse else "a fresh one each   "
            lines.append(f"processes: {what}  {len(found[reuse])} trials {states}  {time.monotonic() - started:.0f} s")
            wrong += ended_wrong(found[reuse], faults)
            wrong += [finding for findings in verify(read_run(run)).values() for finding in findings]
        wrong += different(found[True], found[False])
    print(f"\nfaults: {count}", *lines, sep="\n")
    print(f"left RUNNING, lost, ended otherwise, other scores than in a fresh process: {wrong or 'none'}")
    complete = all(len(trials) == arguments.trials for trials in found.values())
    good = complete and not wrong and TrialState.RUNNING not in {t.state for trials in found.values() for t in trials}
    print("passed" if good else "FAILED")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
