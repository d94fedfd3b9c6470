"""How the patches of a step are divided among the processes that train together.

Which patches a step has, and which of them are one micro-batch, does not depend on the number of processes. First the
micro-batches of a step are divided; if there are fewer than processes, so are the patches of each micro-batch, whose
losses are then computed from sums over all of its patches (see model/losses.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError


@dataclass(frozen=True)
class Part:
    """Which samples of a micro-batch one process has: those from `start` up to `stop`, of `samples` in all.

    A process without any trains on one sample more, which counts for nothing, so that all do the same.
    """

    samples: int
    start: int
    stop: int


@dataclass(frozen=True)
class Share:
    """What one process does between two exchanges with the others: a micro-batch, or a part of it.

    first, count: the patches that it reads, by their index in the epoch. part: of the micro-batch. weight: of the
    micro-batch's mean loss in its step; 0 for a process that has no micro-batch left in an epoch's last step, and
    repeats the last one. counted: patches of the micro-batch if this process counts them in the statistics, else 0.
    step: the patches of its step. ends_step: it is this process's last one in the step.
    """

    first: int
    count: int
    part: Part
    weight: float
    counted: int
    step: range
    ends_step: bool


def micro_batch_groups(config: TrainConfig, processes: int) -> int:
    """Return into how many groups of equal size the processes are divided; each trains on other micro-batches.

    Raises:
        InputError: if the patches of a step cannot be divided; the message says what can.
    """
    if undivided := undivided_patches(config, processes):
        patches = config.batch_size * config.accumulation_steps
        least = math.lcm(patches, processes)
        raise InputError(
            f"{undivided}. Start one of {fitting_processes(config)}; or take a step of {least} patches with "
            f"--accumulation_steps {least // config.batch_size}; or of {patches * processes} with --scale_batch"
        )
    return math.gcd(config.accumulation_steps, processes)


def undivided_patches(config: TrainConfig, processes: int) -> str:
    """Return that the patches of a step cannot be divided among the processes; "" if they can."""
    batch, micro_batches = config.batch_size, config.accumulation_steps
    if batch * micro_batches % processes == 0:
        return ""
    step = f"a step of {batch * micro_batches} patches (batch_size {batch} x accumulation_steps {micro_batches})"
    return f"{step} cannot be divided among {processes} processes"


def fitting_processes(config: TrainConfig) -> str:
    """Return the numbers of processes among which a step can be divided, as "1, 2, 4"."""
    return ", ".join(map(str, divisors(config.batch_size * config.accumulation_steps)))


def divisors(number: int) -> list[int]:
    """Return the numbers that divide a number > 0, from 1 up."""
    return [count for count in range(1, number + 1) if number % count == 0]


def scale_to_processes(config: TrainConfig, processes: int) -> TrainConfig:
    """Return a config whose step has as many micro-batches for each process as the given one has in all."""
    return config.model_copy(update={"accumulation_steps": config.accumulation_steps * processes})


def epoch_shares(patches: int, config: TrainConfig, rank: int = 0, processes: int = 1) -> list[Share]:
    """Return what a process does in an epoch, in order; all processes have the same number of shares in each step.

    Args:
        patches: number of patches in the epoch; the last step may have fewer than the others.
        rank: of the process, below `processes`.

    Raises:
        InputError: as micro_batch_groups.
    """
    groups = micro_batch_groups(config, processes)
    step_size = config.batch_size * config.accumulation_steps
    return [
        share
        for first in range(0, patches, step_size)
        for share in _step_shares(range(first, min(first + step_size, patches)), config.batch_size, groups,
                                  *divmod(rank, processes // groups), processes // groups)
    ]  # fmt: skip


def _step_shares(step: range, batch_size: int, groups: int, group: int, member: int, members: int) -> Iterator[Share]:
    """Yield the shares in a step of one of the `members` of a group."""
    micro_batches = [step[first : first + batch_size] for first in range(0, len(step), batch_size)]
    rounds = math.ceil(len(micro_batches) / groups)
    for number in range(rounds):
        index = number * groups + group
        spare = index >= len(micro_batches)
        batch = micro_batches[-1 if spare else index]
        samples = len(batch)
        part = Part(samples, samples * member // members, samples * (member + 1) // members)
        yield Share(
            first=batch[min(part.start, samples - 1)],
            count=max(1, part.stop - part.start),
            part=part,
            weight=0.0 if spare else samples / len(step),
            counted=samples if member == 0 and not spare else 0,
            step=step,
            ends_step=number == rounds - 1,
        )
