"""Which trials, epochs and rungs a given time has room for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from trainable.core.counted import counted
from trainable.core.epoch_scale import scaled_options
from trainable.core.errors import InputError
from trainable.core.options import option_names
from tune.planning.forecast import Forecast, confirmation_seconds, forecast, simulate_sweeps
from tune.planning.recipe_costs import Costs
from tune.planning.simulated_sweep import TURNOVER_SECONDS, SimulatedSweep
from tune.search.asha import rung_epochs
from tune.spec.sections import Confirm
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import SweepConfig, make_sweep_config, to_sections

WANTED_TRIALS = 16  # with fewer, the trials are shortened first
FEWEST_TRIALS = 4  # below that it is no sweep
MOST_TRIALS = 256
SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.33, 0.25)  # of the YAML's epochs, that are tried in this order
SWEEPS = 40  # simulated per candidate
CONFIRM_SHARE = 0.4  # of the time that is left, that a confirmation whose size is not given takes at most
CONFIRM_SIZES = ((3, 4), (2, 4), (1, 4), (1, 3), (1, 2))  # top, seeds: the first that fits
CUT_SHARE = 0.2  # of the simulated sweeps that the end of the time cuts, from which on that is said
MARGIN = 0.97  # of the time: the rest is for what no simulation has


@dataclass(frozen=True)
class GivenTime:
    """The time that `launch --hours` was given. hours: in all. started: monotonic seconds at the start of the command.

    keys: such as study.trials, that the user has set and that the plan keeps.
    """

    hours: float
    started: float
    keys: frozenset[str] = frozenset()

    def left(self) -> float:
        """Return the seconds that are left, at least one."""
        return max(1.0, self.hours * 3600 - (time.monotonic() - self.started))


class NoRoom(InputError):
    """A time is too short for FEWEST_TRIALS. hours: that were given. reason: the message without them."""

    def __init__(self, hours: float, reason: str) -> None:
        super().__init__(f"--hours {hours:.3g}: {reason}")
        self.hours, self.reason = hours, reason


@dataclass(frozen=True)
class TimePlan:
    """What a sweep is to try in a given time.

    config: of the sweep, with its trials, epochs, rungs, time_budget and confirmation. seconds: that were given.
    before: of these, that were over when the plan was made. slots: trials at once, on so many gpus; 0 on a CPU.
    confirm_seconds: kept for the confirmation. forecast: of the sweep. kept_ranges: searched options of the schedule
    whose ranges stay although the epochs became fewer.
    """

    config: SweepConfig
    seconds: float
    before: float
    slots: int
    gpus: int
    confirm_seconds: float
    forecast: Forecast
    kept_ranges: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the plan in a paragraph."""
        config, epochs = self.config, self.config.fixed("epochs")
        rungs = rung_epochs(config)
        where = counted(self.gpus, "GPU") if self.gpus else f"this CPU, {counted(self.slots, 'trial')} at once"
        at = f", rungs at {', '.join(map(str, rungs[:4]))}{', ...' * (len(rungs) > 4)}" if rungs else ""
        parts = [f"{time_text(self.seconds)} on {where}: {counted(config.budget.trials, 'trial')} of up to"]
        parts[0] += f" {counted(epochs, 'epoch')}{at}"
        if config.confirm is not None:
            sizes = f"the best {config.confirm.top} and the default, {config.confirm.seeds} trainings each at most"
            parts.append(f"about {time_text(self.confirm_seconds)} kept for the confirmation ({sizes})")
        hours = self.forecast.hours
        low, high = time_text(hours.p10 * 3600), time_text(hours.p90 * 3600)
        parts.append(f"the trials are likely to take {low} to {high}")
        assert config.budget.time_budget is not None
        parts.append(f"they end after {time_text(config.budget.time_budget)} in any case")
        if self.forecast.cut >= CUT_SHARE:
            begun = round(self.forecast.trials.p50)
            few = f": about {begun} are likely to begin" if begun < config.budget.trials else " to end"
            parts.append(f"the time is too short for all{few}")
        if self.kept_ranges:
            parts.append(f"options of the schedule that are searched keep their ranges: {', '.join(self.kept_ranges)}")
        return "; ".join(parts)


