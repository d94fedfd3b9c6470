"""What is fast on a GPU computes what the plain versions compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainable.config import TrainConfig
from trainable.data import Data
from trainable.loop import EpochResult, fit
from trainable.losses import make_loss, region_sums
from trainable.options import make_config
from trainable.training import Training
from trainable.unet3d import build_network, head, join, norm_act

pytestmark = pytest.mark.gpu

# Relative error of a tensor in the 2-norm against float64: the inputs are of the dtype already.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
SHAPES = [(2, 32, 40, 20, 12), (3, 20, 7, 5, 3), (2, 320, 4, 4, 4)]


def error(ours: Tensor, reference: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((ours.double() - reference).norm() / reference.norm())


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values around 3, channels last: a mean far from 0 shows cancellation."""
    x = torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)) + 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def outputs(x: Tensor, norm: nn.InstanceNorm3d, skip: Tensor | None, grad: Tensor, *, fused: bool) -> list[Tensor]:
    """What norm_act gives, and all of its gradients."""
    inputs = [each.detach().clone().requires_grad_() for each in (x, *(() if skip is None else (skip,)))]
    norm.zero_grad()
    y = norm_act(inputs[0], norm, *inputs[1:], fused=fused)
    y.backward(grad.to(y.dtype))
    assert norm.weight.grad is not None
    return [y, norm.weight.grad.clone(), norm.bias.grad.clone(), *(each.grad for each in inputs)]  # type: ignore[list-item, union-attr]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_norm_act_and_its_gradients_equal_float64(shape: tuple[int, ...], dtype: torch.dtype, residual: bool) -> None:
    x, grad = drawn(shape, dtype, 0), drawn(shape, dtype, 1)
    skip = drawn(shape, dtype, 2) - 3 if residual else None
    norm = nn.InstanceNorm3d(shape[1], affine=True).cuda()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    ours = outputs(x, norm, skip, grad, fused=True)
    exact = outputs(x.double(), norm.double(), None if skip is None else skip.double(), grad.double(), fused=False)
    assert [each.shape for each in ours] == [each.shape for each in exact]
    assert ours[0].dtype == dtype
    for one, other in zip(ours, exact, strict=True):
        # sums over voxels cancel, and a sign at 0 differs where y is rounded
        assert error(one, other) < (20 if one.ndim == 1 or residual else 5) * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_head_and_its_gradients_equal_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad = drawn(shape, dtype, 0), drawn((shape[0], 3, *shape[2:]), dtype, 1)
    conv = nn.Conv3d(shape[1], 3, 1).cuda()
    with torch.no_grad():  # as autocast rounds it
        conv.weight.copy_(conv.weight.to(dtype))
    found = []
    for fused, cast in ((True, lambda each: each), (False, Tensor.double)):
        leaf = cast(x).detach().clone().requires_grad_()
        conv = conv if fused else conv.double()
        conv.zero_grad()
        y = head(leaf, conv, fused=fused)
        y.backward(cast(grad))
        assert conv.weight.grad is not None
        found.append([y, leaf.grad, conv.weight.grad.clone(), conv.bias.grad.clone()])  # type: ignore[union-attr]
    for ours, exact in zip(*found, strict=True):
        assert ours.shape == exact.shape
        assert error(ours, exact) < 2 * TOLERANCE[dtype]


def test_join_puts_channels_beside_each_other_and_their_gradients_apart() -> None:
    a, b = (drawn((2, channels, 6, 5, 4), torch.bfloat16, channels).requires_grad_() for channels in (12, 7))
    joined = join(a, b, fused=True)
    assert torch.equal(joined, torch.cat([a, b], 1))
    grad = drawn((2, 19, 6, 5, 4), torch.bfloat16, 3)
    joined.backward(grad)
    assert torch.equal(a.grad, grad[:, :12])  # type: ignore[arg-type]
    assert torch.equal(b.grad, grad[:, 12:])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("gamma", "weights"), [(0.0, (1.0, 1.0)), (2.0, (0.25, 0.75)), (0.5, (0.5, 0.5))])
def test_region_sums_and_their_gradient_equal_float64(
    dtype: torch.dtype, last: bool, gamma: float, weights: tuple[float, float]
) -> None:
    logits = 3 * (drawn((2, 3, 20, 18, 22), dtype, 3) - 3)
    logits = logits if last else logits.contiguous()
    target = (drawn((2, 3, 20, 18, 22), torch.float32, 4) > 3.5).to(torch.uint8).contiguous()
    found = []
    for fused, x in ((True, logits), (False, logits.double())):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        sums = region_sums(leaf, target, gamma=gamma, weights=weights, fused=fused)
        weighed = sums * torch.linspace(0.5, 2, sums.numel(), device="cuda").view(sums.shape)
        weighed.sum().backward()
        assert leaf.grad is not None
        found.append((sums, leaf.grad))
    assert found[0][0].shape == (4, 2, 3)
    assert error(found[0][0], found[1][0]) < 1e-5
    assert error(found[0][1], found[1][1]) < 5 * TOLERANCE[dtype]


