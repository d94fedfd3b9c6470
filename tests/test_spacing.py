"""Cases of another voxel size than the median are refused by name, left out or resampled."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of, change_files, sized, turned
from threshold_model import threshold_model

from trainable import cli
from trainable.cases.case_reader import load_case
from trainable.cases.resample import resample_case, resample_label
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.cache import data_digest, open_case, read_contents, read_metadata
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, save_split
from trainable.evaluation.inference import on_file_grid
from trainable.evaluation.metrics import voxel_spacing
from trainable.model.unet3d import build_network
from trainable.postprocess import validation_data
from trainable.predict import predict_cases
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.loop import fit
from tune.driver.launch.resumable import with_prepared_data
from tune.driver.launch.run_files import write_config
from tune.driver.processes.run_cases import cases_of_training
from tune.retrain import prepare_same_cases
from tune.run.provenance import provenance, save_contents
from tune.run.results import Run
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config

SMALL = {"depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "device": "cpu", "num_workers": 0}
LARGE = "Phantom_00003"  # the case whose voxels a test makes larger


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """Six cases that a test may spoil."""
    for number in range(6):
        shutil.copytree(phantoms / f"Phantom_{number:05d}", tmp_path / "data" / f"Phantom_{number:05d}")
    return tmp_path / "data"


def prepare_with(data: Path, **options: object) -> Data:
    return prepare_data(make_config({"data_dir": data, "cache_dir": data.parent / "cache", **options}), quiet=True)


def all_names(prepared: Data) -> list[str]:
    return sorted(prepared.split.train + prepared.split.val + prepared.split.test)


def test_a_case_beyond_10_percent_is_refused_by_name_with_both_sizes(data: Path) -> None:
    change_files(data / LARGE, sized((1, 1, 5)))
    change_files(data / "Phantom_00000", sized(1.09))
    with pytest.raises(InputError) as caught:
        prepare_with(data)
    first, *cases = str(caught.value).splitlines()
    assert "1 of 6 cases; resample them with --resample" in first
    assert "--skip_bad_cases" in first
    assert cases == [
        f"  {LARGE}: has voxels of 1 x 1 x 5 mm; expected 1 x 1 x 1 mm, the median of the training's cases, "
        "within 10% on each axis"
    ]


def test_sizes_are_compared_axis_by_axis_in_lps(data: Path) -> None:
    for folder in data.iterdir():
        change_files(folder, sized((1, 1, 3)))
    change_files(data / LARGE, turned("SPL"))
    assert len(all_names(prepare_with(data))) == 6
    assert read_metadata(data.parent / "cache" / LARGE)["file_spacing"] == [1, 1, 3]


def test_skipped_cases_of_another_size_are_in_no_part_and_listed(data: Path) -> None:
    change_files(data / LARGE, sized(2))
    prepared = prepare_with(data, skip_bad_cases=True)
    assert LARGE not in all_names(prepared)
    assert len(all_names(prepared)) == 5
    assert [reason.split(":")[0] for reason in prepared.skipped] == [LARGE]


def test_a_training_that_goes_on_keeps_its_cases_of_another_size_with_a_warning(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older code took them. With a split file none can be left out."""
    split = prepare_with(data).split
    save_split(split, tmp_path / "split.json")
    change_files(data / split.val[0], sized(2))
    config = make_config({"data_dir": data, "cache_dir": tmp_path / "cache", "split_file": tmp_path / "split.json"})
    assert prepare_data(config, quiet=True, begun=True).split == split
    assert f"warning: 1 of 6 cases, such as {split.val[0]}, have another voxel size" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"or continue without them:\n"):
        prepare_data(config.model_copy(update={"skip_bad_cases": True}), quiet=True)


def test_resample_brings_only_cases_beyond_10_percent_to_the_median_of_all_cases(data: Path) -> None:
    change_files(data / LARGE, sized((1, 1, 2)))
    change_files(data / "Phantom_00000", sized(1.05))
    prepared = prepare_with(data, resample=True)
    large, other = (open_case(prepared.folder, name) for name in (LARGE, "Phantom_00000"))
    assert large.full_shape == (48, 48, 80)
    assert voxel_spacing(large.affine) == (1, 1, 1)
    assert large.file_grid.shape == (48, 48, 40)
    assert voxel_spacing(large.file_grid.affine) == (1, 1, 2)
    assert other.full_shape == (48, 48, 40)
    assert voxel_spacing(other.affine) == pytest.approx((1.05, 1.05, 1.05))
    assert read_metadata(prepared.folder / LARGE)["resampled_to"] == [1, 1, 1]
    assert prepared.spacing == (1, 1, 1)


def spoil_sizes(data: Path) -> list[str]:
    """Make the voxels of two cases 0.9 mm and those of four 1.2 mm; return the cases' names."""
    names = sorted(folder.name for folder in data.iterdir())
    for name, size in zip(names, (0.9, 0.9, 1.2, 1.2, 1.2, 1.2), strict=True):
        change_files(data / name, sized(size))
    return names


