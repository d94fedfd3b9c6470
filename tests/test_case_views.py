"""The cases of a report: which are shown, whose predictions, and what is said if there are no images."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from trainable.core.config import TrainConfig
from trainable.data.cache import open_case
from trainable.data.prepare import Data
from trainable.data.split import Split
from trainable.evaluate import evaluate
from trainable.evaluation.inference import NonFiniteLogitsError
from trainable.train import train
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.training_dir import TrainingDir
from tune.report import case_predictions
from tune.report.case_views import case_views, case_views_of_training, ranked_views
from tune.report.dice_plots import dice_section_of_training
from tune.report.training_report import test_section as section_of_test_scores
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config


@pytest.fixture(scope="module")
def data(prepared: Data) -> Data:
    """Three cases to train on, three to validate, two to test."""
    names = prepared.split.names
    return Data(prepared.folder, Split(tuple(names[:3]), tuple(names[3:6]), tuple(names[6:])))


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two epochs."""
    folder = tmp_path_factory.mktemp("training") / "final"
    train(small(data, folder), data)
    return folder


@pytest.fixture
def training(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(trained, tmp_path / "final"))


def small(data: Data, folder: Path, **options: object) -> TrainConfig:
    return TrainConfig(
        output_dir=folder, cache_dir=data.folder, epochs=2, patches_per_epoch=4, depth=2, base_channels=2,
        target_shape=(32, 32, 32), num_workers=0, device="cpu", lr=0.01, **options,
    )  # fmt: skip