def time_text(seconds: float) -> str:
    """Return a time as people say it: "12 h", "1:40 h", "25 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours}:{rest:02} h" if rest else f"{hours} h"


def check_hours(hours: float) -> None:
    """Raise InputError if --hours is no time."""
    if not 0 < hours <= 24 * 365:
        raise InputError(f"--hours {hours:g}: expected a number of hours above 0, such as 12 or 0.5")


def make_plan(
    config: SweepConfig,
    costs: Costs,
    seconds: float,
    *,
    slots: int,
    gpus: int,
    given: Set[str] = frozenset(),
    before: float = 0.0,
) -> TimePlan:
    """Choose trials, epochs, rungs and the size of the confirmation for a time.

    The epochs of the YAML are kept if the time has room for WANTED_TRIALS; else they become fewer, with the rungs and
    the lr schedule scaled to them, down to a quarter. Then the trials are as many as 9 of 10 simulated sweeps end in
    time, MOST_TRIALS at most.

    Args:
        config: of the sweep, as the YAML has it; resources.gpu is a number.
        seconds: in all.
        slots, gpus: number of trials at once, and of the GPUs that they run on; 0 on a CPU.
        given: keys such as study.trials that the user has set; they are kept.
        before: seconds that are over already, or are needed before the first trial.

    Raises:
        NoRoom: if there is none for FEWEST_TRIALS.
    """
    asked, room = given_budget(config, given), seconds - before
    found = choose(config, costs, slots, room, given, CONFIRM_SHARE)
    if found is None and config.confirm is not None and "study.confirm" not in given:
        found = choose(config, costs, slots, room, given, 0.0)
    if found is None:
        raise NoRoom(seconds / 3600, no_room_text(config, costs, slots, before, given))
    chosen, kept, trials = found
    end = round(max(1.0, min(asked, room - kept)), 1)
    budget = chosen.budget.model_copy(update={"trials": max(1, trials), "time_budget": end})
    chosen = chosen.model_copy(update={"budget": budget})
    ranges = kept_ranges(config) if chosen.fixed("epochs") < config.fixed("epochs") else ()
    return TimePlan(chosen, seconds, before, slots, gpus, kept, forecast(chosen, costs, slots, gpus), ranges)


def given_budget(config: SweepConfig, given: Set[str]) -> float:
    """Return the seconds that the user lets the trials take by study.time_budget; inf if that is not given."""
    asked = config.budget.time_budget if "study.time_budget" in given else None
    return math.inf if asked is None else asked


def kept_ranges(config: SweepConfig) -> tuple[str, ...]:
    """Return the searched options whose values would be scaled with the epochs if they were under `train:`."""
    scaled = {*option_names(over_epochs="count"), *option_names(over_epochs="rate")}
    return tuple(parameter.name for parameter in config.space.parameters if parameter.name in scaled)


def choose(
    config: SweepConfig, costs: Costs, slots: int, room: float, given: Set[str], share: float
) -> tuple[SweepConfig, float, int] | None:
    """Return a config with epochs, rungs and confirmation, the seconds of the latter, and the number of trials.

    room: seconds for trials and confirmation. share: of these, that a confirmation whose size is not given takes at
    most. None if there is no room for FEWEST_TRIALS. A given number of trials that never fits gets the fewest epochs.
    """
    asked, trials_given = given_budget(config, given), "study.trials" in given
    found: tuple[SweepConfig, float, int] | None = None
    for candidate in candidates(config, given):
        confirm = fitting_confirm(candidate, costs, slots, share * max(0.0, room), given)
        kept = confirmation_seconds(candidate, costs, slots, confirm) if confirm is not None else 0.0
        left = min(room - kept, asked) * MARGIN
        if left <= 0:
            continue
        trials = candidate.budget.trials if trials_given else most_trials(candidate, costs, slots, left)
        if trials_given or trials >= FEWEST_TRIALS:
            found = candidate.model_copy(update={"confirm": confirm}), kept, trials
        if last_end(candidate, costs, slots, trials) <= left if trials_given else trials >= WANTED_TRIALS:
            break
    return found


def candidates(config: SweepConfig, given: Set[str]) -> Iterator[SweepConfig]:
    """Yield the config with fewer and fewer epochs, first as it is; without a budget of time."""
    config = config.model_copy(update={"budget": config.budget.model_copy(update={"time_budget": None})})
    epochs, every = config.fixed("epochs"), config.fixed("val_freq")
    seen = {epochs}
    yield config
    for share in SHARES[1:] if "train.epochs" not in given else ():
        fewer = max(every, round(epochs * share / every) * every)
        if fewer in seen:
            continue
        seen.add(fewer)
        try:
            yield with_epochs(config, fewer, keep_rungs="early_stopping.grace_period" in given)
        except ConfigErrors:  # an option of the space allows no fewer
            return


def with_epochs(config: SweepConfig, epochs: int, *, keep_rungs: bool) -> SweepConfig:
    """Return the config with another number of epochs; the lr schedule under `train:` and the first rung follow it.

    keep_rungs: leave the first rung where it is.

    Raises:
        ConfigErrors: if another setting does not allow it.
    """
    factor, every = epochs / config.fixed("epochs"), config.fixed("val_freq")
    sections = to_sections(config)
    sections["train"] = {**sections["train"], **scaled_options(sections["train"], factor), "epochs": epochs}
    if not keep_rungs and config.early_stopping.type != "none":
        first = max(every, round(config.early_stopping.grace_period * factor / every) * every)
        sections["early_stopping"] = {**sections["early_stopping"], "grace_period": first}
    made = make_sweep_config(sections)
    return made.model_copy(update={"record": config.record, "protect_default": config.protect_default})


def fitting_confirm(config: SweepConfig, costs: Costs, slots: int, limit: float, given: Set[str]) -> Confirm | None:
    """Return the confirmation that is to follow: as given, else the largest of CONFIRM_SIZES within `limit` seconds.

    That is the smallest if none is within it.
    """
    confirm = config.confirm
    if confirm is None or "study.confirm" in given:
        return confirm
    sizes = [confirm.model_copy(update={"top": top, "seeds": seeds}) for top, seeds in CONFIRM_SIZES]
    return next((size for size in sizes if confirmation_seconds(config, costs, slots, size) <= limit), sizes[-1])


def last_end(config: SweepConfig, costs: Costs, slots: int, trials: int) -> float:
    """Return the seconds after which 9 of 10 simulated sweeps of this many trials have ended."""
    sweeps = simulate_sweeps(with_trials(config, trials), costs, slots, SWEEPS)
    ends = sorted(sweep.seconds for sweep in sweeps)
    return ends[int(0.9 * (len(ends) - 1))] + TURNOVER_SECONDS


def most_trials(config: SweepConfig, costs: Costs, slots: int, seconds: float) -> int:
    """Return the most trials, up to MOST_TRIALS, of which 9 of 10 simulated sweeps end in time; 0 if none does.

    A sweep of more trials is simulated until that time: those up to the first that has not ended are so many.
    """
    if seconds <= 0:
        return 0
    if config.early_stopping.type == "promote":  # no trial ends before all have begun
        return largest_fitting(lambda trials: last_end(config, costs, slots, trials) <= seconds)
    budget = config.budget.model_copy(update={"time_budget": seconds})
    whole, config, trials = config, config.model_copy(update={"budget": budget}), MOST_TRIALS
    done = [0]
    for sweeps in (SWEEPS // 3, SWEEPS):  # first roughly: what is simulated has about as many trials as are chosen
        done = sorted(map(trials_in_order, simulate_sweeps(with_trials(config, trials), costs, slots, sweeps)))
        trials = min(MOST_TRIALS, 4 + round(1.2 * done[len(done) // 2]))
    chosen = done[len(done) // 10]
    while chosen > 1 and last_end(whole, costs, slots, chosen) > seconds:  # of fewer trials, later ones train longer
        chosen = chosen * 19 // 20
    return chosen


def largest_fitting(fits: Callable[[int], bool]) -> int:
    """Return about the largest number of trials, up to MOST_TRIALS, that fits, to 4 %; 0 if none does."""
    low, high = 0, 1
    while high <= MOST_TRIALS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_TRIALS + 1)
    while high - low > max(1, low // 25):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def trials_in_order(sweep: SimulatedSweep) -> int:
    """Return how many trials, counted from the first, have ended without one in between that has not."""
    return next(number for number in range(len(sweep.ended) + 1) if number not in sweep.ended)


def with_trials(config: SweepConfig, trials: int) -> SweepConfig:
    """Return the config with this number of trials, at least one."""
    return config.model_copy(update={"budget": config.budget.model_copy(update={"trials": max(1, trials)})})


def no_room_text(config: SweepConfig, costs: Costs, slots: int, before: float, given: Set[str]) -> str:
    """Return why FEWEST_TRIALS have no room, and the time that is enough."""
    needs, kept = needed_seconds(config, costs, slots, given)
    lower = "or lower train.epochs or train.patches_per_epoch"
    if needs > (asked := given_budget(config, given)):
        enough = math.ceil(needs * 1.05)
        return f"study.time_budget is {asked:g}: no room for {FEWEST_TRIALS} trials; give {enough} s or more, {lower}"
    hours = math.ceil((needs + kept + before) / 36 * 1.05) / 100
    with_confirm = " and the confirmation" * (config.confirm is not None)
    return f"no room for {FEWEST_TRIALS} trials{with_confirm}; give about {hours:g} hours or more, {lower}"


def needed_seconds(config: SweepConfig, costs: Costs, slots: int, given: Set[str]) -> tuple[float, float]:
    """Return the seconds that FEWEST_TRIALS of the shortest trials take, and those of the smallest confirmation."""
    *_, shortest = candidates(config, given)
    confirm = fitting_confirm(shortest, costs, slots, 0.0, given)
    kept = confirmation_seconds(shortest, costs, slots, confirm) if confirm is not None else 0.0
    return last_end(shortest, costs, slots, FEWEST_TRIALS) / MARGIN, kept
