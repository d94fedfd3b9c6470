"""A training by several processes: real ones by torchrun, on the CPU with gloo, on GPUs with NCCL."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.division import epoch_shares, micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.core.rank_group import Member, RankGroup, start_here
from trainable.core.ranks import Launch, read_launch
from trainable.data.cache import CacheError
from trainable.data.prepare import Data
from trainable.data.split import load_split
from trainable.train import resume_hint
from trainable.train_processes import train_in_processes
from trainable.training.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent
# SGD, as Adam turns the rounding of a gradient near 0 into a whole step.
SMALL = (
    "--depth 3 --base_channels 4 --target_shape 16 16 16 --num_workers 0 --deep_supervision --optimizer sgd --lr 0.02 "
    "--patches_per_epoch 10 --val_fraction 0.4 --overlap 0"
)


def command(processes: int, *words: object, script: Path = ROOT / "train.py") -> list[str]:
    """python train.py (or another script), or the same by torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return [*launcher, str(script), *map(str, words)]


def train(processes: int, *words: object, script: Path = ROOT / "train.py") -> subprocess.CompletedProcess[str]:
    """Train to the end."""
    argv = command(processes, *words, script=script)
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def flags(data: Data, phantoms: Path, output: Path, *words: object, device: str = "cpu") -> list[object]:
    place = ["--data_dir", phantoms, "--cache_dir", data.folder, "--output_dir", output, "--device", device]
    return [*place, *SMALL.split(), *words]


