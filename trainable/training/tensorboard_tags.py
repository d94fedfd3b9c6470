"""The names in TensorBoard of what metrics.csv has.

TensorBoard sorts groups, which are what stands before the slash, and the tags in them by the alphabet, and opens the
first two groups. By these names the mean Dice of the validation cases comes first, and the loss second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCORES = {
    "val_dice_mean": "dice/val_mean",
    "val_dice_WT": "dice/val_region_WT",
    "val_dice_TC": "dice/val_region_TC",
    "val_dice_ET": "dice/val_region_ET",
}
SCORE = "dice/val_score"  # the best of the epochs so far: its last value is the score of the training
TAGS = {
    **SCORES,
    "best_score": SCORE,
    "best_epoch": "dice/val_score_epoch",
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
