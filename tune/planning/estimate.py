"""What a sweep is likely to take: measured costs, a forecast per number of GPUs, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainable.core.counted import counted
from tune.planning.forecast import Forecast, confirmation_seconds, confirmation_trainings, forecast, training_seconds
from tune.planning.recipe_costs import Costs
from tune.planning.time_plan import NoRoom, TimePlan, make_plan
from tune.run.retention import checkpoint_files
from tune.spec.sections import Confirm
from tune.spec.sweep_config import SweepConfig

GPU_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Estimate:
    """What a sweep is likely to take.

    config: of the sweep. costs: of its recipes. forecasts: one per number of GPUs, or one for this CPU. plans: for a
    given time, in the order of the forecasts; empty if none was given. no_room: where that time is too short for a
    plan, with the reason; there is no forecast for it. too_few: numbers of GPUs on which no trial fits. confirm: the
    confirmation whose cost is told. checkpoints: most files, of the plan with most trials if there are plans, and bytes
    of each. cache_bytes: of the prepared cases.
    """

    config: SweepConfig
    costs: Costs
    forecasts: tuple[Forecast, ...]
    plans: tuple[TimePlan, ...]
    no_room: tuple[str, ...]
    too_few: tuple[int, ...]
    confirm: Confirm
    checkpoints: tuple[int, int]
    cache_bytes: int

    @property
    def retraining_seconds(self) -> float:
        """How long one training of the default recipe takes, as long as those of the sweep."""
        return training_seconds(self.config, self.costs)

    @property
    def confirmation_trainings(self) -> int:
        """How many trainings a confirmation takes at most."""
        return confirmation_trainings(self.confirm)

    def confirmation_seconds(self, slots: int) -> float:
        """Return how long a confirmation takes at most with this many trainings at once."""
        return confirmation_seconds(self.config, self.costs, slots, self.confirm)


def make_estimate(
    config: SweepConfig,
    costs: Costs,
    places: Sequence[tuple[int, int]],
    *,
    seconds: float | None,
    before: float,
    given: frozenset[str],
    cache_bytes: int,
) -> Estimate:
    """Simulate a sweep in several places.

    Args:
        config: of the sweep; resources.gpu is a number.
        costs: of its recipes.
        places: of each the number of GPUs, 0 for a CPU, and of trials that run there at once.
        seconds: the time to plan for; None for the trials of the YAML.
        before, given: as for make_plan.
        cache_bytes: size of the prepared cases.

    Raises:
        NoRoom: if the time is too short for a plan in every place.
    """
    usable = [(gpus, slots) for gpus, slots in places if slots]
    plans, no_room = list[TimePlan](), list[str]()
    for gpus, slots in usable:
        if seconds is None:
            break
        try:
            plans.append(make_plan(config, costs, seconds, slots=slots, gpus=gpus, given=given, before=before))
        except NoRoom as error:
            no_room.append(f"on {counted(gpus, 'GPU')}: {error.reason}" if gpus else error.reason)
            if len(no_room) == len(usable):
                raise NoRoom(error.hours, no_room[-1]) from None
    forecasts = [plan.forecast for plan in plans] or [forecast(config, costs, slots, gpus) for gpus, slots in usable]
    most = max((slots for _, slots in usable), default=1)
    return Estimate(
        config,
        costs,
        tuple(forecasts),
        tuple(plans),
        tuple(no_room),
        tuple(gpus for gpus, slots in places if not slots),
        config.confirm or Confirm(),
        checkpoint_files(max((plan.config for plan in plans), key=lambda c: c.budget.trials, default=config), most),
        cache_bytes,
    )
