"""Optimizers and lr schedules against torch's own and against numbers worked out by hand."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from trainable.core.config import TrainConfig
from trainable.training.optimizers import make_optimizer
from trainable.training.schedules import FACTORS, Schedule


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 2.0)
    return net


def schedule_of(**options: Any) -> Schedule:
    config = TrainConfig(**options)
    return Schedule(make_optimizer(network(), config), config)


def lrs(schedule: Schedule, epochs: int, score: float | None = None) -> list[float]:
    """The lr in force in each epoch."""
    found = []
    for _ in range(epochs):
        found.append(schedule.lr)
        schedule.optimizer.step()
        schedule.step(score)
    return found


def through_a_file(state: dict[str, Any]) -> Any:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("options", "torchs_own"),
    [
        ({"scheduler": "cosine", "min_lr": 1e-5}, lambda o: CosineAnnealingLR(o, 20, 1e-5)),
        ({"scheduler": "cosine"}, lambda o: CosineAnnealingLR(o, 20)),
        ({"scheduler": "step", "step_size": 6, "step_gamma": 0.3}, lambda o: StepLR(o, 6, 0.3)),
        (
            {"scheduler": "multistep", "milestones": (3, 8, 8, 15), "step_gamma": 0.4},
            lambda o: MultiStepLR(o, [3, 8, 8, 15], 0.4),
        ),
        ({"scheduler": "exponential", "exponential_gamma": 0.9}, lambda o: ExponentialLR(o, 0.9)),
        ({"scheduler": "poly", "poly_power": 1.7}, lambda o: PolynomialLR(o, 20, 1.7)),
        ({"scheduler": "poly"}, lambda o: PolynomialLR(o, 20, 0.9)),
    ],
)
def test_lr_over_epochs_equals_torch_s_own(options: dict[str, Any], torchs_own: Any) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.01)
    reference: LRScheduler = torchs_own(optimizer)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert lrs(schedule_of(lr=0.01, epochs=20, **options), 20) == pytest.approx(expected, rel=1e-9)


CLOSED_FORMS: list[dict[str, Any]] = [
    {"scheduler": "cosine", "min_lr": 1e-5, "warmup_epochs": 3},
    {"scheduler": "step", "step_size": 3, "step_gamma": 0.3},
    {"scheduler": "multistep", "milestones": (2, 7, 11), "step_gamma": 0.3, "min_lr": 1e-5},
    {"scheduler": "exponential", "exponential_gamma": 0.93},
    {"scheduler": "poly", "poly_power": 1.7},
]
GROUPS = ("float", "tensor")  # lr of the groups: a plain number, or a tensor, which a CUDA graph reads


def set_lr_of_kind(optimizer: torch.optim.Optimizer, kind: str) -> None:
    """Make the lr of each group a tensor, as capturing a step does."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"]) if kind == "tensor" else group["lr"]


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("options", CLOSED_FORMS, ids=lambda options: options["scheduler"])
def test_lr_of_a_closed_form_equals_that_of_torch_s_lambda_lr_to_the_last_bit(
    options: dict[str, Any], kind: str
) -> None:
    config = TrainConfig(lr=3e-4, epochs=20, **options)
    optimizer = make_optimizer(network(), config)
    reference = LambdaLR(optimizer, lambda epoch: FACTORS[config.scheduler](epoch, config))
    schedule = schedule_of(lr=3e-4, epochs=20, **options)
    for each in (optimizer, schedule.optimizer):
        set_lr_of_kind(each, kind)
    for _ in range(25):
        assert [float(group["lr"]) for group in optimizer.param_groups] == [schedule.lr] * 2
        optimizer.step()
        reference.step()
        schedule.step(None)


@pytest.mark.parametrize("kind", GROUPS)
def test_lr_of_plateau_equals_that_of_torch_s_to_the_last_bit(kind: str) -> None:
    options = {"lr": 3e-4, "plateau_patience": 1, "plateau_factor": 0.3, "min_lr": 1e-6}
    optimizer = make_optimizer(network(), TrainConfig(**options))
    reference = ReduceLROnPlateau(optimizer, mode="max", factor=0.3, patience=1, min_lr=1e-6, threshold=0)
    schedule = schedule_of(scheduler="plateau", **options)
    for each in (optimizer, schedule.optimizer):
        set_lr_of_kind(each, kind)
    lrs_seen = set()
    for score in (0.1, 0.3, 0.3, 0.2, 0.29, 0.4, 0.4, 0.1, *[0.2] * 20):
        reference.step(score)
        schedule.step(score)
        assert [float(group["lr"]) for group in optimizer.param_groups] == [schedule.lr] * 2
        lrs_seen.add(schedule.lr)
    assert len(lrs_seen) == 6


