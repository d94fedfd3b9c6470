"""Measure what progress between two reports costs: python benchmarks/progress_cost.py [--epochs 10] [--trials 100]

First the CPU seconds of a training's epochs with its progress sent to a board, and without, in turns; on a quiet
machine wall time would be the same. Then, with as many senders as --trials, each as often as a trial sends, what a
message costs its sender and the driver that reads it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import prepare_phantoms

from trainable.core.options import make_config
from trainable.data.patches import PatchLoader
from trainable.data.prepare import prepare_data
from trainable.training.state import TrainingState
from trainable.training.step_progress import PERIOD_SECONDS, ProgressReporter, StepProgress
from trainable.training.train_epoch import train_one_epoch
from tune.driver.processes.progress_board import ProgressBoard, ProgressSender
from tune.driver.recording.live_recorder import READ_SECONDS

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
    with ProgressBoard("127.0.0.1") as board:
        compare_epochs(board, args.epochs)
        load_board(board, args.trials)


def compare_epochs(board: ProgressBoard, epochs: int) -> None:
    """Train this number of epochs with and without progress, and print the CPU seconds of both."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir, cache_dir = Path(folder) / "data", Path(folder) / "cache"
        prepare_phantoms(data_dir, cache_dir)
        config = make_config({**OPTIONS, "data_dir": data_dir, "cache_dir": cache_dir, "output_dir": Path(folder)})
        data, training = prepare_data(config, quiet=True), TrainingState(config)
        loader = PatchLoader(data.folder, data.split.train, config, pin_memory=False)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        reporter = ProgressReporter(ProgressSender(board.address, 0).send)
        for index in range(2 * epochs + 2):
            told = bool(index % 2)
            started = time.process_time()
            train_one_epoch(training, loader, progress=reporter if told else None)
            seconds[told].append(time.process_time() - started)
    for told, what in ((True, "with progress"), (False, "without")):
        print(f"{what}: {statistics.median(seconds[told][1:]):.3f} CPU s per epoch (median of {epochs})")


def load_board(board: ProgressBoard, trials: int, seconds: float = 20.0) -> None:
    """Have `trials` senders send for a while, and print what that costs each side."""
    board.read()  # what the training has sent
    senders = [ProgressSender(board.address, number) for number in range(trials)]
    sending, reading, sent, received = 0.0, 0.0, 0, 0
    started, next_read = time.monotonic(), 0.0
    while (now := time.monotonic()) < started + seconds:
        clock = time.process_time()
        senders[sent % trials].send(StepProgress("training", 3, sent, 100, 51.5))
        sending, sent = sending + time.process_time() - clock, sent + 1
        if now >= next_read:
            next_read, clock = now + READ_SECONDS, time.process_time()
            received += len(board.read())
            reading += time.process_time() - clock
        time.sleep(max(0.0, started + sent * PERIOD_SECONDS / trials - time.monotonic()))
    print(f"{trials} trials: {sent / seconds:.0f} messages/s, {1000 * sending / sent:.2f} CPU ms each for the sender;")
    print(f"{reading / seconds:.2%} of a core for the driver's reads; {received} of {sent} read")


if __name__ == "__main__":
    main()
