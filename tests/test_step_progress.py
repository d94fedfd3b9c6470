"""How far a training is within an epoch: what its callback is told, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainable.core.config import TrainConfig
from trainable.core.options import make_config
from trainable.data.prepare import Data
from trainable.training import step_progress
from trainable.training.loop import fit
from trainable.training.step_progress import ProgressReporter, StepProgress


def config_in(folder: Path, **options: object) -> TrainConfig:
    tiny = {"depth": 2, "base_channels": 2, "target_shape": (16, 16, 16), "device": "cpu", "num_workers": 0}
    return make_config({**tiny, "output_dir": folder, **options})


def test_progress_counts_the_steps_of_an_epoch_and_then_the_validated_cases(
    prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 patches in micro-batches of 2, two of which are a step: 2 steps."""
    monkeypatch.setattr(step_progress, "PERIOD_SECONDS", 0.0)
    told: list[StepProgress] = []
    config = config_in(tmp_path, epochs=2, patches_per_epoch=7, batch_size=2, accumulation_steps=2)
    fit(config, prepared, on_progress=told.append)
    of_one_epoch = [("training", done, 2) for done in (0, 1, 2)] + [("validating", done, 1) for done in (0, 1)]
    assert [(p.epoch, p.phase, p.done, p.total) for p in told] == [(e, *p) for e in (1, 2) for p in of_one_epoch]
    assert all((p.patches_per_second or 0) > 0 for p in told if p.phase == "training" and p.done)
    assert all(p.patches_per_second is None for p in told if p.phase == "validating" or not p.done)


def test_progress_is_told_once_per_period_however_many_steps_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(step_progress.time, "perf_counter", lambda: now)
    told: list[StepProgress] = []
    reporter = ProgressReporter(told.append)
    for step in range(1, 101):
        reporter.step(3, step, 100, 2 * step, started=99.0)
        now += 0.25
    for case in range(5):
        reporter.case(3, case, 5)
        now += 1.0
    assert [p.done for p in told if p.phase == "training"] == list(range(1, 101, 8))
    assert [p.done for p in told if p.phase == "validating"] == [1, 3]
    assert told[1] == StepProgress("training", 3, 9, 100, 18 / 3)
    ProgressReporter().step(1, 1, 1, 1, 0.0)  # nobody asked


def test_an_error_of_the_callback_ends_the_training(prepared: Data, tmp_path: Path) -> None:
    def fail(_: StepProgress) -> None:
        raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        fit(config_in(tmp_path, epochs=1, patches_per_epoch=2), prepared, on_progress=fail)
