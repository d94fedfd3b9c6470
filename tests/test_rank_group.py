"""Processes that train together, kept for one training after another: real ones, on the CPU with gloo."""

from __future__ import annotations

import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path

import pytest
import rank_work
import torch
from listeners import descendants, listeners

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.rank_group import RankDiedError, RankGroup
from trainable.core.ranks import Launch, _gpu_of
from trainable.data.prepare import Data
from trainable.training.checkpoint import load_checkpoint
from trainable.training.training_dir import TrainingDir

# In each process: torch sees one GPU, and whoever takes it fails later.
ONE_GPU = """
import time, torch
def take(device):
    time.sleep(30)
    raise RuntimeError(f"taken: {device}")
torch.cuda.device_count = lambda: 1
torch.cuda.set_device = take
"""


class Stop(Exception):
    """What on_message raises to end a training."""


def nothing(message: object) -> None:
    raise AssertionError(message)


def small(folder: Path, **options: object) -> TrainConfig:
    shape = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "patches_per_epoch": 8, "num_workers": 0}
    return TrainConfig(**{"output_dir": folder, "device": "cpu", "epochs": 500, **shape, **options})


def ended(pids: Sequence[int], seconds: float = 5) -> bool:
    """Whether all processes end within this time; one that is not reaped yet has ended."""
    end = time.monotonic() + seconds
    while any(lives(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def shared() -> Iterator[list[RankGroup]]:
    """A list with one group of two processes; a test that ends it leaves another one there."""
    groups = [RankGroup(2, cuda=False, threads=1)]
    yield groups
    groups[0].close()


@pytest.fixture
def group(shared: list[RankGroup]) -> RankGroup:
    if not shared[0].usable:
        shared[0] = RankGroup(2, cuda=False, threads=1)
    return shared[0]


def test_a_training_that_is_ended_leaves_the_processes_for_the_next_one(
    group: RankGroup, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = group.run(rank_work.pids, on_message=nothing)
    assert len(set(before)) == 2
    assert capsys.readouterr().out == "printed by rank 0\n"
    heard: list[int] = []

    def on_message(epoch: int) -> None:
        heard.append(epoch)
        if epoch == 2:
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        group.run(rank_work.train, small(tmp_path / "one"), prepared, on_message=on_message)
    assert heard[:2] == [1, 2]
    assert time.monotonic() - started < 30
    assert int(load_checkpoint(TrainingDir(tmp_path / "one").latest)["epoch"]) >= 2
    assert group.run(rank_work.train, small(tmp_path / "two", epochs=2), prepared, on_message=heard.append) == 2
    assert heard[-2:] == [1, 2]
    assert group.run(rank_work.pids, on_message=nothing) == before


def test_an_end_that_comes_before_the_first_step_ends_the_training_there(
    group: RankGroup, prepared: Data, tmp_path: Path
) -> None:
    """No training handles the signal yet that the request sends to each process."""
    before = group.run(rank_work.pids, on_message=nothing)

    def stop(epoch: int) -> None:
        assert epoch == 0
        raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        group.run(rank_work.train_after_asking, small(tmp_path / "early"), prepared, on_message=stop)
    assert time.monotonic() - started < 30
    assert not TrainingDir(tmp_path / "early").latest.exists()
    assert group.run(rank_work.train, small(tmp_path / "next", epochs=1), prepared, on_message=lambda _: None) == 1
    assert group.run(rank_work.pids, on_message=nothing) == before


@pytest.mark.parametrize(
    ("failing", "kind"), [(1, InputError), pytest.param(0, torch.cuda.OutOfMemoryError, marks=pytest.mark.slow)]
)
def test_an_error_of_one_process_is_raised_here_and_ends_all(
    group: RankGroup, failing: int, kind: type[Exception]
) -> None:
    pids = group.run(rank_work.pids, on_message=nothing)
    with pytest.raises(kind, match="the disk of this node is gone") as raised:
        group.run(rank_work.fail, failing, kind, on_message=nothing)
    assert f"in process {failing} of the training:\nTraceback" in raised.value.__notes__[0]
    assert ended(pids, 0)
    assert not group.usable


def test_the_error_that_has_led_to_a_lost_connection_is_raised(group: RankGroup) -> None:
    with pytest.raises(InputError, match="the disk of this node is gone"):
        group.run(rank_work.fail_one_after_the_other, on_message=nothing)
    assert not group.usable


def test_two_processes_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch sees one GPU in each of two processes, the second ends with an error that says so."""
    (tmp_path / "sitecustomize.py").write_text(ONE_GPU)
    monkeypatch.syspath_prepend(tmp_path)
    lost = f"process 2 of {platform.node()} has no GPU, as torch sees 1 there; look at `nvidia-smi` there"
    with RankGroup(2, cuda=True, threads=1) as group, pytest.raises(InputError, match=re.escape(lost)):
        group.run(rank_work.pids, on_message=nothing)


@pytest.mark.parametrize(
    ("count", "all_gpus", "torchrun", "gpu"),
    [(1, False, False, 0), (4, False, False, 1), (4, True, False, 1), (1, True, False, None), (1, False, True, None)],
)
def test_only_under_a_batch_system_the_one_gpu_that_is_seen_is_that_of_any_process(
    count: int, all_gpus: bool, torchrun: bool, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with nullcontext() if gpu is not None else pytest.raises(InputError, match="process 2 of .* has no GPU"):
        assert _gpu_of(Launch(1, 2, 1), all_gpus) == torch.device("cuda", gpu)


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_is_named_and_the_others_end(
    group: RankGroup, prepared: Data, tmp_path: Path, killed: int
) -> None:
    pids = group.run(rank_work.pids, on_message=nothing)

    def kill(epoch: int) -> None:
        os.kill(pids[killed], signal.SIGKILL)

    with pytest.raises(RankDiedError, match=f"^process {killed} of the 2 that train together was killed by SIGKILL$"):
        group.run(rank_work.train, small(tmp_path / "out"), prepared, on_message=kill)
    assert ended(pids, 0)


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_kill_9_of_the_process_that_has_started_them_ends_all(prepared: Data, tmp_path: Path, frozen: bool) -> None:
    (tmp_path / "request").write_bytes(pickle.dumps((small(tmp_path / "out"), prepared)))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import rank_work; rank_work.main()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "request"], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "printed by rank 0\n"
        pids = [int(word) for word in one.stdout.readline().split()]
        assert one.stdout.readline() == "1\n"  # an epoch is trained
        assert all(map(lives, pids))
        if frozen:
            os.kill(pids[1], signal.SIGSTOP)
        one.kill()
    assert ended(pids)


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, TWO_GPUS])])
def test_processes_of_one_machine_listen_on_its_loopback_only(prepared: Data, tmp_path: Path, device: str) -> None:
    """In a training: their store, the groups by which they exchange sums and values, and what starts them."""
    before, during = listeners(descendants(os.getpid())), set[tuple[str, int]]()

    def look(epoch: int) -> None:
        during.update(listeners(descendants(os.getpid())))

    with RankGroup(2, cuda=device == "cuda", threads=1) as group:
        group.run(rank_work.train, small(tmp_path / "out", epochs=1, device=device), prepared, on_message=look)
    opened = during - before
    assert len(opened) >= 3  # the store, and in each process what exchanges values
    assert not [address for address, _ in opened if not ip_address(address).is_loopback]