def run_of(folder: Path, cache: Path, training: Path) -> Run:
    """A run whose only trial is a training."""
    config = make_sweep_config({"study": {"trials": 1}, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    epoch = max(read_case_scores(TrainingDir(training).case_scores))
    trial = TrialResult(0, TrialState.COMPLETE, "epochs", 0.5, epoch, epoch, {}, {"lr": 1e-3}, 1.0, None, "")
    run = Run(RunDir(folder), config.with_record(cache_dir=str(cache)), [trial])
    for source, target in (
        (TrainingDir(training).case_scores, run.dir.trial(0).case_scores),
        (TrainingDir(training).latest, run.dir.best_model),
    ):
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    return run


def test_worst_median_and_best_are_chosen_by_mean_dice() -> None:
    means = zip("abcde", (0.4, 0.9, 0.1, 0.6, 0.5), strict=True)
    scores = {name: dict.fromkeys(SCORE_COLUMNS, dice) for name, dice in means}
    assert [(view.name, view.rank, view.count) for view in ranked_views(scores, "validation", "")] == [
        ("c", "worst", 5), ("e", "median", 5), ("b", "best", 5),
    ]  # fmt: skip
    two = {name: scores[name] for name in "ab"}
    assert [(view.name, view.rank) for view in ranked_views(two, "test", "")] == [("a", "worst"), ("b", "best")]
    assert [(view.name, view.rank) for view in ranked_views({"a": scores["a"]}, "test", "")] == [("a", "only")]
    assert ranked_views({}, "test", "") == []


def test_the_images_of_a_winner_are_those_that_its_recorded_dice_is_of(
    training: Path, data: Data, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", data.folder, training)
    views = case_views(run, images="make", quiet=True)
    assert [view.rank for view in views] == ["worst", "median", "best"]
    assert {view.name for view in views} == set(data.split.val)
    for view in views:
        assert (view.reason, view.note, view.model) == ("", "", "trial 0, epoch 2")
        case = open_case(data.folder, view.name)
        assert view.images is not None
        assert np.array_equal(view.images.truth, case.label)
        hit = 2 * np.sum((view.images.truth > 0) & (view.images.prediction > 0))
        total = np.sum(view.images.truth > 0) + np.sum(view.images.prediction > 0)
        assert view.dice["dice_WT"] == pytest.approx(hit / total)
        grey = view.images.grey
        assert grey.shape == case.image.shape
        assert np.array_equal(grey == 0, np.asarray(case.image) == 0)
        assert np.array_equal(view.images.affine @ (0, 0, 0, 1), case.affine @ (*case.offset, 1))


def test_predictions_are_kept_as_nifti_and_used_again(
    training: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", data.folder, training)
    assert {view.reason for view in case_views(run, images="kept")} == {
        "no predictions by this model are kept yet; the command voxtune report makes them"
    }
    made = case_views(run, images="make", quiet=True)
    files = sorted((run.dir.best / "predictions").glob("*.nii.gz"))
    assert [file.name for file in files] == sorted(f"{name}_trial_0_epoch_2.nii.gz" for name in data.split.val)
    image = nib.load(files[0])
    case = open_case(data.folder, files[0].name.removesuffix("_trial_0_epoch_2.nii.gz"))
    assert image.shape == case.full_shape
    assert np.allclose(image.affine, case.affine)
    monkeypatch.setattr(case_predictions, "_predict", lambda *_, **__: pytest.fail("predicted again"))
    for choice in ("kept", "make"):
        for before, now in zip(made, case_views(run, images=choice), strict=True):
            assert now.images is not None
            assert np.array_equal(before.images.prediction, now.images.prediction)


def test_predictions_of_another_model_are_not_shown_and_are_replaced(
    training: Path, data: Data, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", data.folder, training)
    case_views(run, images="make", quiet=True)
    index = run.dir.best / "predictions" / "predictions.json"
    other = json.loads(index.read_text())
    index.write_text(json.dumps({**other, "model": "0" * 12}))
    assert all(view.images is None for view in case_views(run, images="kept"))
    stale = index.with_name("Case_trial_9_epoch_1.nii.gz")
    stale.touch()
    assert all(view.images is not None for view in case_views(run, images="make", quiet=True))
    assert json.loads(index.read_text()) == other
    assert not stale.exists()
    for file in index.parent.glob("*.nii.gz"):  # by hand
        file.unlink()
    assert all(view.images is None for view in case_views(run, images="kept"))
    assert all(view.images is not None for view in case_views(run, images="make", quiet=True))


def test_what_cannot_be_shown_is_said_without_naming_it(training: Path, data: Data, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", tmp_path / "gone", training)
    views = case_views(run, images="make", quiet=True)
    assert [view.images for view in views] == [None] * 3
    assert {view.reason for view in views} == {
        "the cases could not be predicted: the preprocessed images are not in the cache any more, or have changed"
    }
    assert views[0].name in views[0].detail
    assert {view.reason for view in case_views(run, images="none")} == {"no images were asked for"}
    run.dir.best_model.write_bytes(b"no checkpoint")
    assert "a file is missing, damaged or in use" in case_views(run, images="make", quiet=True)[0].reason
    run.dir.best_model.unlink()
    assert case_views(run, images="make")[0].reason == "the model's checkpoint is not there"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (NonFiniteLogitsError("Phantom_00003: 5 of 9 logits are not finite"), "the network's output is not finite"),
        (OSError(errno.ENOSPC, "No space left on device", "/data"), "No space left on device"),
    ],
)
def test_an_error_of_a_prediction_costs_the_images_only(
    training: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("trainable.evaluation.validate.score_cases", fail)
    views = case_views(run_of(tmp_path / "run", data.folder, training), images="make", quiet=True)
    assert {view.reason for view in views} == {f"the cases could not be predicted: {reason}"}


def test_a_gpu_that_others_use_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for used, device in ((1, "cuda"), (12, "cpu")):  # GiB, of which the context of this process takes a part
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda used=used: ((80 - used) * 2**30, 80 * 2**30))
        assert case_predictions.idle_device().type == device


def test_a_case_that_has_changed_since_is_not_shown(training: Path, data: Data, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(data.folder, tmp_path / "cache"))
    run = run_of(tmp_path / "run", cache, training)
    worst = case_views(run, images="make", quiet=True)[0].name
    file = cache / worst / "case.json"
    metadata = json.loads(file.read_text())
    metadata["files"]["label.npy"]["crc32"] += 1
    file.write_text(json.dumps(metadata))
    views = case_views(run, images="kept")
    assert [view.images is None for view in views] == [True, False, False]
    assert views[0].reason == "the preprocessed images are not in the cache any more, or have changed"


def test_a_model_that_is_not_the_recorded_one_is_noticed(training: Path, data: Data, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", data.folder, training)
    file = run.dir.trial(0).case_scores
    rows = file.read_text().splitlines()
    file.write_text("\n".join([rows[0], *(",".join([*row.split(",")[:2], *["0.9"] * 4]) for row in rows[1:])]) + "\n")
    assert "differs from the recorded one" in case_views(run, images="make", quiet=True)[0].note


def test_test_cases_are_shown_only_if_the_training_has_scored_them(training: Path, data: Data) -> None:
    views = case_views_of_training(training, images="make", quiet=True)
    assert [(view.part, view.rank) for view in views] == [
        ("validation", "worst"), ("validation", "median"), ("validation", "best"),
    ]  # fmt: skip
    assert all(view.images is not None and not view.note for view in views)
    evaluate(small(data, training, resume=training, mirror=True), data)
    views = case_views_of_training(training, images="make", quiet=True)
    tests = [view for view in views if view.part == "test"]
    assert [view.rank for view in tests] == ["worst", "best"]
    assert {view.name for view in tests} == set(data.split.test)
    scored = json.loads((training / "test_scores.json").read_text())["cases"]
    for view in tests:
        assert view.images is not None
        assert view.note == ""  # predicted with mirror, as the test was
        assert view.dice == {column: scored[view.name][column] for column in SCORE_COLUMNS}


def test_test_scores_of_other_weights_are_not_shown(training: Path, data: Data) -> None:
    evaluate(small(data, training, resume=training), data)
    state = load_checkpoint(TrainingDir(training).best)
    save_checkpoint({**state, "config": {**state["config"], "min_component": 50}}, TrainingDir(training).best)
    views = case_views_of_training(training, images="none")
    assert {view.part for view in views} == {"validation", "test"}  # of the same weights
    state["network"] = {name: tensor + 1 for name, tensor in state["network"].items()}
    save_checkpoint(state, TrainingDir(training).best)
    assert {view.part for view in case_views_of_training(training, images="none")} == {"validation"}
    assert "test" not in dice_section_of_training(training, anonymous=True)
    shown = section_of_test_scores(training, anonymous=True)
    assert shown is not None
    assert "of other weights than the model has now, so they are not shown" in shown.lead
    assert not shown.blocks


def test_an_ensemble_shows_its_test_cases_as_it_has_predicted_them(training: Path, data: Data, tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    for name in ("seed_0", "seed_1"):
        shutil.copytree(training, ensemble / "members" / name)
    assert case_views_of_training(ensemble, images="make") == []
    evaluate(small(data, ensemble, resume=ensemble), data)
    views = case_views_of_training(ensemble, images="make", quiet=True)
    assert [(view.part, view.rank, view.model) for view in views] == [
        ("test", "worst", "ensemble, 2 members"), ("test", "best", "ensemble, 2 members"),
    ]  # fmt: skip
    assert all(view.images is not None and not view.note for view in views)
