"""Segment folders of cases with a checkpoint: NIfTI on the original grid, and scores of cases with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from trainable.core.brats import Labels
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.files import require_working_folder
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.data.case_reader import LoadedCase, load_case
from trainable.data.cases import Case, CaseError, find_case, find_cases
from trainable.data.grid import same_spacing, three
from trainable.data.labels import LabelConvention, find_labels, guess_labels, labels_of_checkpoint, labels_written
from trainable.data.resample import resample_case, resample_label
from trainable.data.spacing import spacing_error
from trainable.evaluation.inference import NonFiniteLogitsError, on_file_grid, predict_case, save_label
from trainable.evaluation.metrics import Scores, score_case, voxel_spacing
from trainable.evaluation.pictures import draw_case
from trainable.training.checkpoint import build_from_state, find_checkpoint, load_checkpoint
from trainable.training.training_dir import BEST


@dataclass(frozen=True)
class Predictions:
    """What predict_cases did.

    Attributes:
        scores: of each predicted case that has a seg file, by the case's name.
        failed: one error per case that cannot be used or predicted.
        total: number of cases, with those that cannot be used.
    """

    scores: dict[str, Scores]
    failed: list[CaseError]
    total: int

    def failures(self) -> str:
        """Return how many of the cases cannot be used, then one line per such case that says why.

        Call it only if there are any.
        """
        rest = "" if len(self.failed) == self.total else ", the others are predicted"
        listing = "".join(f"\n  {error}" for error in self.failed)
        return f"{len(self.failed)} of {self.total} cases cannot be used{rest}:{listing}"


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    labels: str | Path | None = None,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> Predictions:
    """Write OUT/<case>.nii.gz (uint8) per case that can be used, with the labels that the case's own seg has.

    A case without a seg has the labels that its names tell, else those of the training.

    Args:
        checkpoint: the file, or a folder with best_model.pth; latest.pth is taken if there is no best_model.pth.
        folders: each the folder of a case, or a folder of such folders.
        out: the folder to write into, made if needed.
        labels: what the values of all seg files and predictions mean, as the option `labels`; None for what the names
            tell.
        mirror: average over the 8 mirrored volumes; if False, only if the checkpoint's option `mirror` says so.
        pictures: also write OUT/<case>.png.
        device: "auto", "cpu" or "cuda", as the option `device`.

    Returns:
        The scores of the cases with a seg file, and the errors of the cases that cannot be used.

    Raises:
        InputError: before any case is predicted, if a folder, the checkpoint, the labels or the device cannot be used
            or two cases have one name; at the end, if no case can be used.
    """
    require_working_folder()
    cases, failed = find_all(folders)
    total = len(cases) + len(failed)
    wanted = None if labels is None else find_labels(labels)
    target = choose_device(make_config({"device": device}, "voxtune predict"))
    state = load_checkpoint(find_checkpoint(checkpoint, wanted=BEST))
    network, config = build_from_state(state, target)
    grid = state.get("grid")
    if grid is None:
        logger.info("the checkpoint is older and does not say its voxel size, so that of the cases is not compared")
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    scores: dict[str, Scores] = {}
    written: list[LabelConvention] = []
    for index, case in enumerate(cases, 1):
        logger.info(f"{index}/{len(cases)} {case.name}")
        try:
            loaded = load_case(case, wanted, config.background)
            label = predict_as_trained(network, case.name, loaded, grid, config)
        except CaseError as error:
            logger.info(f"{case.name} cannot be used")
            failed.append(error)
            continue
        except NonFiniteLogitsError as error:
            logger.info(f"{case.name} cannot be predicted")
            failed.append(CaseError(f"{case.name}: {checkpoint} cannot predict it: {error}"))
            continue
        for note in loaded.notes:
            logger.info(note)
        written.append(own_labels(case, loaded, wanted, labels_of_checkpoint(state)))
        write_prediction(loaded, label, written[-1], out / case.name, with_picture=pictures)
        if loaded.label is not None:
            scores[case.name] = score_case(label, loaded.label, spacing=voxel_spacing(loaded.affine))
    predictions = Predictions(scores, failed, total)
    if len(failed) == total:
        raise InputError(predictions.failures())
    logger.info(labels_written(written))
    return predictions


def own_labels(
    case: Case, loaded: LoadedCase, wanted: LabelConvention | None, trained: LabelConvention
) -> LabelConvention:
    """Return the convention in which to write a case's prediction.

    It is the wanted one, else what the case's names tell, else that of the training. Of its variants it is the one that
    the case's seg has; if that has no ET or there is none, the one of the training.
    """
    labels = wanted or guess_labels(case) or trained
    return (trained if trained in labels.variants else labels).with_et(loaded.et_value)


def predict_as_trained(
    network: nn.Module, name: str, case: LoadedCase, grid: dict[str, Any] | None, config: TrainConfig
) -> Labels:
    """Return the label map predicted for a case, uint8 of its own full shape; it is resampled if the training does so.

    Args:
        grid: the checkpoint's; None if it has none.

    Raises:
        CaseError: if the case has another voxel size than the training's cases, which were not resampled.
    """
    spacing = voxel_spacing(case.affine)
    if grid is None or same_spacing(spacing, grid["spacing"]):
        return predict_case(network, case, config)
    if not grid["resample"]:
        raise spacing_error(name, spacing, grid["spacing"])
    label = predict_case(network, resample_case(case, three(grid["spacing"])), config)
    return resample_label(label, three(case.image.shape[1:]))


def write_prediction(
    case: LoadedCase, label: Labels, labels: LabelConvention, stem: Path, *, with_picture: bool
) -> None:
    """Write labels 0, 1, 2, 4 in a convention as STEM.nii.gz on the case's own grid; with_picture: also STEM.png."""
    written = labels.from_canonical(on_file_grid(label, case.file_grid))
    save_label(written, case.file_grid.affine, stem.with_name(f"{stem.name}.nii.gz"))
    if with_picture:
        Image.fromarray(draw_case(case.image, case.label, label)).save(stem.with_name(f"{stem.name}.png"))


def find_all(folders: Sequence[Path]) -> tuple[list[Case], list[CaseError]]:
    """Return the cases in these folders, and the errors of the cases that lack a file or cannot be read.

    Raises:
        InputError: if a folder does not exist or contains no case, or two cases have one name.
    """
    by_name: dict[str, Case] = {}
    failed: list[CaseError] = []
    for folder in folders:
        cases, errors = cases_in(folder)
        failed += errors
        for case in cases:
            if case.name in by_name:
                places = " and ".join(str(same.images[0].parent) for same in (by_name[case.name], case))
                raise InputError(
                    f"the name {case.name} is given twice, {places}, and one prediction would overwrite the other; "
                    "expected each name once: leave one out, or predict it into another --out"
                )
            by_name[case.name] = case
    return list(by_name.values()), failed


def cases_in(folder: Path) -> tuple[list[Case], list[CaseError]]:
    """Return the case that a folder is, or the cases that it contains, and the errors of those that lack a file.

    Raises:
        InputError: if the folder does not exist or contains no case.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a case's folder or a folder of cases")
    if any(folder.glob("*.nii")) or any(folder.glob("*.nii.gz")):
        try:
            return [find_case(folder, need_seg=False)], []
        except CaseError as error:
            return [], [error]
    return find_cases(folder, need_seg=False)
