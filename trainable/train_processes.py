"""One training by several processes, one per GPU, that this process starts, watches and restarts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from trainable.core.command_name import set_train_command, train_command
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.division import micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.locks import LOST_NODE_SECONDS, wait_until_unlocked
from trainable.core.logger import logger
from trainable.core.rank_group import LostNodeError, RankDiedError, RankGroup
from trainable.core.rank_link import RankLink
from trainable.data.cache import require_same
from trainable.data.local_cases import cases_here
from trainable.data.prepare import Data
from trainable.train import from_last_checkpoint, last_row, out_of_memory, resume_hint, train
from trainable.training.epoch_result import EpochResult
from trainable.training.training_dir import TrainingDir

MAX_DEATHS = 3  # of processes in a row, without a finished epoch in between; the loss of a node is none


def train_in_processes(
    config: TrainConfig,
    data: Data,
    processes: int,
    *,
    tests_follow: bool = False,
    make_group: Callable[[], AbstractContextManager[RankGroup]] | None = None,
) -> None:
    """Train as trainable.train.train does, by several processes on a GPU each, or on the CPU if that is the device.

    If a process dies, or a node is lost, all are started again and go on from the last checkpoint, which is printed. If
    this process gets an exception meanwhile, as by Ctrl-C, they end together, and it is raised again.

    make_group: returns a context with the processes; None for processes of this machine.

    Raises:
        InputError: if there are fewer GPUs, the steps cannot be divided, the training runs out of GPU memory, processes
            die MAX_DEATHS times without a finished epoch in between, or as train.
    """
    micro_batch_groups(config, processes)
    begun = data.contents
    make_group = make_group or group_here(config, processes)
    deaths = 0

    def on_epoch(_: EpochResult) -> None:
        nonlocal deaths
        deaths = 0

    while True:
        try:
            with make_group() as group:
                group.run(train_rank, config, data, begun, train_command(), tests_follow, on_message=on_epoch)
            return
        except RankDiedError as error:
            deaths += not isinstance(error, LostNodeError)
            if deaths == MAX_DEATHS:
                raise InputError(
                    f"{error}; {deaths} processes have died in a row without a finished epoch in between. The "
                    "kernel's log (`dmesg`) tells whether memory ran out; after that the same command goes on"
                ) from None
            if last_row(TrainingDir(config.output_dir)).get("end_reason"):
                return
            wait_until_unlocked(config.output_dir, LOST_NODE_SECONDS)  # else the training says who has it
            config = from_last_checkpoint(config)
            after = "the last checkpoint" if config.resume else "the beginning, as no epoch was finished"
            logger.warning(f"{error}; the epoch under way is lost, and the training goes on from {after}")


def group_here(config: TrainConfig, processes: int) -> Callable[[], RankGroup]:
    """Return a function that makes a group of processes of this machine; InputError if there are fewer GPUs."""
    cuda = choose_device(config).type == "cuda"
    if cuda and processes > torch.cuda.device_count():
        raise InputError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here; take at most as many")
    return partial(RankGroup, processes, cuda=cuda, threads=torch.get_num_threads())


def train_rank(
    link: RankLink, config: TrainConfig, data: Data, begun: dict[str, str], command: str, tests_follow: bool
) -> None:
    """Train as one of the processes, on the cases as its machine has them.

    begun: contents of the cases as the process has them that has started this one. Other arguments and errors are those
    of train_in_processes; CacheError if the cases here are others.
    """
    set_train_command(command)
    data = cases_here(data, config, begun)
    require_same(data.contents, begun)
    try:
        train(config, data, link.ask, tests_follow=tests_follow)
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"{out_of_memory(config)}{resume_hint(config)}") from None
