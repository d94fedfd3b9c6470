"""What `voxtune estimate` prints: what a sweep is likely to take, in lines of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from trainable.core.console import duration
from trainable.core.counted import counted
from tune.planning.estimate import Estimate
from tune.planning.forecast import Forecast, Range
from tune.planning.recipe_costs import Costs, RecipeCost
from tune.planning.time_plan import time_text
from tune.run.retention import format_bytes
from tune.search.asha import rung_epochs

WIDTH = 80
SIMULATED = (
    "P10, P50 and P90 are exceeded by 9, 5 and 1 of 10 simulated sweeps. Their early stopping is that of the YAML, "
    "their recipes are drawn at random, and their curves are invented: they saturate, with the noise and the spread of "
    "real sweeps."
)


def estimate_lines(estimate: Estimate) -> list[str]:
    """Return what a sweep is likely to take."""
    wrapped = [*cost_sentences(estimate.costs), *memory_sentences(estimate.costs)]
    lines = [line for text in wrapped for line in wrap(text)]
    lines += ["", *wrap(asked_text(estimate)), "", *table(estimate)]
    for text in [SIMULATED, *plan_texts(estimate), *after_texts(estimate)]:
        lines += ["", *wrap(text)]
    return lines


def wrap(text: str) -> list[str]:
    """Return a paragraph as lines."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def cost_sentences(costs: Costs) -> Iterator[str]:
    """Yield what was measured, and how recipes in between are taken to be."""
    together = f", {costs.at_once} trainings at the same time" if costs.at_once > 1 else ""
    yield f"measured on {costs.device}{together}:"
    yield f"the default recipe: {recipe_text(costs, costs.default)}"
    if costs.largest.size > costs.default.size:
        yield f"the largest recipe{' that fits' * bool(costs.too_large)}: {recipe_text(costs, costs.largest)}"
        yield "recipes in between are taken to cost what lies on the line between the two"
    else:
        yield "no option of the space is known to make a step larger: all recipes are taken to cost the same"


def recipe_text(costs: Costs, cost: RecipeCost) -> str:
    """Return what an epoch and a validation of a recipe take, and its memory."""
    epoch = f"an epoch of {costs.patches} patches {seconds_text(costs.patches * cost.patch_seconds)}"
    validation = f"a validation of {costs.cases} cases {seconds_text(costs.cases * cost.case_seconds)}"
    memory = f", {format_bytes(cost.memory)} of GPU memory" if cost.memory else ""
    return f"{epoch}, {validation}{memory}"


def seconds_text(seconds: float) -> str:
    """Return a short time: "0.8 s", from two minutes on as 2:05."""
    return duration(seconds) if seconds >= 120 else f"{seconds:.3g} s"


def memory_sentences(costs: Costs) -> Iterator[str]:
    """Yield how much of the GPU's memory recipes need, and which share of the space does not fit."""
    if not costs.device_memory:
        yield "memory: not measured on a CPU"
        return
    room = format_bytes(costs.device_memory)
    if costs.too_large:
        yield f"memory: the largest recipe of the space does not fit into {room}"
    else:
        yield f"memory: the largest recipe takes {costs.largest.memory / costs.device_memory:.0%} of {room}"
    yield f"{costs.share_that_does_not_fit:.0%} of the recipes drawn from the space are expected not to fit"


def asked_text(estimate: Estimate) -> str:
    """Return what is simulated, in words."""
    if estimate.plans:
        return f"what {time_text(estimate.plans[0].seconds)} have room for:"
    config = estimate.config
    rungs = rung_epochs(config)
    at = f", early stopping at epochs {', '.join(map(str, rungs[:5]))}{', ...' * (len(rungs) > 5)}" if rungs else ""
    return f"{config.budget.trials} trials of up to {config.fixed('epochs')} epochs{at}:"


def table(estimate: Estimate) -> list[str]:
    """Return the forecasts as a table."""
    on_gpu = any(forecast.gpus for forecast in estimate.forecasts)
    time_name = "GPU hours" if on_gpu else "training hours"
    head = f"{'GPUs':>4}  at once  {'trials':^11}  {'epochs':^17}  {time_name:^16}  {'hours':^14}"
    sub = f"{'':15}{'P10 P50 P90':>11}  {'P10   P50   P90':>17}  {'P10  P50  P90':>16}  {'P10  P50  P90':>14}"
    return [head.rstrip(), sub.rstrip(), *map(table_row, estimate.forecasts), *too_few_lines(estimate)]


def table_row(forecast: Forecast) -> str:
    """Return a forecast as a row of the table."""
    name = str(forecast.gpus) if forecast.gpus else "CPU"
    work = hours_text(forecast.gpu_hours if forecast.gpus else forecast.trial_hours)
    trials, epochs, hours = counts_text(forecast.trials, 3), counts_text(forecast.epochs, 5), hours_text(forecast.hours)
    return f"{name:>4}  {forecast.slots:>7}  {trials:>11}  {epochs:>17}  {work:>16}  {hours:>14}"


def counts_text(values: Range, width: int) -> str:
    """Return three whole numbers."""
    return " ".join(f"{value:>{width}.0f}" for value in (values.p10, values.p50, values.p90))


def hours_text(values: Range) -> str:
    """Return three numbers of hours, with as many digits as tell them apart."""
    return " ".join(f"{value:>4.{0 if value >= 100 else 1 if value >= 1 else 2}f}" for value in vars(values).values())


def too_few_lines(estimate: Estimate) -> list[str]:
    """Return on which numbers of GPUs no trial fits."""
    share = estimate.config.resources.all_gpus
    return [f"{gpus:>4}  no trial fits: each needs {share:g} GPUs" for gpus in estimate.too_few]


def plan_texts(estimate: Estimate) -> Iterator[str]:
    """Yield the plan for a given time on each number of GPUs; or how often a budget ends the sweep."""
    yield from estimate.no_room
    yield from (plan.text() for plan in estimate.plans)
    for forecast in () if estimate.plans else estimate.forecasts:
        if forecast.cut >= 0.05:
            where = f"on {forecast.gpus} GPU{'s' * (forecast.gpus > 1)}" if forecast.gpus else "here"
            yield f"{where}, study.time_budget or study.gpu_hours ends the sweep early in {forecast.cut:.0%} of cases"


def after_texts(estimate: Estimate) -> Iterator[str]:
    """Yield what follows a sweep, and the space on disk."""
    epochs = estimate.config.fixed("epochs")
    retraining = time_text(estimate.retraining_seconds)
    if estimate.plans:  # they tell of their own confirmations
        yield f"a retraining of the YAML's {counted(epochs, 'epoch')}: {retraining}"
    else:
        yield f"a training of {epochs} epochs, such as a retraining: {retraining}"
        yield confirmation_text(estimate)
    files, size = estimate.checkpoints
    cache = format_bytes(estimate.cache_bytes)
    yield f"disk: at most {files} checkpoints of {format_bytes(size)}, {format_bytes(files * size)}; cache {cache}"


def confirmation_text(estimate: Estimate) -> str:
    """Return what a confirmation takes at most."""
    confirm = estimate.confirm
    times = [
        time_text(estimate.confirmation_seconds(forecast.slots)) + (f" on {forecast.gpus}" if forecast.gpus else "")
        for forecast in estimate.forecasts
    ]
    unit = " GPUs" if any(forecast.gpus for forecast in estimate.forecasts) else ""
    return (
        f"a confirmation (the best {confirm.top} and the default, {confirm.seeds} seeds): at most "
        f"{estimate.confirmation_trainings} trainings, {', '.join(times)}{unit}"
    )
