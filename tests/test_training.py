"""What goes on from a checkpoint, and on which device."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from trainable import cli
from trainable.core import files
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.prepare import Data
from trainable.data.split import save_split
from trainable.train import resume_hint, train, training_summary
from trainable.training import checkpoint
from trainable.training import state as training
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.optimizers import OPTIMIZERS
from trainable.training.state import SkippedSteps, TrainingState
from trainable.training.step import CastTensors
from trainable.training.training_dir import BEST, LATEST
from tune.driver.processes import worker
from tune.driver.processes.trial_fit import fit_to_storage
from tune.spec.trial_spec import TrialSpec

TINY = {
    **{"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "overlap": 0, "device": "cpu", "num_workers": 0},
    **{"epochs": 4, "patches_per_epoch": 6, "optimizer": "adamw", "lr": 5e-3},
}


def tiny(folder: Path, **options: object) -> TrainConfig:
    return make_config({**TINY, "output_dir": folder, **options})


@pytest.mark.parametrize(
    ("asked", "there", "found"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_device_is_the_one_asked_for(asked: str, there: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(TrainConfig(device=asked)).type == found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device is 'cuda', but torch sees no CUDA GPU here"):
        choose_device(TrainConfig(device="cuda"))


def backward(state: TrainingState, factor: float) -> None:
    state.scaler.scale(sum(factor * p.sum() for p in state.network.parameters())).backward()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_first_step_that_is_skipped_leaves_no_trace(
    tmp_path: Path, optimizer: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU uses fused optimizers; torch has them on the CPU too."""
    make = OPTIMIZERS[optimizer]
    monkeypatch.setitem(OPTIMIZERS, optimizer, lambda groups, config, _: make(groups, config, fused))
    ends = []
    for factors in [(1.0, 2.0), (math.nan, 1.0, math.inf, 2.0)]:
        state = TrainingState(tiny(tmp_path, optimizer=optimizer, weight_decay=0.1))
        for factor in factors:
            backward(state, factor)
            state.train_step.update()
        ends.append(torch.cat([p.detach().flatten() for p in state.network.parameters()]))
    assert ends[0].isfinite().all()
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_a_gradient_whose_norm_overflows_is_skipped_as_it_is_counted(tmp_path: Path, clipping: float) -> None:
    state = TrainingState(tiny(tmp_path, gradient_clipping=clipping, weight_decay=0.1))
    before = [p.detach().clone() for p in state.network.parameters()]
    backward(state, 1e25)
    assert not state.train_step.update().isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("then", "now"), [(False, True), (True, False)])
