"""What a training leaves to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainable.evaluation.pictures import COLOURS, draw_case, outline
from trainable.training.training_log import TrainingLog, epoch_line, read_rows


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    log = TrainingLog(folder)
    for row in rows:
        log.write(row)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_are_read_back_with_every_column_that_ever_came(tmp_path: Path) -> None:
    write(tmp_path / "run", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_dice_mean": 0.75}])
    assert read_rows(tmp_path / "run" / "metrics.csv") == [
        {"epoch": "1", "loss": "0.5", "val_dice_mean": ""},
        {"epoch": "2", "loss": "0.25", "val_dice_mean": "0.75"},
    ]
    assert read_rows(tmp_path / "none.csv") == []


def test_rows_are_on_disk_as_they_are_written(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    log.write({"epoch": 1, "loss": 0.5})
    assert read_rows(tmp_path / "metrics.csv") == [{"epoch": "1", "loss": "0.5"}]
    assert scalars(tmp_path, "loss") == [(1, 0.5)]


def test_resumed_training_replaces_the_rows_that_it_does_again(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3, 4)])
    write(tmp_path, [{"epoch": epoch, "loss": 0.5} for epoch in (3, 4, 5)])
    rows = [(int(row["epoch"]), float(row["loss"])) for row in read_rows(tmp_path / "metrics.csv")]
    assert rows == scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]


def test_a_repeated_row_replaces_itself(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}, {"epoch": 2, "loss": 0.4}])
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.csv")] == ["1", "2"]


def test_new_training_in_an_old_folder_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)])
    write(tmp_path, [{"epoch": 1, "loss": 0.5}])
    assert read_rows(tmp_path / "metrics.csv") == [{"epoch": "1", "loss": "0.5"}]
    assert scalars(tmp_path, "loss") == [(1, 0.5)]


def test_tensorboard_has_the_numbers_of_a_row(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": 7, "lr": 1e-4, "steps": 3, "note": "words"}])
    assert scalars(tmp_path, "lr") == [(7, pytest.approx(1e-4))]
    assert scalars(tmp_path, "steps") == [(7, 3.0)]
    assert set(EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]) == {"lr", "steps"}


def test_epoch_line_shows_what_was_measured() -> None:
    row = {"epoch": 4, "avg_total_loss": 0.51234, "avg_base_loss": 0.3, "avg_dice_loss": 0.2, "grad_norm": 1.5}
    row |= {"lr": 3e-4, "epoch_time": 12.34, "avg_batch_time": 0.2, "patches_per_second": 7.25}
    row |= {"data_wait_share": 0.031, "avg_gpu_memory": 1536, "max_gpu_memory": 0}
    learnt, cost = (
        "epoch   4/20  loss 0.5123 (base 0.3000, Dice 0.2000)  grad 1.50  lr 3.00e-04",
        "12.3 s, 0.200 s/batch",
    )
    assert epoch_line(row, 20) == f"{learnt}  | {cost}, 7.2 patches/s, 3% waiting for data"
    row |= {f"val_dice_{name}": dice for name, dice in [("WT", 0.9), ("TC", 0.8), ("ET", 0.7), ("mean", 0.8)]}
    row |= {"best_epoch": 3, "best_score": 0.81, "max_gpu_memory": 2048}
    expected = "lr 3.00e-04  val Dice 0.8000 (WT 0.9000  TC 0.8000  ET 0.7000)  best 0.8100  | 12.3 s"
    assert expected in epoch_line(row, 20)
    assert epoch_line(row, 20).endswith("3% waiting for data, GPU 1.5 GiB, peak 2.0")
    assert "  best  " in epoch_line(row | {"best_epoch": 4}, 20)
    narrow = "epoch   4/20  loss 0.5123  val Dice 0.8000  best 0.8100  | 12.3 s, 7.2 patches/s"
    assert epoch_line(row, 20, 80) == narrow
    assert [len(epoch_line(row, 20, width)) <= width for width in (40, 80, 120, 160)] == [True] * 4
    assert len(epoch_line(row, 20, 160)) > len(epoch_line(row, 20, 120)) > 100


def test_outline_is_the_border_of_a_mask() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:6] = True
    inside = np.zeros_like(mask)
    inside[2:4, 2:5] = True
    assert np.array_equal(outline(mask), mask & ~inside)
    assert outline(np.ones((3, 3), bool)).sum() == 8  # the picture's edge counts


X, Y, Z = 240, 192, 6


def a_case() -> tuple[np.ndarray, np.ndarray]:
    """Grey tissue; oedema most in slice 4, a square with a core."""
    image = np.full((4, X, Y, Z), 100, np.int16)
    label = np.zeros((X, Y, Z), np.uint8)
    label[48, 48, 1] = 2
    label[36:144, 24:108, 4] = 2
    label[60:120, 48:84, 4] = 1
    return image, label


def test_picture_outlines_truth_above_and_prediction_below() -> None:
    image, label = a_case()
    prediction = np.where(label == 1, 2, label).astype(np.uint8)
    drawn = draw_case(image, label, prediction)
    assert drawn.shape == (2 * Y, 4 * X, 3)  # rows are y, columns x of each modality
    assert drawn.dtype == np.uint8
    for tile in range(4):
        above, below = drawn[:Y, tile * X : (tile + 1) * X], drawn[Y:, tile * X : (tile + 1) * X]
        for part in (above, below):
            assert tuple(part[24, 36]) == tuple(part[107, 143]) == COLOURS["WT"]  # corners of the oedema
            assert tuple(part[40, 50]) == tuple(part[150, 200]) == (255, 255, 255)  # between outlines, and outside
        assert tuple(above[48, 60]) == tuple(above[83, 119]) == COLOURS["TC"]
        assert tuple(below[48, 60]) == (255, 255, 255)


def test_picture_shows_the_slice_with_most_of_the_truth() -> None:
    image, label = a_case()
    elsewhere = np.zeros_like(label)
    elsewhere[:, :, 0] = 2
    drawn = draw_case(image, label, elsewhere)
    assert tuple(drawn[24, 36]) == COLOURS["WT"]
    assert (drawn[Y:] == 255).all()  # the prediction has nothing in that slice


def test_picture_of_a_case_without_truth_has_the_prediction_alone() -> None:
    image, label = a_case()
    drawn = draw_case(image, None, label)
    assert drawn.shape == (Y, 4 * X, 3)
    assert tuple(drawn[24, 36]) == COLOURS["WT"]


def test_picture_of_a_case_without_tumour_is_its_middle_slice_in_grey() -> None:
    image = np.zeros((4, X, Y, Z), np.int16)
    image[0, :, :, Z // 2] = np.arange(X)[:, None]
    nothing = np.zeros((X, Y, Z), np.uint8)
    drawn = draw_case(image, nothing, nothing)
    assert (drawn[..., 0] == drawn[..., 1]).all()
    assert drawn[100, 0, 0] == 0
    assert (np.diff(drawn[100, :X, 0].astype(int)) >= 0).all()
    assert drawn[100, X - 1, 0] == 255
    assert not drawn[20:Y, X:].any()  # a modality of zeros is black below its caption


def test_picture_magnifies_small_volumes_and_captions_each_slice() -> None:
    image, label = np.ones((4, 60, 50, 4), np.int16), np.zeros((60, 50, 4), np.uint8)
    drawn = draw_case(image * 0, label, label)
    assert drawn.shape == (2 * 200, 4 * 240, 3)
    assert all(drawn[row : row + 16, column : column + 60].any() for row in (0, 200) for column in range(0, 960, 240))


def test_pictures_are_in_tensorboard_as_they_are(tmp_path: Path) -> None:
    image, label = a_case()
    rgb = draw_case(image, label, label)
    log = TrainingLog(tmp_path)
    log.write({"epoch": 4}, {"case_a": rgb, "case_b": rgb[:100]})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["validation/case_a", "validation/case_b"]
    (drawn,) = events.Images("validation/case_a")
    assert drawn.step == 4
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(drawn.encoded_image_string))), rgb)
