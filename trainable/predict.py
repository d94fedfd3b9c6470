"""Segment folders of cases with a checkpoint: NIfTI on the original grid, and scores of cases with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from trainable.case_arguments import find_all
from trainable.core.brats import Labels
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS, atomic_write
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.data.case_reader import LoadedCase, load_case
from trainable.data.cases import Case, CaseError
from trainable.evaluation.inference import predict_case, save_label
from trainable.evaluation.metrics import Scores, score_case, voxel_spacing
from trainable.evaluation.pictures import draw_case
from trainable.prediction_scores import open_score_file
from trainable.training.checkpoint import find_checkpoint, load_network
from trainable.training.training_dir import BEST


@dataclass(frozen=True)
class Predictions:
    """What predict_cases did.

    Attributes:
        scores: of each predicted case that has a seg file that can be used, by the case's name.
        failed: one error per case that cannot be used.
        no_case: one line per argument that neither is a case nor has one.
        total: number of cases, with those that cannot be used.
    """

    scores: dict[str, Scores]
    failed: list[CaseError]
    no_case: list[str]
    total: int

    def failures(self) -> str:
        """Return what was not predicted: one line per case that cannot be used and per argument that is no case.

        Call it only if there are any.
        """
        parts = []
        if self.failed:
            rest = "" if len(self.failed) == self.total else ", the others are predicted"
            parts += [f"{len(self.failed)} of {self.total} cases cannot be used{rest}:", *map(str, self.failed)]
        message = "\n  ".join(parts)
        if self.no_case:
            count = len(self.no_case)
            which = "1 argument is no case and was" if count == 1 else f"{count} arguments are no cases and were"
            message += "\n" * bool(message) + "\n  ".join([f"{which} passed over:", *self.no_case])
        return message


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> Predictions:
    """Write OUT/<case>.nii.gz (uint8, labels 0, 1, 2, 4) per case that can be used, and OUT/scores.json and .csv.

    The scores are written after each case, and those of other cases that the same model predicted before are kept.

    Args:
        checkpoint: the file, or a folder with best_model.pth; latest.pth is taken if there is no best_model.pth.
        folders: each the folder of a case, or a folder of such folders; what is no case is passed over and said.
        out: the folder to write into, made if needed.
        mirror: average over the 8 mirrored volumes; if False, only if the checkpoint's option `mirror` says so.
        pictures: also write OUT/<case>.png.
        device: "auto", "cpu" or "cuda", as the option `device`.

    Returns:
        The scores of the cases with a seg file, and what was not predicted.

    Raises:
        InputError: before any case is predicted, if a folder does not exist, the checkpoint or the device cannot be
            used, or two cases have one name; at the end, if no case can be used; at once, if OUT cannot be written.
    """
    found = find_all(folders)
    cases, failed = found.cases, list(found.errors)
    for line in found.passed_over:
        logger.info(line)
    target = choose_device(make_config({"device": device}, "voxtune predict"))
    network, config = load_network(checkpoint, target)
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    score_file = open_score_file(out, find_checkpoint(checkpoint, wanted=BEST), mirror=config.mirror)
    scores: dict[str, Scores] = {}
    predicted: list[str] = []
    for index, case in enumerate(cases, 1):
        logger.info(f"{index}/{len(cases)} {case.name}")
        try:
            loaded = load_for_prediction(case)
        except CaseError as error:
            logger.info(f"{case.name} cannot be used")
            failed.append(error)
            continue
        label = predict_case(network, loaded, config)
        if loaded.label is not None:
            scores[case.name] = score_case(label, loaded.label, spacing=voxel_spacing(loaded.affine))
        try:
            write_prediction(loaded, label, out / case.name, with_picture=pictures)
            predicted.append(case.name)
            score_file.save(scores, predicted)
        except OSError as error:
            raise InputError(cannot_be_written(error, len(predicted), len(cases))) from None
    predictions = Predictions(scores, failed, found.no_case, len(cases) + len(found.errors))
    if len(failed) == predictions.total:
        raise InputError(predictions.failures())
    return predictions


def load_for_prediction(case: Case) -> LoadedCase:
    """Read and check a case; one whose seg file cannot be used is read without it, which is said.

    Raises:
        CaseError: if an image cannot be used.
    """
    try:
        return load_case(case)
    except CaseError as error:
        if case.seg is None:
            raise
        without_truth = load_case(replace(case, seg=None))  # raises again if an image is bad
        logger.info(f"{case.name} is predicted without scores, as its truth cannot be used: {error}")
        return without_truth


def write_prediction(case: LoadedCase, label: Labels, stem: Path, *, with_picture: bool) -> None:
    """Write labels on the case's grid as STEM.nii.gz; with_picture: also STEM.png."""
    save_label(label, case.affine, stem.with_name(f"{stem.name}.nii.gz"))
    if with_picture:
        picture = Image.fromarray(draw_case(case.image, case.label, label))
        atomic_write(stem.with_name(f"{stem.name}.png"), lambda file: picture.save(file, "PNG"))


def cannot_be_written(error: OSError, done: int, total: int) -> str:
    """Return the message for an output that cannot be written after `done` of `total` cases."""
    hint = "; free some space" if error.errno in FULL_DISK_ERRNOS else ""
    return (
        f"{error.filename}: cannot be written ({error.strerror}){hint}; {done} of {total} cases are predicted, "
        "and the scores so far are kept"
    )
