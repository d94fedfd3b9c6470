"""TPE with and without Optuna's `group` on a space with conditions: which finds more in the same trials?

    python benchmarks/tpe_group.py [--seeds 20] [--trials 60]

The toy score depends on the optimizer, its lr, sgd's momentum and the schedule's own numbers, each searched only where
it is used, as in search_spaces/brats.yaml. Both samplers are multivariate and seeded alike. Only Optuna, no training.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings

import optuna


def score(trial: optuna.Trial) -> float:
    """At most 1: sgd with lr 0.01 and momentum 0.95, poly with power 0.9."""
    optimizer = trial.suggest_categorical("optimizer", ["adam", "adamw", "sgd"])
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    best = {"adam": 3e-4, "adamw": 1e-3, "sgd": 1e-2}[optimizer]
    value = {"adam": 0.94, "adamw": 0.96, "sgd": 1.0}[optimizer] - 0.1 * abs(math.log10(lr / best))
    if optimizer == "sgd":
        value -= abs(trial.suggest_float("momentum", 0.5, 0.99) - 0.95)
    if optimizer == "adamw":
        value -= 0.02 * abs(math.log10(trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True) / 1e-3))
    scheduler = trial.suggest_categorical("scheduler", ["cosine", "step", "poly"])
    if scheduler == "step":
        value -= 0.03 + 0.1 * abs(trial.suggest_float("step_gamma", 0.1, 0.9) - 0.5)
    if scheduler == "poly":
        value -= 0.1 * abs(trial.suggest_float("poly_power", 0.5, 2.0) - 0.9)
    return value - (0.02 if scheduler == "cosine" else 0.0)


def best_of(seed: int, trials: int, *, group: bool) -> float:
    """The best score of a study."""
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=10, multivariate=True, group=group)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(score, n_trials=trials)
    return float(study.best_value)


def main() -> None:
    """Print each seed and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = []
    print(f"optuna {optuna.__version__}, {arguments.trials} trials; best score\nseed  group=True  group=False")
    for seed in range(arguments.seeds):
        rows.append([best_of(seed, arguments.trials, group=group) for group in (True, False)])
        print(f"{seed:4}  {rows[-1][0]:10.4f}  {rows[-1][1]:11.4f}", flush=True)
    with_group, without = zip(*rows, strict=True)
    ahead = sum(one > other for one, other in rows)
    print(f"median {statistics.median(with_group):8.4f}  {statistics.median(without):11.4f}")
    print(f"group=True is ahead in {ahead} of {len(rows)} seeds")


if __name__ == "__main__":
    main()
