"""The first trials of a search drawn at random and spread evenly: what the best of them scores, and TPE after them.

    python benchmarks/even_startup.py [--seeds 500] [--tpe_seeds 40]

The toy score and space of tpe_group.py. Only Optuna, no training; both sides are voxtune's samplers, `random` for the
draws at random. Mean over seeds, and what nine of ten seeds have at least, of the best of the first 8, 16 and 32
trials, and of 60 trials of TPE of which the first 10 were drawn so.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import optuna
from optuna.search_space import IntersectionSearchSpace
from rich.table import Table
from tpe_group import score

from trainable.core.console import make_console
from tune.search.sampler import make_sampler
from tune.spec.sweep_config import SweepConfig, make_sweep_config

SPACE = {
    "optimizer": {"choice": ["adam", "adamw", "sgd"]},
    "lr": {"loguniform": [1e-5, 1e-1]},
    "momentum": {"uniform": [0.5, 0.99], "when": {"optimizer": "sgd"}},
    "weight_decay": {"loguniform": [1e-6, 1e-1], "when": {"optimizer": "adamw"}},
    "scheduler": {"choice": ["cosine", "step", "poly"]},
    "step_gamma": {"uniform": [0.1, 0.9], "when": {"scheduler": "step"}},
    "poly_power": {"uniform": [0.5, 2.0], "when": {"scheduler": "poly"}},
}


def scores(seed: int, trials: int, *, startup: int, even: bool) -> list[float]:
    """The scores of a search whose first trials are spread evenly or drawn at random; the rest is TPE's."""
    ours, random = (
        make_sweep_config(
            {"space": SPACE, "study": {"seed": seed}, "searcher": {"type": kind, "startup_trials": startup}}
        )
        for kind in ("tpe", "random")
    )
    study, common = optuna.create_study(direction="maximize"), IntersectionSearchSpace(include_pruned=True)
    for number in range(trials):
        config: SweepConfig = ours if even or number >= startup else random
        study.sampler = make_sampler(config, number, common, study.get_trials(deepcopy=False))
        trial = study.ask()
        config.space.suggest(trial)
        study.tell(trial, score(optuna.trial.FixedTrial(trial.params)))
    return [trial.values[0] for trial in study.get_trials(deepcopy=False)]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--tpe_seeds", type=int, default=40)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    table = Table(
        "best of", "seeds", "random: mean", "nine of ten", "even: mean", "nine of ten", "even is ahead in", box=None
    )
    sides = (False, True)
    early = {even: [scores(seed, 32, startup=32, even=even) for seed in range(asked.seeds)] for even in sides}
    late = {even: [scores(seed, 60, startup=10, even=even) for seed in range(asked.tpe_seeds)] for even in sides}
    for trials, found in ((8, early), (16, early), (32, early), (60, late)):
        best = {even: [max(each[:trials]) for each in found[even]] for even in sides}
        figures = [f"{figure:.4f}" for even in sides for figure in (statistics.mean(best[even]), tenth(best[even]))]
        ahead = sum(one > other for one, other in zip(best[True], best[False], strict=True))
        name = f"first {trials}" if found is early else "10, then 50 of TPE"
        table.add_row(name, f"{len(best[True])}", *figures, f"{ahead} seeds")
    print(__doc__)
    make_console().print(table)


def tenth(values: list[float]) -> float:
    """What nine of ten values have at least."""
    return statistics.quantiles(values, n=10)[0]


if __name__ == "__main__":
    main()
