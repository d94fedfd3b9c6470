"""Choose how a trained model predicts, mirroring, overlap and the clean-up after it, by its validation cases."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainable.core.command_name import train_command
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.files import require_working_folder
from trainable.core.locks import lock_folder
from trainable.core.logger import logger
from trainable.core.options import make_config, to_dict
from trainable.core.progress_bar import progress_bar
from trainable.core.storage import Uri, is_there, place_of_data
from trainable.data.cache import changed_cases, open_case, scan_of
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, save_split
from trainable.evaluation.averaging import Predictor, predict_averaged
from trainable.evaluation.inference import NonFiniteLogitsError, postprocess
from trainable.evaluation.metrics import Scores, dice_scores
from trainable.evaluation.prediction_setting import Choice, PredictionSetting, choose_setting
from trainable.postprocess_record import (
    Record,
    choice_table,
    heading,
    outcome_text,
    read_record,
    record_file,
    write_record,
)
from trainable.training.checkpoint import load_checkpoint, load_metadata, save_checkpoint, spacing_of
from trainable.training.ensemble import Ensemble, find_models, is_ensemble, load_ensemble
from trainable.training.training_dir import TRAINED_OPTIONS, TrainingDir

SCRATCH = ".postprocess"  # folder in that of the model; what a kill leaves in it the next call removes


@dataclass(frozen=True)
class ValidationCases:
    """The validation cases of a model, and what is predicted for them.

    Attributes:
        data: prepared, without any test case.
        predictors: by case, the networks that it validated and that were not trained on it: of an ensemble over folds
            those of its fold, so that each case is predicted out of fold.
        scratch: folder of the label maps before the clean-up, one per case and way to run the networks.
        scored: scores by setting, so that none is computed twice.
    """

    data: Data
    predictors: Mapping[str, Sequence[Predictor]]
    scratch: Path
    scored: dict[PredictionSetting, dict[str, Scores]] = field(default_factory=dict)

    def score(self, setting: PredictionSetting) -> dict[str, Scores]:
        """Return the Dice of each case, predicted with a setting."""
        if setting not in self.scored:
            self._predict(setting)
            options = setting.apply(TrainConfig())
            with progress_bar(f"scoring {setting}", len(self.predictors)) as advance:
                self.scored[setting] = {}
                for name in self.predictors:
                    label = postprocess(np.load(self._file(setting, name)), options)
                    truth = torch.from_numpy(np.array(open_case(self.data.folder, name).label))
                    self.scored[setting][name] = dice_scores(torch.from_numpy(label), truth)
                    advance()
        return self.scored[setting]

    def _predict(self, setting: PredictionSetting) -> None:
        """Write the label maps before the clean-up, unless another setting of the same way to predict has done so."""
        names = [name for name in self.predictors if not self._file(setting, name).exists()]
        changes = replace(setting, min_component=0, et_threshold=0)
        with progress_bar(f"predicting {setting}", len(names)) as advance:
            for name in names:
                case = open_case(self.data.folder, name)
                predictors = [
                    replace(predictor, config=changes.apply(predictor.config)) for predictor in self.predictors[name]
                ]
                try:
                    label = predict_averaged(predictors, case.image, case.mean, case.std).label
                except NonFiniteLogitsError as error:
                    raise InputError(f"{name} cannot be predicted: {error}") from None
                np.save(self._file(setting, name), label)
                advance()

    def _file(self, setting: PredictionSetting, name: str) -> Path:
        """Return the file of a case's label map before the clean-up, uint8 (D, H, W)."""
        return self.scratch / f"mirror_{setting.mirror}_overlap_{setting.overlap:g}_{name}.npy"


def choose_postprocessing(folder: Path, data_dir: Path | Uri | None = None) -> Choice:
    """Choose prediction options by validation cases and write them into a model; print what was tried.

    Test cases are not opened. If nothing is shown to help, the model predicts as before the first call, and
    postprocess.json is removed if there is one. Called again, it starts from the setting before the first call.

    Args:
        folder: of a training, or of an ensemble, whose cases are predicted out of fold.
        data_dir: where the cases are now, if not where the training had them.

    Returns:
        What was tried and chosen.

    Raises:
        InputError: if the folder has no model, its members predict differently, there are no validation cases or they
            are not those of the training, a prediction is not finite, or another process works in the folder.
    """
    require_working_folder()
    files = models_of(folder)
    states = [load_metadata(file) for file in files]
    names = validation_names(folder, states)
    with lock_folder(folder), scratch_folder(folder) as scratch:
        start = starting_setting(folder, states)
        config = make_config(states[0]["config"], str(files[0]), begun=True)
        data = validation_data(config, states, names, data_dir, scratch)
        device = choose_device(config.model_copy(update={"device": "auto"}))  # that of the training may not be here
        ensemble = load_ensemble(files, device, start.apply)
        cases = ValidationCases(data, predictors_by_case(ensemble, names), scratch)
        metric = config.metric.removeprefix("val_")
        logger.info(heading(folder, names, metric, start))
        with kernel_selection(ensemble.first.config):
            choice = choose_setting(start, cases.score, metric)
        models = {relative(member.checkpoint, folder): member.identity for member in ensemble.members}
        record = Record.of(choice, cases.scored, metric, models)
        logger.info(choice_table(choice))
        write_choice(folder, files, record)
        logger.info(outcome_text(record, folder))
    return choice


