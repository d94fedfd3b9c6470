"""`voxtune estimate SPACE --json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tune.analysis.json_output.document import Document
from tune.planning.estimate import Estimate
from tune.planning.forecast import Forecast, Range
from tune.planning.recipe_costs import Costs, RecipeCost
from tune.planning.time_plan import TimePlan
from tune.search.asha import rung_epochs


class RangeItem(Document):
    """What is exceeded by 9, 5 and 1 of 10 simulated sweeps."""

    p10: float = Field(description="Exceeded by 9 of 10.")
    p50: float = Field(description="Exceeded by half.")
    p90: float = Field(description="Exceeded by 1 of 10.")

    @classmethod
    def of(cls, values: Range) -> RangeItem:
        """Return a range."""
        return cls(p10=values.p10, p50=values.p50, p90=values.p90)


class RecipeCostItem(Document):
    """What was measured of one recipe."""

    epoch_seconds: float = Field(description="Training part of an epoch.")
    validation_seconds: float = Field(description="A validation.")
    start_seconds: float = Field(description="Before the first step.")
    memory_bytes: int = Field(description="Peak of GPU memory; 0 on a CPU.")

    @classmethod
    def of(cls, costs: Costs, cost: RecipeCost) -> RecipeCostItem:
        """Return what was measured of a recipe."""
        return cls(
            epoch_seconds=costs.patches * cost.patch_seconds,
            validation_seconds=costs.cases * cost.case_seconds,
            start_seconds=cost.start_seconds,
            memory_bytes=cost.memory,
        )


class PlanItem(Document):
    """What a given time has room for."""

    trials: int = Field(description="study.trials.")
    epochs: int = Field(description="train.epochs.")
    rungs: list[int] = Field(description="Epochs at which trials are compared.")
    time_budget: float = Field(description="Seconds after which the trials end in any case.")
    confirmation_seconds: float = Field(description="Kept for the confirmation; 0 without one.")
    text: str = Field(description="The plan in words.")

    @classmethod
    def of(cls, plan: TimePlan) -> PlanItem:
        """Return a plan."""
        assert plan.config.budget.time_budget is not None
        return cls(
            trials=plan.config.budget.trials,
            epochs=plan.config.fixed("epochs"),
            rungs=list(rung_epochs(plan.config)),
            time_budget=plan.config.budget.time_budget,
            confirmation_seconds=plan.confirm_seconds,
            text=plan.text(),
        )


class ForecastItem(Document):
    """What the sweep is likely to take on one number of GPUs."""

    gpus: int = Field(description="Number of GPUs; 0 for this CPU.")
    at_once: int = Field(description="Number of trials at once.")
    trials: RangeItem = Field(description="Trials that start.")
    finished: RangeItem = Field(description="Trials that train to their end.")
    epochs: RangeItem = Field(description="Epochs that are trained.")
    gpu_hours: RangeItem = Field(description="GPU hours of all trials; 0 on a CPU.")
    training_hours: RangeItem = Field(description="Training time of all trials.")
    hours: RangeItem = Field(description="From the start of the first trial to the end of the last.")
    ended_by_budget: float = Field(description="Share of the simulated sweeps that a budget ends.")
    confirmation_seconds: float = Field(description="A confirmation as in the YAML, at most; a plan has its own.")
    plan: PlanItem | None = Field(description="With --hours: what is tried in that time; else null.")

    @classmethod
    def of(cls, estimate: Estimate, forecast: Forecast, plan: TimePlan | None) -> ForecastItem:
        """Return a forecast."""
        names = ("trials", "finished", "epochs", "gpu_hours", "hours")
        return cls(
            gpus=forecast.gpus,
            at_once=forecast.slots,
            **{name: RangeItem.of(getattr(forecast, name)) for name in names},
            training_hours=RangeItem.of(forecast.trial_hours),
            ended_by_budget=forecast.cut,
            confirmation_seconds=estimate.confirmation_seconds(forecast.slots),
            plan=None if plan is None else PlanItem.of(plan),
        )


class EstimateOutput(Document):
    """What a sweep is likely to take."""

    schema_: Literal["voxtune/estimate/1"] = Field("voxtune/estimate/1", alias="schema", description="Name, version.")
    device: str = Field(description="What it was measured on.")
    measured_at_once: int = Field(description="Number of trainings that ran at the same time then.")
    trials: int = Field(description="study.trials.")
    epochs: int = Field(description="train.epochs.")
    default: RecipeCostItem = Field(description="The default recipe.")
    largest: RecipeCostItem = Field(description="The recipe of the space with most memory that fits.")
    device_memory_bytes: int = Field(description="GPU memory that a trial may use; 0 on a CPU.")
    share_that_does_not_fit: float = Field(description="Of the recipes drawn from the space, in GPU memory.")
    forecasts: list[ForecastItem] = Field(description="One per number of GPUs.")
    no_room: list[str] = Field(description="With --hours: numbers of GPUs on which that is too short, and why.")
    retraining_seconds: float = Field(description="One training of the default recipe, of the YAML's epochs.")
    confirmation_trainings: int = Field(description="Trainings of a confirmation as in the YAML, at most.")
    checkpoint_bytes: int = Field(description="All checkpoints, at most; of the plan with most trials, if any.")
    cache_bytes: int = Field(description="The prepared cases.")


def estimate_output(estimate: Estimate) -> EstimateOutput:
    """Return an estimate."""
    costs, config = estimate.costs, estimate.config
    plans = estimate.plans or (None,) * len(estimate.forecasts)
    files, size = estimate.checkpoints
    return EstimateOutput(
        device=costs.device,
        measured_at_once=costs.at_once,
        trials=config.budget.trials,
        epochs=config.fixed("epochs"),
        default=RecipeCostItem.of(costs, costs.default),
        largest=RecipeCostItem.of(costs, costs.largest),
        device_memory_bytes=costs.device_memory,
        share_that_does_not_fit=costs.share_that_does_not_fit,
        forecasts=[
            ForecastItem.of(estimate, forecast, plan) for forecast, plan in zip(estimate.forecasts, plans, strict=True)
        ],
        no_room=list(estimate.no_room),
        retraining_seconds=estimate.retraining_seconds,
        confirmation_trainings=estimate.confirmation_trainings,
        checkpoint_bytes=files * size,
        cache_bytes=estimate.cache_bytes,
    )
