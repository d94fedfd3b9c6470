"""Trials that share a GPU: what each may take of its memory, and how fast several train side by side.

    python -m tune.driver.gpu_sharing

is one of them, started by measure_concurrent: it reads a recipe and its share of the GPU as a line of JSON, says "ready"
once it is under way, and after another line trains for some seconds and prints its patches a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from trainable.core.device import kernel_selection, to_network_format
from trainable.core.options import make_config
from trainable.evaluation.inference import predict_logits
from trainable.training.state import TrainingState

CUDA_CONTEXT_BYTES = 0.75 * 2**30  # bytes that a process takes beside torch's tensors: CUDA's context, its kernels
VALIDATED_SHAPE = (240, 240, 155)  # that is validated
WARMUP_STEPS, MEASURE_SECONDS = 8, 3.0  # before it counts; while it does
TIMEOUT_SECONDS = 600  # seconds that all of it may take
MEMORY_MARGIN = 0.9  # a trial holds batches beside its steps
COUNTS = (1, 2, 4, 8)  # of trials on a GPU that are tried
MIN_SPEEDUP = 1.1  # that twice as many must bring
READY, NO_ROOM = "ready\n", "out of memory\n"


def share_memory(share: float) -> None:
    """Take no more of the GPU's memory than this share, so that the trials beside this one keep theirs."""
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - CUDA_CONTEXT_BYTES / total, share / 2))


def measure_sharing(recipe: dict[str, Any], max_processes: int) -> dict[int, float]:
    """Patches a second of a recipe in 1, 2, 4, ... processes on this GPU, up to where more do not fit or gain little.

    recipe: a TrainConfig as plain values. most: processes to try at most.
    """
    rates: dict[int, float] = {}
    for count in COUNTS:
        if count > max(1, max_processes):
            break
        rate = measure_concurrent(recipe, count)
        if rate is None:
            break
        rates[count] = rate
        if best_count(rates) != count:
            break
    return rates


def best_count(rates: dict[int, float]) -> int:
    """How many trials are to share a GPU, by measure_sharing: one, unless more of them gain enough."""
    best = 1
    for count, rate in sorted(rates.items()):
        if rate >= MIN_SPEEDUP * rates[best]:
            best = count
    return best


def measure_concurrent(recipe: dict[str, Any], count: int) -> float | None:
    """Patches a second of so many processes in all; None where one has not room enough in its share of the GPU.

    Raises:
        RuntimeError: where a process alone ends otherwise, with the last that it said.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command, pipe = [sys.executable, "-m", "tune.driver.gpu_sharing"], subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(count)
    ]
    said: list[list[str]] = [[] for _ in processes]  # by each, lines

    def tell(line: str) -> None:
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
                process.stdin.write(line + "\n")
                process.stdin.flush()

    def end() -> None:
        for process in processes:
            process.kill()

    deadline = threading.Timer(TIMEOUT_SECONDS, end)
    deadline.start()
    try:
        tell(json.dumps([recipe, 1 / count]))
        for process, lines in zip(processes, said, strict=True):
            assert process.stdout is not None
            while READY not in lines and (line := process.stdout.readline()):
                lines.append(line)
        if any(NO_ROOM in lines for lines in said):
            return None
        tell("go")
        for process, lines in zip(processes, said, strict=True):
            lines += process.communicate()[0].splitlines(keepends=True)
        if any(process.returncode for process in processes):
            if count > 1:  # one alone went well: these have not room enough, whatever it was that broke
                return None
            raise RuntimeError("a trial could not be tried out: " + "".join(said[0])[-2000:])
        return sum(float(lines[-1]) for lines in said)
    finally:
        deadline.cancel()
        end()
        for process in processes:
            process.wait()


def main() -> None:
    """Train beside others; see the head of this file."""
    recipe, share = json.loads(sys.stdin.readline())
    config = make_config(recipe, "sharing")
    torch.set_num_threads(1)
    share_memory(share * MEMORY_MARGIN)
    with kernel_selection(config):
        try:
            training = TrainingState(config)
            draw = torch.Generator().manual_seed(0)
            x = torch.randn(config.batch_size, 4, *config.target_shape, generator=draw).to(training.device)
            y = torch.rand(config.batch_size, 3, *config.target_shape, generator=draw).to(training.device) > 0.9

            def step() -> int:
                for _ in range(config.accumulation_steps):
                    training.steps.forward_backward(to_network_format(x, config), y, 1 / config.accumulation_steps)
                norm = training.steps.update()
                norm.isfinite().item()  # the device is done
                return config.accumulation_steps * config.batch_size

            training.network.train()
            for _ in range(WARMUP_STEPS):
                step()
            if training.device.type == "cuda":  # a trial also validates
                predict_logits(training.network, torch.zeros(1, 4, *VALIDATED_SHAPE, device=training.device), config)
                training.network.train()
        except torch.cuda.OutOfMemoryError:
            print(NO_ROOM, end="", flush=True)
            return
        print(READY, end="", flush=True)
        sys.stdin.readline()
        patches, started = 0, time.perf_counter()
        while time.perf_counter() - started < MEASURE_SECONDS:
            patches += step()
        print(patches / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
