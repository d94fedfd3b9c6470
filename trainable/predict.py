"""Segment folders of cases with a checkpoint: NIfTI on the original grid, and scores of cases with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from trainable.case_arguments import find_all
from trainable.cases.case_files import Case, CaseError
from trainable.cases.case_reader import LoadedCase, load_case
from trainable.cases.grid import same_spacing, three
from trainable.cases.labels import LabelConvention, find_labels, guess_labels, labels_of_checkpoint, labels_written
from trainable.cases.resample import resample_case, resample_label
from trainable.core.brats import Labels
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS, atomic_write, require_working_folder
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.data.scan_hash import scan_hash
from trainable.data.spacing import spacing_error
from trainable.evaluation.averaging import AveragedLabels, predict_case_averaged
from trainable.evaluation.inference import NonFiniteLogitsError, on_file_grid, save_label
from trainable.evaluation.metrics import Scores, score_case, voxel_spacing
from trainable.evaluation.pictures import draw_case
from trainable.prediction_scores import ScoreFile, open_score_file
from trainable.training.ensemble import Ensemble, find_models, load_ensemble


@dataclass(frozen=True)
class Predictions:
    """What predict_cases did.

    Attributes:
        scores: of each predicted case that has a seg file that can be used, by the case's name.
        failed: one error per case that cannot be used or predicted.
        no_case: one line per argument that neither is a case nor has one.
        parts: what each predicted case was to the model, by the case's name, see parts_of.
        total: number of cases, with those that cannot be used.
        members: the mean Dice of each member of an ensemble and the gain over them as text; "" without scores of them.
    """

    scores: dict[str, Scores]
    failed: list[CaseError]
    no_case: list[str]
    parts: dict[str, str]
    total: int
    members: str

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


@dataclass(frozen=True)
class PredictedCases:
    """What is known of the cases that are predicted so far, by their names.

    Attributes:
        total: number of cases that are predicted in all.
        scores: of those with a seg file that can be used.
        parts: what each was to the model, see parts_of.
        written: the convention of the labels of each prediction.
    """

    total: int
    scores: dict[str, Scores] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    written: dict[str, LabelConvention] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A trained network, or several together, that predict as their trainings did.

    Attributes:
        name: its file, or what the user calls an ensemble.
        ensemble: the networks, with this call's `mirror`.
        labels: the convention that this call asks for; None for that of each case.
    """

    name: Path
    ensemble: Ensemble
    labels: LabelConvention | None

    @property
    def background(self) -> float | Literal["auto"]:
        """The option of the training, by which cases are read."""
        return self.ensemble.first.config.background

    def predict(self, name: str, case: LoadedCase) -> AveragedLabels:
        """Return the label maps predicted for a case, of its own full shape; resampled if the training does so.

        Raises:
            CaseError: if the case has another voxel size than the training's cases, which were not resampled; or if its
                logits are not finite.
        """
        predictors, grid, spacing = self.ensemble.predictors, self.ensemble.grid, voxel_spacing(case.affine)
        try:
            if grid is None or same_spacing(spacing, grid["spacing"]):
                return predict_case_averaged(predictors, case)
            if not grid["resample"]:
                raise spacing_error(name, spacing, grid["spacing"])
            labels = predict_case_averaged(predictors, resample_case(case, three(grid["spacing"])))
            return labels.apply(lambda label: resample_label(label, three(case.image.shape[1:])))
        except NonFiniteLogitsError as error:
            raise CaseError(f"{name}: {self.name} cannot predict it: {error}") from None

    def part_of(self, case: LoadedCase) -> tuple[str, str]:
        """Return what a case was to the model, see Ensemble.parts_of, and a note.

        The note is "" unless pretrained weights saw the case.
        """
        scan = scan_hash(case.image)
        (part,) = self.ensemble.parts_of({"the case": scan}).values()
        return part, ", seen by the pretrained weights" * bool(self.ensemble.seen_before({part: {"the case": scan}}))

    def unclear_truth(self, case: Case) -> str:
        """Return why a case's seg cannot be read by the case's names, though they tell its labels; "" if it can.

        That is so if the training read its seg files by an option `labels` that contradicts such names.
        """
        chosen, by_names = self.ensemble.first.config.labels, guess_labels(case)
        trained = labels_of_checkpoint(self.ensemble.first.state)
        if self.labels or chosen is None or by_names is None or not by_names.contradicts(trained):
            return ""
        return (
            f"its names tell the labels {by_names}, and the training had --labels {chosen}, which reads otherwise; "
            f"choose one: --labels {by_names.name} or --labels {chosen}"
        )

    def labels_of(self, case: Case, loaded: LoadedCase) -> LabelConvention:
        """Return the convention in which to write a case's prediction.

        It is the one asked for, else what the case's names tell, else that of the training. Of its variants it is the
        one that the case's seg has; if that has no ET or there is none, the one of the training.
        """
        trained = labels_of_checkpoint(self.ensemble.first.state)
        labels = self.labels or guess_labels(case) or trained
        return (trained if trained in labels.variants else labels).with_et(loaded.et_value)


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    members: Sequence[Path] = (),
    labels: str | Path | None = None,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> Predictions:
    """Write OUT/<case>.nii.gz (uint8) per case that can be used, and OUT/scores.json and .csv.

    A prediction has the labels of the case's own seg; without a seg those that its names tell, else the training's. The
    scores are written after each case, and those of other cases that the same model predicted before are kept.

    Args:
        checkpoint: the file, a folder with best_model.pth, or an ensemble's folder; see find_models.
        folders: each the folder of a case, or a folder of such folders; what is no case is passed over and said.
        out: the folder to write into, made if needed.
        members: more of them; the probabilities of all models are averaged, and the scores of each alone are written.
        labels: what the values of all seg files and predictions mean, as the option `labels`; None for what the names
            tell.
        mirror: average over the 8 mirrored volumes; if False, only if the checkpoint's option `mirror` says so.
        pictures: also write OUT/<case>.png.
        device: "auto", "cpu" or "cuda", as the option `device`.

    Returns:
        The scores of the cases with a seg file, what each case was to the model, and what was not predicted.

    Raises:
        InputError: before any case is predicted, if a folder does not exist, the checkpoint, the labels or the device
            cannot be used, or two cases have one name; at the end, if no case can be used; at once, if OUT cannot be
            written.
    """
    require_working_folder()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give the folder of the predictions with --out")
    found = find_all(folders)
    cases, failed = found.cases, list(found.errors)
    for line in found.passed_over:
        logger.info(line)
    model = load_model([checkpoint, *members], labels, mirror=mirror, device=device)
    score_file = open_score_file(out, model.name, model.ensemble, mirror=model.ensemble.first.config.mirror)
    if line := score_file.replaced([case.name for case in cases]):
        logger.info(line)
    done = PredictedCases(len(cases))
    for index, case in enumerate(cases, 1):
        try:
            predict_one(case, f"{index}/{len(cases)}", model, out, score_file, done, with_picture=pictures)
        except CaseError as error:
            logger.info(f"{index}/{len(cases)} {case.name} cannot be used")
            failed.append(error)
    table = score_file.finish(done.scores, done.parts, done.written)
    predictions = Predictions(done.scores, failed, found.no_case, done.parts, len(cases) + len(found.errors), table)
    if len(failed) == predictions.total:
        raise InputError(predictions.failures())
    logger.info(labels_written(done.written.values()))
    return predictions


