"""Out of GPU memory: by the recipe's own need, or since other processes hold the memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable.core import gpu_memory
from trainable.core.gpu_memory import (
    bytes_taken_by_others,
    describe_processes,
    list_gpu_processes,
)
from trainable.core.options import make_config, to_dict
from trainable.data.prepare import Data
from trainable.data.split import save_split
from trainable.training.epoch_result import EpochResult
from tune.driver.processes import worker
from tune.spec.trial_spec import TrialSpec

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "own", "share", "taken"),
    [
        (0, 80, 1.0, 0),  # it holds the whole card: its own need
        (1, 78, 1.0, 0),  # what CUDA and a desktop hold is usual
        (2, 18, 1.0, 60),  # others hold 60 of what it was promised
        (0, 40, 0.5, 0),  # its half is full, a neighbour has the other
        (30, 38, 0.5, 0),  # its own limit, though 30 are free
        (0, 10, 0.5, 30),  # others hold 30 of its half
        (10, 10, 0.25, 0),  # its quarter was there, though others hold 60
        (0, 20, 2, 60),  # two GPUs are reserved: each is whole
    ],
)
def test_others_are_to_blame_if_a_part_of_the_share_was_not_there(
    free: int, own: int, share: float, taken: int
) -> None:
    found = bytes_taken_by_others(free=free * GIB, own=own * GIB, total=80 * GIB, share=share)
    assert found == taken * GIB


def test_other_processes_are_named_as_nvidia_smi_lists_them() -> None:
    listing = "11, 40960, /usr/bin/python3, x\n12, [N/A], game\n13, 512, python\n"
    expected = "pid 11 (/usr/bin/python3, x) 40960 MiB; pid 12 (game) [N/A]"
    assert describe_processes(listing, own_pid=13) == expected
    assert describe_processes("13, 512, python\n", own_pid=13) == ""
    assert describe_processes("\n", own_pid=13) == ""


def test_that_nvidia_smi_is_missing_or_names_nobody_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_memory, "NVIDIA_SMI", [str(tmp_path / "nvidia-smi")])
    assert list_gpu_processes("GPU-1").startswith("nvidia-smi cannot name them ([Errno 2] No such file")
    monkeypatch.setattr(gpu_memory, "NVIDIA_SMI", ["true"])
    assert list_gpu_processes("GPU-1") == "nvidia-smi names none of them, as in a container"


@pytest.fixture
def trial(prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialSpec, list[dict[str, Any]]]:
    """The spec of a trial on the CPU, and the list of what it reports."""
    reports = list[dict[str, Any]]()
    monkeypatch.setattr(worker.ray_tune, "report", lambda report, checkpoint=None: reports.append(report))
    monkeypatch.setattr(worker, "restore_checkpoint", lambda *_: None)
    monkeypatch.setattr(worker, "freeze_imports", lambda: None)
    monkeypatch.setattr(worker, "reserved_gpus", lambda: [1])
    monkeypatch.setattr(worker, "TAKEN_MEMORY_PAUSE", 0.0)
    save_split(prepared.split, tmp_path / "split.json")
    recipe = make_config({"device": "cpu", "cache_dir": prepared.folder, "split_file": tmp_path / "split.json"})
    spec = TrialSpec(
        number=3, recipe=to_dict(recipe), checkpoint=None, cpu=1, gpu_share=0.5, nodes=1,
        lock_file=str(tmp_path / "none" / "lock"), stdout_log=str(tmp_path / "stdout.log"), report_timeout=None,
        data=None, contents_file=str(tmp_path / "cases.json"),
    )  # fmt: skip
    return spec, reports


def run_out_of_memory(*_: object) -> EpochResult:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory (injected)")


def test_a_trial_whose_memory_others_hold_fails_to_be_restarted_and_reports_no_end(
    trial: tuple[TrialSpec, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, reports = trial
    asked = list[float]()
    monkeypatch.setattr(
        worker, "memory_taken_by_others", lambda share: (asked.append(share), "other processes hold 9 GiB: pid 7")[1]
    )
    with pytest.raises(worker.GpuMemoryTakenError, match="^other processes hold 9 GiB: pid 7$"):
        worker.run_trial(spec, run_out_of_memory)
    assert asked == [0.5]
    [start] = reports
    assert (start["gpus"], start["sign_of_life"], start["end_reason"]) == ([1], True, "")


def test_a_trial_that_needs_more_than_its_share_reports_that(
    trial: tuple[TrialSpec, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, reports = trial
    monkeypatch.setattr(worker, "memory_taken_by_others", lambda share: "")
    worker.run_trial(spec, run_out_of_memory)
    _, report = reports
    assert (report["epoch"], report["end_reason"]) == (0, "oom")


HOLD = """
import sys, torch
held = torch.empty(int(float(sys.argv[1]) * torch.cuda.mem_get_info()[0]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process() -> Iterator[None]:
    """Another process that holds 9 tenths of the GPU's free memory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "0.9"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield
    holder.communicate()


FILL = """
import sys, torch
from trainable.core.options import make_config
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.train import out_of_memory
from tune.driver.processes.gpu_share import share_memory

share, held = float(sys.argv[1]), []
share_memory(share)
try:
    while True:
        held.append(torch.empty(2**28, dtype=torch.uint8, device="cuda"))
except torch.cuda.OutOfMemoryError:
    print(memory_taken_by_others(share))
    print(out_of_memory(make_config({"device": "cuda"})))
"""


def fill(share: float) -> list[str]:
    """Allocate in a process of this share until memory is out; return what that process says of it, in two lines."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", FILL, str(share)]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


@pytest.mark.gpu
def test_on_a_gpu_another_process_is_blamed(other_process: None) -> None:
    message, advice = fill(1.0)
    assert message.startswith("other processes hold ")
    assert "nvidia-smi" in message or "pid " in message
    assert "are free now; other processes hold " in advice
    assert "Try to free that memory, or another GPU with CUDA_VISIBLE_DEVICES, " in advice


@pytest.mark.gpu
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_on_a_gpu_a_process_that_has_had_its_share_blames_itself(share: float) -> None:
    assert fill(share)[0] == ""