def test_all_folds_and_seeds_of_a_folder_s_cases_have_one_voxel_size(data: Path) -> None:
    names = spoil_sizes(data)
    begun = prepare_with(data, resample=True, val_fraction=0, test_fraction=0)
    assert begun.spacing == (1.2, 1.2, 1.2)
    for options in [{"folds": 3, "fold": 1}, {"folds": 3, "fold": 2}, {"seed": 1}, {"seed": 2}]:
        assert prepare_with(data, resample=True, **options).spacing == begun.spacing
    assert read_contents(begun.folder, names) == begun.contents


@pytest.fixture
def begun(data: Path, tmp_path: Path) -> tuple[Data, dict[str, object]]:
    """Cases that an older version began with, resampled to the median of its training cases; and their options.

    Their split is that of a fold since, of which neither the training cases nor all cases have that median.
    """
    names = spoil_sizes(data)
    save_split(Split(tuple(names[:3]), tuple(names[3:5]), (names[5],)), tmp_path / "split.json")
    options = {"data_dir": data, "cache_dir": tmp_path / "cache", "split_file": tmp_path / "split.json"}
    options["resample"] = True
    prepared = prepare_data(make_config(options), quiet=True, begun=True)
    assert prepared.spacing == (0.9, 0.9, 0.9)
    split = Split((names[0], *names[2:4]), (names[1], names[4]), (names[5],))
    save_split(split, tmp_path / "split.json")
    return replace(prepared, split=split), options


def test_a_training_that_goes_on_is_tested_or_post_processed_keeps_its_voxel_size(
    begun: tuple[Data, dict[str, object]], tmp_path: Path
) -> None:
    cases, options = begun
    model = threshold_model(
        tmp_path / "model", cases, **{**SMALL, **options, "target_shape": [48, 48, 40], "patches_per_epoch": 1}
    )
    save_split(cases.split, model.split)
    assert cli.main(["--resume", str(model.path), "--test_only"]) == 0
    state = load_checkpoint(model.best)
    validation_data(make_config(state["config"]), [state], [list(cases.split.val)], None, tmp_path)  # of postprocess
    assert cli.main(["--resume", str(model.path), "--epochs", "4"]) == 0
    state = load_checkpoint(model.latest)
    assert (state["epoch"], state["grid"]["spacing"]) == (4, [0.9, 0.9, 0.9])
    assert read_contents(cases.folder, cases.split.names) == cases.contents