def test_a_training_goes_on_with_the_optimizer_of_the_device_of_the_day(
    prepared: Data, tmp_path: Path, optimizer: str, then: bool, now: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a CPU, whose optimizers are not fused, to a GPU, whose are, and back."""
    make = OPTIMIZERS[optimizer]
    state: dict[str, object] = {}
    for fused in (then, now):
        monkeypatch.setitem(OPTIMIZERS, optimizer, lambda groups, config, _, fused=fused: make(groups, config, fused))
        one = TrainingState(tiny(tmp_path, optimizer=optimizer))
        if state:
            one.load_state(state, prepared)
        backward(one, 1.0)
        assert one.train_step.update().isfinite()
        assert {group["fused"] for group in one.optimizer.param_groups} == {fused}
        state = one.state(prepared, {"epoch": 0})


@pytest.mark.parametrize(
    ("scheduler", "change"),
    [
        ("cosine", {"epochs": 8}),
        ("poly", {"poly_power": 2.0}),
        ("step", {"step_size": 1}),
        ("exponential", {"exponential_gamma": 0.5}),
    ],
)
def test_a_schedule_changed_on_resume_counts_from_the_first_epoch_on(
    prepared: Data, tmp_path: Path, scheduler: str, change: dict[str, float]
) -> None:
    def lrs(folder: Path, **options: object) -> list[float]:
        found: list[EpochResult] = []
        small = {"scheduler": scheduler, "step_size": 3, "patches_per_epoch": 2, "val_freq": 9}
        fit(tiny(folder, **{**small, **options}), prepared, found.append)
        return [result.stats.lr for result in found]

    lrs(tmp_path, epochs=3)
    resumed = lrs(tmp_path, **{"epochs": 5, "resume": tmp_path, **change})
    whole = lrs(tmp_path / "whole", **{"epochs": 5, **change})
    assert resumed == pytest.approx(whole[3:])


def test_skipped_steps_are_too_many_once_and_for_all() -> None:
    count = SkippedSteps(limit=2)
    for number, norm in enumerate([1.0, math.nan, 1.0, math.inf, math.nan, 1.0]):
        assert not count.too_many or number > 4
        count.add(torch.tensor(norm), f"step {number}")
    assert (count.too_many, count.in_a_row, count.first) == (True, 2, "step 3")


def scored(scores: Iterator[float], *_: object, **__: object) -> dict[str, dict[str, float]]:
    """Replaces validate: return the next of these scores."""
    return {"case": dict.fromkeys(("dice_WT", "dice_TC", "dice_ET", "dice_mean"), next(scores))}


class Killed(Exception):
    pass


def kill(*_: object) -> None:
    raise Killed


def test_resume_goes_on_from_best_model_where_a_kill_came_before_latest(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch of this training is better than the one before."""
    scores = iter(0.1 * number for number in range(1, 9))
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, scores))
    write, latest = checkpoint.atomic_write, iter((1, 2, 3))

    def dying(path: Path, content: Callable[[BinaryIO], None], **how: bool) -> None:
        if path.name == LATEST and next(latest) == 3:
            raise Killed
        write(path, content, **how)

    for module in (checkpoint, files):
        monkeypatch.setattr(module, "atomic_write", dying)
    with pytest.raises(Killed):
        fit(tiny(tmp_path), prepared)
    for module in (checkpoint, files):
        monkeypatch.setattr(module, "atomic_write", write)
    assert checkpoint.load_checkpoint(tmp_path)["epoch"] == 2
    results: list[EpochResult] = []
    fit(tiny(tmp_path, resume=tmp_path), prepared, results.append)
    assert [result.epoch for result in results] == [4]
    assert (results[0].best_epoch, results[0].best_score) == (4, pytest.approx(0.4))


def test_best_model_of_later_epochs_keeps_a_place_when_an_earlier_checkpoint_is_resumed(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.4, 0.2, 0.9, 0.3, 0.15])
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, scores))
    fit(tiny(tmp_path, save_freq=2), prepared)
    folder = tmp_path / "checkpoints"
    last = fit(tiny(tmp_path, save_freq=2, epochs=3, resume=folder / "epoch_0002.pth"), prepared)
    assert (last.best_epoch, last.best_score) == (3, 0.15)
    assert checkpoint.load_checkpoint(folder / "best_model.pth")["best_score"] == 0.15
    [aside] = folder.glob("before_going_back_to_0002_*")
    assert {path.name for path in aside.iterdir()} == {"latest.pth", "best_model.pth", "epoch_0004.pth"}
    assert checkpoint.load_checkpoint(aside / "best_model.pth")["best_score"] == 0.9
    (folder / "latest.pth").write_bytes(b"PK")
    assert checkpoint.load_latest_valid(tmp_path)[1]["best_score"] == 0.15


