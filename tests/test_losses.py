"""Losses against numbers worked out by hand, against MONAI, and at the edges of their domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.model.losses import SMOOTH, bce_loss, dice_loss, focal_loss, head_weights, make_loss, tversky_loss

LossFunction = Callable[[Tensor, Tensor], Tensor]
LN3 = math.log(3)  # its sigmoid is 3/4

ALL: dict[str, LossFunction] = {
    "dice": dice_loss,
    "bce": bce_loss,
    "tversky": lambda x, y: tversky_loss(x, y, alpha=0.3, beta=0.7),
    "dice of each patch": lambda x, y: dice_loss(x, y, batch=False),
    "focal": lambda x, y: focal_loss(x, y, gamma=2.0, alpha=0.25),
    "focal, gamma 0.5": lambda x, y: focal_loss(x, y, gamma=0.5, alpha=0.5),
}
each_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())


def voxels(rows: list[list[float]]) -> Tensor:
    """One list a region, one number a sample -> (samples, regions, 1, 1, 1)."""
    return torch.tensor(rows, dtype=torch.float64).T[:, :, None, None, None]


def some_batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 6, 5, 4, generator=generator, dtype=dtype)
    return logits, (torch.rand(2, 3, 6, 5, 4, generator=generator) < 0.3).to(dtype)


def test_dice_is_taken_of_each_region_over_the_batch_then_averaged() -> None:
    # Region 0: p = .75, .25 and t = 1, 0: Dice = 2 * .75 / (1 + 1) = .75. Region 1: nothing there, Dice 0.
    logits, target = voxels([[LN3, -LN3], [LN3, LN3]]), voxels([[1, 0], [0, 0]])
    assert dice_loss(logits, target).item() == pytest.approx((0.25 + 1) / 2, abs=1e-4)


def test_tversky_weighs_false_positives_by_alpha_and_false_negatives_by_beta() -> None:
    # p = .75, .75 and t = 1, 0: TP = .75, FP = .75, FN = .25.
    logits, target = voxels([[LN3, LN3]]), voxels([[1, 0]])
    expected = 1 - 0.75 / (0.75 + 0.2 * 0.75 + 0.6 * 0.25)
    assert tversky_loss(logits, target, alpha=0.2, beta=0.6).item() == pytest.approx(expected, abs=1e-4)


def test_bce_is_the_mean_of_minus_log_of_the_true_class() -> None:
    # p = .75, .75 and t = 1, 0: -ln .75 and -ln .25.
    logits, target = voxels([[LN3, LN3]]), voxels([[1, 0]])
    assert bce_loss(logits, target).item() == pytest.approx((-math.log(0.75) - math.log(0.25)) / 2)


def test_focal_mutes_easy_voxels_and_weighs_tumour_by_alpha() -> None:
    # p = .75, .75 and t = 1, 0: .1 * .25^2 * -ln .75 and .9 * .75^2 * -ln .25.
    logits, target = voxels([[LN3, LN3]]), voxels([[1, 0]])
    expected = (0.1 * 0.25**2 * -math.log(0.75) + 0.9 * 0.75**2 * -math.log(0.25)) / 2
    assert focal_loss(logits, target, gamma=2, alpha=0.1).item() == pytest.approx(expected)


def test_one_voxel_at_logit_0() -> None:
    logits, target = voxels([[0]]), voxels([[1]])
    assert dice_loss(logits, target).item() == pytest.approx(1 / 3, abs=1e-4)  # 1 - 2 * .5 / 1.5
    assert tversky_loss(logits, target, alpha=0.3, beta=0.7).item() == pytest.approx(1 - 0.5 / 0.85, abs=1e-4)
    assert bce_loss(logits, target).item() == pytest.approx(math.log(2))
    assert focal_loss(logits, target, gamma=2, alpha=0.25).item() == pytest.approx(math.log(2) / 16)


def test_dice_equals_monai() -> None:
    logits, target = some_batch()
    monai = DiceLoss(sigmoid=True, batch=True, smooth_nr=2 * SMOOTH, smooth_dr=2 * SMOOTH)  # ours is on half the terms
    assert dice_loss(logits, target).item() == pytest.approx(monai(logits, target).item(), rel=1e-6)


def test_dice_of_each_patch_is_averaged_over_samples_and_regions() -> None:
    # Samples p = .75 and .25 with t = 1 and 0: Dice = 1.5 / 1.75 and 0, over the batch 1.5 / 2.
    logits, target = voxels([[LN3, -LN3]]), voxels([[1, 0]])
    assert dice_loss(logits, target, batch=False).item() == pytest.approx((1 - 1.5 / 1.75 + 1) / 2, abs=1e-4)
    assert dice_loss(logits, target, batch=True).item() == pytest.approx(1 - 1.5 / 2, abs=1e-4)


def test_dice_and_tversky_of_each_patch_equal_monai() -> None:
    logits, target = some_batch(12)
    dice = DiceLoss(sigmoid=True, batch=False, smooth_nr=2 * SMOOTH, smooth_dr=2 * SMOOTH)
    assert dice_loss(logits, target, batch=False).item() == pytest.approx(dice(logits, target).item(), rel=1e-6)
    tversky = TverskyLoss(sigmoid=True, batch=False, alpha=0.2, beta=0.9, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    ours = tversky_loss(logits, target, alpha=0.2, beta=0.9, batch=False)
    assert ours.item() == pytest.approx(tversky(logits, target).item(), rel=1e-6)


def test_bce_equals_monai() -> None:
    logits, target = some_batch(13)
    assert bce_loss(logits, target).item() == pytest.approx(FocalLoss(gamma=0)(logits, target).item(), rel=1e-6)


def test_tversky_equals_monai() -> None:
    logits, target = some_batch(1)
    monai = TverskyLoss(sigmoid=True, batch=True, alpha=0.2, beta=0.9, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    ours = tversky_loss(logits, target, alpha=0.2, beta=0.9)
    assert ours.item() == pytest.approx(monai(logits, target).item(), rel=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.9), (3.0, 0.5)])
def test_focal_equals_monai(gamma: float, alpha: float) -> None:
    logits, target = some_batch(2)
    expected = FocalLoss(gamma=gamma, alpha=alpha)(logits, target)
    assert focal_loss(logits, target, gamma=gamma, alpha=alpha).item() == pytest.approx(expected.item(), rel=1e-5)


def test_tversky_of_halves_is_dice() -> None:
    logits, target = some_batch(3)
    hit = (logits.sigmoid() * target).sum((0, 2, 3, 4))
    by_hand = 1 - (2 * hit / (logits.sigmoid().sum((0, 2, 3, 4)) + target.sum((0, 2, 3, 4)))).mean()
    assert tversky_loss(logits, target, alpha=0.5, beta=0.5).item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert dice_loss(logits, target).item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_focal_of_gamma_0_and_alpha_half_is_half_of_bce() -> None:
    logits, target = some_batch(4)
    ours = focal_loss(logits, target, gamma=0, alpha=0.5)
    assert ours.item() == pytest.approx(bce_loss(logits, target).item() / 2, rel=1e-6)


def test_empty_region_costs_all_of_its_dice_if_predicted_and_else_nothing() -> None:
    nothing = torch.zeros(2, 1, 4, 4, 4)
    assert dice_loss(torch.zeros_like(nothing), nothing).item() == pytest.approx(1, abs=1e-5)
    assert dice_loss(torch.full_like(nothing, -80), nothing).item() == pytest.approx(0, abs=1e-6)
    assert tversky_loss(torch.full_like(nothing, -80), nothing, alpha=0.3, beta=0.7).item() == pytest.approx(
        0, abs=1e-6
    )


def test_patch_without_tumour_does_not_change_dice_of_the_batch() -> None:
    logits, target = some_batch(5)
    none = torch.full_like(logits[:1], -80)
    longer = dice_loss(torch.cat([logits, none]), torch.cat([target, torch.zeros_like(none)]))
    assert longer.item() == pytest.approx(dice_loss(logits, target).item(), rel=1e-5)


@each_loss
def test_right_certainty_costs_0(loss: LossFunction) -> None:
    _, target = some_batch(6)
    assert loss(80 * (2 * target - 1), target).item() == pytest.approx(0, abs=1e-6)


@each_loss
def test_float16_logits_of_a_large_patch_lose_nothing(loss: LossFunction) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 96, 96, 96, generator=generator).half()
    target = (torch.rand(1, 1, 96, 96, 96, generator=generator) < 0.5).float().expand(-1, 3, -1, -1, -1)
    value = loss(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.double(), target).item(), rel=1e-4)


@each_loss
def test_gradient_equals_finite_differences(loss: LossFunction) -> None:
    logits, target = some_batch(7, torch.float64)
    logits = logits[:, :, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target[:, :, :2, :2, :2]), (logits,))


@each_loss
def test_value_and_gradient_are_finite_at_extreme_logits(loss: LossFunction) -> None:
    _, target = some_batch(8)
    for logit in (-80.0, 80.0, -1e4, 1e4):
        logits = torch.full_like(target, logit).requires_grad_()
        value = loss(logits, target)
        value.backward()
        assert logits.grad is not None
        assert bool(value.isfinite())
        assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("name", ["bce", "focal", "tversky"])
def test_config_chooses_the_base_loss_and_its_parameters(name: str) -> None:
    logits, target = some_batch(9)
    config = TrainConfig(
        base_loss=name, loss_weights=(1, 0), focal_gamma=1.5, focal_alpha=0.8, tversky_alpha=0.1, tversky_beta=0.6
    )
    expected = {
        "bce": bce_loss(logits, target),
        "focal": focal_loss(logits, target, gamma=1.5, alpha=0.8),
        "tversky": tversky_loss(logits, target, alpha=0.1, beta=0.6),
    }
    assert make_loss(config)([logits], target).total.item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_loss_weights_are_base_then_dice() -> None:
    logits, target = some_batch(10)
    loss = make_loss(TrainConfig(loss_weights=(2, 0.5)))([logits], target)
    assert loss.base.item() == pytest.approx(bce_loss(logits, target).item(), rel=1e-6)
    assert loss.dice.item() == pytest.approx(dice_loss(logits, target).item(), rel=1e-6)
    assert loss.total.item() == pytest.approx(2 * loss.base.item() + 0.5 * loss.dice.item(), rel=1e-6)


@pytest.mark.parametrize("base_loss", ["bce", "tversky"])
def test_config_chooses_dice_and_tversky_per_batch_or_per_patch(base_loss: str) -> None:
    logits, target = some_batch(14)
    for batch in (True, False):
        config = TrainConfig(base_loss=base_loss, batch_dice=batch)
        loss = make_loss(config)([logits], target)
        assert loss.dice.item() == pytest.approx(dice_loss(logits, target, batch=batch).item(), rel=1e-6)
        if base_loss == "tversky":
            expected = tversky_loss(logits, target, alpha=0.3, beta=0.7, batch=batch)
            assert loss.base.item() == pytest.approx(expected.item(), rel=1e-6)


def test_head_weights_halve_and_sum_to_1() -> None:
    assert head_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert [sum(head_weights(heads)) for heads in (1, 2, 3, 4)] == pytest.approx([1, 1, 1, 1])


def test_number_of_heads_does_not_change_the_scale() -> None:
    target = torch.ones(1, 3, 16, 16, 16)
    heads = [torch.full((1, 3, 16 // 2**i, 16 // 2**i, 16 // 2**i), LN3) for i in range(4)]
    loss = make_loss(TrainConfig())
    totals = [loss(heads[:count], target).total.item() for count in (1, 2, 3, 4)]
    expected = -math.log(0.75) + 1 - 2 * 0.75 / 1.75
    assert totals == pytest.approx([expected] * 4, abs=1e-4)


def test_lower_heads_count_by_their_weight() -> None:
    target = torch.ones(1, 3, 8, 8, 8)
    right, undecided = torch.full((1, 3, 8, 8, 8), 80.0), torch.zeros(1, 3, 4, 4, 4)
    loss = make_loss(TrainConfig())([right, undecided], target)
    assert loss.base.item() == pytest.approx(math.log(2) / 3, rel=1e-5)
    assert loss.dice.item() == pytest.approx((1 / 3) / 3, rel=1e-4)


def test_targets_of_lower_heads_are_the_nearest_voxels() -> None:
    _, target = some_batch(11)
    target = target[:, :, :4, :4, :4]
    heads = [80 * (2 * goal - 1) for goal in (target, target[:, :, ::2, ::2, ::2], target[:, :, ::4, ::4, ::4])]
    loss = make_loss(TrainConfig())(heads, target)
    assert loss.base.item() == pytest.approx(0, abs=1e-6)  # any averaged target would cost
    assert loss.dice.item() == pytest.approx(0, abs=1e-5)
