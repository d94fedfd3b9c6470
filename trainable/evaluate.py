"""Scores the held-out test cases with a checkpoint: a table, CSV, JSON and, where asked, the predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainable.core.brats import REGIONS, Labels
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from trainable.data.cache import CachedCase
from trainable.data.prepare import Data, prepare_data
from trainable.evaluation.inference import on_full_grid, save_label
from trainable.evaluation.lesions import score_lesions
from trainable.evaluation.metrics import Scores, mean_scores, spacing_of
from trainable.evaluation.validate import validate
from trainable.training import checkpoint

# The groups of columns of a table: heading, what their scores' names begin with, digits, what has a column.
COLUMNS = (
    ("Dice", "dice", 4, (*REGIONS, "mean")),
    ("HD95 in mm", "hd95", 2, REGIONS),
    ("sensitivity", "sensitivity", 4, REGIONS),
    ("specificity", "specificity", 4, REGIONS),
    ("Dice by lesion", "lesion_dice", 4, REGIONS),
    ("HD95 by lesion, mm", "lesion_hd95", 2, REGIONS),
)

# The options that a prediction depends on, beside its checkpoint.
SCORED_BY = ("target_shape", "overlap", "mirror", "min_component", "et_threshold", "amp")


def evaluate(config: TrainConfig, data: Data | None = None) -> Scores:
    """Score the test cases with the checkpoint file of --resume; writes test_scores.json and .csv into output_dir.

    Returns the mean scores. data: its cases where they are prepared. save_predictions: also predictions/CASE.nii.gz,
    uint8 labels 0, 1, 2, 4 on the case's grid.
    """
    assert config.resume is not None
    data = data or prepare_data(config)
    if not data.split.test:
        raise InputError("the split has no test cases; see --test_fraction and --split_file")
    state = checkpoint.load_checkpoint(config.resume)
    if state["split"] != data.split.digest():
        raise InputError(
            f"the split is not that of {config.resume}: a test case may have been trained on; restore --split_file"
        )
    network, _ = checkpoint.build_from_state(state, choose_device(config))
    by_lesion: dict[str, Scores] = {}

    def on_case(case: CachedCase, prediction: Labels) -> None:
        if config.lesion_wise:
            by_lesion[case.name] = score_lesions(prediction, case.label, spacing=spacing_of(case.affine))
        if config.save_predictions:
            path = config.output_dir / "predictions" / f"{case.name}.nii.gz"
            save_label(on_full_grid(prediction, case), case.affine, path)

    with kernel_selection(config):
        scores = validate(network, config, data.folder, data.split.test, full=True, on_case=on_case)
    scores = {name: each | by_lesion.get(name, {}) for name, each in scores.items()}
    print(f"{len(scores)} test cases, {config.resume}\n{score_table(scores)}")
    about = {"checkpoint": str(config.resume), "epoch": state["epoch"]} | {
        name: to_dict(config)[name] for name in SCORED_BY
    }
    save_scores(scores, config.output_dir / "test_scores", about)
    predictions = config.output_dir / "predictions"
    if predictions.exists():
        print(f"predictions{'' if config.save_predictions else ' of an earlier test'}: {predictions}")
    return mean_scores(scores.values())


def score_table(scores: Mapping[str, Scores]) -> str:
    """Each case's scores and their mean as text, in columns by kind and region."""
    rows = {**scores, "mean": mean_scores(scores.values())}
    width = max(map(len, ["case", *rows]))
    heading, names, lines = " " * width, "case".ljust(width), [case.ljust(width) for case in rows]
    for title, stem, digits, columns in COLUMNS:
        if f"{stem}_{columns[0]}" not in rows["mean"]:
            continue
        heading += "   " + title.center(8 * len(columns) - 1)
        names += "  " + "".join(f"{column:>8}" for column in columns)
        for place, row in enumerate(rows.values()):
            lines[place] += "  " + "".join(f"{row[f'{stem}_{column}']:8.{digits}f}" for column in columns)
    return "\n".join([heading.rstrip(), names, *lines])


def save_scores(scores: Mapping[str, Scores], stem: Path, about: Mapping[str, Any]) -> None:
    """Write scores as STEM.json and STEM.csv; about: what they are scores of, for the JSON."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    mean = mean_scores(scores.values())
    stem.with_suffix(".json").write_text(json.dumps({**about, "cases": scores, "mean": mean}, indent=2) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", *mean])
        writer.writeheader()
        writer.writerows({"case": case, **values} for case, values in scores.items())
