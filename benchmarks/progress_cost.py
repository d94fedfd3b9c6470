"""Measure what progress between two reports costs: python benchmarks/progress_cost.py [--epochs 10] [--trials 100]

First the CPU seconds of a training's epochs with its progress sent to a board, and without, in turns; on a quiet
machine wall time would be the same. Then, with as many senders as --trials, each as often as a trial sends, the load of
the board's process and of the driver that reads it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import ray
from common import prepare_phantoms

from trainable.core.options import make_config
from trainable.data.patches import PatchLoader
from trainable.data.prepare import prepare_data
from trainable.training.loop import train_one_epoch
from trainable.training.state import TrainingState
from trainable.training.step_progress import PERIOD_SECONDS, ProgressReporter, StepProgress
from tune.driver.cluster import Cluster
from tune.driver.live_recorder import READ_SECONDS
from tune.driver.progress_board import BoardReader, ProgressSender, start_board

OPTIONS = {
    "depth": 3, "base_channels": 4, "target_shape": (32, 32, 32), "patches_per_epoch": 60, "device": "cpu",
    "num_workers": 0,
}  # fmt: skip


def main() -> None:
    """Print both costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    args = parser.parse_args()
    with Cluster() as cluster:
        cluster.wait()
        board = start_board()
        compare_epochs(board, args.epochs)
        load_board(board, args.trials)


def compare_epochs(board: ray.actor.ActorHandle, epochs: int) -> None:
    """Train this number of epochs with and without progress, and print the CPU seconds of both."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir, cache_dir = Path(folder) / "data", Path(folder) / "cache"
        prepare_phantoms(data_dir, cache_dir)
        config = make_config({**OPTIONS, "data_dir": data_dir, "cache_dir": cache_dir, "output_dir": Path(folder)})
        data, training = prepare_data(config, quiet=True), TrainingState(config)
        loader = PatchLoader(data.folder, data.split.train, config, pin_memory=False)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        reporter = ProgressReporter(ProgressSender(board, 0).send)
        for index in range(2 * epochs + 2):
            told = bool(index % 2)
            started = time.process_time()
            train_one_epoch(training, loader, progress=reporter if told else None)
            seconds[told].append(time.process_time() - started)
    for told, what in ((True, "with progress"), (False, "without")):
        print(f"{what}: {statistics.median(seconds[told][1:]):.3f} CPU s per epoch (median of {epochs})")


def load_board(board: ray.actor.ActorHandle, trials: int, seconds: float = 20.0) -> None:
    """Have `trials` senders send for a while, and print what that costs each side."""
    process = psutil.Process(ray.get(board.__ray_call__.remote(lambda _: os.getpid())))
    senders, reader = [ProgressSender(board, number) for number in range(trials)], BoardReader(board)
    sending, reading, sent = 0.0, 0.0, 0
    before, started, next_read = sum(process.cpu_times()[:2]), time.monotonic(), 0.0
    known = 0
    while (now := time.monotonic()) < started + seconds:
        clock = time.process_time()
        senders[sent % trials].send(StepProgress("training", 3, sent, 100, 51.5))
        sending, sent = sending + time.process_time() - clock, sent + 1
        if now >= next_read:
            next_read, clock = now + READ_SECONDS, time.process_time()
            known = len(reader.read(range(trials)))
            reading += time.process_time() - clock
        time.sleep(max(0.0, started + sent * PERIOD_SECONDS / trials - time.monotonic()))
    board_load = (sum(process.cpu_times()[:2]) - before) / seconds
    print(f"{trials} trials: {sent / seconds:.0f} calls/s, {1000 * sending / sent:.2f} CPU ms each for the sender;")
    print(f"{board_load:.1%} of a core for the board; {reading / seconds:.2%} for the driver's reads; {known} known")


if __name__ == "__main__":
    main()
