"""A fast training on a GPU: as near to float64 as a plain one, the same with graphs as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.options import make_config
from trainable.data.prepare import Data
from trainable.model import unet3d
from trainable.model.fused_kernels import has_fused_kernels
from trainable.model.losses import make_loss
from trainable.model.unet3d import build_network
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.state import TrainingState
from trainable.training.step import capture_graph

pytestmark = pytest.mark.gpu


def gradients(dtype: torch.dtype, *, fast: bool, residual: bool) -> dict[str, Tensor]:
    """The logits and the gradients of a network after one batch."""
    config = TrainConfig(depth=4, target_shape=(32, 32, 32), deep_supervision=True, residual=residual, fast=fast)
    torch.manual_seed(0)
    network = build_network(config).to("cuda", dtype).train()
    draw = torch.Generator("cuda").manual_seed(5)
    x = torch.randn(2, 4, 32, 32, 32, device="cuda", generator=draw)
    target = torch.rand(2, 3, 32, 32, 32, device="cuda", generator=draw) < 0.3
    heads = network(x.to(dtype))
    make_loss(config)(heads, target.to(dtype)).total.backward()
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return named | {f"head {level}": logits.detach() for level, logits in enumerate(heads)}


@pytest.mark.parametrize("residual", [False, True])
def test_network_and_its_gradients_are_as_near_to_float64_as_the_plain_ones(
    residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(unet3d, "LEAKY_RELU_SLOPE", 1.0)  # at a kink float32's own error grows a hundredfold, by chance
    exact = gradients(torch.float64, fast=False, residual=residual)
    fast, plain = (gradients(torch.float32, fast=fast, residual=residual) for fast in (True, False))
    ours, theirs = (
        {name: float((each[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact}
        for each in (fast, plain)
    )
    assert max(theirs.values()) < 1e-3
    assert max(ours.values()) < 4 * max(theirs.values()), (ours, theirs)


def trained(
    folder: Path, data: Data, monkeypatch: pytest.MonkeyPatch | None = None, **options: Any
) -> tuple[Tensor, EpochResult]:
    """The weights after a training, and its last result."""
    base = {"depth": 3, "base_channels": 8, "target_shape": (32, 32, 32), "num_workers": 0, "epochs": 3, "lr": 5e-3}
    base |= {"patches_per_epoch": 21, "device": "cuda", "dropout": 0.1, "scheduler": "poly", "output_dir": folder}
    kept: list[Tensor] = []

    def keep(training: TrainingState) -> None:
        kept.extend(training.network.parameters())
        if monkeypatch is not None:
            training.train_step.use_cuda_graphs = False

    result = fit(make_config({**base, **options}), data, on_start=keep)
    return torch.cat([p.detach().flatten() for p in kept]), result


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "amp": "bf16", "gradient_clipping": 1.0},
        {"optimizer": "sgd", "amp": "fp16", "accumulation_steps": 3, "residual": True},
        {"optimizer": "adamw", "patches_per_epoch": 5, "accumulation_steps": 3},
        {"optimizer": "adam", "scheduler": "plateau", "plateau_patience": 0, "val_freq": 1},
    ],
    ids=[
        "adamw, bf16, clipped",
        "sgd, fp16, accumulated, residual",
        "less than a step an epoch",
        "adam, float32, plateau",
    ],
)
def test_a_training_from_cuda_graphs_equals_one_without_bit_for_bit(
    prepared: Data, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed, one = trained(tmp_path / "graphed", prepared, deterministic=True, **options)
    plain, other = trained(tmp_path / "plain", prepared, monkeypatch, deterministic=True, **options)
    assert torch.equal(graphed, plain)
    assert one.stats.avg_total_loss == other.stats.avg_total_loss
    assert one.stats.max_gpu_memory > 1


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_fast_training_learns_like_a_plain_one(prepared: Data, tmp_path: Path, amp: str) -> None:
    losses = []
    for fast in (True, False):
        _, result = trained(tmp_path / str(fast), prepared, fast=fast, amp=amp, augment=False, dropout=0.0)
        losses.append(result.stats.avg_total_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_trains_fast_unless_told_otherwise(fast: bool) -> None:
    config = make_config({"depth": 3, "target_shape": (32, 32, 32), "device": "cuda", "fast": fast})
    training = TrainingState(config)
    weight = training.network.encoder[1].conv1.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) is fast
    assert (training.train_step.use_cuda_graphs, training.network.fused, has_fused_kernels(config)) == (
        fast,
        fast,
        fast,
    )


def test_a_step_that_no_graph_can_hold_says_why_and_what_to_do() -> None:
    def work() -> Tensor:
        return torch.full((), float(torch.ones(3, device="cuda").sum()))  # the CPU asks for a value

    with pytest.raises(RuntimeError, match="(?s)cannot hold this step as a CUDA graph: .*captur.*try `fast: false`"):
        capture_graph(work, torch.cuda.graph_pool_handle())
    graph, result = capture_graph(lambda: torch.ones(3, device="cuda").sum(), torch.cuda.graph_pool_handle())
    graph.replay()
    assert result.item() == 3


def test_a_training_goes_on_fast_from_a_plain_checkpoint_and_plain_from_a_fast_one(prepared: Data, tmp_path: Path):
    for name, fast in (("plain", False), ("fast", True)):
        trained(tmp_path / name, prepared, fast=fast, optimizer="adamw")
        _, result = trained(
            tmp_path / name, prepared, fast=not fast, optimizer="adamw", epochs=4, resume=tmp_path / name
        )
        assert result.epoch == 4


@pytest.mark.parametrize(("own", "graphs"), [(1, 1), (2, 2), (4, 2)])
def test_a_process_captures_the_micro_batches_that_it_has_of_a_step(own: int, graphs: int) -> None:
    """A step has four; 4 / own processes share it."""
    shape = {"depth": 3, "base_channels": 8, "target_shape": (32, 32, 32), "batch_size": 2}
    step = TrainingState(make_config({**shape, "device": "cuda", "accumulation_steps": 4})).train_step
    step.micro_batches = own
    x, y = torch.randn(2, 4, 32, 32, 32, device="cuda"), torch.ones(2, 3, 32, 32, 32, device="cuda")
    for _ in range(6):
        for _ in range(own):
            step.forward_backward(x, y, 0.25)
        assert step.update().isfinite()
    assert step.update_graph is not None
    assert len(step.graphs) == graphs
