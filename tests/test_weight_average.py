"""The moving average of the weights: by hand, over a resume, and in validation and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_fit

from trainable.core.config import TrainConfig
from trainable.core.options import make_config
from trainable.data.patches import PatchLoader
from trainable.data.prepare import Data
from trainable.training import checkpoint, loop, validation
from trainable.training.state import TrainingState
from trainable.training.step import TrainStep
from trainable.training.train_epoch import train_one_epoch

TINY: dict[str, Any] = {
    **{"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "overlap": 0, "device": "cpu", "num_workers": 0},
    **{"epochs": 4, "patches_per_epoch": 6, "optimizer": "adamw", "lr": 5e-3, "dropout": 0.1},
}
EMA: dict[str, Any] = {"ema_decay": 0.6, "plateau_patience": 0}


def config_in(folder: Path, **options: Any) -> TrainConfig:
    return make_config({**TINY, "output_dir": folder, **options})


def weights_of(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def train_epoch(training: TrainingState, data: Data) -> None:
    train_one_epoch(training, PatchLoader(data.folder, data.split.train, training.config, pin_memory=False))


def test_average_is_the_one_computed_by_hand(prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingState(config_in(tmp_path, ema_decay=0.3, patches_per_epoch=10, batch_size=1))
    expected, after = weights_of(training.network), list[list[torch.Tensor]]()
    update = TrainStep.update

    def noting(step: TrainStep) -> torch.Tensor:
        norm = update(step)
        after.append(weights_of(step.network))
        return norm

    monkeypatch.setattr(TrainStep, "update", noting)
    train_epoch(training, prepared)
    assert len(after) == 10
    for step, weights in enumerate(after, 1):
        decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13 = 0.31: from there on 0.3
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    torch.testing.assert_close(weights_of(training.validated_network), expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(expected[0], after[-1][0])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_skipped_step_does_not_count(tmp_path: Path, device: str) -> None:
    training = TrainingState(config_in(tmp_path, device=device, **EMA))
    assert training.average is not None
    for factor in (1.0, float("nan")):
        before = weights_of(training.validated_network), int(training.average.steps)
        sum(factor * p.sum() for p in training.network.parameters()).backward()  # type: ignore[union-attr]
        training.train_step.update()
    assert int(training.average.steps) == before[1] == 1
    assert all(map(torch.equal, weights_of(training.validated_network), before[0]))


@pytest.mark.gpu
def test_average_from_cuda_graphs_is_that_of_each_step(prepared: Data, tmp_path: Path) -> None:
    """Of the 20 steps the first are eager and the others are replayed from a graph."""
    options = {"device": "cuda", "patches_per_epoch": 20, "batch_size": 1, "target_shape": (32, 32, 32)}
    training = TrainingState(config_in(tmp_path, ema_decay=0.9, **options))
    assert training.average is not None
    expected, update = weights_of(training.network), training.train_step.update

    def following() -> torch.Tensor:
        nonlocal expected
        norm = update().clone()
        step = int(training.average.steps)  # type: ignore[union-attr]
        decay = min(0.9, (1 + step) / (10 + step))
        now = weights_of(training.network)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
        return norm

    training.train_step.update = following  # type: ignore[method-assign]
    train_epoch(training, prepared)
    assert training.train_step.update_graph is not None
    assert int(training.average.steps) == 20
    torch.testing.assert_close(weights_of(training.validated_network), expected, atol=1e-5, rtol=1e-4)


def test_resumed_equals_uninterrupted_bit_for_bit(prepared: Data, tmp_path: Path) -> None:
    whole = run_fit(config_in(tmp_path / "whole", **EMA), prepared)
    run_fit(config_in(tmp_path / "parts", **EMA), prepared, interrupt_after=2)
    rest = run_fit(config_in(tmp_path / "parts", resume=tmp_path / "parts", **EMA), prepared)
    assert [result.val for result in rest] == [result.val for result in whole[2:]]
    one, other = (checkpoint.load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for part in ("network", "ema"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])


def test_the_average_is_validated_and_saved_and_predicts(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = list[list[torch.Tensor]]()
    validate = validation.validate

    def noting(network: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        validated.append(weights_of(network))
        return validate(network, *args, **kwargs)

    monkeypatch.setattr(validation, "validate", noting)
    run_fit(config_in(tmp_path, **EMA), prepared)
    state = checkpoint.load_checkpoint(tmp_path)
    trained, averaged = (list(state[part].values()) for part in ("network", "ema"))
    assert not torch.equal(trained[0], averaged[0])
    assert all(map(torch.equal, validated[-1], averaged))
    latest = tmp_path / "checkpoints" / "latest.pth"
    predicting, _ = checkpoint.load_network(latest, torch.device("cpu"))
    assert all(map(torch.equal, weights_of(predicting), averaged))
    assert all(map(torch.equal, checkpoint.load_weights(latest).values(), averaged))


def test_without_it_a_checkpoint_has_one_set_of_weights(prepared: Data, tmp_path: Path) -> None:
    run_fit(config_in(tmp_path, epochs=1), prepared)
    assert "ema" not in checkpoint.load_checkpoint(tmp_path)


def test_a_resume_may_switch_it_on(prepared: Data, tmp_path: Path) -> None:
    run_fit(config_in(tmp_path, epochs=4), prepared, interrupt_after=2)
    before = checkpoint.load_checkpoint(tmp_path)
    training = TrainingState(config_in(tmp_path, **EMA))
    training.load_state(before, prepared)
    assert training.average is not None
    assert int(training.average.steps) == before["step"] > 0
    assert all(map(torch.equal, weights_of(training.validated_network), before["network"].values()))


def test_the_average_starts_from_pretrained_weights(prepared: Data, tmp_path: Path) -> None:
    run_fit(config_in(tmp_path / "a", epochs=1), prepared)
    config: TrainConfig = config_in(tmp_path / "b", pretrained=tmp_path / "a", seed=9, **EMA)
    training = TrainingState(config)
    loop.begin_training(training, prepared, lambda _: None)
    given = checkpoint.load_weights(tmp_path / "a").values()
    assert all(map(torch.equal, weights_of(training.validated_network), given))
