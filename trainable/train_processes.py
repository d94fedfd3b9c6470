"""One training by several processes of this machine, one per GPU, that this process starts and waits for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from trainable.cli import exit_code_of
from trainable.core.command_name import set_train_command, train_command
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.division import micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.logger import init_logger
from trainable.core.options import make_config, to_dict
from trainable.core.rank_process import RankProcess
from trainable.core.ranks import join, read_launch
from trainable.data.prepare import Data
from trainable.data.split import Split
from trainable.train import train

STOP_SECONDS = 60  # that the processes get to end together before they are killed
PARENT_POLL_SECONDS = 1.0


def train_in_processes(config: TrainConfig, data: Data, processes: int, *, tests_follow: bool = False) -> None:
    """Train as trainable.train.train does, by several processes on a GPU each, or on the CPU if that is the device.

    If this process gets an exception meanwhile, as by Ctrl-C, they end together, and it is raised again.

    Raises:
        InputError: if there are fewer GPUs, the steps cannot be divided, or the training ends early: its message was
            printed then.
    """
    micro_batch_groups(config, processes)
    if choose_device(config).type == "cuda" and processes > torch.cuda.device_count():
        raise InputError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here; take at most as many")
    with tempfile.TemporaryDirectory(prefix="voxtune_training_") as folder:
        request = Path(folder) / "request.json"
        split = {part: getattr(data.split, part) for part in ("train", "val", "test")}
        cases = {"folder": str(data.folder), "split": split, "skipped": data.skipped}
        request.write_text(
            json.dumps({"config": to_dict(config), "cases": cases, "tests_follow": tests_follow,
                        "train_command": train_command()})
        )  # fmt: skip
        started = start_processes(request, processes)
        try:
            codes = [process.wait() for process in started]
        except BaseException:
            end_together(started)
            raise
    if any(codes):
        raise InputError(f"the training on {processes} devices ended early, see above; the same command goes on")


def start_processes(request: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a training, each with its place in the environment; request: the file for `main`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    code = "import sys; from trainable.train_processes import main; main(sys.argv[1])"
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(request)],
            env={**os.environ, **place, **threads, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends them
        )
        for rank in range(processes)
    ]


def end_together(started: list[subprocess.Popen[bytes]]) -> None:
    """Ask the processes of a training to end, and wait until they have; after STOP_SECONDS kill those that have not."""
    for process in started:
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()


def main(request: str) -> None:
    """Train as one of the processes of a request, and end this process."""
    init_logger()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    asked = json.loads(Path(request).read_text())
    set_train_command(asked["train_command"])
    config = make_config(asked["config"], "a training", begun=True)
    cases = asked["cases"]
    split = Split(**{part: tuple(names) for part, names in cases["split"].items()})
    data = Data(Path(cases["folder"]), split, tuple(cases["skipped"]))
    launch = read_launch()
    assert launch is not None
    process = RankProcess(launch)

    def work() -> int:
        join(process.launch, process.store, cuda=choose_device(config).type == "cuda")
        train(config, data, tests_follow=asked["tests_follow"])
        return 0

    process.run(lambda: exit_code_of(work, config))


def _end_with_parent(parent: int) -> None:
    """Ask this process to end once the one that started it was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