def models_of(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoint files in the folder of a training or an ensemble.

    Raises:
        InputError: if it is neither, as a checkpoint's file or the best model of a sweep is.
    """
    if not is_ensemble(folder) and not TrainingDir(folder).best.is_file():
        raise InputError(
            f"{folder}: no finished training; expected RUN/retrain/NAME or the output folder of `{train_command()}`, "
            f"with {TrainingDir(Path()).best}"
        )
    return find_models([folder])


def validation_names(folder: Path, states: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the validation cases of each model.

    Raises:
        InputError: if there are none, a model does not say its cases, or one of them is a test case to another model.
    """
    if any("cases" not in state for state in states):
        raise InputError(f"{folder}: the model is of an older version and does not say its cases; train it again")
    names = [sorted(state["cases"]["val"]) for state in states]
    if not any(names):
        raise InputError(
            f"{folder}: the training had no validation cases, so that nothing can be chosen by them, and test cases "
            "may not choose; retrain without --with_val, or with --folds, or set the options yourself in training"
        )
    scans = {scan_of(content) for state in states for content in state["cases"]["test"].values()}
    for state in states:
        for name, content in state["cases"]["val"].items():
            if scan_of(content) in scans:
                raise InputError(f"{folder}: {name} validated one model and is a test case of another")
    return names


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in that of a model, which is locked; it is removed at the end, after a kill by the next."""
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def starting_setting(folder: Path, states: Sequence[Mapping[str, Any]]) -> PredictionSetting:
    """Return the setting from before the first call: the one on record, else that of the models.

    If another setting than those on record was written into a model since, the record no longer holds.

    Raises:
        InputError: if the models have different settings, and not for a call that was killed while it wrote them.
    """
    configs = [make_config(state["config"], str(folder), begun=True) for state in states]
    settings = [PredictionSetting.of_config(config) for config in configs]
    record = read_record(folder)
    if record is not None and {*settings} <= {record.before, record.chosen}:
        return record.before
    for setting in settings[1:]:
        if setting != settings[0]:
            raise InputError(
                f"{folder}: its members predict differently: {settings[0].changes(setting)} for one and "
                f"{setting.changes(settings[0])} for another; expected members of one recipe"
            )
    return settings[0]


def validation_data(
    config: TrainConfig,
    states: Sequence[Mapping[str, Any]],
    names: Sequence[Sequence[str]],
    data_dir: Path | Uri | None,
    scratch: Path,
) -> Data:
    """Prepare the cases of the first model's train and val, without looking at any other, and return them.

    Raises:
        InputError: if the cases cannot be prepared, are not those of the trainings, or lack one of `names`.
    """
    own = states[0]["cases"]
    split = Split(tuple(sorted({*own["train"], *own["val"]})), (), ())
    if strange := sorted({name for of_one in names for name in of_one} - {*split.train}):
        raise InputError(f"{strange[0]} validated one member and is unknown to another; expected members of one split")
    save_split(split, scratch / "split.json")
    place = {} if data_dir is None else {"data_dir": place_of_data(data_dir), "cache_dir": None}
    if data_dir is None and (config.data_dir is None or not is_there(config.data_dir)):
        raise InputError(
            f"{config.data_dir}: the cases of the training are not there; give their folder or URI with --data DIR"
        )
    changes = {"split_file": scratch / "split.json", "resume": None, "pretrained": None, **place}
    config, target = config.model_copy(update=changes), spacing_of(states[0])
    data = prepare_data(config, begun=True, begun_with=target, quiet=data_dir is None)
    for state in states:
        if changed := changed_cases(data.contents, {**state["cases"]["train"], **state["cases"]["val"]}):
            raise InputError(f"{data.folder}: cases are not those of the training: {changed}; restore them")
    return data


def predictors_by_case(ensemble: Ensemble, names: Sequence[Sequence[str]]) -> dict[str, list[Predictor]]:
    """Return for each validation case, sorted, the networks that it validated: of folds only those of its own.

    names: the validation cases of each member.
    """
    pairs = list(zip(ensemble.predictors, names, strict=True))
    return {
        name: [predictor for predictor, validated in pairs if name in validated]
        for name in sorted({name for of_one in names for name in of_one})
    }


def write_choice(folder: Path, files: Sequence[Path], record: Record) -> None:
    """Write the chosen setting into the models, and what was tried into postprocess.json; remove it if nothing helped.

    A call that was killed in between is recognised by the next one: a model then has one of the two settings on record.
    """
    if record.helped:
        earlier = read_record(folder)
        if earlier is not None and earlier.chosen != record.chosen:  # else a kill could leave models of neither record
            write_setting(files, record.before)
        write_record(folder, record)
    write_setting(files, record.chosen)
    if not record.helped:
        record_file(folder).unlink(missing_ok=True)


def write_setting(files: Sequence[Path], setting: PredictionSetting) -> None:
    """Write a setting into the checkpoints that have another one, beside their training's own, for a resume."""
    for file in files:
        state = load_checkpoint(file)
        config = {**to_dict(TrainConfig()), **state["config"]}  # older code lacked some of the options
        if any(config[name] != value for name, value in setting.to_dict().items()):
            own = {TRAINED_OPTIONS: {name: config[name] for name in PredictionSetting.names()}}
            save_checkpoint({**own, **state, "config": {**state["config"], **setting.to_dict()}}, file)


def relative(file: Path, folder: Path) -> str:
    """Return the path of a model's file in its folder, as text."""
    return str(file.resolve().relative_to(folder.resolve()))
