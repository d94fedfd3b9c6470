"""case_scores.csv: scores of each case at each validated epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import run_fit

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.data.split import Split
from trainable.train import train
from trainable.training.case_scores import CaseScoreFile, case_rows, read_case_scores
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import TrainingLog, read_rows

SCORES = {
    "a, the first": {"dice_WT": 0.1 + 0.2, "dice_TC": 1 / 3, "dice_ET": 0.0, "dice_mean": 0.2},
    "b": {"dice_WT": 1.0, "dice_TC": 2 / 7, "dice_ET": 1e-7, "dice_mean": 0.5},
}


def test_scores_are_read_back_with_all_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "case_scores.csv"
    assert read_case_scores(path) == {}
    file = CaseScoreFile(path)
    file.write(2, case_rows(2, SCORES))
    file.write(4, case_rows(4, SCORES))
    assert read_case_scores(path) == {2: SCORES, 4: SCORES}
    assert list(read_case_scores(path)[2]) == list(SCORES)
    assert path.read_text().splitlines()[0] == "epoch,case,dice_WT,dice_TC,dice_ET,dice_mean"


def test_rows_of_repeated_and_later_epochs_are_replaced_also_by_an_epoch_without_validation(tmp_path: Path) -> None:
    path = tmp_path / "case_scores.csv"
    for epoch in (2, 4, 6):
        CaseScoreFile(path).write(epoch, case_rows(epoch, SCORES))
    resumed = CaseScoreFile(path)
    resumed.write(5, "")
    assert list(read_case_scores(path)) == [2, 4]
    before = path.stat().st_mtime_ns
    resumed.write(5, "")
    assert path.stat().st_mtime_ns == before  # nothing to write
    resumed.write(4, case_rows(4, {"b": SCORES["b"]}))
    assert read_case_scores(path) == {2: SCORES, 4: {"b": SCORES["b"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,case\n1,a\n", "line 1 is damaged .expected the columns epoch,case,dice_WT"),
        (
            "epoch,case,dice_WT,dice_TC,dice_ET,dice_mean\n1,a,0.5,0.5\n",
            "line 2 is damaged .expected 6 values, found 4",
        ),
        ("epoch,case,dice_WT,dice_TC,dice_ET,dice_mean\n1,a,0.5,0.5,x,0.5\n", "line 2 is damaged"),
        ("epoch,case,dice_WT,dice_TC,dice_ET,dice_mean\n\n", "line 2 is damaged .expected 6 values, found 0"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "case_scores.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"case_scores.csv: {message}.*restore or delete it"):
        read_case_scores(path)


def small(prepared: Data, folder: Path, **options: object) -> tuple[TrainConfig, Data]:
    """A training of 3 epochs, validated after the second and the third, on 3 validation cases."""
    names = prepared.split.names
    data = Data(prepared.folder, Split(tuple(names[:4]), tuple(names[4:7]), ()))
    config = TrainConfig(
        output_dir=folder, epochs=3, val_freq=2, val_cases=2, patches_per_epoch=2, depth=2, base_channels=2,
        target_shape=(16, 16, 16), num_workers=0, device="cpu", **options,
    )  # fmt: skip
    return config, data


def means(path: Path) -> dict[int, list[float]]:
    """The mean over cases of WT, TC, ET and mean, per epoch."""
    return {
        epoch: [float(np.mean([case[name] for case in cases.values()])) for name in next(iter(cases.values()))]
        for epoch, cases in read_case_scores(path).items()
    }


def test_a_training_writes_the_scores_of_which_metrics_has_the_mean(prepared: Data, tmp_path: Path) -> None:
    config, data = small(prepared, tmp_path)
    train(config, data)
    paths = TrainingDir(tmp_path)
    rows = {int(row["epoch"]): row for row in read_rows(paths.metrics) if row["val_dice_mean"]}
    names = [f"val_dice_{name}" for name in ("WT", "TC", "ET", "mean")]
    assert means(paths.case_scores) == {epoch: [float(row[name]) for name in names] for epoch, row in rows.items()}
    assert list(rows) == [2, 3]
    assert list(read_case_scores(paths.case_scores)[3]) == [data.split.val[0], data.split.val[1]]  # evenly spaced


def test_a_resumed_training_logs_the_scores_that_a_kill_kept_from_the_log(prepared: Data, tmp_path: Path) -> None:
    config, data = small(prepared, tmp_path / "killed")
    run_fit(config, data, interrupt_after=2)  # its checkpoint is written, its log is not
    paths = TrainingDir(tmp_path / "killed")
    assert not paths.case_scores.exists()
    train(config.model_copy(update={"resume": paths.path}), data)
    whole, _ = small(prepared, tmp_path / "whole")
    train(whole, data)
    assert paths.case_scores.read_text() == TrainingDir(tmp_path / "whole").case_scores.read_text()


def test_an_epoch_in_metrics_is_in_the_scores_too_whenever_a_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TrainingLog(tmp_path)
    monkeypatch.setattr("trainable.training.training_log.atomic_write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.write({"epoch": 1, "loss": 0.5}, case_rows=case_rows(1, SCORES))
    monkeypatch.undo()
    resumed = TrainingLog(tmp_path)
    assert not resumed.has(1)
    assert list(resumed.case_scores.rows) == [1]
    resumed.write({"epoch": 1, "loss": 0.5}, case_rows=case_rows(1, SCORES))
    assert read_case_scores(tmp_path / "case_scores.csv") == {1: SCORES}
