"""Score the held-out test cases with a checkpoint: a table, CSV, JSON and, if requested, the predictions."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trainable.cases.labels import LabelConvention, labels_written
from trainable.core.brats import REGIONS, Labels
from trainable.core.config import TrainConfig
from trainable.core.console import terminal_width
from trainable.core.counted import counted
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.core.options import make_config, option_names, to_dict
from trainable.data.cache import CachedCase, changed_cases, require_same, scan_of
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import seen_line
from trainable.evaluation.averaging import predict_averaged
from trainable.evaluation.inference import NonFiniteLogitsError, on_file_grid, on_full_grid, save_label
from trainable.evaluation.lesions import score_lesions
from trainable.evaluation.metrics import Scores, mean_scores, voxel_spacing
from trainable.evaluation.prediction_setting import PredictionSetting
from trainable.evaluation.validate import score_cases
from trainable.member_scores import MemberScores
from trainable.training.checkpoint import load_metadata, spacing_of
from trainable.training.ensemble import Ensemble, find_models, load_ensemble
from trainable.training.seen_cases import cases_by_part, group_by_part
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


def evaluate(config: TrainConfig, data: Data | None = None, given: Collection[str] = ()) -> Scores:
    """Score the test cases with the model of the option `resume`, which must be set; return the mean scores.

    With several models, since `resume` is an ensemble's folder or `members` names more, their probabilities are
    averaged. Each predicts with the options of its own training, except those that are `given` or in which `config`
    differs from the training of `resume`. The Dice of each alone and the gain of the ensemble are printed and written.

    A case of the test part whose images a model was trained on all the same is marked as such, in a part of its own.

    Writes test_scores.json and .csv into output_dir; with save_predictions also predictions/CASE.nii.gz, uint8, with
    the labels of the case's seg, on the grid of its files. The scores are those of score_case, with lesion_wise also
    those of score_lesions; for a case that was resampled, of its resampled truth.

    Args:
        config: all options.
        data: the cases, if they are prepared already; None to prepare those of data_dir.
        given: names of options of `config` that act on all models, also with the value of the training of `resume`.

    Raises:
        InputError: if the cases, the device or a checkpoint cannot be used, there are no test cases, the split is
            not that of the checkpoint, or the models cannot predict together; or if the logits of a test case are not
            finite.
    """
    assert config.resume is not None
    paths = TrainingDir(config.output_dir)
    data = data or prepare_data(config, begun_with=spacing_of(load_metadata(find_models([config.resume])[0])))
    ensemble = load_tested(config, data, given)
    members = MemberScores.of(ensemble)
    by_lesion: dict[str, Scores] = {}
    written: list[LabelConvention] = []

    def predict(case: CachedCase) -> Labels:
        label, of_members = predict_averaged(ensemble.predictors, case.image, case.mean, case.std)
        members.add(case.name, of_members, case.label)
        return label

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
        device = choose_device(config)
        with kernel_selection(ensemble.first.config):
            scores = score_cases(predict, data.folder, data.split.test, device=device, full=True, on_case=on_case)
    except NonFiniteLogitsError as error:
        raise InputError(f"{config.resume} cannot be scored: {error}; test another checkpoint") from None
    scores = {name: case_scores | by_lesion.get(name, {}) for name, case_scores in scores.items()}
    parts = test_parts(ensemble, data)
    save_test_scores(scores, parts, config, ensemble, members, data)
    if written:
        logger.info(labels_written(written))
    if paths.predictions.exists():
        logger.info(f"predictions{'' if config.save_predictions else ' of an earlier test'}: {paths.predictions}")
    return means_by_part(scores, parts).get("test", {})


def as_chosen(config: TrainConfig) -> TrainConfig:
    """Return a config that scores the model of `resume` with the setting that postprocess has written into it.

    That of the training, if none was chosen.
    """
    assert config.resume is not None
    state = load_metadata(find_models([config.resume])[0])
    return PredictionSetting.of_config(make_config(state["config"], str(config.resume), begun=True)).apply(config)


def load_tested(config: TrainConfig, data: Data, given: Collection[str] = ()) -> Ensemble:
    """Return the models of the options `resume` and `members`; a single one has not been trained on the test cases.

    Each has the config of its training with the options that are `given` or in which `config` differs from the training
    of `resume`, so that a single model has `config` itself, apart from an amp that the device cannot compute.

    Raises:
        InputError: if the split has no test cases or is not that of a single model, or that of a member that does not
            say its cases; if the content of a test case is another one than it was for a model; if a file cannot be
            used, or the models cannot predict together.
    """
    assert config.resume is not None
    if not data.split.test:
        raise InputError("the split has no test cases; see --test_fraction and --split_file")
    files = find_models([config.resume, *config.members])
    saved = load_metadata(find_models([config.resume])[0]).get("config", {})  # load_ensemble refuses what is none
    own = make_config(saved, "the checkpoint", begun=True)
    changes = {name: value for name, value in config if name in given or value != getattr(own, name)}
    ensemble = load_ensemble(files, choose_device(config), lambda trained: trained.model_copy(update=changes))
    for member in ensemble.members:
        tested = member.state.get("cases", {}).get("test")
        if member.state["split"] != data.split.digest() and (len(files) == 1 or tested is None):
            raise InputError(
                f"the split is not that of {member.checkpoint}: a test case may have been trained on; restore "
                "--split_file"
            )
        if changed := changed_cases(data.contents, tested or {}):
            raise InputError(
                f"test cases are not those of {member.checkpoint}: {changed} differ; restore them, or score these "
                f"cases, which are others, with: voxtune predict {shlex.quote(str(config.resume))} DATA_DIR --out DIR"
            )
    return ensemble


def test_parts(ensemble: Ensemble, data: Data) -> dict[str, str]:
    """Return what each test case was to the models, see Ensemble.parts_of."""
    if "cases" not in ensemble.first.state and len(ensemble.members) == 1:  # of an older version: its split is compared
        return dict.fromkeys(data.split.test, "test")
    return ensemble.parts_of({name: scan_of(data.contents[name]) for name in data.split.test})


def save_test_scores(
    scores: Mapping[str, Scores],
    parts: Mapping[str, str],
    config: TrainConfig,
    ensemble: Ensemble,
    members: MemberScores,
    data: Data,
) -> None:
    """Print the scores of the test cases, and write them into output_dir. parts: see test_parts."""
    seen = ensemble.seen_before({"test": cases_by_part(data)["test"]})
    heading = f"{counted(len(scores), 'test case')}, {config.resume}"
    lines = [
        heading,
        score_table(scores, parts, terminal_width()),
        members.table(scores, parts),
        seen_line(seen, data.split),
    ]
    logger.info("\n".join(filter(None, lines)))
    models = {"members": describe_members(ensemble)} if members.names else ensemble.first.identity
    about = {"checkpoint": str(config.resume), **models, "seen_by_pretrained": seen.get("test", [])}
    about |= {name: to_dict(ensemble.first.config)[name] for name in option_names(prediction=True)}
    paths = TrainingDir(config.output_dir)
    save_scores(scores, paths.test_scores, about, parts, members.for_json(scores, parts))


def describe_members(ensemble: Ensemble) -> list[dict[str, Any]]:
    """Return each member's name, checkpoint, its hash, its epoch and the hash of its weights, as plain values."""
    return [
        {
            "name": member.predictor.name,
            "checkpoint": str(member.checkpoint),
            "checkpoint_hash": member.digest,
            **member.identity,
        }
        for member in ensemble.members
    ]


