"""The Triton kernels against float64: compiled if there is a GPU (`make test-gpu`), else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainable.model.losses import region_sums
from trainable.model.unet3d import LEAKY_RELU_SLOPE, norm_act

pytest.importorskip("triton")

COMPILED = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU")
DEVICES = [pytest.param("cpu", marks=COMPILED), pytest.param("cuda", marks=pytest.mark.gpu)]
# Relative error of a tensor in the 2-norm; the inputs are of the dtype already.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
SHAPES = [(2, 32, 10, 6, 12), (3, 20, 7, 5, 3), (2, 320, 4, 2, 2)]

pytestmark = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def drawn(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int, mean: float = 0) -> Tensor:
    """Normal values, channels last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return x.to(device, dtype).contiguous(memory_format=torch.channels_last_3d)


def leaf(x: Tensor) -> Tensor:
    """A copy of the same layout that takes a gradient."""
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


@each_dtype
@each_shape
@pytest.mark.parametrize("residual", [False, True])
def test_norm_act_and_its_gradients(shape: tuple[int, ...], dtype: torch.dtype, residual: bool, device: str) -> None:
    from trainable.model.kernels.norm_act import NormAct

    norm = nn.InstanceNorm3d(shape[1], affine=True).to(device)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    x, skip, grad = (drawn(shape, dtype, device, seed, mean) for seed, mean in enumerate((3, 0, 1)))
    ours = [leaf(x), *([leaf(skip)] if residual else [])]
    y = NormAct.apply(ours[0], norm.weight, norm.bias, ours[1] if residual else None, norm.eps, LEAKY_RELU_SLOPE)
    y.backward(grad.clone())  # it takes the memory
    result = [y, *(x.grad for x in ours), norm.weight.grad.clone(), norm.bias.grad.clone()]  # type: ignore[union-attr]
    norm.double().zero_grad()
    exact = [leaf(x.detach().double()) for x in ours]
    z = norm_act(exact[0], norm, *exact[1:])
    z.backward(grad.double())
    assert (y.shape, y.dtype) == (z.shape, dtype)
    for one, other in zip(result, [z, *(x.grad for x in exact), norm.weight.grad, norm.bias.grad], strict=True):
        # sums over voxels cancel, and the sign at 0 differs if y is rounded
        assert error(one, other) < 10 * TOLERANCE[dtype]  # type: ignore[arg-type]


@each_dtype
@each_shape
@pytest.mark.parametrize("reuse", [False, True])
def test_head_and_its_gradients(shape: tuple[int, ...], dtype: torch.dtype, reuse: bool, device: str) -> None:
    from trainable.model.kernels.head import Head

    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies no bfloat16 matrices")
    conv = nn.Conv3d(shape[1], 3, 1).to(device)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.to(dtype))  # as autocast rounds it
    x, grad = leaf(drawn(shape, dtype, device, 0)), drawn((shape[0], 3, *shape[2:]), dtype, device, 1, mean=1)
    given = x.detach().clone()
    y = Head.apply(x, conv.weight, conv.bias, reuse)
    y.backward(grad)
    result = [y, x.grad, conv.weight.grad.clone(), conv.bias.grad.clone()]  # type: ignore[union-attr]
    conv.double().zero_grad()
    assert torch.equal(x, given) is not reuse
    exact = leaf(given.double())
    z = conv(exact)
    z.backward(grad.double())
    assert (y.shape, y.dtype) == (z.shape, dtype)
    for one, other in zip(result, [z, exact.grad, conv.weight.grad, conv.bias.grad], strict=True):
        assert error(one, other) < 2 * TOLERANCE[dtype]  # type: ignore[arg-type]


def test_join_concatenates_channels_and_splits_their_gradient(device: str) -> None:
    from trainable.model.kernels.join import Join

    a, b = (leaf(drawn((2, channels, 6, 5, 4), torch.float16, device, channels)) for channels in (12, 7))
    joined = Join.apply(a, b)
    grad = drawn((2, 19, 6, 5, 4), torch.float16, device, 3)
    joined.backward(grad)
    assert torch.equal(joined, torch.cat([a, b], 1))
    assert torch.equal(a.grad, grad[:, :12])  # type: ignore[arg-type]
    assert torch.equal(b.grad, grad[:, 12:])  # type: ignore[arg-type]


@each_dtype
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("gamma", "weights"), [(0.0, (1.0, 1.0)), (2.0, (0.25, 0.75)), (0.5, (0.5, 0.5))])
def test_region_sums_and_their_gradient(
    dtype: torch.dtype, last: bool, gamma: float, weights: tuple[float, float], device: str
) -> None:
    from trainable.model.kernels.region_sums import RegionSums

    logits = drawn((2, 3, 10, 9, 11), dtype, device, 3) * 3
    ours = leaf(logits if last else logits.contiguous())
    target = (
        (drawn((2, 3, 10, 9, 11), torch.float32, device, 4) > 0.5).to(torch.uint8 if last else torch.bool).contiguous()
    )
    scale = torch.linspace(0.5, 2, 24, device=device).view(4, 2, 3)
    sums = RegionSums.apply(ours, target, gamma, *weights)
    (sums * scale).sum().backward()
    exact = leaf(ours.detach().double())
    reference = region_sums(exact, target, gamma=gamma, weights=weights)
    (reference * scale).sum().backward()
    assert sums.shape == (4, 2, 3)
    assert error(sums, reference) < 1e-6
    assert error(ours.grad, exact.grad) < TOLERANCE[dtype]  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_region_sums_are_finite_at_extreme_logits(gamma: float, device: str) -> None:
    from trainable.model.kernels.region_sums import RegionSums

    target = (drawn((1, 3, 4, 4, 4), torch.float32, device, 4) > 0).float()
    for logit in (-1e4, -80.0, 80.0, 1e4):
        logits = leaf(torch.full_like(target, logit))
        sums = RegionSums.apply(logits, target, gamma, 1.0, 1.0)
        sums.sum().backward()
        assert bool(sums.isfinite().all())
        assert bool(logits.grad.isfinite().all())  # type: ignore[union-attr]
