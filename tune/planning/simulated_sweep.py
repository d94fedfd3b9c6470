"""A sweep on simulated curves: its own early stopping decides, so that what it costs is known without training.

The curves rise to a plateau and have noise, as those of real sweeps do: most trials end close together, some far below,
and they rise at different speeds. How large each of this is, and whether later proposals are better than earlier ones,
is drawn anew for each sweep, so that many simulated sweeps show how far the costs may lie apart.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tune.planning.recipe_costs import Costs
from tune.search.asha import Rungs, rung_epochs
from tune.spec.sweep_config import SweepConfig

TURNOVER_SECONDS = 1.0  # from the last step of a trial to the start of the next in its process, see docs/speed.md
SPREAD = 0.07  # of the plateaus, in Dice: a Gumbel distribution whose long tail are recipes that hardly learn
SPEED_ERROR = 0.1  # relative, of a measurement of seconds for a sweep of hours


@dataclass(frozen=True)
class CurveStyle:
    """What the curves of one sweep have in common.

    noise: standard deviation of a validated epoch, in Dice. rate: how many times the curve's time constant fits into a
    training, on average. variety: standard deviation of the logarithm of the rate. drift: by how many SPREADs the last
    proposal is better than the first on average.
    """

    noise: float
    rate: float
    variety: float
    drift: float

    @classmethod
    def draw(cls, rng: Generator) -> CurveStyle:
        """Return the style of a sweep."""
        rate = float(np.exp(rng.uniform(math.log(3), math.log(20))))
        return cls(rng.uniform(0.005, 0.03), rate, rng.uniform(0.2, 0.7), rng.uniform(0.0, 2.0))

    def curve(self, epochs: Sequence[int], share: float, rng: Generator) -> NDArray[np.float64]:
        """Return the scores of a trial at these epochs, the last of which is the end.

        share: of the sweep's trials that started before it.
        """
        plateau = 0.75 + SPREAD * (self.drift * share - rng.gumbel())
        rate = self.rate * math.exp(self.variety * rng.normal())
        level = plateau * (1 - np.exp(-rate * np.asarray(epochs) / epochs[-1]))
        return np.clip(level + rng.normal(0, self.noise, len(epochs)), 0, 1)


@dataclass
class SimulatedSweep:
    """What a simulated sweep did.

    trials: started. finished: trained to their end. epochs: trained. trial_seconds: summed over trials. seconds: from
    the start of the first trial to the end of the last. cut: a budget ended it before its last trial. ended: numbers of
    the trials that have ended by themselves or by early stopping.
    """

    trials: int = 0
    finished: int = 0
    epochs: int = 0
    trial_seconds: float = 0.0
    seconds: float = 0.0
    cut: bool = False
    ended: set[int] = field(default_factory=set)


@dataclass
class SimulatedTrial:
    """A trial of a simulated sweep: its curve, and how far it is."""

    number: int
    curve: NDArray[np.float64]
    start: float
    epoch_seconds: float
    validation_seconds: float
    done: int = 0  # validated epochs


@dataclass
class Simulator:
    """Runs one simulated sweep.

    config: of the sweep. slots: number of trials at once. costs: of its recipes. rng: draws the curves and recipes.
    """

    config: SweepConfig
    slots: int
    costs: Costs
    rng: Generator
    sweep: SimulatedSweep = field(default_factory=SimulatedSweep)

    def __post_init__(self) -> None:
        config = self.config
        last, every = config.fixed("epochs"), config.fixed("val_freq")
        self.validated = [*range(every, last, every), last]
        self.style = CurveStyle.draw(self.rng)
        self.speed = math.exp(self.rng.normal(0, SPEED_ERROR))
        self.rungs = Rungs(config)
        at_rungs = set(rung_epochs(config))
        self.stops = [index for index, epoch in enumerate(self.validated) if epoch in at_rungs or epoch == last]
        self.patience = 0 if any(p.name == "patience" for p in config.space.parameters) else config.fixed("patience")

    def run(self) -> SimulatedSweep:
        """Return what the sweep did."""
        queue: list[tuple[float, int, int]] = []  # time of the next decision, number, index of the validated epoch
        trials: dict[int, SimulatedTrial] = {}
        waiting = iter(range(self.config.trials_left(0, ())))
        for _ in range(self.slots):
            self.start(0.0, waiting, trials, queue)
        while queue:
            now, number, index = heapq.heappop(queue)
            trial = trials[number]
            if self.spent(now, trials, [(number, now), *((other, when) for when, other, _ in queue)]):
                break
            trial.done = index + 1
            if self.goes_on(trial):
                self.expect(now, trial, queue)
                continue
            self.count(trial, now)
            del trials[number]
            self.start(now + TURNOVER_SECONDS, waiting, trials, queue)
        return self.sweep

    def start(
        self,
        now: float,
        waiting: Iterator[int],
        trials: dict[int, SimulatedTrial],
        queue: list[tuple[float, int, int]],
    ) -> None:
        """Start the next trial, if there is one, with a recipe drawn from the space; the first one is the default."""
        if (number := next(waiting, None)) is None:
            return
        size = self.costs.sizes[0 if number == 0 else int(self.rng.integers(len(self.costs.sizes)))]
        curve = self.style.curve(self.validated, number / max(1, self.config.budget.trials), self.rng)
        seconds, validation = self.costs.epoch_seconds(size), self.costs.validation_seconds(size)
        trials[number] = SimulatedTrial(number, curve, now, self.speed * seconds, self.speed * validation)
        self.sweep.trials += 1
        self.expect(now + self.speed * self.costs.start_seconds(size), trials[number], queue)

    def expect(self, now: float, trial: SimulatedTrial, queue: list[tuple[float, int, int]]) -> None:
        """Queue when a trial comes to its next rung, its end, or the end of its patience."""
        index = next(index for index in self.stops if index >= trial.done)
        index = min(index, self.out_of_patience(trial.curve, index))
        before = self.validated[trial.done - 1] if trial.done else 0
        seconds = (self.validated[index] - before) * trial.epoch_seconds
        heapq.heappush(
            queue, (now + seconds + (index + 1 - trial.done) * trial.validation_seconds, trial.number, index)
        )

    def out_of_patience(self, curve: NDArray[np.float64], last: int) -> int:
        """Return the index of the validated epoch at which patience ends, `last` if it does not before."""
        if not self.patience:
            return last
        best, at = -1.0, -1
        for index in range(last + 1):
            if curve[index] > best:
                best, at = curve[index], index
            elif index - at >= self.patience:
                return index
        return last

    def goes_on(self, trial: SimulatedTrial) -> bool:
        """Return whether a trial goes on after its latest validated epoch."""
        index = trial.done - 1
        if index == len(self.validated) - 1 or index not in self.stops:
            self.sweep.finished += 1
            return False
        best = float(trial.curve[: trial.done].max())
        decided = self.rungs.decide(trial.number, self.validated[index], best, default=trial.number == 0)
        self.rungs.add(trial.number, self.validated[index], decided)
        return decided.decision != "STOP"

    def count(self, trial: SimulatedTrial, now: float) -> None:
        """Add what a trial has cost that ends now."""
        self.sweep.epochs += self.validated[trial.done - 1] if trial.done else 0
        self.sweep.trial_seconds += now - trial.start
        self.sweep.ended.add(trial.number)
        self.sweep.seconds = max(self.sweep.seconds, now)

    def spent(self, now: float, trials: dict[int, SimulatedTrial], queued: Sequence[tuple[int, float]]) -> bool:
        """Return whether a budget ends the sweep before `now`; then what it has cost until there is counted."""
        budget, share = self.config.budget, self.config.resources.gpu_share
        if budget.time_budget is None and budget.gpu_hours is None:
            return False
        end = budget.time_budget if budget.time_budget is not None else math.inf
        if budget.gpu_hours is not None and share:
            running = sum(now - trial.start for trial in trials.values())
            over = self.sweep.trial_seconds + running - budget.gpu_hours * 3600 / share
            end = min(end, now - over / max(1, len(trials)) if over > 0 else math.inf)
        if now <= end:
            return False
        for number, when in queued:
            trial = trials[number]
            left = max(0.0, when - end) / max(trial.epoch_seconds, 1e-9)
            index = next(index for index in self.stops if index >= trial.done)
            self.sweep.epochs += max(0, int(self.validated[index] - left))
            self.sweep.trial_seconds += max(0.0, end - trial.start)
        self.sweep.seconds, self.sweep.cut = end, True
        return True
