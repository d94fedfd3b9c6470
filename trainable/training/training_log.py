"""The log of a training: metrics.csv, case_scores.csv, TensorBoard scalars and pictures, a printed line per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.training.case_scores import CaseScoreFile
from trainable.training.tensorboard_tags import picture_tag, tagged
from trainable.training.training_dir import TrainingDir

if TYPE_CHECKING:
    from trainable.training.tensorboard_file import Board


class TrainingLog:
    """Writes the rows of a training, or of a sweep's trial, as they come.

    A row replaces the earlier rows of its epoch and of later epochs, which a resumed training repeats.

    Args:
        folder: of the training, made if missing; rows that are in its files already are kept.
        board_folder: of TensorBoard's files; None for the same folder.
        options: those that TensorBoard's HParams tab shows, instead of those of an earlier start; empty to leave these.

    Raises:
        InputError: if its metrics.csv or case_scores.csv is damaged.
    """

    def __init__(
        self, folder: Path, board_folder: Path | None = None, options: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.board_folder, self.options, self.path = board_folder or folder, options, TrainingDir(folder).metrics
        self.rows = read_rows(self.path)
        self.case_scores = CaseScoreFile(TrainingDir(folder).case_scores)
        self.board: Board | None = None

    def write(
        self,
        row: Mapping[str, Any],
        pictures: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
        case_rows: str = "",
    ) -> None:
        """Add an epoch to case_scores.csv, metrics.csv and TensorBoard.

        Args:
            row: of metrics.csv, with the key "epoch".
            pictures: RGB uint8 (height, width, 3), by name, for TensorBoard.
            case_rows: of case_scores.csv; "" if the epoch was not validated.
        """
        epoch = int(row["epoch"])
        self.case_scores.write(epoch, case_rows)  # first: an epoch in metrics.csv, which `has` reads, is in both
        self.rows = [earlier for earlier in self.rows if int(earlier["epoch"]) < epoch]
        self.rows.append({name: str(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for row_of_epoch in self.rows for name in row_of_epoch))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write_text(self.path, text.getvalue(), fsync=False)  # written again after the next epoch
        if self.board is None:  # imported here: TensorBoard takes 0.3 s, and most commands only read these files
            from trainable.training.tensorboard_file import Board
            from trainable.training.tensorboard_hparams import SESSION, started

            self.board = Board(self.board_folder, epoch)
            if self.options:
                self.board.add_values(epoch, started(self.options))
                self.board.drop_from_earlier(*SESSION)
        self.board.add(epoch, tagged(row), {picture_tag(name): rgb for name, rgb in pictures.items()})

    def end(self, *, failed: bool) -> None:
        """Tell TensorBoard that the training has ended; nothing if this process has written no row."""
        if self.board is not None:
            from trainable.training.tensorboard_hparams import ended

            self.board.add_values(int(self.rows[-1]["epoch"]), ended(failed=failed))

    def has(self, epoch: int) -> bool:
        """Return whether there is a row of this epoch."""
        return any(int(row["epoch"]) == epoch for row in self.rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv; none if there is no file.

    Raises:
        InputError: if it is damaged: no text, or a row without an epoch.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            int(row["epoch"])
    except (ValueError, KeyError, TypeError, csv.Error):
        raise InputError(f"{path} is damaged; restore it") from None
    return rows


def epoch_line(row: Mapping[str, Any], epochs: int, width: int | None = None) -> str:
    """Return an epoch's row as one line to print: losses and scores, then times and memory.

    Args:
        epochs: their total.
        width: columns that the line must fit, for which the parts that matter least are left out; None for all parts.
    """
    parts = epoch_parts(row, epochs)
    if width is None:
        return join_parts(parts)
    kept = list[LinePart]()
    for part in sorted(parts, key=lambda part: part.rank):
        more = [other for other in parts if other in (*kept, part)]
        kept = more if not kept or len(join_parts(more)) <= width else kept
    return join_parts(kept)


@dataclass(frozen=True)
class LinePart:
    """A part of an epoch's line.

    rank: the lower it is, the sooner the part gets a place. before: what is between it and the part before.
    """

    rank: int
    before: str
    text: str


def epoch_parts(row: Mapping[str, Any], epochs: int) -> list[LinePart]:
    """Return the parts of an epoch's line in their order."""
    parts = [
        LinePart(0, "", f"epoch {row['epoch']:>3}/{epochs}"),
        LinePart(3, "  ", f"loss {row['avg_total_loss']:.4f}"),
        LinePart(8, " ", f"(base {row['avg_base_loss']:.4f}, Dice {row['avg_dice_loss']:.4f})"),
        LinePart(9, "  ", f"grad {row['grad_norm']:.2f}"),
        LinePart(7, "  ", f"lr {row['lr']:.2e}"),
    ]
    if "val_dice_mean" in row:
        dice = "  ".join(f"{region} {row[f'val_dice_{region}']:.4f}" for region in REGIONS)
        parts += [LinePart(1, "  ", f"val Dice {row['val_dice_mean']:.4f}"), LinePart(4, " ", f"({dice})")]
        is_best = row["best_epoch"] == row["epoch"]
        parts.append(LinePart(2, "  ", "best" if is_best else f"best {row['best_score']:.4f}"))
    parts += [
        LinePart(5, "  | ", f"{row['epoch_time']:.1f} s"),
        LinePart(10, ", ", f"{row['avg_batch_time']:.3f} s/batch"),
        LinePart(6, ", ", f"{row['patches_per_second']:.1f} patches/s"),
        LinePart(12, ", ", f"{row['data_wait_share']:.0%} waiting for data"),
    ]
    if row["max_gpu_memory"]:
        memory = f"GPU {row['avg_gpu_memory'] / 1024:.1f} GiB, peak {row['max_gpu_memory'] / 1024:.1f}"
        parts.append(LinePart(11, ", ", memory))
    return parts


def join_parts(parts: Sequence[LinePart]) -> str:
    """Return parts as a line."""
    return "".join(part.before + part.text for part in parts)
