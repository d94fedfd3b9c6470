"""Checkpoints are written in the background: which files, when, and what becomes of errors."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable.core.config import TrainConfig
from trainable.core.options import make_config
from trainable.training import checkpoint_manager
from trainable.training.checkpoint import load_checkpoint
from trainable.training.checkpoint_manager import CheckpointManager
from trainable.training.training_dir import BEST, LATEST


def config_in(folder: Path, **options: Any) -> TrainConfig:
    return make_config({"output_dir": folder, "device": "cpu", **options})


def state_of(epoch: int, best_epoch: int = 0) -> dict[str, Any]:
    return {"epoch": epoch, "best_epoch": best_epoch, "network": {"weight": torch.full((4,), float(epoch))}}


def epochs_in(folder: Path) -> dict[str, int]:
    """The epoch of each checkpoint by file name."""
    return {path.name: load_checkpoint(path)["epoch"] for path in (folder / "checkpoints").iterdir()}


def test_files_of_an_epoch_are_written_before_on_written_is_called(tmp_path: Path) -> None:
    seen: list[dict[str, int]] = []
    with CheckpointManager(config_in(tmp_path, save_freq=2)) as checkpoints:
        for epoch, is_best in ((1, True), (2, False), (3, False)):
            checkpoints.save(state_of(epoch), is_best=is_best, on_written=lambda: seen.append(epochs_in(tmp_path)))
    assert seen == [
        {BEST: 1, LATEST: 1},
        {BEST: 1, "epoch_0002.pth": 2, LATEST: 2},
        {BEST: 1, "epoch_0002.pth": 2, LATEST: 3},
    ]


def test_a_trials_files_are_one_per_epoch_and_never_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they replace others by a rename, at which ext4 writes them to the disk."""

    def replace(path: Path, target: Path) -> Path:
        assert not target.exists()
        return rename(path, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr("os.fsync", None)
    seen: list[dict[str, int]] = []
    with CheckpointManager(config_in(tmp_path, save_freq=9), flush=False, one_file=True) as checkpoints:
        for epoch, is_best in ((1, True), (2, False), (3, True)):
            checkpoints.save(state_of(epoch), is_best=is_best, on_written=lambda: seen.append(epochs_in(tmp_path)))
    assert seen == [{BEST: 1}, {BEST: 1, LATEST: 2}, {BEST: 3}]


def test_files_that_are_not_flushed_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", None)
    best, latest = (tmp_path / "checkpoints" / name for name in (BEST, LATEST))
    seen: list[tuple[dict[str, int], bool]] = []

    def look() -> None:
        seen.append((epochs_in(tmp_path), latest.samefile(best)))

    with CheckpointManager(config_in(tmp_path, save_freq=9), flush=False) as checkpoints:
        for epoch, is_best in ((1, True), (2, False), (3, True)):
            checkpoints.save(state_of(epoch), is_best=is_best, on_written=look)
    assert seen == [({BEST: 1, LATEST: 1}, True), ({BEST: 1, LATEST: 2}, False), ({BEST: 3, LATEST: 3}, True)]


def test_a_state_is_copied_before_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = checkpoint_manager.save_checkpoint

    def slow(*arguments: Any, **options: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        write(*arguments, **options)

    monkeypatch.setattr(checkpoint_manager, "save_checkpoint", slow)
    state = state_of(1)
    with CheckpointManager(config_in(tmp_path)) as checkpoints:
        checkpoints.save(state, is_best=False)
        assert begun.wait(10)
        state["network"]["weight"].fill_(7)  # the next epoch's first step
        checkpoints.check()  # does not wait
        assert not (tmp_path / "checkpoints" / LATEST).exists()
        go_on.set()
        checkpoints.wait()
        assert torch.equal(load_checkpoint(tmp_path)["network"]["weight"], torch.ones(4))


def test_the_copied_state_is_freed_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[weakref.ref[torch.Tensor]] = []
    stage = checkpoint_manager.stage_to_cpu

    def noted(value: Any) -> Any:
        copy = stage(value)
        if isinstance(copy, dict) and "network" in copy:
            copies.append(weakref.ref(copy["network"]["weight"]))
        return copy

    monkeypatch.setattr(checkpoint_manager, "stage_to_cpu", noted)
    with CheckpointManager(config_in(tmp_path)) as checkpoints:
        checkpoints.save(state_of(1), is_best=True)
        checkpoints.wait()
        gc.collect()
        assert [copy() for copy in copies] == [None]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("call", ["wait", "save", "leave"])
def test_an_error_in_the_background_is_raised_by_the_next_call(
    tmp_path: Path, error: type[BaseException], call: str
) -> None:
    def fail() -> None:
        raise error("injected")

    def use() -> None:
        with CheckpointManager(config_in(tmp_path)) as checkpoints:
            checkpoints.save(state_of(1), is_best=True, on_written=fail)
            if call == "wait":
                checkpoints.wait()
            if call == "save":
                checkpoints.save(state_of(2), is_best=True)

    with pytest.raises(error, match="injected"):
        use()
    assert epochs_in(tmp_path) == {BEST: 1, LATEST: 1}


def test_check_raises_the_error_of_a_finished_callback(tmp_path: Path) -> None:
    ended = threading.Event()

    def fail() -> None:
        ended.set()
        raise RuntimeError("injected")

    with CheckpointManager(config_in(tmp_path)) as checkpoints:
        checkpoints.call_after_writing(fail)
        assert ended.wait(10)
        with pytest.raises(RuntimeError, match="injected"):  # noqa: PT012
            while True:
                checkpoints.check()


def test_adopting_reports_whether_there_is_a_checkpoint_of_the_best_epoch_and_takes_it(tmp_path: Path) -> None:
    with CheckpointManager(config_in(tmp_path / "one")) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.save(state_of(epoch, best_epoch=1), is_best=epoch == 1)
    source = tmp_path / "one" / "checkpoints" / LATEST
    for best_epoch, expected in ((1, True), (2, False), (3, True)):  # best_model.pth, none, latest.pth
        folder = tmp_path / f"best {best_epoch}"
        with CheckpointManager(config_in(folder)) as checkpoints:
            assert checkpoints.adopt(source, state_of(3, best_epoch)) is expected
        assert epochs_in(folder) == {**({BEST: best_epoch} if expected else {}), LATEST: 3}
