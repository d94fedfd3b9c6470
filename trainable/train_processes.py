"""One training by several processes of this machine, one per GPU, that this process starts and watches."""

from __future__ import annotations

import torch

from trainable.core.command_name import set_train_command, train_command
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.division import micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.rank_group import RankGroup
from trainable.core.rank_link import RankLink
from trainable.data.prepare import Data
from trainable.train import out_of_memory, resume_hint, train


def train_in_processes(config: TrainConfig, data: Data, processes: int, *, tests_follow: bool = False) -> None:
    """Train as trainable.train.train does, by several processes on a GPU each, or on the CPU if that is the device.

    If this process gets an exception meanwhile, as by Ctrl-C, they end together, and it is raised again.

    Raises:
        InputError: if there are fewer GPUs, the steps cannot be divided, the training runs out of GPU memory, or as
            train.
        RankDiedError: if one of the processes was killed.
    """
    micro_batch_groups(config, processes)
    cuda = choose_device(config).type == "cuda"
    if cuda and processes > torch.cuda.device_count():
        raise InputError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here; take at most as many")
    with RankGroup(processes, cuda=cuda, threads=torch.get_num_threads() * processes) as group:
        group.run(train_rank, config, data, train_command(), tests_follow, on_message=lambda _: None)


def train_rank(link: RankLink, config: TrainConfig, data: Data, command: str, tests_follow: bool) -> None:
    """Train as one of the processes; arguments and errors as for train_in_processes."""
    set_train_command(command)
    try:
        train(config, data, tests_follow=tests_follow)
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"{out_of_memory(config)}{resume_hint(config)}") from None
