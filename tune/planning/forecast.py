"""What a sweep is likely to cost: quantiles over simulated sweeps, per number of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tune.planning.recipe_costs import Costs
from tune.planning.simulated_sweep import SimulatedSweep, Simulator
from tune.search.asha import rung_epochs
from tune.spec.sections import Confirm
from tune.spec.sweep_config import SweepConfig

QUANTILES = (0.1, 0.5, 0.9)
MOST_DECISIONS = 20_000  # of early stopping, in all simulated sweeps together: about 2 s
FEWEST_SWEEPS, MOST_SWEEPS = 20, 150


@dataclass(frozen=True)
class Range:
    """What is exceeded in 9 of 10 simulated sweeps, in half of them, and in 1 of 10."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Return the quantiles of some values."""
        return cls(*np.quantile(values, QUANTILES).tolist())


@dataclass(frozen=True)
class Forecast:
    """What a sweep is likely to cost.

    slots: number of trials at once. gpus: that they run on; 0 on a CPU. trials: started. finished: trained to their
    end. epochs: trained. gpu_hours: of all trials; 0 on a CPU. trial_hours: training time of all trials. hours: from
    the first trial's start to the last one's end. cut: share of the simulated sweeps that a budget ended.
    """

    slots: int
    gpus: int
    trials: Range
    finished: Range
    epochs: Range
    gpu_hours: Range
    trial_hours: Range
    hours: Range
    cut: float


def simulate_sweeps(config: SweepConfig, costs: Costs, slots: int, sweeps: int | None = None) -> list[SimulatedSweep]:
    """Return simulated sweeps, the same ones each time; sweeps: their number, None for as many as are quick."""
    if sweeps is None:
        decisions = config.budget.trials * (1 + len(rung_epochs(config)))
        sweeps = min(max(MOST_DECISIONS // decisions, FEWEST_SWEEPS), MOST_SWEEPS)
    return [Simulator(config, slots, costs, np.random.default_rng([config.seed, n])).run() for n in range(sweeps)]


def forecast(config: SweepConfig, costs: Costs, slots: int, gpus: int) -> Forecast:
    """Return what a sweep is likely to cost; slots: number of trials at once, on so many GPUs."""
    sweeps = simulate_sweeps(config, costs, slots)
    share = config.resources.all_gpus
    return Forecast(
        slots=slots,
        gpus=gpus,
        trials=Range.of([sweep.trials for sweep in sweeps]),
        finished=Range.of([sweep.finished for sweep in sweeps]),
        epochs=Range.of([sweep.epochs for sweep in sweeps]),
        gpu_hours=Range.of([sweep.trial_seconds * share / 3600 for sweep in sweeps]),
        trial_hours=Range.of([sweep.trial_seconds / 3600 for sweep in sweeps]),
        hours=Range.of([sweep.seconds / 3600 for sweep in sweeps]),
        cut=sum(sweep.cut for sweep in sweeps) / len(sweeps),
    )


def training_seconds(config: SweepConfig, costs: Costs, epochs: int | None = None) -> float:
    """Return the seconds of one whole training of the default recipe; epochs: None for those of the sweep."""
    return costs.training_seconds(costs.default.size, epochs or config.fixed("epochs"), config.fixed("val_freq"))


def confirmation_trainings(confirm: Confirm) -> int:
    """Return how many trainings a confirmation takes at most; it ends sooner if the verdict is clear."""
    return (confirm.top + 1) * confirm.seeds * max(1, confirm.folds)


def confirmation_seconds(config: SweepConfig, costs: Costs, slots: int, confirm: Confirm) -> float:
    """Return the seconds that a confirmation takes at most, each training as long as the slower of the measured two.

    With folds each validation is of all cases of a fold, and an epoch without patches_per_epoch of all the others.
    """
    if confirm.folds:
        patches = config.base_config().patches_per_epoch or costs.divided_cases - costs.divided_cases // confirm.folds
        costs = replace(costs, cases=-(-costs.divided_cases // confirm.folds), patches=patches)
    rounds = -(-confirmation_trainings(confirm) // slots)
    epochs, every = confirm.epochs or config.fixed("epochs"), config.fixed("val_freq")
    sizes = (costs.default.size, costs.largest.size)
    return rounds * max(costs.training_seconds(size, epochs, every) + costs.validation_seconds(size) for size in sizes)
