"""The cases that a report shows: the worst, the median and the best of a model, with images, truth and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from trainable.core.brats import Labels
from trainable.core.errors import InputError
from trainable.data.cache import CachedCase, CacheError, open_case
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from trainable.training.training_dir import TrainingDir
from tune.report.case_predictions import KeptPrediction, ShownModel, load_prediction, make_predictions, read_kept
from tune.report.training_scores import cache_of, member_folders, read_test_scores, validation_scores
from tune.run.results import Run

if TYPE_CHECKING:  # it imports torch, and a report of kept predictions does without it
    from trainable.evaluation.metrics import Scores

ImageChoice = Literal["make", "kept", "none"]
DICE_TOLERANCE = 0.0005  # what rounding to three digits hides
PREDICTIONS = "predictions_in_report"  # folder in that of a training; `predictions` has those of --save_predictions


@dataclass(frozen=True)
class CaseImages:
    """What is drawn of a case. All arrays are in LPS: indices grow towards left, posterior and superior.

    grey: uint8 (4, X, Y, Z), each modality; the background is 0. truth, prediction: label maps (X, Y, Z). affine:
    float64 (4, 4), from indices to mm, right, anterior and superior being positive. mm: size of a voxel.
    """

    grey: NDArray[np.uint8]
    truth: Labels
    prediction: Labels
    affine: NDArray[np.float64]
    mm: tuple[float, float, float]


@dataclass(frozen=True)
class CaseView:
    """A case of a model.

    Attributes:
        name: of the case; names a patient's data.
        part: "validation" or "test".
        rank: its place by mean Dice: "worst", "median", "best", or "only".
        count: number of cases that were ranked.
        model: what has predicted it: "trial 12, epoch 9".
        dice: as recorded when the model was trained or tested, see SCORE_COLUMNS.
        images: None if they cannot be shown.
        reason: why there are no images, a sentence without names; "" if there are.
        detail: the same with names of cases and files.
        note: what the reader must know of the images; "" if nothing.
    """

    name: str
    part: str
    rank: str
    count: int
    model: str
    dice: Scores
    images: CaseImages | None = None
    reason: str = ""
    detail: str = ""
    note: str = ""


def case_views(run: Run, *, images: ImageChoice, quiet: bool = False) -> list[CaseView]:
    """Return the worst, the median and the best validation case of a sweep's winner; [] before the first validation.

    Args:
        images: "make" predicts the cases by RUN/best if no predictions are kept, and keeps them in
            RUN/best/predictions; "kept" uses kept ones only; "none" returns the scores alone.
        quiet: no progress bar.

    Raises:
        InputError: if the winner's case_scores.csv is damaged.
    """
    if not run.ranking:
        return []
    winner = run.best()
    scores = read_case_scores(run.dir.trial(winner.number).case_scores).get(winner.best_epoch, {})
    label = f"trial {winner.number}, epoch {winner.best_epoch}"
    cache = Path(run.config.record.cache_dir or "")
    model = ShownModel((run.dir.best_model,), label, cache, run.dir.best / "predictions")
    return with_images(ranked_views(scores, "validation", label), model, images, quiet=quiet)


def case_views_of_training(folder: Path, *, images: ImageChoice, quiet: bool = False) -> list[CaseView]:
    """Return the worst, median and best validation cases of a training, and test cases if it has scored them.

    An ensemble has test cases only: each member has validation cases of its own. Predictions are kept in
    FOLDER/predictions_in_report.

    Args:
        folder: of a training, as RUN/retrain/NAME, or of an ensemble.
        images, quiet: as for case_views.

    Raises:
        InputError: if a file of scores is damaged.
    """
    members = member_folders(folder)
    files = tuple(TrainingDir(member).best for member in members or [folder])
    views: list[CaseView] = []
    epoch, scores = validation_scores(folder)
    if scores and not members:
        model = ShownModel(
            files, f"{folder.name}, epoch {epoch}", cache_of(folder), folder / PREDICTIONS / "validation"
        )
        views += with_images(ranked_views(scores, "validation", model.label), model, images, quiet=quiet)
    test = read_test_scores(folder)
    if test.scores:
        label = f"{folder.name}, {len(members)} members" if members else f"{folder.name}, epoch {test.epoch}"
        model = ShownModel(files, label, cache_of(folder), folder / PREDICTIONS / "test", test.options)
        views += with_images(ranked_views(test.scores, "test", label), model, images, quiet=quiet)
    return views


def ranked_views(scores: Mapping[str, Scores], part: str, model: str) -> list[CaseView]:
    """Return the worst, the median and the best case by mean Dice, without images; fewer if there are fewer cases."""
    order = sorted(scores, key=lambda name: (scores[name]["dice_mean"], name))
    if len(order) < 2:
        chosen = {"only": order[0]} if order else {}
    else:
        middle = {"median": order[(len(order) - 1) // 2]} if len(order) > 2 else {}
        chosen = {"worst": order[0], **middle, "best": order[-1]}
    dice = {name: {column: scores[name][column] for column in SCORE_COLUMNS} for name in chosen.values()}
    return [CaseView(name, part, rank, len(order), model, dice[name]) for rank, name in chosen.items()]


def with_images(views: list[CaseView], model: ShownModel, images: ImageChoice, *, quiet: bool) -> list[CaseView]:
    """Return the views with images, or with the reason why they have none; nothing is raised for images."""
    if images == "none" or not views:
        return [replace(view, reason="no images were asked for") for view in views]
    if missing := [str(file) for file in model.files if not file.is_file()]:
        return [replace(view, reason="the model's checkpoint is not there", detail=missing[0]) for view in views]
    try:
        names = [view.name for view in views]
        kept = make_predictions(model, names, quiet=quiet) if images == "make" else read_kept(model)
    except (InputError, ArithmeticError, RuntimeError, OSError, MemoryError) as error:
        reason = f"the cases could not be predicted: {cause_of(error)}"
        return [replace(view, reason=reason, detail=str(error)) for view in views]
    return [with_kept_images(view, model, kept.get(view.name)) for view in views]


def with_kept_images(view: CaseView, model: ShownModel, kept: KeptPrediction | None) -> CaseView:
    """Return a view with the images of its kept prediction, or with the reason why it has none; kept: None for none."""
    if kept is None:
        return replace(view, reason="no predictions by this model are kept yet; the command voxtune report makes them")
    try:
        case = open_case(model.cache, view.name)
        images = images_of(case, load_prediction(model, kept, case))
    except (InputError, OSError) as error:
        return replace(view, reason=cause_of(error), detail=str(error))
    return replace(view, images=images, note=difference_note(view.dice, kept.dice))


def cause_of(error: Exception) -> str:
    """Return why a case cannot be shown, without a name that the message of the error may have."""
    if isinstance(error, CacheError):
        return "the preprocessed images are not in the cache any more, or have changed"
    if isinstance(error, ArithmeticError):
        return "the network's output is not finite"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "out of memory"
    if isinstance(error, OSError):
        return error.strerror or "a file cannot be read or written"
    return "a file is missing, damaged or in use, or the folder cannot be written"


def difference_note(recorded: Scores, shown: Scores) -> str:
    """Return how the Dice of a prediction differs from the recorded one, as a sentence; "" within DICE_TOLERANCE."""
    if all(abs(shown[column] - recorded[column]) <= DICE_TOLERANCE for column in SCORE_COLUMNS):
        return ""
    values = ", ".join(f"{column.removeprefix('dice_')} {shown[column]:.3f}" for column in SCORE_COLUMNS)
    return f"The prediction shown here was made again, and its Dice differs from the recorded one: {values}."


def images_of(case: CachedCase, prediction: Labels) -> CaseImages:
    """Return what is drawn of a cached case; prediction: uint8 (D, H, W) as its label."""
    grey = np.stack([grey_levels(np.asarray(volume)) for volume in case.image])
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ case.offset
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return CaseImages(grey, np.array(case.label), prediction, affine, (x, y, z))


def grey_levels(volume: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return a modality as grey levels: from the 1st to the 99.5th percentile of its non-zero voxels; 0 stays 0."""
    inside = volume != 0
    if not inside.any():
        return np.zeros(volume.shape, np.uint8)
    low, high = np.percentile(volume[inside][::10], (1, 99.5))  # of a tenth of them, in a tenth of the time
    share = ((volume - low) / max(high - low, 1)).clip(0, 1)
    return np.where(inside, 16 + 239 * share, 0).astype(np.uint8)
