"""A sweep on simulated curves: its own early stopping decides, so that what it costs is known without training.

The curves rise to a plateau and have noise, as those of real sweeps do: most trials end close together, some far below,
and they rise at different speeds. How large each of this is, and whether later proposals are better than earlier ones,
is drawn anew for each sweep, so that many simulated sweeps show how far the costs may lie apart.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tune.planning.recipe_costs import Costs
from tune.search.asha import CONTINUE, PAUSE, STOP, Decision, Rungs, rung_epochs
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
        return cls(rng.uniform(0.005, 0.03), rate, rng.uniform(0.2, 0.7), rng.uniform(0.0, 3.0))

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
    """A trial of a simulated sweep: its curve, and how far it is.

    start: of its training, or when it went on after a pause. last: index of the validated epoch at which it ends by
    itself. done: validated epochs. before: seconds of training before its pause.
    """

    number: int
    curve: NDArray[np.float64]
    start: float
    epoch_seconds: float
    validation_seconds: float
    last: int
    done: int = 0
    before: float = 0.0

    @property
    def best(self) -> float:
        """Its best score so far."""
        return float(self.curve[: self.done].max())


class Simulator:
    """Runs one simulated sweep.

    config: of the sweep. slots: number of trials at once. costs: of its recipes. rng: draws curves and recipes.
    """

    def __init__(self, config: SweepConfig, slots: int, costs: Costs, rng: Generator) -> None:
        self.config, self.slots, self.costs, self.rng = config, slots, costs, rng
        last, every = config.fixed("epochs"), config.fixed("val_freq")
        self.validated = [*range(every, last, every), last]
        self.style, self.speed = CurveStyle.draw(rng), math.exp(rng.normal(0, SPEED_ERROR))
        self.rungs, at_rungs = Rungs(config), set(rung_epochs(config))
        self.stops = [index for index, epoch in enumerate(self.validated) if epoch in at_rungs or epoch == last]
        self.patience = 0 if any(p.name == "patience" for p in config.space.parameters) else config.fixed("patience")
        self.sweep = SimulatedSweep()
        self.waiting = iter(range(config.trials_left(0, ())))
        self.queue: list[tuple[float, int, int]] = []  # time of a decision, number, index of the validated epoch
        self.running: dict[int, SimulatedTrial] = {}
        self.paused: list[SimulatedTrial] = []
        self.promoted: list[SimulatedTrial] = []  # that are to go on

    def run(self) -> SimulatedSweep:
        """Return what the sweep did."""
        for _ in range(self.slots):
            self.start(0.0)
        while self.queue:
            if self.spent(self.queue[0][0]):
                break
            now, number, index = heapq.heappop(self.queue)
            trial = self.running[number]
            trial.done = index + 1
            decision = self.decide(trial)
            if decision == CONTINUE:
                self.expect(now, trial)
                continue
            del self.running[number]
            if decision == PAUSE:
                trial.before += now - trial.start
                self.paused.append(trial)
            else:
                self.count(trial, now)
            self.start(now + TURNOVER_SECONDS)
            if not self.queue:
                self.promote(now)
        return self.sweep

    def start(self, now: float) -> None:
        """Let a promoted trial go on, or start the next one: the first with the default recipe, others with any."""
        if self.promoted:
            trial = self.promoted.pop(0)
            trial.start, self.running[trial.number] = now, trial
            self.expect(now, trial)
        elif (number := next(self.waiting, None)) is not None:
            sizes, costs = self.costs.sizes, self.costs
            size = sizes[int(self.rng.integers(len(sizes))) if number else 0]
            curve = self.style.curve(self.validated, number / self.config.budget.trials, self.rng)
            seconds = (self.speed * costs.epoch_seconds(size), self.speed * costs.validation_seconds(size))
            self.running[number] = SimulatedTrial(number, curve, now, *seconds, self.end_of(curve))
            self.sweep.trials += 1
            warm = number >= self.slots and self.config.resources.reuse_processes  # the process has trained before
            self.expect(now + (0.0 if warm else self.speed * costs.start_seconds(size)), self.running[number])

    def promote(self, now: float) -> None:
        """Decide on the paused trials, all of which have come to their rung: the best go on first."""
        for trial in sorted(self.paused, key=lambda one: -self.value(one)):
            epoch = self.validated[trial.done - 1]
            decided = self.rungs.decide_paused(trial.number, epoch, self.value(trial), default=not trial.number)
            if decided.decision == STOP:
                trial.start = now
                self.count(trial, now)
            else:
                self.promoted.append(trial)
        self.paused = []
        for _ in range(self.slots):
            self.start(now + TURNOVER_SECONDS)

    def expect(self, now: float, trial: SimulatedTrial) -> None:
        """Queue when a trial comes to its next rung, or its end."""
        index = min(trial.last, next(index for index in self.stops if index >= trial.done))
        before = self.validated[trial.done - 1] if trial.done else 0
        seconds = (self.validated[index] - before) * trial.epoch_seconds
        seconds += (index + 1 - trial.done) * trial.validation_seconds
        heapq.heappush(self.queue, (now + seconds, trial.number, index))

    def end_of(self, curve: NDArray[np.float64]) -> int:
        """Return the index of the validated epoch at which a trial ends by itself: the last, or when patience ends."""
        best, at = -1.0, -1
        for index, score in enumerate(curve.tolist()):
            if score > best:
                best, at = score, index
            elif self.patience and index - at >= self.patience:
                return index
        return len(curve) - 1

    def decide(self, trial: SimulatedTrial) -> Decision:
        """Return what becomes of a trial after its latest validated epoch; STOP also if it ends by itself."""
        index = trial.done - 1
        if index == trial.last:
            self.sweep.finished += 1
            return STOP
        for epoch, score in zip(self.validated, trial.curve[: trial.done].tolist(), strict=False):
            self.rungs.observe(trial.number, epoch, score)
        decided = self.rungs.decide(trial.number, self.validated[index], self.value(trial), default=not trial.number)
        self.rungs.add(trial.number, self.validated[index], decided)
        return decided.decision

    def value(self, trial: SimulatedTrial) -> float:
        """Return what a trial is compared by at the rung that it has come to."""
        return self.rungs.value(trial.number, self.validated[trial.done - 1], trial.best)

    def count(self, trial: SimulatedTrial, now: float) -> None:
        """Add what a trial has cost that ends now."""
        self.sweep.epochs += self.validated[trial.done - 1]
        self.sweep.trial_seconds += trial.before + now - trial.start
        self.sweep.ended.add(trial.number)
        self.sweep.seconds = max(self.sweep.seconds, now)

    def spent(self, now: float) -> bool:
        """Return whether a budget ends the sweep before `now`; then what it has cost until there is counted."""
        end = self.end_of_budget(now)
        if now <= end:
            return False
        for when, number, index in self.queue:
            trial = self.running[number]
            missing = math.ceil(max(0.0, when - end) / max(trial.epoch_seconds, 1e-9))
            reported = self.validated[trial.done - 1] if trial.done else 0
            self.sweep.epochs += max(reported, self.validated[index] - missing)
            self.sweep.trial_seconds += trial.before + max(0.0, end - trial.start)
        self.sweep.epochs += sum(self.validated[trial.done - 1] for trial in self.paused)
        self.sweep.trial_seconds += sum(trial.before for trial in [*self.paused, *self.promoted])
        self.sweep.seconds, self.sweep.cut = end, True
        return True

    def end_of_budget(self, now: float) -> float:
        """Return when a budget ends the sweep, as far as that is before `now`; inf if none does."""
        budget, share = self.config.budget, self.config.resources.all_gpus
        end = math.inf if budget.time_budget is None else budget.time_budget
        if budget.gpu_hours is None or not share:
            return end
        taken = self.sweep.trial_seconds + sum(t.before + now - t.start for t in self.running.values())
        over = taken + sum(t.before for t in [*self.paused, *self.promoted]) - budget.gpu_hours * 3600 / share
        return min(end, now - over / max(1, len(self.running))) if over > 0 else end
