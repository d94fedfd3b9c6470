"""The training loop on real phantoms: resume, accumulation, early ends, and what it never reads."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from trainable import checkpoint
from trainable.config import InputError, TrainConfig
from trainable.data import Data
from trainable.loop import EpochResult, Training, fit, share_of_step, train_one_epoch, update
from trainable.options import make_config
from trainable.patches import PatchLoader

TINY = {
    **{"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "device": "cpu", "num_workers": 0},
    **{"epochs": 4, "patches_per_epoch": 6, "optimizer": "adamw", "lr": 5e-3, "dropout": 0.1},
}


def config_in(folder: Path, **options: object) -> TrainConfig:
    return make_config({**TINY, "output_dir": folder, **options})


class Interrupted(Exception):
    pass


def run(config: TrainConfig, data: Data, *, interrupt_after: int = 0) -> list[EpochResult]:
    results: list[EpochResult] = []

    def on_epoch_end(result: EpochResult) -> None:
        results.append(result)
        if result.epoch == interrupt_after:
            raise Interrupted

    if interrupt_after:
        with pytest.raises(Interrupted):
            fit(config, data, on_epoch_end)
    else:
        fit(config, data, on_epoch_end)
    return results


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(prepared: Data, tmp_path: Path, scheduler: str):
    options = {"scheduler": scheduler, "plateau_patience": 0, "deep_supervision": True, "accumulation_steps": 2}
    whole = run(config_in(tmp_path / "whole", **options), prepared)
    run(config_in(tmp_path / "parts", **options), prepared, interrupt_after=2)
    resume = tmp_path / "parts" / "checkpoints" / "latest.pth"
    rest = run(config_in(tmp_path / "parts", resume=resume, **options), prepared)
    assert [result.epoch for result in rest] == [3, 4]
    assert [result.val for result in rest] == [result.val for result in whole[2:]]
    one, other = (checkpoint.load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert one["network"].keys() == other["network"].keys()
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    assert one["schedule"] == other["schedule"]
    assert (one["best_score"], one["best_epoch"]) == (other["best_score"], other["best_epoch"])


def test_resume_in_another_folder_takes_the_best_model_along(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path / "a", lr=1e-5), prepared, interrupt_after=2)
    source = tmp_path / "a" / "checkpoints"
    run(config_in(tmp_path / "b", resume=source, epochs=3, lr=1e-9), prepared)
    assert (tmp_path / "b" / "checkpoints" / "best_model.pth").exists()


def test_training_learns_and_its_best_model_is_that_of_the_best_epoch(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, epochs=6, patches_per_epoch=24), prepared)
    assert results[-1].stats["avg_total_loss"] < 0.9 * results[0].stats["avg_total_loss"]
    scores = [result.val["dice_mean"] for result in results if result.val]
    best = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "best_model.pth")
    assert best["best_score"] == max(scores) == results[-1].best_score
    assert best["epoch"] == scores.index(max(scores)) + 1 == results[-1].best_epoch


def test_metric_chooses_the_region_that_picks_the_best_epoch(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, metric="val_dice_ET"), prepared)
    assert results[-1].best_score == max(result.val["dice_ET"] for result in results if result.val)


def test_accumulated_micro_batches_give_the_update_of_one_batch(prepared: Data, tmp_path: Path):
    """For a loss that averages over samples (no batch Dice), also in the last step with fewer patches."""
    weights = []
    for batch_size, steps in [(4, 1), (2, 2), (1, 4)]:
        config = config_in(
            tmp_path, batch_size=batch_size, accumulation_steps=steps, patches_per_epoch=7, dropout=0.0,
            loss_weights=(1.0, 0.0), optimizer="sgd", momentum=0.0, lr=0.1,
        )  # fmt: skip
        training = Training(config)
        train_one_epoch(training, PatchLoader(prepared.folder, prepared.split.train, config, pin_memory=False))
        weights.append(torch.cat([p.detach().flatten() for p in training.network.parameters()]))
    start = torch.cat([p.detach().flatten() for p in Training(config).network.parameters()])
    way = (weights[0] - start).norm()
    assert way > 0.01
    assert (weights[1] - weights[0]).norm() / way < 1e-2
    assert (weights[2] - weights[0]).norm() / way < 1e-2


def test_share_of_step_sums_to_one_in_every_step():
    config = make_config({**TINY, "batch_size": 2, "accumulation_steps": 3})
    sizes = [2, 2, 2, 2, 2, 2, 2, 1]  # 15 patches: steps of 6, 6 and 3
    shares = [share_of_step(index, size, 15, config) for index, size in enumerate(sizes)]
    assert [sum(shares[:3]), sum(shares[3:6]), sum(shares[6:])] == pytest.approx([1, 1, 1])


def test_clipping_limits_the_update_and_reports_the_norm_before_it(prepared: Data, tmp_path: Path):
    config = config_in(tmp_path, gradient_clipping=0.5, optimizer="sgd", momentum=0.0, lr=1.0, weight_decay=0.0)
    training = Training(config)
    before = [p.detach().clone() for p in training.network.parameters()]
    for parameter in training.network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    count = sum(p.numel() for p in training.network.parameters())
    assert update(training).item() == pytest.approx(3 * math.sqrt(count), rel=1e-4)
    after = training.network.parameters()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, after, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_only_train_and_val_cases_are_opened(prepared: Data, tmp_path: Path):
    """What selects must not see the test part: every file that training opens is noted."""
    opened: list[str] = []
    listening = True

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    run(config_in(tmp_path), prepared)
    listening = False
    parts = {Path(path).parent.name for path in opened if str(prepared.folder) in path}
    assert parts == {*prepared.split.train, *prepared.split.val}
    assert prepared.split.test
    assert not parts & set(prepared.split.test)


def test_val_freq_validates_every_so_many_epochs_and_the_last(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, epochs=5, val_freq=2), prepared)
    assert [result.epoch for result in results if result.val] == [2, 4, 5]


def test_patience_ends_a_training_that_does_not_improve(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, epochs=30, patience=2, lr=1e-12), prepared)
    assert results[-1].end_reason == "patience"
    assert results[-1].epoch == results[-1].best_epoch + 2


def test_save_freq_keeps_numbered_checkpoints(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path, save_freq=2), prepared)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"latest.pth", "best_model.pth", "epoch_0002.pth", "epoch_0004.pth"}


def test_a_loss_that_is_not_finite_ends_the_training_with_the_last_good_checkpoint(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, epochs=40, optimizer="sgd", lr=1e30, patches_per_epoch=12), prepared)
    assert results[-1].end_reason == "non_finite"
    latest = tmp_path / "checkpoints" / "latest.pth"
    if results[-1].epoch > 1:
        assert checkpoint.load_checkpoint(latest)["epoch"] == results[-1].epoch - 1
    else:
        assert not latest.exists()


def test_without_validation_cases_the_last_epoch_is_the_best(prepared: Data, tmp_path: Path):
    split = dataclasses.replace(prepared.split, val=())
    results = run(config_in(tmp_path), dataclasses.replace(prepared, split=split))
    assert all(result.val is None for result in results)
    assert checkpoint.load_checkpoint(tmp_path / "checkpoints" / "best_model.pth")["epoch"] == 4


def test_what_may_not_change_on_resume_is_refused(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path), prepared, interrupt_after=1)
    with pytest.raises(InputError, match=r"base_channels is 4 in the checkpoint and 8 now; it cannot change"):
        fit(config_in(tmp_path, resume=tmp_path, base_channels=8), prepared)
    other = dataclasses.replace(prepared.split, train=prepared.split.train[1:])
    with pytest.raises(InputError, match="their split are not those of the checkpoint"):
        fit(config_in(tmp_path, resume=tmp_path), dataclasses.replace(prepared, split=other))


def test_a_new_lr_on_resume_takes_effect(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path, scheduler="exponential", exponential_gamma=0.5), prepared, interrupt_after=2)
    options = {"scheduler": "exponential", "exponential_gamma": 0.5, "lr": 8e-4}
    results = run(config_in(tmp_path, resume=tmp_path, **options), prepared)
    assert [result.stats["lr"] for result in results] == pytest.approx([2e-4, 1e-4])


def test_other_options_on_resume_take_effect(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path, optimizer="sgd"), prepared, interrupt_after=1)
    options = {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.25, "plateau_patience": 3, "plateau_factor": 0.1}
    config = config_in(tmp_path, resume=tmp_path, **options)
    training = Training(config)
    training.load_state(checkpoint.load_checkpoint(tmp_path), prepared)
    assert [group["momentum"] for group in training.optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in training.optimizer.param_groups] == [0.25, 0.0]
    assert (training.schedule.scheduler.patience, training.schedule.scheduler.factor) == (3, 0.1)


def test_resume_of_an_earlier_checkpoint_does_not_keep_a_later_best_model(prepared: Data, tmp_path: Path):
    results = run(config_in(tmp_path, save_freq=1, patches_per_epoch=24), prepared)
    assert results[-1].best_epoch > 1
    first = tmp_path / "checkpoints" / "epoch_0001.pth"
    again = run(config_in(tmp_path, resume=first, epochs=2, lr=1e-9), prepared)
    best = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "best_model.pth")
    assert best["epoch"] == again[-1].best_epoch == 2


def test_resume_of_a_finished_training_says_to_raise_epochs(prepared: Data, tmp_path: Path):
    run(config_in(tmp_path), prepared)
    with pytest.raises(InputError, match="has done 4 of 4 epochs; raise --epochs"):
        fit(config_in(tmp_path, resume=tmp_path), prepared)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_mixed_precision_learns_like_float32_on_a_gpu(prepared: Data, tmp_path: Path, amp: str):
    config = config_in(tmp_path, device="cuda", amp=amp, epochs=6, patches_per_epoch=24, deep_supervision=True)
    results = run(config, prepared)
    assert results[-1].stats["avg_total_loss"] < 0.9 * results[0].stats["avg_total_loss"]
    assert results[-1].stats["max_gpu_memory"] > 1