def score_table(scores: Mapping[str, Scores], parts: Mapping[str, str], width: int | None = None) -> str:
    """Return a table as text: a line per case, one of the means of each part, never one over several parts.

    The columns are those of COLUMNS; kinds without scores are left out.

    Args:
        parts: what each case was to the model, shown after its name, see parts_of.
        width: columns of a terminal: kinds that do not fit are in another table below; None for one table.
    """
    means = means_by_part(scores, parts)
    rows = [(case, parts[case], values) for case, values in scores.items()]  # a case may be named as a mean is
    rows += [(f"mean {part}", "", mean) for part, mean in means.items()]
    name_width = max(len("case"), *(len(name) for name, _, _ in rows))
    first, tables = next(iter(means.values())), list[list[str]]()
    for title, stem, digits, columns in COLUMNS:
        if f"{stem}_{columns[0]}" not in first:
            continue
        if not tables or (width is not None and len(tables[-1][1]) + 2 + 8 * len(columns) > width):
            names = [name.ljust(name_width) + f"  {part}".ljust(9) for name, part, _ in rows]
            tables.append([" " * (name_width + 9), "case".ljust(name_width) + "  part   ", *names])
        added = ["   " + title.center(8 * len(columns) - 1), "  " + "".join(f"{column:>8}" for column in columns)]
        added += ["  " + "".join(f"{row[f'{stem}_{column}']:8.{digits}f}" for column in columns) for _, _, row in rows]
        tables[-1] = [line + more for line, more in zip(tables[-1], added, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in table) for table in tables)


def means_by_part(scores: Mapping[str, Scores], parts: Mapping[str, str]) -> dict[str, Scores]:
    """Return the mean scores of the cases of each part. parts: of each case, see parts_of."""
    groups = group_by_part(parts, scores)
    return {part: mean_scores([scores[name] for name in names]) for part, names in groups.items()}


def save_scores(
    scores: Mapping[str, Scores],
    stem: Path,
    about: Mapping[str, Any],
    parts: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the scores of each case as STEM.csv, and with their means as STEM.json; make the folder if needed.

    Args:
        about: what was scored, by name; it precedes the scores in the JSON.
        parts: what each case was to the model, see parts_of; the means are of one part each.
        more: plain values that follow the scores in the JSON, by name; None for none.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["case", "part", *next(iter(scores.values()))])
    writer.writeheader()
    writer.writerows({"case": case, "part": parts[case], **values} for case, values in scores.items())
    content = {**about, "cases": scores, "parts": parts, "means": means_by_part(scores, parts), **(more or {})}
    atomic_write_text(stem.with_suffix(".csv"), table.getvalue())
    atomic_write_text(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")  # last, as it tells the end