@pytest.fixture
def trained(prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training of four epochs, each kept, whose best was the second."""
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter([0.1, 0.9, 0.3, 0.4])))
    fit(tiny(tmp_path / "out", save_freq=1), prepared)
    return tmp_path / "out"


@pytest.mark.parametrize("output", ["out", "other"])
def test_a_kill_in_the_first_epoch_after_an_earlier_one_was_resumed_leaves_what_was_resumed(
    trained: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    resumed = trained / "checkpoints" / "epoch_0003.pth"
    with monkeypatch.context() as patch:
        patch.setattr("trainable.training.loop.train_one_epoch", kill)
        with pytest.raises(Killed):
            fit(tiny(tmp_path / output, resume=resumed), prepared)
    source, state = checkpoint.load_latest_valid(tmp_path / output)
    assert source == tmp_path / output / "checkpoints" / "latest.pth"
    weights = checkpoint.load_checkpoint(resumed)["network"]
    assert all(torch.equal(state["network"][name], tensor) for name, tensor in weights.items())
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter([0.5])))
    results: list[EpochResult] = []
    fit(tiny(tmp_path / output, resume=tmp_path / output), prepared, results.append)
    assert [(result.epoch, result.best_epoch, result.best_score) for result in results] == [(4, 2, 0.9)]
    assert checkpoint.load_checkpoint(source.with_name(BEST))["epoch"] == 2


@pytest.mark.parametrize("output", ["out", "other"])
def test_a_kill_at_any_write_of_a_resume_leaves_the_old_state_or_the_resumed_one(
    trained: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The kill replaces a renaming, which also ends the writing of a file."""

    def renaming(path: Path, target: Path) -> Path:
        if not next(left, False):
            raise Killed
        os.replace(path, target)
        return target

    found = []
    for count in range(9):
        left = iter([True] * count)
        source, folder = (tmp_path / str(count) / name / "checkpoints" for name in ("out", output))
        shutil.copytree(trained, source.parent)
        with monkeypatch.context() as patch:
            patch.setattr("trainable.training.loop.train_one_epoch", kill)
            patch.setattr(Path, "replace", renaming)
            patch.setattr(Path, "rename", renaming)
            with pytest.raises(Killed):
                fit(tiny(folder.parent, resume=source / "epoch_0001.pth"), prepared)
        found.append(
            checkpoint.load_latest_valid(folder)[1]["epoch"] if folder.exists() and any(folder.iterdir()) else 0
        )
    old = 4 if output == "out" else 0  # none
    assert (found[0], found[-1], set(found)) == (old, 1, {old, 1})


def test_a_resume_of_latest_with_its_options_writes_nothing_before_its_first_epoch(
    trained: Path, prepared: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.training.loop.train_one_epoch", kill)
    for first in (True, False):
        with pytest.raises(Killed):
            fit(tiny(trained, epochs=5, resume=trained), prepared)
        if first:  # it has changed epochs
            for module in (checkpoint, files):
                monkeypatch.setattr(module, "atomic_write", None)


@pytest.mark.parametrize(("scheduler", "source"), [("plateau", "latest.pth"), ("exponential", "epoch_0003.pth")])
def test_options_of_a_resume_that_ends_in_its_first_epoch_are_those_of_the_next_resume(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, scheduler: str, source: str
) -> None:
    fit(tiny(tmp_path, save_freq=1, scheduler=scheduler, exponential_gamma=0.5), prepared)
    words = ["--resume", str(tmp_path / "checkpoints" / source), "--lr", "4e-4", "--epochs", "6", "--momentum", "0.5"]

    def begin(words: list[str]) -> TrainConfig:
        config = cli.resolve(cli.read_flags(words))
        assert config.resume is not None
        with monkeypatch.context() as patch:
            patch.setattr("trainable.training.loop.train_one_epoch", kill)
            with pytest.raises(Killed):
                fit(config, prepared)
        return config

    assert resume_hint(cli.resolve(cli.read_flags(words))).endswith("give the same command again")
    assert f"go on with: voxtune train --resume {tmp_path}" in resume_hint(begin(words))
    config = begin(["--resume", str(tmp_path)])
    assert (config.lr, config.epochs, config.momentum) == (4e-4, 6, 0.5)
    results: list[EpochResult] = []
    fit(config, prepared, results.append)
    done = 4 if source == LATEST else 3
    factor = 0.5**done if scheduler == "exponential" else 1.0
    assert (results[0].epoch, results[0].stats.lr) == (done + 1, pytest.approx(4e-4 * factor))


def test_a_restored_trial_forces_nothing_to_the_disk_and_writes_no_latest_before_its_first_epoch(
    trained: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the trial's scratch folder already, which is removed when its process ends."""
    (trained / "checkpoints").rename(trained / "restored")
    monkeypatch.setattr("trainable.training.loop.train_one_epoch", kill)
    monkeypatch.setattr("os.fsync", None)
    with pytest.raises(Killed):
        fit_to_storage(tiny(trained, epochs=5, resume=trained / "restored" / "latest.pth"), prepared, lambda _: None)
    assert [path.name for path in (trained / "checkpoints").iterdir()] == [BEST]


def test_one_of_several_trainings_waits_for_no_disk(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush would wait for the checkpoints of all others."""
    monkeypatch.setattr("os.fsync", None)
    result = train(tiny(tmp_path / "out", epochs=2), prepared, flush=False)
    assert checkpoint.load_checkpoint(tmp_path / "out" / "checkpoints" / LATEST)["epoch"] == result.epoch == 2


@pytest.mark.parametrize(("output", "numbered"), [("out", True), ("out", False), ("other", False)])
def test_a_damaged_best_model_is_said_and_its_numbered_checkpoint_or_the_next_validation_is_the_best(
    trained: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, output: str, numbered: bool
) -> None:
    best = trained / "checkpoints" / BEST
    best.write_bytes(best.read_bytes()[:-40])
    if not numbered:
        (trained / "checkpoints" / "epoch_0002.pth").unlink()
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter([0.2, 0.1])))
    result = fit(tiny(tmp_path / output, epochs=6, resume=trained), prepared)
    printed = capsys.readouterr().out
    [said] = [line for line in printed.splitlines() if "damaged" in line]
    assert said.startswith(f"{best}: damaged or not a checkpoint (")
    anew = "no checkpoint of the best epoch, 2, is left: the next validation counts as the best"
    assert (anew in printed) is not numbered
    assert (result.best_epoch, result.best_score) == ((2, 0.9) if numbered else (5, 0.2))
    assert checkpoint.load_checkpoint(tmp_path / output / "checkpoints" / BEST)["epoch"] == result.best_epoch


@pytest.mark.parametrize("output", ["out", "other"])
def test_an_earlier_checkpoint_that_is_resumed_stays_the_best_model_if_it_was(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter([0.1, 0.4, 0.9, 0.2, 0.3])))
    fit(tiny(tmp_path / "out", epochs=3, save_freq=2), prepared)
    resumed = tmp_path / "out" / "checkpoints" / "epoch_0002.pth"
    result = fit(tiny(tmp_path / output, resume=resumed), prepared)
    assert (result.epoch, result.best_epoch, result.best_score) == (4, 2, 0.4)
    best, own = (checkpoint.load_checkpoint(path) for path in (tmp_path / output / "checkpoints" / BEST, resumed))
    assert best["epoch"] == 2
    assert all(torch.equal(best["network"][name], tensor) for name, tensor in own["network"].items())


def test_a_trial_s_checkpoints_are_written_once_and_gone_on_from(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter([0.5, 0.3, 0.6, 0.4])))
    folder, seen = tmp_path / "checkpoints", list[set[str]]()

    def on_epoch_end(result: EpochResult) -> None:
        seen.append({path.name for path in folder.iterdir()})
        shutil.copytree(folder, tmp_path / str(result.epoch))

    fit_to_storage(tiny(tmp_path, epochs=4, save_freq=9), prepared, on_epoch_end)
    assert seen == [{BEST}, {BEST, LATEST}, {BEST}, {BEST, LATEST}]
    for epoch, scores, expected in ((1, [0.3, 0.6, 0.4], (3, 0.6)), (2, [0.1, 0.2], (1, 0.5))):
        monkeypatch.setattr("trainable.training.validation.validate", partial(scored, iter(scores)))
        resume = checkpoint.find_checkpoint(tmp_path / str(epoch))
        options = {"epochs": 4, "save_freq": 9, "resume": resume}
        result = fit_to_storage(tiny(tmp_path / f"from {epoch}", **options), prepared, lambda _: None)
        assert (result.epoch, result.best_epoch, result.best_score) == (4, *expected)
        state = checkpoint.load_checkpoint(tmp_path / f"from {epoch}" / "checkpoints" / BEST)
        assert state["epoch"] == expected[0]


def test_moments_are_loaded_in_the_layout_of_their_parameters(prepared: Data, tmp_path: Path) -> None:
    """Fused updates on a GPU take no other, and a fast training uses channels last."""
    fit(tiny(tmp_path, epochs=1), prepared)
    state = checkpoint.load_checkpoint(tmp_path)
    later = TrainingState(tiny(tmp_path))
    later.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    later.load_state(state, prepared)
    moments = [later.optimizer.state[parameter]["exp_avg"] for parameter in later.network.parameters()]
    assert [each.stride() for each in moments] == [each.stride() for each in later.network.parameters()]
    saved = [each["exp_avg"] for each in state["optimizer"]["state"].values()]
    kept = [later.optimizer.state[p]["exp_avg"] for group in later.optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(one, other) for one, other in zip(kept, saved, strict=True))


def test_random_state_of_a_cpu_training_opens_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("a CUDA context was opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", refuse)
    assert training.random_state()["cuda"] == []


def test_gradients_through_weights_that_are_turned_at_once_equal_those_of_each_turned_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6, 6).bfloat16()
    found = []
    for at_once in (True, False):
        torch.manual_seed(1)
        weights = [torch.randn(4, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d).requires_grad_() for _ in "ab"]
        turned = CastTensors.apply(torch.bfloat16, *weights) if at_once else [w.bfloat16() for w in weights]
        assert all(t.dtype == torch.bfloat16 and t.stride() == w.stride() for t, w in zip(turned, weights, strict=True))
        y = x
        for weight in turned:
            y = torch.nn.functional.conv3d(y, weight, padding=1)
        y.float().square().sum().backward()
        found.append([weight.grad for weight in weights])
    assert all(grad is not None and grad.dtype == torch.float32 for grad in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_trial_reports_each_kind_of_full_disk_and_is_not_a_failure(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(worker.ray_tune, "report", lambda report, checkpoint=None: reports.append(report))
    monkeypatch.setattr(worker, "restore_checkpoint", lambda *_: None)
    monkeypatch.setattr(worker, "freeze_imports", lambda: None)
    save_split(prepared.split, tmp_path / "split.json")
    recipe = to_dict(tiny(tmp_path, cache_dir=prepared.folder, split_file=tmp_path / "split.json"))
    spec = TrialSpec(
        number=3, recipe=recipe, checkpoint=None, cpu=1, gpu_share=0, nodes=1,
        lock_file=str(tmp_path / "none" / "lock"), stdout_log=str(tmp_path / "a" / "b" / "stdout.log"),
        report_timeout=None, data=None, contents_file=str(tmp_path / "cases.json"),
    )  # fmt: skip

    def full(*_: object) -> EpochResult:
        raise OSError(code, os.strerror(code), "/injected")

    worker.run_trial(spec, full)
    _, report = reports  # the first says where the trial runs
    assert (report["epoch"], report["end_reason"]) == (0, "")
    assert re.match(rf"a full disk on .*: \[Errno {code}\] {os.strerror(code)}: '/injected'", report["sweep_error"])


def test_mixed_precision_on_a_cpu_is_said_to_do_nothing(prepared: Data) -> None:
    said = "device: cpu, float32 (amp bf16 acts on a GPU only)"
    assert said in training_summary(TrainConfig(device="cpu", amp="bf16"), prepared)
    assert "(amp" not in training_summary(TrainConfig(device="cpu"), prepared)
