"""The names in TensorBoard of what metrics.csv has.

TensorBoard sorts the groups, which are what stands before the slash, by the alphabet and opens the first two. By these
names the Dice of the validation cases comes first, and the loss second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCORES = {
    "val_dice_mean": "dice/val_mean",
    "val_dice_WT": "dice/val_WT",
    "val_dice_TC": "dice/val_TC",
    "val_dice_ET": "dice/val_ET",
}
BEST_SCORE = "dice/val_best"  # of the epochs so far: its last value is the training's score
TAGS = {
    **SCORES,
    "best_score": BEST_SCORE,
    "best_epoch": "dice/val_best_epoch",
    "avg_total_loss": "loss/total",
    "avg_base_loss": "loss/base",
    "avg_dice_loss": "loss/dice",
    "avg_gpu_memory": "memory/gpu_MiB",
    "max_gpu_memory": "memory/gpu_peak_MiB",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "steps": "optimizer/steps",
    "epoch_time": "time/epoch_s",
    "avg_batch_time": "time/batch_s",
    "val_time": "time/validation_s",
    "patches_per_second": "time/patches_per_second",
    "data_wait_share": "time/data_wait_share",
}


def tagged(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a row of metrics.csv by their names in TensorBoard; no GPU memory if no GPU was used."""
    numbers = {name: value for name, value in row.items() if name in TAGS and isinstance(value, int | float)}
    return {TAGS[name]: value for name, value in numbers.items() if value or "gpu_memory" not in name}


def picture_tag(case: str) -> str:
    """Return the name of the picture of a validation case."""
    return f"validation/{case}"
