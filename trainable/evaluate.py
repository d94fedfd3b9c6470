"""Score the held-out test cases with a checkpoint: a table, CSV, JSON and, if requested, the predictions."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainable.cases.labels import LabelConvention, labels_written
from trainable.core.brats import REGIONS, Labels
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection, with_usable_precision
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.core.options import option_names, to_dict
from trainable.data.cache import CachedCase, changed_cases, require_same, scan_of
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import seen_line
from trainable.evaluation.inference import NonFiniteLogitsError, on_file_grid, on_full_grid, save_label
from trainable.evaluation.lesions import score_lesions
from trainable.evaluation.metrics import Scores, mean_scores, voxel_spacing
from trainable.evaluation.validate import validate
from trainable.training.checkpoint import build_from_state, load_checkpoint
from trainable.training.seen_cases import History, cases_by_part, group_by_part, parts_of
from trainable.training.training_dir import TrainingDir

# The groups of columns of a table: heading, prefix of the scores' names, digits, columns.
COLUMNS = (
    ("Dice", "dice", 4, (*REGIONS, "mean")),
    ("HD95 in mm", "hd95", 2, REGIONS),
    ("sensitivity", "sensitivity", 4, REGIONS),
    ("specificity", "specificity", 4, REGIONS),
    ("Dice by lesion", "lesion_dice", 4, REGIONS),
    ("HD95 by lesion, mm", "lesion_hd95", 2, REGIONS),
)


def evaluate(config: TrainConfig, data: Data | None = None) -> Scores:
    """Score the test cases with the checkpoint file of the option `resume`, which must be set; return the mean scores.

    A case of the test part whose images the model was trained on all the same is marked as such, in a part of its own.

    Writes test_scores.json and .csv into output_dir; with save_predictions also predictions/CASE.nii.gz, uint8, with
    the labels of the case's seg, on the grid of its files. The scores are those of score_case, with lesion_wise also
    those of score_lesions; for a case that was resampled, of its resampled truth.

    Args:
        config: all options.
        data: the cases, if they are prepared already; None to prepare those of data_dir.

    Raises:
        InputError: if the cases, the device or the checkpoint cannot be used, there are no test cases, or the split is
            not that of the checkpoint; or if the logits of a test case are not finite.
    """
    assert config.resume is not None
    paths = TrainingDir(config.output_dir)
    data = data or prepare_data(config)
    state = load_tested(config.resume, data)
    device = choose_device(config)
    network, _ = build_from_state(state, device)
    config = with_usable_precision(config, device)
    by_lesion: dict[str, Scores] = {}
    written: list[LabelConvention] = []

    def on_case(case: CachedCase, prediction: Labels) -> None:
        require_same({case.name: case.content}, data.contents)
        if config.lesion_wise:
            by_lesion[case.name] = score_lesions(prediction, case.label, spacing=voxel_spacing(case.affine))
        if config.save_predictions:
            written.append(data.labels.with_et(case.et_value))
            label = on_file_grid(on_full_grid(prediction, case), case.file_grid)
            file = paths.predictions / f"{case.name}.nii.gz"
            save_label(written[-1].from_canonical(label), case.file_grid.affine, file)

    try:
        with kernel_selection(config):
            scores = validate(network, config, data.folder, data.split.test, full=True, on_case=on_case)
    except NonFiniteLogitsError as error:
        raise InputError(f"{config.resume} cannot be scored: {error}; test another checkpoint") from None
    scores = {name: case_scores | by_lesion.get(name, {}) for name, case_scores in scores.items()}
    parts = parts_of(state, {name: scan_of(data.contents[name]) for name in scores})
    if "cases" not in state:  # of an older version, whose split is compared
        parts = dict.fromkeys(scores, "test")
    seen = History.before(state).seen_of({"test": cases_by_part(data)["test"]})
    heading = f"{len(scores)} test cases, {config.resume}"
    logger.info("\n".join(filter(None, [heading, score_table(scores, parts), seen_line(seen, data.split)])))
    about = {"checkpoint": str(config.resume), "epoch": state["epoch"], "seen_by_pretrained": seen.get("test", [])}
    about |= {name: to_dict(config)[name] for name in option_names(prediction=True)}
    save_scores(scores, paths.test_scores, about, parts)
    if written:
        logger.info(labels_written(written))
    if paths.predictions.exists():
        logger.info(f"predictions{'' if config.save_predictions else ' of an earlier test'}: {paths.predictions}")
    return means_by_part(scores, parts).get("test", {})


def load_tested(file: Path, data: Data) -> dict[str, Any]:
    """Return the state of a checkpoint that has not been trained on the test cases.

    Raises:
        InputError: if the split has no test cases or is not that of the checkpoint, the content of a test case is
            another one, or the file cannot be used.
    """
    if not data.split.test:
        raise InputError("the split has no test cases; see --test_fraction and --split_file")
    state = load_checkpoint(file)
    if state["split"] != data.split.digest():
        raise InputError(f"the split is not that of {file}: a test case may have been trained on; restore --split_file")
    begun = state.get("cases", {}).get("test", {})
    if changed := changed_cases(data.contents, begun):
        raise InputError(
            f"test cases are not those of {file}: {changed} differ; restore them, or score these cases, which are "
            f"others, with: voxtune predict {shlex.quote(str(file))} DATA_DIR --out DIR"
        )
    return state


def score_table(scores: Mapping[str, Scores], parts: Mapping[str, str]) -> str:
    """Return a table as text: a line per case, one of the means of each part, never one over several parts.

    The columns are those of COLUMNS; kinds without scores are left out. parts: what each case was to the model, shown
    after its name, see parts_of.
    """
    means = means_by_part(scores, parts)
    rows = [(case, parts[case], values) for case, values in scores.items()]  # a case may be named as a mean is
    rows += [(f"mean {part}", "", mean) for part, mean in means.items()]
    width = max(len("case"), *(len(name) for name, _, _ in rows))
    heading, names = " " * (width + 9), "case".ljust(width) + "  part   "
    lines = [name.ljust(width) + f"  {part}".ljust(9) for name, part, _ in rows]
    first = next(iter(means.values()))
    for title, stem, digits, columns in COLUMNS:
        if f"{stem}_{columns[0]}" not in first:
            continue
        heading += "   " + title.center(8 * len(columns) - 1)
        names += "  " + "".join(f"{column:>8}" for column in columns)
        for index, (_, _, row) in enumerate(rows):
            lines[index] += "  " + "".join(f"{row[f'{stem}_{column}']:8.{digits}f}" for column in columns)
    return "\n".join([heading.rstrip(), names, *lines])


def means_by_part(scores: Mapping[str, Scores], parts: Mapping[str, str]) -> dict[str, Scores]:
    """Return the mean scores of the cases of each part. parts: of each case, see parts_of."""
    groups = group_by_part(parts, scores)
    return {part: mean_scores([scores[name] for name in names]) for part, names in groups.items()}


def save_scores(scores: Mapping[str, Scores], stem: Path, about: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Write the scores of each case as STEM.csv, and with their means as STEM.json; make the folder if needed.

    Args:
        about: what was scored, by name; it precedes the scores in the JSON.
        parts: what each case was to the model, see parts_of; the means are of one part each.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["case", "part", *next(iter(scores.values()))])
    writer.writeheader()
    writer.writerows({"case": case, "part": parts[case], **values} for case, values in scores.items())
    content = {**about, "cases": scores, "parts": parts, "means": means_by_part(scores, parts)}
    atomic_write_text(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    atomic_write_text(stem.with_suffix(".csv"), table.getvalue())
