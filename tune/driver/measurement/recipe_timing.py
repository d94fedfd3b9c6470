"""How long a step and a validation of a recipe take here, and how much GPU memory it needs: some of each are run."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.gpu_memory import CUDA_CONTEXT_BYTES
from trainable.core.logger import logger
from trainable.core.options import make_config, to_dict
from trainable.core.parallel import cores
from trainable.data.patches import PatchLoader
from trainable.data.prepare import Data
from trainable.data.split import evenly_spaced
from trainable.training.state import TrainingState
from trainable.training.step_progress import ProgressReporter
from trainable.training.train_epoch import train_one_epoch
from trainable.training.validation import validate_epoch
from tune.driver.measurement.gpu_sharing import DoesNotFit
from tune.driver.measurement.parallel_processes import ProcessFailed, WaitForAll, run_together
from tune.driver.processes.gpu_share import share_memory
from tune.planning.recipe_costs import Costs, RecipeCost, by_size, estimate_memory, sampled_recipes
from tune.spec.sweep_config import SweepConfig

WARMUP_STEPS = 5  # before the first that is timed: kernels are chosen, and on a GPU the step is captured as a graph
MEASURE_SECONDS = 3.0  # of training steps
MAX_CASES = 3  # of the timed validation
MOST_AT_ONCE = 8  # processes that are measured at the same time
TIMEOUT_SECONDS = 900.0
TRIED_SIZES = 4  # recipes that are tried for the largest that fits: the largest, then smaller ones


@dataclass(frozen=True)
class TimedWork:
    """What a process measures. recipe: as plain values. share: of the GPU's memory. threads: of the CPU."""

    recipe: dict[str, object]
    data: Data
    share: float
    threads: int


@dataclass(frozen=True)
class RecipeTimes:
    """What a process has measured; the fields are those of RecipeCost. device_memory: of its share of the GPU."""

    patch_seconds: float
    case_seconds: float
    start_seconds: float
    memory: int
    device: str
    device_memory: int


