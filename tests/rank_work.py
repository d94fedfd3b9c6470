"""Work for the processes of a RankGroup, which import it from here."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.rank_link import RankLink
from trainable.core.ranks import gather, rank
from trainable.data.prepare import Data
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit


def pids(link: RankLink) -> list[int]:
    """The ids of all processes; rank 0 prints."""
    if rank() == 0:
        print("printed by rank 0", flush=True)
    return gather(os.getpid())


def train(link: RankLink, config: TrainConfig, data: Data) -> int:
    """Train; each epoch's number is asked. Returns the last one."""

    def on_epoch_end(result: EpochResult) -> None:
        link.ask(result.epoch)

    return fit(config, data, on_epoch_end).epoch


def train_after_asking(link: RankLink, config: TrainConfig, data: Data) -> int:
    """Train as `train` does, after rank 0 has asked 0."""
    if rank() == 0:
        link.ask(0)
    return train(link, config, data)


def fail(link: RankLink, failing: int, kind: type[Exception]) -> None:
    """One process fails; the others wait for it."""
    if rank() == failing:
        raise kind("the disk of this node is gone")
    gather(None)


def fail_one_after_the_other(link: RankLink) -> None:
    """Process 0 fails a while after another one has lost the connection to it."""
    if rank():
        raise RuntimeError("Connection closed by peer")
    time.sleep(1)
    raise InputError("the disk of this node is gone")


def main() -> None:
    """Train in a group, as a process that is killed; prints the ids of its processes, then the number of each epoch."""
    import pickle

    from trainable.core.rank_group import RankGroup

    config, data = pickle.loads(Path(sys.argv[1]).read_bytes())
    with RankGroup(2, cuda=False, threads=1) as group:
        print(*group.run(pids, on_message=print), flush=True)
        group.run(train, config, data, on_message=lambda epoch: print(epoch, flush=True))
