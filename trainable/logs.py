"""What a training leaves to look at: metrics.csv, TensorBoard scalars and pictures, a line an epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from trainable.board import Board
from trainable.config import MODALITIES, REGIONS
from trainable.metrics import Bools, regions_of

TILE = 240  # pixels, at least, that a slice is wide
COLOURS = {"WT": (70, 200, 90), "TC": (240, 90, 80), "ET": (250, 210, 60)}


class RunLog:
    """Writes the rows of a training (or of a sweep's trial) as they come.

    A row replaces those of its epoch and later ones, which a resumed training does again.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "metrics.csv"
        self.rows = read_rows(self.path)
        self.board: Board | None = None

    def write(self, row: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]] = MappingProxyType({})) -> None:
        """Add an epoch's row, and pictures, RGB uint8 (height, width, 3), for TensorBoard."""
        epoch = int(row["epoch"])
        self.rows = [earlier for earlier in self.rows if int(earlier["epoch"]) < epoch]
        self.rows.append({name: str(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        aside = self.path.with_suffix(".csv.new")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        aside.replace(self.path)
        if self.board is None:
            self.board = Board(self.folder, epoch)
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "epoch"}
        self.board.add(epoch, numbers, {f"validation/{name}": rgb for name, rgb in pictures.items()})

    def has(self, epoch: int) -> bool:
        """Is there a row of this epoch?"""
        return any(int(row["epoch"]) == epoch for row in self.rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch in a line for people: what was learnt, then what it cost."""
    loss = f"loss {row['avg_total_loss']:.4f} (base {row['avg_base_loss']:.4f}, Dice {row['avg_dice_loss']:.4f})"
    parts = [f"epoch {row['epoch']:>3}/{epochs}", loss, f"grad {row['grad_norm']:.2f}", f"lr {row['lr']:.2e}"]
    if "val_dice_mean" in row:
        dice = "  ".join(f"{region} {row[f'val_dice_{region}']:.4f}" for region in REGIONS)
        parts.append(f"val Dice {row['val_dice_mean']:.4f} ({dice})")
        parts.append("best" if row["best_epoch"] == row["epoch"] else f"best {row['best_score']:.4f}")
    cost = [f"{row['epoch_time']:.1f} s", f"{row['avg_batch_time']:.3f} s/batch"]
    cost += [f"{row['patches_per_second']:.1f} patches/s", f"{row['data_wait_share']:.0%} waiting for data"]
    if row["max_gpu_memory"]:
        cost.append(f"GPU {row['avg_gpu_memory'] / 1024:.1f} GiB, peak {row['max_gpu_memory'] / 1024:.1f}")
    return "  ".join(parts) + "  | " + ", ".join(cost)


def outline(mask: Bools) -> Bools:
    """The border pixels of a 2D mask."""
    return mask & ~ndimage.binary_erosion(mask)


def picture(
    image: NDArray[np.int16], label: NDArray[np.uint8] | None, prediction: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The four modalities of the axial slice with most tumour, truth outlined above, prediction below.

    image (4, X, Y, Z), labels (X, Y, Z) -> RGB uint8 (height, width, 3); small volumes are magnified.
    """
    shown = label if label is not None and label.any() else prediction
    z = int((shown > 0).sum((0, 1)).argmax()) if shown.any() else image.shape[3] // 2
    scale = max(1, TILE // max(image.shape[1:3]))
    rows = {"prediction": prediction} if label is None else {"truth": label, "prediction": prediction}
    strips = []
    for name, labels in rows.items():
        regions = [magnified(mask, scale) for mask in regions_of(labels[:, :, z])]
        tiles = [tile(magnified(image[channel, :, :, z], scale), regions) for channel in range(len(MODALITIES))]
        for modality, each in zip(MODALITIES, tiles, strict=True):
            write_on(each, f"{modality}, {name}")
        strips.append(np.concatenate(tiles, axis=1))
    return np.concatenate(strips, axis=0)


def magnified(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """A plane (X, Y) as rows of y and columns of x, each pixel `scale` times as large."""
    return plane.T.repeat(scale, 0).repeat(scale, 1)


def tile(plane: NDArray[np.int16], regions: Sequence[Bools]) -> NDArray[np.uint8]:
    """A plane in grey, up to its 99.5th percentile, with the regions outlined in their colours: RGB uint8."""
    top = np.percentile(plane[plane > 0], 99.5) if (plane > 0).any() else 1.0
    grey = (plane / top).clip(0, 1)[..., None] * 255
    rgb = np.repeat(grey, 3, axis=2).astype(np.uint8)
    for region, mask in zip(REGIONS, regions, strict=True):
        rgb[outline(mask)] = COLOURS[region]
    return rgb


def write_on(rgb: NDArray[np.uint8], text: str) -> None:
    """Write a caption into the upper left corner."""
    drawn = Image.fromarray(rgb)
    ImageDraw.Draw(drawn).text((4, 2), text, fill=(255, 255, 255))
    rgb[:] = np.asarray(drawn)