@pytest.mark.parametrize("options", CLOSED_FORMS, ids=lambda options: options["scheduler"])
def test_a_closed_form_goes_on_from_a_checkpoint_that_was_written_with_lambda_lr(options: dict[str, Any]) -> None:
    whole = lrs(schedule_of(lr=0.1, epochs=12, **options), 12)
    schedule = schedule_of(lr=0.1, epochs=12, **options)
    schedule.load_state_dict({"base_lrs": [0.1, 0.1], "last_epoch": 5, "_step_count": 6, "_last_lr": [whole[5]] * 2})
    assert lrs(schedule, 7) == whole[5:]


def test_plateau_goes_on_from_a_checkpoint_that_was_written_with_all_that_torch_keeps() -> None:
    schedule = schedule_of(lr=0.1, scheduler="plateau", plateau_patience=2)
    state = {"best": 0.5, "num_bad_epochs": 2, "cooldown_counter": 0, "last_epoch": 3, "_last_lr": [0.1, 0.1]}
    schedule.load_state_dict(state)
    schedule.step(0.5)
    assert schedule.lr == pytest.approx(0.05)
    assert schedule.state_dict() == {"best": 0.5, "num_bad_epochs": 0, "cooldown_counter": 0, "last_epoch": 4}


def test_warm_up_rises_linearly_to_lr_and_the_cosine_takes_the_epochs_left() -> None:
    found = lrs(schedule_of(lr=0.1, epochs=11, scheduler="cosine", warmup_epochs=3), 11)
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    reference = CosineAnnealingLR(optimizer, 8)
    for lr in found[3:]:
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_cosine_ends_at_min_lr_and_stays_there() -> None:
    schedule = schedule_of(lr=0.1, epochs=5, scheduler="cosine", min_lr=0.02)
    found = lrs(schedule, 8)
    assert min(found) == pytest.approx(0.02)
    assert found[5:] == pytest.approx([0.02] * 3)


def test_multistep_stops_at_min_lr() -> None:
    options = {"scheduler": "multistep", "milestones": (1, 2, 3), "step_gamma": 0.1, "min_lr": 0.004}
    assert lrs(schedule_of(lr=0.1, epochs=5, **options), 5) == pytest.approx([0.1, 0.01, 0.004, 0.004, 0.004])
    assert lrs(schedule_of(lr=0.001, epochs=5, **options), 5) == pytest.approx([0.001] * 5)


def test_min_lr_above_lr_does_not_raise_the_lr() -> None:
    assert lrs(schedule_of(lr=0.01, epochs=4, scheduler="cosine", min_lr=0.1), 4) == pytest.approx([0.01] * 4)
    plateau = schedule_of(lr=0.01, scheduler="plateau", min_lr=0.1, plateau_patience=0)
    assert lrs(plateau, 4, score=0.5) == pytest.approx([0.01] * 4)


def test_plateau_reduces_after_one_validation_more_than_its_patience_without_gain() -> None:
    schedule = schedule_of(lr=0.1, scheduler="plateau", plateau_patience=2, plateau_factor=0.5)
    found = []
    for score in (0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6):  # the best at the second, then six without gain
        schedule.step(score)
        found.append(schedule.lr)
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025])


def test_plateau_counts_from_each_gain() -> None:
    schedule = schedule_of(lr=0.1, scheduler="plateau", plateau_patience=1)
    for score in (0.5, 0.5, 0.6, 0.6, 0.7, 0.7):
        schedule.step(score)
        assert schedule.lr == 0.1
    schedule.step(0.6)  # the second without gain
    assert schedule.lr == pytest.approx(0.05)


def test_plateau_ignores_epochs_that_were_not_validated() -> None:
    schedule = schedule_of(lr=0.1, scheduler="plateau", plateau_patience=1)
    for score in (0.5, None, None, None, 0.5, None, None):
        schedule.step(score)
        assert schedule.lr == 0.1
    schedule.step(0.5)
    assert schedule.lr == pytest.approx(0.05)


def test_plateau_stops_at_min_lr() -> None:
    schedule = schedule_of(lr=0.1, scheduler="plateau", plateau_patience=0, plateau_factor=0.1, min_lr=0.004)
    assert lrs(schedule, 5, score=0.5) == pytest.approx([0.1, 0.1, 0.01, 0.004, 0.004])


def test_other_schedules_step_whatever_was_validated() -> None:
    found = [lrs(schedule_of(lr=0.1, scheduler="exponential"), 5, score) for score in (None, 0.5)]
    assert found[0] == found[1] == pytest.approx([0.1 * 0.95**epoch for epoch in range(5)])


@pytest.mark.parametrize(
    ("options", "shrunk"),
    [
        ({"optimizer": "adamw"}, 1 - 0.1 * 0.2),
        ({"optimizer": "sgd", "momentum": 0.0}, 1 - 0.1 * 0.2),
        ({"optimizer": "adam"}, 1 - 0.1 / 2.0),  # decay through the gradient: Adam's first step is one lr
    ],
)
def test_weights_decay_and_biases_and_norms_do_not(options: dict[str, Any], shrunk: float) -> None:
    net = network()
    optimizer = make_optimizer(net, TrainConfig(lr=0.1, weight_decay=0.2, **options))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factors = {name: parameter.detach().unique().item() / 2 for name, parameter in net.named_parameters()}
    assert factors["0.weight"] == pytest.approx(shrunk, rel=1e-5)
    assert [factors[name] for name in ("0.bias", "1.weight", "1.bias")] == [1, 1, 1]


