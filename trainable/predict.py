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
from trainable.data.case_reader import LoadedCase, load_case
from trainable.data.cases import Case, CaseError, find_case, find_cases
from trainable.data.scan_hash import scan_hash
from trainable.evaluation.inference import predict_case, save_label
from trainable.evaluation.metrics import Scores, score_case, voxel_spacing
from trainable.evaluation.pictures import draw_case
from trainable.training.checkpoint import build_from_state, find_checkpoint, load_checkpoint
from trainable.training.seen_cases import parts_of
from trainable.training.training_dir import BEST


@dataclass(frozen=True)
class Predictions:
    """What predict_cases did.

    Attributes:
        scores: of each predicted case that has a seg file, by the case's name.
        failed: one error per case that cannot be used.
        total: number of cases, with those that cannot be used.
        parts: what each predicted case was to the model, by the case's name, see parts_of.
    """

    scores: dict[str, Scores]
    failed: list[CaseError]
    total: int
    parts: dict[str, str]

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
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> Predictions:
    """Write OUT/<case>.nii.gz (uint8, labels 0, 1, 2, 4) per case that can be used.

    Args:
        checkpoint: the file, or a folder with best_model.pth; latest.pth is taken if there is no best_model.pth.
        folders: each the folder of a case, or a folder of such folders.
        out: the folder to write into, made if needed.
        mirror: average over the 8 mirrored volumes; if False, only if the checkpoint's option `mirror` says so.
        pictures: also write OUT/<case>.png.
        device: "auto", "cpu" or "cuda", as the option `device`.

    Returns:
        The scores of the cases with a seg file, what each case was to the model, and the errors of the cases that
        cannot be used.

    Raises:
        InputError: before any case is predicted, if a folder, the checkpoint or the device cannot be used or two cases
            have one name; at the end, if no case can be used.
    """
    cases, failed = find_all(folders)
    total = len(cases) + len(failed)
    target = choose_device(make_config({"device": device}, "voxtune predict"))
    state = load_checkpoint(find_checkpoint(checkpoint, wanted=BEST))
    network, config = build_from_state(state, target)
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    scores: dict[str, Scores] = {}
    parts: dict[str, str] = {}
    for index, case in enumerate(cases, 1):
        try:
            loaded = load_case(case)
        except CaseError as error:
            logger.info(f"{index}/{len(cases)} {case.name} cannot be used")
            failed.append(error)
            continue
        parts |= parts_of(state, {case.name: scan_hash(loaded.image)})
        logger.info(f"{index}/{len(cases)} {case.name}: {parts[case.name]}")
        label = predict_case(network, loaded, config)
        write_prediction(loaded, label, out / case.name, with_picture=pictures)
        if loaded.label is not None:
            scores[case.name] = score_case(label, loaded.label, spacing=voxel_spacing(loaded.affine))
    predictions = Predictions(scores, failed, total, parts)
    if len(failed) == total:
        raise InputError(predictions.failures())
    return predictions


def write_prediction(case: LoadedCase, label: Labels, stem: Path, *, with_picture: bool) -> None:
    """Write labels on the case's grid as STEM.nii.gz; with_picture: also STEM.png."""
    save_label(label, case.affine, stem.with_name(f"{stem.name}.nii.gz"))
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