def trained(processes: int, *words: object) -> str:
    """Train to the end, as one process in this one; return what the others print."""
    if processes == 1:
        assert cli.main([*map(str, words)]) == 0
        return ""
    done = train(processes, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def assert_same(one: Path, other: Path, *, rtol: float = 1e-4, atol: float = 2e-6) -> None:
    """The weights, the statistics and the scores of two trainings are equal but for rounding."""
    a, b = (load_checkpoint(folder / "checkpoints" / "latest.pth") for folder in (one, other))
    torch.testing.assert_close(a["network"], b["network"], rtol=rtol, atol=atol)
    assert (a["epoch"], a["step"], a["best_epoch"]) == (b["epoch"], b["step"], b["best_epoch"])
    assert len(rows(one)) == len(rows(other)) == a["epoch"]
    for row, twin in zip(rows(one), rows(other), strict=True):
        for name in ("avg_total_loss", "avg_base_loss", "avg_dice_loss", "grad_norm", "steps", "lr", "val_dice_mean"):
            assert float(row[name]) == pytest.approx(float(twin[name]), rel=rtol, abs=atol), name
    cases, others = ((folder / "case_scores.csv").read_text().splitlines() for folder in (one, other))
    assert [line.split(",")[:2] for line in cases] == [line.split(",")[:2] for line in others]


# Micro-batches whole (4 x 1 on 2 and 4), split (1 x 4, whose Dice is over all 4 patches), and both (2 x 2 on 4).
@pytest.mark.parametrize(
    ("batch", "accumulation", "counts"),
    [
        pytest.param(1, 4, (2, 4), marks=pytest.mark.slow),
        pytest.param(4, 1, (2, 4), marks=pytest.mark.slow),
        (2, 2, (4,)),
    ],
)
def test_several_processes_train_as_one_does(
    prepared: Data, phantoms: Path, tmp_path: Path, batch: int, accumulation: int, counts: Sequence[int]
) -> None:
    """The last step of an epoch has 2 of 4 patches, so that some processes have none there."""
    words = ["--epochs", 2, "--batch_size", batch, "--accumulation_steps", accumulation]
    trained(1, *flags(prepared, phantoms, tmp_path / "one", *words))
    for count in counts:
        done = trained(count, *flags(prepared, phantoms, tmp_path / str(count), *words))
        assert_same(tmp_path / "one", tmp_path / str(count))
        assert done.count("epoch   1/2") == done.count("test it:") == 1  # rank 0 alone prints
        assert f"device: {count} x cpu" in done


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--no-batch_dice"], ["--base_loss", "tversky"], ["--focal_loss"]])
def test_each_loss_is_that_of_the_whole_micro_batch(
    prepared: Data, phantoms: Path, tmp_path: Path, words: list[str]
) -> None:
    words = ["--epochs", "1", "--batch_size", "4", *words]
    for count in (1, 4):
        trained(count, *flags(prepared, phantoms, tmp_path / str(count), *words))
    assert_same(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    words = ["--batch_size", 1, "--accumulation_steps", 2]
    trained(1, *flags(prepared, phantoms, tmp_path / "whole", *words, "--epochs", 3))
    trained(2, *flags(prepared, phantoms, tmp_path / "parts", *words, "--epochs", 1))
    trained(1, "--resume", tmp_path / "parts", "--epochs", 2)
    done = trained(2, "--resume", tmp_path / "parts", "--epochs", 3)
    assert "goes on after epoch 2" in done
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_scale_batch_gives_each_process_the_step_of_one(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    done = trained(2, *flags(prepared, phantoms, tmp_path / "two", "--epochs", 1, "--scale_batch"))
    assert "scale_batch: a step has 4 patches, 2 for each of 2 processes" in done
    trained(1, *flags(prepared, phantoms, tmp_path / "one", "--epochs", 1, "--accumulation_steps", 2))
    assert_same(tmp_path / "one", tmp_path / "two")
    saved = load_checkpoint(tmp_path / "two" / "checkpoints" / "latest.pth")["config"]
    assert (saved["batch_size"], saved["accumulation_steps"]) == (2, 2)


@pytest.mark.slow
def test_a_step_that_cannot_be_divided_is_refused_once(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    done = train(4, *flags(prepared, phantoms, tmp_path / "out", "--batch_size", 3, "--accumulation_steps", 2))
    assert done.returncode
    assert done.stderr.count("error: a step of 6 patches") == done.stderr.count("or of 24 with --scale_batch") == 1
    assert "exitcode: 2" in done.stderr.replace(" ", "").replace("exitcode:", "exitcode: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "printed", "tracebacks"),
    [
        ("InputError('the disk of this node is gone')", "error: the disk of this node is gone (process 1 of 2)", 0),
        pytest.param(
            "RuntimeError('no connection to the store')",
            "error: no connection to the store; another process of this training may have ended, perhaps killed "
            "(process 1 of 2)", 1, marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_an_error_of_one_process_ends_all_with_its_message(
    prepared: Data, phantoms: Path, tmp_path: Path, error: str, printed: str, tracebacks: int
) -> None:
    """Process 1 cannot read its cases when it validates; process 0 waits for its scores."""
    words = flags(prepared, phantoms, tmp_path / "out", "--epochs", 500, "--accumulation_steps", 2)
    code = (
        f"import sys, os\nsys.path.insert(0, {str(ROOT)!r})\nfrom trainable.evaluation import validate\n"
        "if os.environ['RANK'] == '1':\n"
        "    from trainable.core.errors import InputError\n    from trainable.training import validation\n"
        f"    def broken(*a, **k): raise {error}\n"
        "    validation.validate = broken\n"
        "from trainable.cli import main\nsys.exit(main(prog='python train.py'))\n"
    )
    script = tmp_path / "broken.py"
    script.write_text(code)
    started = time.monotonic()
    done = train(2, *words, script=script)
    assert done.returncode
    assert done.stderr.count(printed) == 1, done.stderr
    assert done.stderr.count("in broken") == tracebacks
    assert done.stderr.count("Traceback") <= 1 + tracebacks  # torchrun's own
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_ends_all_processes_and_the_training_can_go_on(
    prepared: Data, phantoms: Path, tmp_path: Path, number: int
) -> None:
    words = flags(prepared, phantoms, tmp_path / "out", "--accumulation_steps", 2, "--patches_per_epoch", 40)
    process = subprocess.Popen(
        command(2, *words, "--epochs", 500), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    latest = tmp_path / "out" / "checkpoints" / "latest.pth"
    end = time.monotonic() + 120
    while not latest.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    hint = f"go on with: torchrun --nproc-per-node 2 train.py --resume {tmp_path / 'out'}"
    assert output.count("stopped. The last finished epoch is kept; ") == output.count(hint) == 1, output
    epoch = int(load_checkpoint(latest)["epoch"])
    assert len(rows(tmp_path / "out")) == epoch
    done = trained(2, "--resume", tmp_path / "out", "--epochs", epoch + 1)
    assert f"epoch {epoch + 1:>3}/{epoch + 1}" in done


def test_a_step_that_cannot_be_divided_is_refused_with_what_can() -> None:
    with pytest.raises(InputError) as caught:
        micro_batch_groups(TrainConfig(batch_size=3, accumulation_steps=2), 4)
    assert str(caught.value) == (
        "a step of 6 patches (batch_size 3 x accumulation_steps 2) cannot be divided among 4 processes. Start one of "
        "1, 2, 3, 6; or take a step of 12 patches with --accumulation_steps 4; or of 24 with --scale_batch"
    )


@pytest.mark.parametrize(("patches", "batch", "accumulation"), [(24, 2, 6), (23, 4, 3), (1, 2, 2), (7, 3, 4)])
def test_the_shares_of_all_processes_are_the_patches_of_one(patches: int, batch: int, accumulation: int) -> None:
    config = TrainConfig(batch_size=batch, accumulation_steps=accumulation)
    for processes in (count for count in range(1, 13) if batch * accumulation % count == 0):
        shares = [epoch_shares(patches, config, rank, processes) for rank in range(processes)]
        groups = micro_batch_groups(config, processes)
        members = processes // groups
        taken: list[int] = []
        for own in zip(*shares, strict=True):  # what all do at the same time
            assert len({share.step for share in own}) == len({share.ends_step for share in own}) == 1
            for block in (own[first : first + members] for first in range(0, processes, members)):
                assert len({(share.weight, share.part.samples) for share in block}) == 1
                assert sum(share.part.stop - share.part.start for share in block) == block[0].part.samples
            for share in own:
                assert share.count >= 1
                assert share.first + share.count <= patches
                if share.weight:
                    taken += range(share.first, share.first + share.part.stop - share.part.start)
        assert sorted(taken) == list(range(patches))
        for one in shares:  # as many in each full step as the trainer captures graphs for
            full = [share.step for share in one if len(share.step) == batch * accumulation]
            assert all(full.count(step) == accumulation // groups for step in full)
        assert sum(share.counted for one in shares for share in one) == patches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set; start it with torchrun"),
        ({"RANK": "one"}, "RANK is 'one', not a number"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_an_environment_that_is_not_whole_is_refused(change: dict[str, Any], message: str) -> None:
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert read_launch(whole) is not None
    assert read_launch({}) is None
    assert read_launch({**whole, "WORLD_SIZE": "1"}) is None
    with pytest.raises(InputError, match=message):
        read_launch({name: value for name, value in (whole | change).items() if value is not None})


@pytest.mark.parametrize(
    ("local", "command"),
    [
        ("2", "torchrun --nproc-per-node 2 train.py"),
        ("1", "the same launcher and python train.py"),  # torchrun on two machines
        (None, "the same launcher and python train.py"),  # such as srun
    ],
)
def test_how_to_go_on_names_torchrun_if_that_has_started_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: str | None, command: str
) -> None:
    config = TrainConfig(output_dir=tmp_path)
    monkeypatch.setattr("trainable.core.ranks._joined", Launch(0, 2, 0))
    monkeypatch.setattr("trainable.core.command_name._command", "python train.py")
    if local is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert resume_hint(config) == ""
    save_checkpoint({"epoch": 1}, tmp_path / "checkpoints" / "latest.pth")
    assert resume_hint(config).endswith(f"go on with: {command} --resume {tmp_path}")


@pytest.fixture
def smooth(tmp_path: Path) -> Path:
    """train.py of a network whose activation is the identity: an activation that rounding moves across the kink of a
    leaky ReLU changes its gradient a hundredfold, by chance."""
    script = tmp_path / "smooth.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom trainable.model import unet3d\n"
        "unet3d.LEAKY_RELU_SLOPE = 1.0\n"
        "from trainable.cli import main\nsys.exit(main(prog='python train.py'))\n"
    )
    return script


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 4), (4, 1), (2, 2)])
def test_several_gpus_train_as_one_does(
    prepared: Data,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smooth: Path,
    batch: int,
    accumulation: int,
) -> None:
    """11 steps, replayed from CUDA graphs, also their sums by NCCL."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # TF32 rounds by 1e-3
    words: list[object] = ["--epochs", 1, "--batch_size", batch, "--accumulation_steps", accumulation]
    words += ["--patches_per_epoch", 41]
    for count in (count for count in (1, 2, 4) if count <= torch.cuda.device_count()):
        done = train(count, *flags(prepared, phantoms, tmp_path / str(count), *words, device="cuda"), script=smooth)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same(tmp_path / "1", tmp_path / str(count))


@pytest.mark.slow
def test_processes_that_a_process_starts_train_as_one_does(
    prepared: Data, phantoms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--epochs", 1, "--batch_size", 2]
    trained(1, *flags(prepared, phantoms, tmp_path / "one", *words))
    options = json.loads((tmp_path / "one" / "training_config.json").read_text())
    config = make_config({**options, "output_dir": tmp_path / "two"})
    split = load_split(tmp_path / "one" / "split.json")
    train_in_processes(config, replace(prepared, split=split), 2)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert capfd.readouterr().out.count("device: 2 x cpu") == 1
    with pytest.raises(InputError, match=r"a step of 2 patches .* among 4 processes"):
        train_in_processes(config, prepared, 4)
    with pytest.raises(InputError, match="already contains a training"):
        train_in_processes(config, prepared, 2)
    assert capfd.readouterr() == ("", "")


def own_processes() -> list[int]:
    """The ids of the processes that this one has started to train together, in the order of their ranks."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return sorted(pid for pid in pids if "rank_link" in command_of(pid))


def command_of(pid: int) -> str:
    """The command of a process; "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_one(when: Callable[[], bool], rank: int) -> threading.Thread:
    """A thread that kills one of the processes once a condition holds."""

    def wait() -> None:
        while not (when() and len(own_processes()) == 2):
            time.sleep(0.02)
        os.kill(own_processes()[rank], signal.SIGKILL)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_costs_the_epoch_under_way(
    prepared: Data, phantoms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], killed: int
) -> None:
    trained(1, *flags(prepared, phantoms, tmp_path / "one", "--epochs", 6))
    options = json.loads((tmp_path / "one" / "training_config.json").read_text())
    config = make_config({**options, "output_dir": tmp_path / "two"})
    split = load_split(tmp_path / "one" / "split.json")
    metrics = tmp_path / "two" / "metrics.csv"
    killer = kill_one(lambda: metrics.exists() and len(rows(tmp_path / "two")) >= 2, killed)
    train_in_processes(config, replace(prepared, split=split), 2)
    killer.join(10)
    assert_same(tmp_path / "one", tmp_path / "two", rtol=2e-3, atol=2e-5)  # rounding, over 6 epochs
    output = capfd.readouterr().out
    reason = f"process {killed} of the 2 that train together was killed by SIGKILL"
    assert (
        output.count(f"{reason}; the epoch under way is lost, and the training goes on from the last checkpoint") == 1
    )
    assert not own_processes()


def test_a_training_whose_processes_die_again_and_again_is_given_up(
    prepared: Data, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = set[int]()

    def kill_three() -> None:
        while len(killed) < 3:
            if len(pids := own_processes()) == 2 and not killed & set(pids):
                killed.add(pids[1])
                os.kill(pids[1], signal.SIGKILL)
            time.sleep(0.02)

    threading.Thread(target=kill_three, daemon=True).start()
    small = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "num_workers": 0, "epochs": 50}
    config = TrainConfig(output_dir=tmp_path / "out", cache_dir=prepared.folder, device="cpu", **small)
    with pytest.raises(InputError, match="by SIGKILL; 3 processes have died in a row without a finished epoch"):
        train_in_processes(config, prepared, 2)
    output = capfd.readouterr().out
    assert output.count("the training goes on from the beginning, as no epoch was finished") == 2
    assert not own_processes()


def test_a_process_whose_cases_are_others_ends_the_training(prepared: Data, tmp_path: Path) -> None:
    """As a node's own cache may be: the contents were read before."""
    data = Data(tmp_path / "cache", prepared.split)
    shutil.copytree(prepared.folder, data.folder)
    name = data.split.train[0]
    assert name in data.contents
    metadata = json.loads((data.folder / name / "case.json").read_text())
    (data.folder / name / "case.json").write_text(json.dumps({**metadata, "scan": "0" * 16}))
    small = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "num_workers": 0, "epochs": 1}
    config = TrainConfig(output_dir=tmp_path / "out", cache_dir=data.folder, device="cpu", **small)
    with pytest.raises(CacheError, match=rf"cases have changed since the training began: {name} \(images\)"):
        train_in_processes(config, data, 2)


def test_lost_nodes_are_no_deaths(prepared: Data, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three processes die in the first epoch, each as its node is lost: a fourth start trains to the end."""
    starts = list[RankGroup]()

    def start(launches: Sequence[Launch], threads: int) -> list[Member]:
        members = start_here(launches, threads)
        if len(starts) < 3:
            members[1] = replace(members[1], place=" on node-b", is_lost=lambda: True)
            members[1].process.kill()
        return members

    def make_group() -> RankGroup:
        starts.append(RankGroup(2, cuda=False, threads=1, start=start))
        return starts[-1]

    small = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "num_workers": 0, "patches_per_epoch": 8}
    config = TrainConfig(output_dir=tmp_path / "out", cache_dir=prepared.folder, device="cpu", epochs=1, **small)
    train_in_processes(config, prepared, 2, make_group=make_group)
    assert [row["epoch"] for row in rows(tmp_path / "out")] == ["1"]
    assert len(starts) == 4
    lost = "the loss of a node, with process 1 of the 2 that train together on node-b; the epoch under way is lost, and"
    assert capfd.readouterr().out.count(lost) == 3
