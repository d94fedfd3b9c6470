"""Faults injected into real trainings of a real sweep, for the tests and drills."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle

from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.training.epoch_result import EpochResult
from trainable.training.step_progress import OnProgress, StepProgress
from tune.driver.processes.trial_fit import Fit, fit_to_storage
from tune.spec.sweep_config import SweepConfig, make_sweep_config

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not have this folder on their path

SMALL = {
    "depth": 2, "base_channels": 2, "target_shape": [16, 16, 16], "patches_per_epoch": 4, "num_workers": 0,
    "device": "cpu", "max_skipped_steps": 1, "epochs": 3,
}  # fmt: skip
SEED = 1000  # of the sweep; trial n trains with SEED + n, by which its fault is found


def small_sweep(data: Data, data_dir: Path, **sections: dict[str, Any]) -> SweepConfig:
    """Return the config of a sweep whose trials take a second. sections replace its options; None removes one."""
    values: dict[str, dict[str, Any]] = {
        "study": {"trials": 4, "seed": SEED},
        "early_stopping": {"type": "none"},
        "searcher": {"type": "random"},
        "resources": {"gpu": 0, "cpu": 1, "max_failures": 1},
        "train": {**SMALL, "data_dir": str(data_dir), "cache_dir": str(data.folder)},
        "space": {"lr": {"loguniform": [1e-4, 1e-2]}, "optimizer": {"choice": ["adam", "sgd"]}},
    }
    merged = {name: {**section, **sections.get(name, {})} for name, section in values.items()}
    given = {name: {k: v for k, v in section.items() if v is not None} for name, section in merged.items()}
    return make_sweep_config(given)


def faulty(faults: Mapping[int, str]) -> Fit:
    """Return a fit with a fault after the first epoch of each process, or of the first one only, per trial number."""

    def faulty_fit(
        config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress
    ) -> EpochResult:
        fault = faults.get(config.seed - SEED, "")

        def after(result: EpochResult) -> None:
            on_epoch_end(result)
            if result.epoch == 1 or not fault.endswith("once"):
                happen(fault)

        if fault == "not finite":
            config = config.model_copy(update={"lr": 1e30, "optimizer": "sgd", "gradient_clipping": 0.0})
        return fit_to_storage(config, data, after, on_progress)

    return faulty_fit


def happen(fault: str) -> None:
    """Cause a fault."""
    if fault == "out of memory":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory (injected)")
    if fault.startswith("error"):
        raise RuntimeError("injected error")
    if fault.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "disk full":
        raise OSError(errno.ENOSPC, "No space left on device", "/injected")
    if fault == "hang":
        time.sleep(3600)
    if fault == "slow":
        time.sleep(0.5)
    if fault == "clock once":
        now = time.time
        time.time = lambda: now() - 86400
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)


def meddling(meddle: Callable[[Data], None]) -> Fit:
    """Return a fit in which somebody meddles with the cases after the first epoch of trial 1."""

    def fit(
        config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress
    ) -> EpochResult:
        def after(result: EpochResult) -> None:
            on_epoch_end(result)
            if config.seed == SEED + 1 and result.epoch == 1:
                meddle(data)

        return fit_to_storage(config, data, after, on_progress)

    return fit


def change_label(data: Data) -> None:
    """Make the validation case in the cache one with another label, as preparing a corrected truth does."""
    path = data.folder / data.split.val[0] / "case.json"
    metadata = json.loads(path.read_text())
    metadata["files"]["label.npy"]["crc32"] ^= 1
    path.write_text(json.dumps(metadata))


def delete_cache(data: Data) -> None:
    """Delete the cache."""
    shutil.rmtree(data.folder)


def leaky(
    config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress
) -> EpochResult:
    """fit that leaves 200 MiB of GPU memory occupied in the process of trial 0."""
    if config.seed == SEED:
        sys.modules["torch"].left_behind = torch.zeros(50 * 2**20, device="cuda")  # type: ignore[attr-defined]
    return fit_to_storage(config, data, on_epoch_end, on_progress)


def waiting(done: Path) -> Fit:
    """Return a fit that tells of its first step, and trains once a file exists."""

    def fit(
        config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress
    ) -> EpochResult:
        on_progress(StepProgress("training", 1, 1, 4, 51.5))
        while not done.exists():
            time.sleep(0.02)
        return fit_to_storage(config, data, on_epoch_end, on_progress)

    return fit