def test_sgd_s_momentum_is_nesterov_s() -> None:
    net = network()
    optimizer = make_optimizer(net, TrainConfig(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0))
    found = []
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        found.append(net[0].bias.detach()[0].item())  # type: ignore[index, union-attr]
    # Velocity 1, then 1.9; each step is lr * (gradient + .9 velocity).
    assert found == pytest.approx([2 - 0.1 * 1.9, 2 - 0.1 * 1.9 - 0.1 * 2.71])


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_nesterov_s_or_plain_as_torch_has_them(nesterov: bool) -> None:
    ours, torchs = network(), network()
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0, "nesterov": nesterov}
    steps = (
        make_optimizer(ours, TrainConfig(optimizer="sgd", **options)),
        torch.optim.SGD(torchs.parameters(), **options),
    )
    for net, optimizer in zip((ours, torchs), steps, strict=True):
        for gradient in (1.0, -3.0, 0.5):
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))


@pytest.mark.parametrize(("name", "torchs_own"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_and_adamw_are_torch_s(name: str, torchs_own: Any) -> None:
    ours, torchs = nn.Conv3d(2, 3, 1, bias=False), nn.Conv3d(2, 3, 1, bias=False)
    torchs.load_state_dict(ours.state_dict())
    options = {"lr": 0.1, "weight_decay": 0.3}
    steps = make_optimizer(ours, TrainConfig(optimizer=name, **options)), torchs_own(torchs.parameters(), **options)
    for net, optimizer in zip((ours, torchs), steps, strict=True):
        for gradient in (1.0, -3.0, 0.5):
            net.weight.grad = torch.full_like(net.weight, gradient)
            optimizer.step()
    assert torch.equal(ours.weight, torchs.weight)


def test_adam_s_first_step_is_one_lr_against_the_gradient() -> None:
    for name in ("adam", "adamw"):
        net = network()
        optimizer = make_optimizer(net, TrainConfig(optimizer=name, lr=0.1, weight_decay=0))
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, -7.0)
        optimizer.step()
        assert net[0].bias.detach()[0].item() == pytest.approx(2.1)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("scheduler", ["plateau", "cosine", "step", "multistep", "exponential", "poly"])
def test_schedule_goes_on_from_a_checkpoint(scheduler: str) -> None:
    options = {"lr": 0.1, "epochs": 12, "scheduler": scheduler, "step_size": 2, "plateau_patience": 1}
    options["milestones"] = (1, 3, 7, 9)
    whole = lrs(schedule_of(**options), 12, score=0.5)
    assert len(set(whole)) > 3
    first = schedule_of(**options)
    assert lrs(first, 6, score=0.5) == whole[:6]
    second = schedule_of(**options)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    second.load_state_dict(through_a_file(first.state_dict()))
    assert lrs(second, 6, score=0.5) == pytest.approx(whole[6:])


@pytest.mark.parametrize("scheduler", ["plateau", "cosine", "step", "multistep", "exponential", "poly"])
def test_new_base_lr_scales_what_is_left_of_the_schedule(scheduler: str) -> None:
    options = {"epochs": 10, "scheduler": scheduler, "step_size": 3, "milestones": (2, 6)}
    expected = lrs(schedule_of(lr=0.3, **options), 10, score=None)
    schedule = schedule_of(lr=0.1, **options)
    lrs(schedule, 4, score=None)
    schedule.set_base_lr(0.3)
    assert lrs(schedule, 6, score=None) == pytest.approx(expected[4:])
    assert {group["lr"] for group in schedule.optimizer.param_groups} == {schedule.lr}  # of every group


def test_schedule_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrs(schedule_of(scheduler="cosine", epochs=3), 3)


def test_a_training_by_default_does_not_import_torch_s_compiler() -> None:
    code = """
import sys
import torch
from trainable.core.config import TrainConfig
from trainable.core.device import kernel_selection
from trainable.training.state import TrainingState

for name in ("adam", "adamw", "sgd"):
    config = TrainConfig(optimizer=name, depth=2, base_channels=4, target_shape=(8, 8, 8), batch_size=1, device="cpu")
    with kernel_selection(config):
        training = TrainingState(config)
        x, y = torch.randn(1, 4, 8, 8, 8), torch.zeros(1, 3, 8, 8, 8, dtype=torch.bool)
        training.train_step.forward_backward(x, y, 1.0)
        before = [p.clone() for p in training.network.parameters()]
        training.train_step.update()
        assert not all(map(torch.equal, before, training.network.parameters()))
        training.optimizer.load_state_dict(training.optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