def test_a_sweep_keeps_its_voxel_size_resumed_in_retrainings_and_on_other_machines(
    begun: tuple[Data, dict[str, object]], tmp_path: Path
) -> None:
    cases, options = begun
    sweep = {"train": {"data_dir": str(options["data_dir"]), "resample": True}}
    config = make_sweep_config({**sweep, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    config = config.with_record(cache_dir=str(cases.folder), **provenance(cases))
    write_config(config, tmp_path)
    save_contents(cases, tmp_path / "cases.json")
    assert with_prepared_data(config, tmp_path, None) == config
    training = make_config(options)
    assert prepare_same_cases(Run(RunDir(tmp_path), config, []), training).spacing == (0.9, 0.9, 0.9)
    elsewhere = training.model_copy(update={"cache_dir": tmp_path / "elsewhere"})
    there = cases_of_training(elsewhere, tmp_path / "cases.json")
    assert (there.contents, there.spacing) == (cases.contents, (0.9, 0.9, 0.9))


def test_a_ready_cache_is_not_prepared_again_and_follows_the_option(data: Path) -> None:
    change_files(data / LARGE, sized(2))
    prepared = prepare_with(data, resample=True)
    digest = data_digest(prepared.folder, all_names(prepared))
    written = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*.npy")}
    again = prepare_with(data, resample=True)
    assert {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.npy")} == written
    for folder in data.iterdir():
        if folder.name != LARGE:
            change_files(folder, sized(2))
    assert prepare_with(data).spacing == (2, 2, 2)
    assert open_case(prepared.folder, LARGE).full_shape == (48, 48, 40)
    assert data_digest(prepared.folder, all_names(prepared)) != digest


def test_a_resampled_case_keeps_its_place_its_background_and_its_range(data: Path) -> None:
    case = load_case(case_of(data / LARGE))
    finer = resample_case(case, (0.5, 0.8, 2.0))
    assert finer.image.shape == (4, 96, 60, 20)
    assert voxel_spacing(finer.affine) == pytest.approx((0.5, 0.8, 2.0))
    for corner in ((-0.5, -0.5, -0.5), (47.5, 47.5, 39.5)):  # of the outer faces
        there = (np.array(corner) + 0.5) * (2, 1.25, 0.5) - 0.5
        np.testing.assert_allclose(finer.affine @ [*there, 1], case.affine @ [*corner, 1], atol=1e-9)
    doubled = resample_case(case, (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(doubled.image == 0, case.image.repeat(2, 1).repeat(2, 2).repeat(2, 3) == 0)
    assert doubled.image.max() <= case.image.max()
    assert doubled.image.min() >= case.image.min()
    inside = doubled.image[0] != 0
    nearest = case.image[0].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.corrcoef(doubled.image[0][inside], nearest[inside])[0, 1] > 0.9


def test_a_ball_resampled_and_back_is_the_ball_with_its_regions_nested() -> None:
    places = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    distance = np.sqrt(sum((place - 23.5) ** 2 for place in places))
    label = np.select([distance < 6, distance < 10, distance < 16], [np.uint8(4), np.uint8(1), np.uint8(2)], 0)
    label = label.astype(np.uint8)
    there = resample_label(label, (48, 48, 24))
    for values, radius in (((1, 2, 4), 16), ((1, 4), 10), ((4,), 6)):
        volume = np.isin(there, values).sum() * 2
        assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    back = resample_label(there, label.shape)
    for values in ((1, 2, 4), (1, 4), (4,)):
        a, b = np.isin(label, values), np.isin(back, values)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.94
    assert resample_label(label, label.shape).tolist() == label.tolist()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The checkpoint of a network that learnt nothing, trained on voxels of 1 mm without resampling."""
    return save_model(tmp_path / "model.pth", resample=False)


def save_model(path: Path, **grid: object) -> Path:
    config = make_config(SMALL)
    state = {"config": to_dict(config), "network": build_network(config).state_dict()}
    grids = {"grid": {"orientation": "LPS", "spacing": [1.0, 1.0, 1.0], **grid}} if grid else {}
    save_checkpoint({**state, **grids}, path)
    return path


def test_predict_refuses_a_case_of_another_size_by_name_and_predicts_the_others(
    model: Path, data: Path, tmp_path: Path
) -> None:
    change_files(data / LARGE, sized(2))
    predictions = predict_cases(model, [data / LARGE, data / "Phantom_00000"], tmp_path / "out")
    assert list(predictions.scores) == ["Phantom_00000"]
    assert [str(error).split(";")[0] for error in predictions.failed] == [f"{LARGE}: has voxels of 2 x 2 x 2 mm"]
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["Phantom_00000.nii.gz"]


def test_predict_resamples_if_the_training_did_and_writes_on_the_case_s_own_grid(data: Path, tmp_path: Path) -> None:
    change_files(data / LARGE, lambda voxels, affine: (voxels[:, :, ::2], affine @ np.diag([1.0, 1.0, 2.0, 1.0])))
    change_files(data / LARGE, turned("SLA"))
    model = save_model(tmp_path / "model.pth", resample=True)
    predictions = predict_cases(model, [data / LARGE], tmp_path / "out", pictures=True)
    written, truth = nib.load(tmp_path / "out" / f"{LARGE}.nii.gz"), nib.load(data / LARGE / f"{LARGE}_seg.nii.gz")
    assert written.shape == truth.shape == (20, 48, 48)
    np.testing.assert_array_equal(written.affine, truth.affine)
    prediction, label = np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj)
    assert prediction.any()
    a, b = prediction > 0, label > 0
    assert predictions.scores[LARGE]["dice_WT"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_predict_says_that_an_older_checkpoint_has_no_voxel_size(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_files(data / LARGE, sized(2))
    predictions = predict_cases(save_model(tmp_path / "model.pth"), [data / LARGE], tmp_path / "out")
    assert predictions.failed == []
    assert capsys.readouterr().out.count("does not say its voxel size") == 1


def test_the_checkpoint_keeps_the_grid_and_resample_cannot_change_on_resume(data: Path, tmp_path: Path) -> None:
    for folder in data.iterdir():
        change_files(folder, sized((1, 1, 2)))
    change_files(data / LARGE, sized((2, 1, 1)))
    options = {**SMALL, "data_dir": data, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    config = make_config({**options, "epochs": 1, "patches_per_epoch": 2, "resample": True})
    prepared = prepare_data(config, quiet=True)
    fit(config, prepared)
    state = load_checkpoint(tmp_path / "out")
    assert state["grid"] == {"orientation": "LPS", "spacing": [1, 1, 2], "resample": True}
    resumed = config.model_copy(update={"epochs": 2, "resample": False, "resume": tmp_path / "out"})
    with pytest.raises(InputError, match="resample is True in the checkpoint and False now; it cannot change"):
        fit(resumed, prepared)


def test_a_prediction_on_a_resampled_grid_goes_back_to_the_files_grid(data: Path) -> None:
    change_files(data / LARGE, sized((1, 1, 2)))
    case = load_case(case_of(data / LARGE))
    finer = resample_case(case, (1.0, 1.0, 1.0))
    assert finer.label is not None
    assert case.label is not None
    back = on_file_grid(finer.label, case.file_grid)
    assert back.shape == case.file_grid.shape
    assert np.mean(back == case.label) > 0.995
