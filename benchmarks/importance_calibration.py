"""Does `voxtune importance` name the options that matter, and no others? Simulated sweeps whose truth is known.

    python benchmarks/importance_calibration.py [--sweeps 100] [--trials 40 100] [--searchers random tpe]

Each sweep searches the space `brats`, of 20 options, with its early stopping. A trial's score depends on lr, whose best
value depends on the optimizer, and on noise; in sweeps "of noise" on noise only. Prints in how many sweeps lr, the
optimizer and any other option are said to matter, and in how many of the sweeps of noise any is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from synthetic_run import SPACE

from trainable.training.epoch_result import EndReason
from tune.analysis.importance import importances
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.search.asha import STOP, Rungs, rung_epochs
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

BEST_LR = {"adam": 1e-3, "adamw": 1.5e-3, "sgd": 1e-2}
COLUMNS = ("searcher", "trials", "stopped", "lr", "optimizer", "any other", "any, of noise")


def sampler(name: str, seed: int) -> BaseSampler:
    """Return who proposes the recipes."""
    if name == "random":
        return RandomSampler(seed)
    return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=12)


def simulate(config: SweepConfig, searcher: str, seed: int, *, of_noise: bool) -> Run:
    """Return a sweep whose trials ran one after another."""
    rng, rungs = np.random.default_rng(seed), Rungs(config)
    study = optuna.create_study(direction="maximize", sampler=sampler(searcher, seed))
    trials = []
    for number in range(config.budget.trials):
        asked = study.ask()
        config.space.suggest(asked)
        values = config.space.decode_params(asked.params)
        off = rng.uniform(0, 3) if of_noise else abs(np.log10(values["lr"] / BEST_LR[values["optimizer"]]))
        plateau = 0.88 - 0.22 * min(off, 3.0) + rng.normal(0, 0.02)
        decided, epochs, value, stopped = {}, config.fixed("epochs"), 0.0, False
        for epoch in (*rung_epochs(config), epochs):
            value = max(value, plateau * (1 - np.exp(-4 * epoch / epochs)) + rng.normal(0, 0.01))
            asked.report(value, epoch)
            if epoch < epochs:
                decided[epoch] = rungs.decide(number, epoch, value, default=False)
                rungs.add(number, epoch, decided[epoch])
                if stopped := decided[epoch].decision == STOP:
                    break
        state = TrialState.PRUNED if stopped else TrialState.COMPLETE
        study.tell(asked, None if stopped else value, state=state)
        end = EndReason.NONE if stopped else EndReason.EPOCHS
        trials.append(TrialResult(number, state, end, value, epoch, epoch, {}, values, 1.0, None, "", rungs=decided))
    return Run(RunDir(Path()), config, trials)


def claims(run: Run) -> set[str]:
    """Return the options that are said to matter."""
    return {option.name for option in importances(run).options if option.verdict == "matters"}


def measure(searcher: str, trials: int, sweeps: int) -> list[str]:
    """Return a row of the table."""
    config = load_sweep_config(SPACE, [f"study.trials={trials}"])
    runs = [simulate(config, searcher, seed, of_noise=False) for seed in range(sweeps)]
    found = [claims(run) for run in runs]
    noise = [claims(simulate(config, searcher, seed, of_noise=True)) for seed in range(sweeps)]
    stopped = np.mean([trial.state == TrialState.PRUNED for run in runs for trial in run.trials])
    counts = [
        sum("lr" in names for names in found),
        sum("optimizer" in names for names in found),
        sum(bool(names - {"lr", "optimizer"}) for names in found),
        sum(map(bool, noise)),
    ]
    return [searcher, str(trials), f"{stopped:.0%}", *(f"{count / sweeps:.0%}" for count in counts)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--trials", type=int, nargs="+", default=[40, 100])
    parser.add_argument("--searchers", nargs="+", default=["random", "tpe"])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    for searcher in arguments.searchers:
        for trials in arguments.trials:
            print("| " + " | ".join(measure(searcher, trials, arguments.sweeps)) + " |", flush=True)


if __name__ == "__main__":
    main()
