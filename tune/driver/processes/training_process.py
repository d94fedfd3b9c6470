"""A process that trains: one training after another, each in its own folder."""

from __future__ import annotations

import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.core.locks import LOST_NODE_SECONDS, hold_shared_lock, wait_until_unlocked
from trainable.core.logger import init_logger, logger
from trainable.core.options import make_config
from trainable.core.rank_group import LostNodeError
from trainable.data.prepare import Data
from trainable.evaluate import evaluate
from trainable.train import from_last_checkpoint, last_row, train
from trainable.training.checkpoint import load_checkpoint, load_latest_valid
from trainable.training.epoch_result import EndReason, EpochResult
from trainable.training.scored_models import has_scores_of
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.driver.processes.gpu_share import missing_gpu, share_memory
from tune.driver.processes.kept_ranks import Places, run_in_ranks
from tune.driver.processes.node_trouble import node_trouble
from tune.driver.processes.run_cases import cases_of_training
from tune.driver.processes.stack_dump import StackDump, dump_stacks_of_hang
from tune.driver.processes.trainer_memory import MAX_LEAKED_BYTES, TAKEN_MEMORY_PAUSE, free_memory
from tune.driver.processes.trainer_thread import freeze_imports
from tune.driver.processes.trial_ranks import train_pooled_rank
from tune.spec.sections import processes_per_node

STDOUT = "stdout.log"  # in a training's folder: what it has printed


@dataclass(frozen=True)
class TrainingSpec:
    """What the driver sends for one training.

    recipe: a TrainConfig as plain values, with output_dir, cache_dir and split_file. test: score the test cases
    afterwards. contents_file: path of the cases.json that the cases must fit; None to compare with none.
    report_timeout: seconds without an epoch after which the stacks are dumped; None for never.
    """

    recipe: dict[str, Any]
    test: bool
    contents_file: str | None
    report_timeout: float | None


@dataclass(frozen=True)
class TrainingEnd:
    """How a training ended in its process; without any of these as it should.

    error: why it has no model, if trying again would not change that. failure: what went wrong and may go well the
    next time. trouble: what other trainings would meet too; it ends all. dirty: it did not begin, as the process has
    kept GPU memory of the one before; a fresh process is needed. lost: the loss of a node that ended it, in words; a
    fresh process is needed then too.
    """

    error: str = ""
    failure: str = ""
    trouble: str = ""
    dirty: bool = False
    lost: str = ""