def measure_costs(config: SweepConfig, data: Data, slots: int | None = None) -> Costs:
    """Measure trial 0's recipe and the largest one of a space that fits, on this machine.

    Args:
        config: of the sweep; resources.gpu is a number.
        data: the prepared cases.
        slots: number of trials that run here at once; None for as many as the GPU or the cores have room for.

    Raises:
        DoesNotFit: if not even the default recipe fits into the memory of the GPU.
        InputError: if a recipe cannot be trained for another reason.
    """
    recipes = sampled_recipes(config)
    share, threads = config.resources.gpu_share, config.resources.cpu
    at_once = min(MOST_AT_ONCE, slots or max(1, int(1 / share + 1e-9) if share else cores() // threads))
    default, too_large = recipes[0], list[float]()
    first = time_recipe(config, default, data, at_once)
    if first is None:
        raise DoesNotFit(f"the default recipe does not fit into {'its share of ' * (0 < share < 1)}the GPU's memory")
    found = largest = cost_of(default, first)
    for recipe in spread(by_size(recipes)):
        if estimate_memory(recipe) <= found.size or (not share and not changes_cost(recipe, default)):
            break
        if (times := time_recipe(config, recipe, data, at_once)) is not None:
            largest = cost_of(recipe, times)
            break
        too_large.append(estimate_memory(recipe))
    return Costs(
        default=found,
        largest=largest,
        sizes=tuple(map(estimate_memory, recipes)),
        patches=default.patches_per_epoch or len(data.split.train),
        cases=len(evenly_spaced(data.split.val, default.val_cases)),
        divided_cases=len(data.split.train) + len(data.split.val),
        device=first.device,
        device_memory=first.device_memory,
        at_once=at_once,
        too_large=tuple(too_large),
    )


def spread(recipes: Sequence[TrainConfig]) -> list[TrainConfig]:
    """Return TRIED_SIZES of these recipes, evenly spread, the first among them."""
    count = min(TRIED_SIZES, len(recipes))
    return [recipes[index * len(recipes) // count] for index in range(count)]


def changes_cost(recipe: TrainConfig, other: TrainConfig) -> bool:
    """Return whether two recipes differ in an option that changes how long a step takes, as estimate_memory has it."""
    return estimate_memory(recipe) != estimate_memory(other)


def cost_of(recipe: TrainConfig, times: RecipeTimes) -> RecipeCost:
    """Return what was measured of a recipe."""
    return RecipeCost(
        estimate_memory(recipe), times.patch_seconds, times.case_seconds, times.start_seconds, times.memory
    )


def time_recipe(config: SweepConfig, recipe: TrainConfig, data: Data, at_once: int) -> RecipeTimes | None:
    """Measure a recipe in this many processes at the same time; return the mean, None if it does not fit.

    Raises:
        InputError: if a process fails for another reason than memory, with the last line of its traceback.
    """
    share = config.resources.gpu_share
    plain = {**to_dict(recipe), "device": recipe.device if share else "cpu"}
    work = TimedWork(plain, data, share, config.resources.cpu)
    try:
        times = run_together(time_in_process, [work] * at_once, TIMEOUT_SECONDS)
    except ProcessFailed as error:
        if error.error_type == DoesNotFit.__name__:
            return None
        raise InputError(untried_text(str(error))) from None
    return RecipeTimes(
        patch_seconds=sum(one.patch_seconds for one in times) / at_once,
        case_seconds=sum(one.case_seconds for one in times) / at_once,
        start_seconds=min(one.start_seconds for one in times),
        memory=max(one.memory for one in times),
        device=times[0].device,
        device_memory=times[0].device_memory,
    )


def untried_text(error: str) -> str:
    """Return that a recipe could not be measured, from a traceback or a message, and what to do."""
    last_line = error.strip().rpartition("\n")[2].strip()
    return (
        f"a recipe could not be tried out: {last_line}; `voxtune train` with the options under train: shows all of the "
        "error, and launch without --hours measures nothing"
    )


def time_in_process(work: TimedWork, wait_for_all: WaitForAll) -> RecipeTimes:
    """Train some steps and validate some cases in this process, as a trial does; return how long they take.

    Raises:
        DoesNotFit: if the GPU's memory, or its share, is too small.
    """
    config = make_config(work.recipe, "estimate")
    torch.set_num_threads(work.threads)
    share_memory(work.share)
    logger.disabled = True
    try:
        with kernel_selection(config):
            return time_training(config, work, wait_for_all)
    except torch.cuda.OutOfMemoryError as error:
        raise DoesNotFit(str(error)) from None


def time_training(config: TrainConfig, work: TimedWork, wait_for_all: WaitForAll) -> RecipeTimes:
    """Time a recipe whose threads and memory are set, with the code of a training."""
    patches = config.patches_per_epoch or len(work.data.split.train)
    per_step = config.batch_size * config.accumulation_steps
    wait_for_all()
    started = time.perf_counter()
    training = TrainingState(config)
    made = time.perf_counter() - started
    on_gpu = choose_device(config).type == "cuda"
    loader = PatchLoader(work.data.folder, work.data.split.train, config, pin_memory=on_gpu)
    warm = time_epoch(training, loader, min(patches, WARMUP_STEPS * per_step))
    short = time_epoch(training, loader, min(patches, per_step))
    wanted = math.ceil(MEASURE_SECONDS / (short / min(patches, per_step)) / per_step) * per_step
    counted = min(patches, max(per_step, wanted))
    seconds = time_epoch(training, loader, counted)
    first = time_validation(training, work.data, 1)
    case_seconds = time_validation(training, work.data, MAX_CASES)
    patch_seconds = seconds / counted
    extra = max(0.0, warm - patch_seconds * min(patches, WARMUP_STEPS * per_step)) + max(0.0, first - case_seconds)
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else 0
    return RecipeTimes(
        patch_seconds,
        case_seconds,
        made + extra,
        memory=torch.cuda.max_memory_reserved() + CUDA_CONTEXT_BYTES if on_gpu else 0,
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
        device_memory=int(total * min(work.share, 1.0)) if on_gpu else 0,
    )


def time_epoch(training: TrainingState, loader: PatchLoader, patches: int) -> float:
    """Return the seconds of an epoch of this many patches.

    loader: the same one for all epochs, as in a training, since it keeps the cases open that it has read.
    """
    loader.patches = patches
    stats = train_one_epoch(training, loader)
    training.epoch += 2  # not the next: the loader would go on with the patches that it reads ahead
    return stats.epoch_time


def time_validation(training: TrainingState, data: Data, cases: int) -> float:
    """Return the seconds per case of a validation of at most this many cases."""
    config = training.config
    training.config = config.model_copy(update={"val_cases": min(cases, config.val_cases or cases)})
    started = time.perf_counter()
    scores, _ = validate_epoch(training, data, lambda: None, ProgressReporter())
    training.config = config
    return (time.perf_counter() - started) / len(scores)