def predict_one(
    case: Case, count: str, model: Model, out: Path, score_file: ScoreFile, done: PredictedCases, *, with_picture: bool
) -> None:
    """Predict a case, write its prediction and the scores so far.

    Args:
        count: which of the cases it is, to print.
        done: the cases before, to which this one is added.

    Raises:
        CaseError: if it cannot be used or predicted.
        InputError: if `out` cannot be written.
    """
    loaded = load_for_prediction(case, model)
    done.parts[case.name], note = model.part_of(loaded)
    logger.info(f"{count} {case.name}: {done.parts[case.name]}{note}")
    predicted = model.predict(case.name, loaded)
    if loaded.label is not None:
        done.scores[case.name] = score_case(predicted.label, loaded.label, spacing=voxel_spacing(loaded.affine))
        score_file.members.add(case.name, predicted.of_members, loaded.label)
    labels = model.labels_of(case, loaded)
    try:
        write_prediction(loaded, predicted.label, labels, out / case.name, with_picture=with_picture)
        done.written[case.name] = labels
        score_file.save(done.scores, done.parts, done.written)
    except OSError as error:
        raise InputError(cannot_be_written(error, len(done.written), done.total)) from None


def load_model(paths: Sequence[Path], labels: str | Path | None, *, mirror: bool, device: str) -> Model:
    """Return the model of checkpoints, ready to predict; the arguments and errors are those of predict_cases."""
    wanted = None if labels is None else find_labels(labels)
    target = choose_device(make_config({"device": device}, "voxtune predict"))
    files = find_models(paths)
    mirrored = {"mirror": True} if mirror else {}
    ensemble = load_ensemble(files, target, lambda config: config.model_copy(update=mirrored))
    if ensemble.grid is None:
        logger.info("the checkpoint is older and does not say its voxel size, so that of the cases is not compared")
    return Model(files[0] if len(files) == 1 else paths[0], ensemble, wanted)


def load_for_prediction(case: Case, model: Model) -> LoadedCase:
    """Read and check a case, and say what was changed in its images.

    A case whose seg file cannot be used, or has labels that are unclear, is read without it, which is said.

    Raises:
        CaseError: if an image cannot be used.
    """
    background = model.background
    if case.seg is not None and (reason := model.unclear_truth(case)):
        logger.info(f"{case.name} is predicted without scores: {reason}")
        case = replace(case, seg=None)
    try:
        loaded = load_case(case, model.labels, background)
    except CaseError as error:
        if case.seg is None:
            raise
        loaded = load_case(replace(case, seg=None), model.labels, background)  # raises again if an image is bad
        logger.info(f"{case.name} is predicted without scores, as its truth cannot be used: {error}")
    for note in loaded.notes:
        logger.info(note)
    return loaded


def write_prediction(
    case: LoadedCase, label: Labels, labels: LabelConvention, stem: Path, *, with_picture: bool
) -> None:
    """Write labels 0, 1, 2, 4 in a convention as STEM.nii.gz on the case's own grid; with_picture: also STEM.png."""
    written = labels.from_canonical(on_file_grid(label, case.file_grid))
    save_label(written, case.file_grid.affine, stem.with_name(f"{stem.name}.nii.gz"))
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