class TrainingProcess:
    """Trains and tests in this process, which is a Ray actor: its share of a GPU stays the same one.

    Args:
        cpu: number of CPU cores that Ray has reserved.
        gpu_share: share of one GPU, or number of GPUs, that it has reserved.
        lock_file: a shared lock on it is held until the process ends.
        nodes: on which as much is reserved; this process is on the first one.
    """

    def __init__(self, cpu: int, gpu_share: float, lock_file: str, nodes: int = 1) -> None:
        init_logger()
        self.gpu_share, self.cpu, self.lock_file, self.nodes = gpu_share, cpu, Path(lock_file), nodes
        hold_shared_lock(self.lock_file)
        torch.set_num_threads(cpu)

    def prepare(self) -> str:
        """Make ready to train; return why no training can run in this process, "" if one can."""
        freeze_imports()
        if not self.lock_file.exists():
            return (
                f"{platform.node()}, which has no {self.lock_file.parent}: the folder must be on a file system that "
                "all nodes share"
            )
        if self.gpu_share and (missing := missing_gpu(self.gpu_share)):  # else it would train on the CPU
            return missing
        share_memory(self.gpu_share)
        return ""

    def run(self, spec: TrainingSpec) -> TrainingEnd:
        """Train, from the last checkpoint if there is one, and test, both unless that is done; return how it ended."""
        if free_memory() > MAX_LEAKED_BYTES:
            return TrainingEnd(dirty=True)
        config = make_config(spec.recipe, "a training")
        stdout_log = config.output_dir / STDOUT
        try:
            config.output_dir.mkdir(parents=True, exist_ok=True)
            with (
                stdout_log.open("a", buffering=1) as log,
                redirect_stdout(log),
                dump_stacks_of_hang(stdout_log, spec.report_timeout) as dump,
            ):
                end, taken = self.train_and_test(config, spec, dump)
        except OSError as error:  # of the folder or the log itself
            return end_of_error(error)
        if taken:  # it says nothing of the recipe
            free_memory()
            time.sleep(TAKEN_MEMORY_PAUSE)
            return TrainingEnd(failure=taken)
        return end

    def train_and_test(
        self, config: TrainConfig, spec: TrainingSpec, dump: StackDump | None
    ) -> tuple[TrainingEnd, str]:
        """Train and test as run does; no error is raised.

        Returns:
            How it ended; and if it ran out of GPU memory, the processes that hold a part of its share, "" for none.
        """
        paths = TrainingDir(config.output_dir)

        def on_epoch(_: EpochResult) -> None:
            if dump is not None:
                dump.restart()

        try:
            contents_file = None if spec.contents_file is None else Path(spec.contents_file)
            data = cases_of_training(config, contents_file)
            training = partial(self.train, data=data, contents_file=contents_file, on_epoch=on_epoch)
            error = train_to_the_end(config, training)
            if spec.test and not error and not has_scores_of(paths.test_scores.with_suffix(".json"), [paths.best]):
                evaluate(config.model_copy(update={"resume": paths.best}), data)
            return TrainingEnd(error=error), ""
        except torch.cuda.OutOfMemoryError as error:
            return end_of_error(error), memory_taken_by_others(self.gpu_share)
        except Exception as error:
            with suppress(OSError):  # a full disk
                traceback.print_exc(file=sys.stdout)
            return end_of_error(error), ""

    def train(
        self, config: TrainConfig, data: Data, contents_file: Path | None, on_epoch: Callable[[EpochResult], object]
    ) -> EpochResult:
        """Train in this process, or in one for each of its GPUs; on_epoch is called with each epoch's result."""
        places = Places(self.nodes, processes_per_node(self.gpu_share), self.cpu)
        if places.processes * places.nodes == 1:
            # Not flushed: several trainings at once would wait for the disk, 0.8 s per epoch with four GPUs.
            return train(config, data, on_epoch, flush=False)
        result: EpochResult = run_in_ranks(
            places, train_pooled_rank, config, contents_file, self.lock_file, on_message=on_epoch
        )
        return result


def end_of_error(error: Exception) -> TrainingEnd:
    """Return what an error of a training means for it and for the others."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return TrainingEnd(error=f"out of GPU memory: {first_line}")
    if isinstance(error, LostNodeError):
        return TrainingEnd(lost=str(error))
    if trouble := node_trouble(error):
        return TrainingEnd(trouble=trouble)
    if isinstance(error, InputError):
        return TrainingEnd(error=str(error))
    return TrainingEnd(failure=f"{type(error).__name__}: {first_line}")


def train_to_the_end(config: TrainConfig, train: Callable[[TrainConfig], EpochResult]) -> str:
    """Train in output_dir, or go on there, unless it has ended; return why it has no model, "" if it has one.

    It begins again if none of its checkpoints can be read, as after a power cut.

    train: trains a config, and returns the last epoch's result.

    Raises: as train; TimeoutError if another process, as on a lost node, still uses the folder after LOST_NODE_SECONDS.
    """
    paths = TrainingDir(config.output_dir)
    if not wait_until_unlocked(paths.path, LOST_NODE_SECONDS):
        raise TimeoutError(f"{paths.path} is still in use by another process")
    remove_damaged(paths)
    if not (row := last_row(paths)).get("end_reason"):
        row = train(from_last_checkpoint(config)).row()
    return divergence(row)


def remove_damaged(paths: TrainingDir) -> None:
    """Remove what a training has written if it cannot go on from any of its checkpoints, and say so.

    One that has ended needs its best model.
    """
    if not (paths.metrics.exists() or paths.latest.exists()):
        return
    end_reason = (read_rows(paths.metrics) or [{"end_reason": ""}])[-1]["end_reason"]
    if end_reason == EndReason.NON_FINITE:
        return
    try:
        load_checkpoint(paths.best) if end_reason else load_latest_valid(paths.latest)
    except InputError as error:
        logger.warning(f"{error}; the training begins again")
        tests = [paths.test_scores.with_suffix(suffix) for suffix in (".json", ".csv")]
        for path in (*paths.checkpoints.glob("*.pth"), paths.metrics, paths.case_scores, *tests):
            path.unlink(missing_ok=True)


def divergence(row: Mapping[str, Any]) -> str:
    """Return that a training diverged, by its last row; "" if it did not."""
    return f"diverged in epoch {row['epoch']}" if row["end_reason"] == EndReason.NON_FINITE else ""
