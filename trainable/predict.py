"""Segment folders of cases with a checkpoint: NIfTI on the original grid, and scores of cases with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainable.core.brats import Labels
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.data.cases import Case, CaseError, LoadedCase, find_case, find_cases, load_case
from trainable.evaluation.inference import predict_case, save_label
from trainable.evaluation.metrics import Scores, score_case, voxel_spacing
from trainable.evaluation.pictures import draw_case
from trainable.training.checkpoint import load_network


@dataclass(frozen=True)
class Predictions:
    """What predict_cases did.

    Attributes:
        scores: by name, of the predicted cases that have a seg file.
        failed: why the other cases cannot be used.
        total: number of cases.
    """

    scores: dict[str, Scores]
    failed: list[CaseError]
    total: int

    def failures(self) -> str:
        """Return the cases that cannot be used, one per line after a heading."""
        rest = "" if len(self.failed) == self.total else ", the others are predicted"
        listing = "".join(f"\n  {error}" for error in self.failed)
        return f"{len(self.failed)} of {self.total} cases cannot be used{rest}:{listing}"


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> Predictions:
    """Write OUT/<case>.nii.gz (uint8, labels 0, 1, 2, 4) per case; return the scores of those with a seg file.

    Args:
        checkpoint: the file, or a folder whose best model is taken.
        folders: of cases, or folders of such folders.
        out: the folder to write into.
        mirror: average over the 8 mirrored volumes, in addition to the checkpoint's own option.
        pictures: also write OUT/<case>.png.
        device: as the option `device`.

    Raises:
        InputError: if no case can be used; for two cases of one name, before any is predicted.
    """
    cases, failed = find_all(folders)
    total = len(cases) + len(failed)
    target = choose_device(make_config({"device": device}, "voxtune predict"))
    network, config = load_network(checkpoint, target)
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    scores: dict[str, Scores] = {}
    for index, case in enumerate(cases, 1):
        logger.info(f"{index}/{len(cases)} {case.name}")
        try:
            loaded = load_case(case)
        except CaseError as error:
            logger.info(f"{case.name} cannot be used")
            failed.append(error)
            continue
        label = predict_case(network, loaded, config)
        write_prediction(loaded, label, out / case.name, with_picture=pictures)
        if loaded.label is not None:
            scores[case.name] = score_case(label, loaded.label, spacing=voxel_spacing(loaded.affine))
    predictions = Predictions(scores, failed, total)
    if len(failed) == total:
        raise InputError(predictions.failures())
    return predictions


def write_prediction(case: LoadedCase, label: Labels, stem: Path, *, with_picture: bool) -> None:
    """Write labels on the case's grid as STEM.nii.gz; with_picture: also STEM.png."""
    save_label(label, case.affine, stem.with_name(f"{stem.name}.nii.gz"))
    if with_picture:
        Image.fromarray(draw_case(case.image, case.label, label)).save(stem.with_name(f"{stem.name}.png"))


def find_all(folders: Sequence[Path]) -> tuple[list[Case], list[CaseError]]:
    """Return the cases in these folders, and the errors of those that lack a file.

    Raises:
        InputError: if a folder does not exist, or two cases have one name.
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
    """Return the case that a folder is, or the cases that it contains, and the errors of those that lack a file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a case's folder or a folder of cases")
    if any(folder.glob("*.nii")) or any(folder.glob("*.nii.gz")):
        try:
            return [find_case(folder, need_seg=False)], []
        except CaseError as error:
            return [], [error]
    return find_cases(folder, need_seg=False)
