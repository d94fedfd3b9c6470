"""Cases made of the Medical Segmentation Decathlon's brain tumours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from trainable.cases.case_files import find_case
from trainable.cases.case_reader import load_case
from trainable.cases.msd import convert_msd
from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError

SHAPE = (12, 10, 8)
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])
ABOUT: dict[str, Any] = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


def write_task(folder: Path, about: dict[str, Any] = ABOUT, count: int = 3) -> Path:
    """Files as Task01_BrainTumour has them; channel c of case n is c + 1 + 10 n in a block but for its first slice."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(about))
    for number in range(count):
        image = np.zeros((*SHAPE, 4), np.float32)
        image[2:9, 3:8, 1:6] = np.arange(1, 5) + 10 * number
        image[2, 3:8, 1:6] = np.arange(100, 125).reshape(5, 5, 1)
        label = np.zeros(SHAPE, np.uint8)
        label[3, 4, 2:5] = 1, 2, 3
        for kind, voxels in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(voxels, AFFINE), folder / f"{kind}Tr" / f"BRATS_{number:03d}.nii.gz")
            (folder / f"{kind}Tr" / f"._BRATS_{number:03d}.nii.gz").write_text("macOS")
    return folder


def test_channels_and_labels_become_those_of_2021_and_the_grid_stays(tmp_path: Path) -> None:
    source = write_task(tmp_path / "Task01_BrainTumour")
    assert convert_msd(source, tmp_path / "cases", workers=1) == ["BRATS_000", "BRATS_001", "BRATS_002"]
    loaded = load_case(find_case(tmp_path / "cases" / "BRATS_001", need_seg=True))
    assert loaded.image[:, 4, 4, 4].tolist() == [11, 12, 13, 14]
    assert loaded.label is not None
    assert loaded.label[3, 4, 2:5].tolist() == [2, 1, 4]
    np.testing.assert_array_equal(loaded.affine, AFFINE)
    image = nib.load(tmp_path / "cases" / "BRATS_001" / "BRATS_001_t1ce.nii.gz")
    assert (image.shape, image.get_data_dtype(), image.header.get_xyzt_units()[0]) == (SHAPE, np.int16, "mm")


def test_channels_are_taken_by_their_names(tmp_path: Path) -> None:
    order = {"0": "T1w", "1": "T2w", "2": "FLAIR", "3": "t1gd"}
    source = write_task(tmp_path / "task", {**ABOUT, "modality": order}, count=1)
    convert_msd(source, tmp_path / "cases", workers=1)
    image = load_case(find_case(tmp_path / "cases" / "BRATS_000", need_seg=True)).image
    assert dict(zip(MODALITIES, image[:, 4, 4, 4].tolist(), strict=True)) == {"flair": 3, "t1": 1, "t1ce": 4, "t2": 2}


def test_called_again_it_writes_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, cases = write_task(tmp_path / "task"), tmp_path / "cases"
    convert_msd(source, cases, workers=1)
    kept = (cases / "BRATS_000" / "BRATS_000_t1.nii.gz").stat().st_mtime_ns
    shutil.rmtree(cases / "BRATS_002")
    (cases / ".BRATS_002.new").mkdir()  # of a call that was killed
    convert_msd(source, cases, workers=1)
    assert f"wrote 1 cases, 2 were there: {cases}\n" in capsys.readouterr().out
    assert (cases / "BRATS_000" / "BRATS_000_t1.nii.gz").stat().st_mtime_ns == kept
    assert {path.name for path in cases.iterdir()} == {"BRATS_000", "BRATS_001", "BRATS_002", ".lock"}
    (cases / "BRATS_001" / "BRATS_001_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"BRATS_001_t2.nii.gz missing .*; remove .*BRATS_001, and it is written"):
        convert_msd(source, cases, workers=1)


def test_bad_cases_are_listed_and_the_others_written(tmp_path: Path) -> None:
    source, cases = write_task(tmp_path / "task", count=4), tmp_path / "cases"
    damaged = source / "imagesTr" / "BRATS_000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE), source / "imagesTr" / "BRATS_001.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 4, np.uint8), AFFINE), source / "labelsTr" / "BRATS_002.nii.gz")
    with pytest.raises(InputError, match="3 of 4 cases cannot be converted") as caught:
        convert_msd(source, cases, workers=1)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().split(":")[0] for line in lines] == ["BRATS_000", "BRATS_001", "BRATS_002"]
    assert "has shape (12, 10, 8); expected (X, Y, Z, 4) as in MSD, not one file per modality" in lines[1]
    assert "has labels [4]; expected 0, 1, 2, 3" in lines[2]
    assert {path.name for path in cases.iterdir()} == {"BRATS_003", ".lock"}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({**ABOUT, "modality": {"0": "MRI"}}, r"the modalities are \['MRI'\]; expected the folder Task01_BrainTumour"),
        ({**ABOUT, "labels": {"0": "background", "1": "Left Atrium"}}, "the labels are .*Left Atrium"),
        ({}, "has no numbered `modality` and `labels`"),
    ],
)
def test_another_task_is_refused(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_msd(write_task(tmp_path / "task", about, count=1), tmp_path / "cases", workers=1)
    assert not (tmp_path / "cases").exists()


def test_a_wrong_source_or_destination_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read .*; expected the folder Task01_BrainTumour"):
        convert_msd(tmp_path, tmp_path / "cases", workers=1)
    source = write_task(tmp_path / "task", count=2)
    with pytest.raises(InputError, match="lies in .*task; choose another folder"):
        convert_msd(source, source / "cases", workers=1)
    (source / "labelsTr" / "BRATS_001.nii.gz").unlink()
    with pytest.raises(InputError, match="1 names are in only one of imagesTr and labelsTr: BRATS_001"):
        convert_msd(source, tmp_path / "cases", workers=1)
