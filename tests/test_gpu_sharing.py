"""Trials that share a GPU: how many are to, and what each may take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainable.core.config import TrainConfig
from trainable.core.options import to_dict
from tune.driver.cluster.connection import Cluster
from tune.driver.measurement import gpu_sharing as sharing
from tune.driver.measurement.gpu_sharing import (
    DoesNotFit,
    best_count,
    measure_concurrent,
    measure_process,
    measure_sharing,
)
from tune.driver.measurement.parallel_processes import ProcessFailed
from tune.driver.measurement.trial_gpus import resolve_gpu
from tune.driver.processes.gpu_share import share_memory
from tune.planning.recipe_costs import largest_recipe
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import make_sweep_config

TINY = {"depth": 3, "base_channels": 4, "target_shape": [16, 16, 16], "device": "cpu", "accumulation_steps": 2}


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({}, 1),
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 105.0}, 1),
        ({1: 100.0, 2: 150.0, 4: 160.0}, 2),
        ({1: 100.0, 2: 150.0, 4: 240.0, 8: 230.0}, 4),
    ],
)
def test_no_more_trials_share_a_gpu_than_gain_a_tenth(rates: dict[int, float], best: int) -> None:
    assert best_count(rates) == best


def test_counts_are_tried_until_more_do_not_fit_or_gain_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, float | None] = {1: 10.0, 2: 19.0, 4: 20.0, 8: 40.0}
    asked: list[int] = []

    def together(recipe: dict[str, Any], count: int) -> float | None:
        asked.append(count)
        return rates[count]

    monkeypatch.setattr(sharing, "measure_concurrent", together)
    assert measure_sharing({}, 8) == {1: 10.0, 2: 19.0, 4: 20.0}
    assert asked == [1, 2, 4]
    assert measure_sharing({}, 1) == {1: 10.0}
    rates[2] = None
    assert measure_sharing({}, 8) == {1: 10.0}


@pytest.mark.slow
def test_processes_train_a_recipe_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = to_dict(TrainConfig.model_validate(TINY))
    rate = measure_concurrent(recipe, 2)
    assert rate is not None
    assert rate > 1
    with pytest.raises(RuntimeError, match="depth is 99"):
        measure_concurrent({**recipe, "depth": 99}, 1)


def test_a_step_that_needs_more_than_its_share_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(config: TrainConfig) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(sharing, "prepare_step", prepare)
    with pytest.raises(DoesNotFit, match="injected"):
        measure_process(to_dict(TrainConfig.model_validate(TINY)), 0.5, lambda: None)


@pytest.mark.parametrize(("error_type", "count"), [("DoesNotFit", 1), ("DoesNotFit", 2), ("RuntimeError", 2)])
def test_no_rate_is_measured_if_one_does_not_fit_or_several_fail(
    error_type: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process fails with another error: see above."""

    def fail(*_: Any) -> list[float]:
        raise ProcessFailed(error_type, "injected")

    monkeypatch.setattr(sharing, "run_together", fail)
    assert measure_concurrent({}, count) is None


def test_the_largest_recipe_of_a_space_is_tried() -> None:
    space = {
        "batch_size": {"choice": [1, 2, 4]},
        "amp": {"choice": ["bf16", "off"]},
        "target_shape": {"choice": [[64, 64, 64], [96, 96, 96]]},
        "lr": {"loguniform": [1e-5, 1e-2]},
    }
    config = largest_recipe(make_sweep_config({"space": space}))
    assert (config.batch_size, config.amp, config.target_shape) == (4, "off", (96, 96, 96))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_none_unless_gpu_hours_are_counted(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"resources": {"gpu": "auto"}, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}}
    assert resolve_gpu(make_sweep_config(values)).resources.gpu == 0
    with pytest.raises(ConfigErrors, match=r"study.gpu_hours would never be spent, since resources.gpu is 0"):
        resolve_gpu(make_sweep_config({**values, "study": {"gpu_hours": 3.0}}))
    assert capsys.readouterr().out.splitlines()[0] == "resources.gpu: auto is 0 (the cluster has no GPU)"


@pytest.mark.gpu
def test_a_trial_takes_no_more_than_its_share() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        share_memory(0.25)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(total // 4, dtype=torch.uint8, device="cuda")
        share_memory(1)
        torch.empty(total // 8, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_a_recipe_that_does_not_fit_into_its_share_is_not_tried_by_more() -> None:
    recipe = to_dict(TrainConfig(depth=3, target_shape=(224, 224, 224), batch_size=8, base_channels=64, device="cuda"))
    assert measure_concurrent(recipe, 4) is None