@pytest.mark.parametrize("base_loss", ["bce", "focal", "tversky"])
def test_loss_is_finite_at_extreme_logits(base_loss: Any) -> None:
    loss = make_loss(TrainConfig(base_loss=base_loss))
    target = (drawn((1, 3, 8, 8, 8), torch.float32, 4) > 3).float()
    for logit in (-1e4, -80.0, 80.0, 1e4):
        logits = torch.full_like(target, logit).requires_grad_()
        total = loss([logits], target).total
        total.backward()
        assert logits.grad is not None
        assert bool(total.isfinite())
        assert bool(logits.grad.isfinite().all())


def gradients(dtype: torch.dtype, *, fast: bool, residual: bool) -> dict[str, Tensor]:
    """The logits and the gradients of a network after one batch."""
    config = TrainConfig(depth=4, target_shape=(32, 32, 32), deep_supervision=True, residual=residual, fast=fast)
    torch.manual_seed(0)
    network = build_network(config).to("cuda", dtype).train()
    x, target = drawn((2, 4, 32, 32, 32), torch.float32, 5) - 3, drawn((2, 3, 32, 32, 32), torch.float32, 6) > 3.5
    heads = network(x.to(dtype))
    make_loss(config)(heads, target.to(dtype)).total.backward()
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return named | {f"head {level}": logits.detach() for level, logits in enumerate(heads)}


@pytest.mark.parametrize("residual", [False, True])
def test_network_and_its_gradients_are_as_near_to_float64_as_the_plain_ones(
    residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = gradients(torch.float64, fast=False, residual=residual)
    fast, plain = (gradients(torch.float32, fast=fast, residual=residual) for fast in (True, False))
    ours, theirs = ({name: error(each[name], exact[name]) for name in exact} for each in (fast, plain))
    # float32 itself is off by some 0.2 % in the first layers
    assert max(ours.values()) < 2 * max(theirs.values()), (ours, theirs)


def trained(
    folder: Path, data: Data, monkeypatch: pytest.MonkeyPatch | None = None, **options: Any
) -> tuple[Tensor, EpochResult]:
    """The weights after a training, and its last result."""
    base = {"depth": 3, "base_channels": 8, "target_shape": (32, 32, 32), "num_workers": 0, "epochs": 3, "lr": 5e-3}
    base |= {"patches_per_epoch": 21, "device": "cuda", "dropout": 0.1, "scheduler": "poly", "output_dir": folder}
    kept: list[Tensor] = []

    def keep(training: Training) -> None:
        kept.extend(training.network.parameters())
        if monkeypatch is not None:
            training.graphed = False

    result = fit(make_config({**base, **options}), data, on_start=keep)
    return torch.cat([p.detach().flatten() for p in kept]), result


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "amp": "bf16", "gradient_clipping": 1.0},
        {"optimizer": "sgd", "amp": "fp16", "accumulation_steps": 3},
        {"optimizer": "adam", "scheduler": "plateau", "plateau_patience": 0, "val_freq": 1},
    ],
    ids=["adamw, bf16, clipped", "sgd, fp16, accumulated", "adam, float32, plateau"],
)
def test_a_training_from_cuda_graphs_equals_one_without_bit_for_bit(
    prepared: Data, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed, one = trained(tmp_path / "graphed", prepared, deterministic=True, **options)
    plain, other = trained(tmp_path / "plain", prepared, monkeypatch, deterministic=True, **options)
    assert torch.equal(graphed, plain)
    assert one.stats["avg_total_loss"] == other.stats["avg_total_loss"]
    assert one.stats["max_gpu_memory"] > 1


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_fast_training_learns_like_a_plain_one(prepared: Data, tmp_path: Path, amp: str) -> None:
    losses = []
    for fast in (True, False):
        _, result = trained(tmp_path / str(fast), prepared, fast=fast, amp=amp, augment=False, dropout=0.0)
        losses.append(result.stats["avg_total_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_trains_fast_unless_told_otherwise(fast: bool) -> None:
    config = make_config({"depth": 3, "target_shape": (32, 32, 32), "device": "cuda", "fast": fast})
    training = Training(config)
    weight = training.network.encoder[1].conv1.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) is fast
    assert (training.graphed, training.network.fused, config.fused) == (fast, fast, fast)
