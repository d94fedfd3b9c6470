"""All cases of a patient are in one part of the split."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.patients import find_patients, patient_in_name, torn_patients
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import PARTS, Split, load_split, save_split, split_cases

# As in BraTS 2023: of 1,251 names 1,133 are patients; 118 patients have a second time point.
LONGITUDINAL = [f"BraTS-GLI-{number:05d}-000" for number in range(1133)]
LONGITUDINAL += [f"BraTS-GLI-{number:05d}-001" for number in range(0, 1133, 9)[:118]]


def split_of(names: list[str], config: TrainConfig) -> Split:
    """The split of cases by their names alone."""
    return split_cases(names, config, find_patients(names, {}).of_case)


def split_before_patients(names: list[str], config: TrainConfig) -> Split:
    """The split as it was when only cases were known."""
    order = [str(name) for name in np.random.default_rng(config.seed).permutation(sorted(names))]

    def share(fraction: float) -> int:
        return max(1 if fraction > 0 and len(order) >= 3 else 0, round(fraction * len(order)))

    test, rest = order[: share(config.test_fraction)], order[share(config.test_fraction) :]
    val = rest[config.fold :: config.folds] if config.folds else rest[: share(config.val_fraction)]
    return Split(tuple(sorted(set(rest) - set(val))), tuple(sorted(val)), tuple(sorted(test)))


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000"),
        ("BraTS-GLI-00000-001", "BraTS-GLI-00000"),
        ("BraTS-PED-00123-000", "BraTS-PED-00123"),
        ("BraTS-GLI-02062-100", "BraTS-GLI-02062"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"),
        ("Phantom_00000", "Phantom_00000"),
        ("site-12-001", "site-12-001"),
    ],
)
def test_a_time_point_is_no_part_of_the_patient_s_name(case: str, patient: str) -> None:
    assert patient_in_name(case) == patient


@pytest.mark.parametrize("seed", range(21))
def test_of_1251_cases_of_1133_patients_none_is_in_two_parts(seed: int) -> None:
    assert (len(LONGITUDINAL), len(set(map(patient_in_name, LONGITUDINAL)))) == (1251, 1133)
    for folds in (0, 5):
        split = split_of(LONGITUDINAL, TrainConfig(seed=seed, folds=folds))
        patients = [{patient_in_name(name) for name in getattr(split, part)} for part in PARTS]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 1133
        assert split.names == sorted(LONGITUDINAL)
        assert len(patients[2]) == round(0.15 * 1133)


@pytest.mark.parametrize("count", [3, 4, 5, 20, 369, 1251])
def test_names_of_one_patient_each_are_split_as_they_always_were(count: int) -> None:
    names = [f"BraTS2021_{number:05d}" for number in range(count)]
    for seed in range(21):
        for options in ({}, {"folds": 2, "fold": 1}, {"val_fraction": 0.2, "test_fraction": 0.1}):
            config = TrainConfig(seed=seed, **options)
            assert split_of(names, config) == split_before_patients(names, config)


def test_a_table_says_which_cases_are_of_one_patient(tmp_path: Path) -> None:
    names = [f"case{number:02d}" for number in range(20)]
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{name},P{number // 2}\n" for number, name in enumerate(names)))
    config = TrainConfig(patients=table)
    split = split_cases(names, config, find_patients(names, {}, table).of_case)
    for part in PARTS:
        inside = getattr(split, part)
        assert all(names[names.index(name) ^ 1] in inside for name in inside)
    assert (len(split.train), len(split.val), len(split.test)) == (12, 4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,patient\na,1\nb,\n", r"patients\.csv: no patient for b, c; add a line CASE,PATIENT for each"),
        ("case,patient\na,1\nb,1\nC,2\n", r"no patient for c; add a line"),
        ("name,patient\na,1\n", r"has name,patient; expected CSV with the header case,patient"),
        ("case,patient\na,1\na,2\nb,1\nc,1\n", "a is of 1 and of 2; expected one patient per case"),
        ("", "has nothing below its header; expected CSV"),
    ],
)
def test_a_table_that_lacks_a_case_or_contradicts_itself_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_patients(["a", "b", "c"], {}, tmp_path / "patients.csv")


def test_a_table_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        find_patients(["a"], {}, tmp_path / "none.csv")


def test_the_same_images_under_two_names_are_one_patient() -> None:
    names = ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS2021_00007", "BraTS2021_00008"]
    found = find_patients(names, dict(zip(names, ["x", "y", "y", "z"], strict=True)))
    assert found.of_case == {
        "BraTS-GLI-00001-000": "BraTS-GLI-00001", "BraTS-GLI-00001-001": "BraTS-GLI-00001",
        "BraTS2021_00007": "BraTS-GLI-00001", "BraTS2021_00008": "BraTS2021_00008",
    }  # fmt: skip
    assert found.repeated_scans == (("BraTS-GLI-00001-001", "BraTS2021_00007"),)
    assert found.summary().splitlines() == [
        "the same images under several names, taken as one patient: BraTS-GLI-00001-001 and BraTS2021_00007",
        "4 cases of 2 patients; all cases of a patient are in one part",
    ]


def test_a_torn_patient_is_named_with_its_cases_and_parts() -> None:
    split = Split(("a-0001-000", "b"), ("a-0001-001",), ("c",))
    patients = find_patients(split.names, {}).of_case
    assert torn_patients(split, patients) == "a-0001 (train: a-0001-000, val: a-0001-001)"
    assert torn_patients(Split(("a-0001-000", "a-0001-001"), ("b",), ("c",)), patients) == ""


@pytest.fixture
def copied(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of four phantoms, of which the last has the images of the first, with more background around them."""
    data = tmp_path / "data"
    for name in ("Phantom_00000", "Phantom_00001", "Phantom_00002"):
        shutil.copytree(phantoms / name, data / name)
    (data / "Other").mkdir()
    for path in sorted((data / "Phantom_00000").iterdir()):
        image = nib.load(path)
        voxels = np.pad(np.asanyarray(image.dataobj), ((3, 0), (0, 2), (1, 1)))
        nib.save(nib.Nifti1Image(voxels, image.affine), data / "Other" / path.name.replace("Phantom_00000", "Other"))
    return data


def test_a_table_says_which_cases_are_of_one_patient_in_prepare_data(
    phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    names = prepared.split.names
    table = tmp_path / "patients.csv"
    table.write_text("patient,case\n" + "".join(f"P{number % 3},{name}\n" for number, name in enumerate(names)))
    split = prepare_data(TrainConfig(data_dir=phantoms, cache_dir=prepared.folder, patients=table), quiet=True).split
    parts = [{names.index(name) % 3 for name in getattr(split, part)} for part in PARTS]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert split.names == names


def test_a_split_file_that_tears_a_patient_is_refused_unless_said_otherwise_and_kept_on_resume(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare_data(TrainConfig(data_dir=copied))
    printed = capsys.readouterr().err
    assert "the same images under several names, taken as one patient: Other and Phantom_00000" in printed
    assert "4 cases of 3 patients" in printed
    assert sorted(len(getattr(data.split, part)) for part in PARTS) == [1, 1, 2]
    file = tmp_path / "torn.json"
    save_split(Split(("Phantom_00000", "Phantom_00001"), ("Phantom_00002",), ("Other",)), file)
    config = TrainConfig(data_dir=copied, split_file=file)
    with pytest.raises(InputError, match=r"Other \(train: Phantom_00000, test: Other\); .*--allow_split_patients"):
        prepare_data(config, quiet=True)
    allowed = TrainConfig(data_dir=copied, split_file=file, allow_split_patients=True)
    assert prepare_data(allowed, quiet=True).split == load_split(file)
    capsys.readouterr()
    assert prepare_data(config, quiet=True, begun=True).split == load_split(file)
    assert "warning: " in (said := capsys.readouterr().out)
    assert "Other (train: Phantom_00000, test: Other)" in said
    resumed = config.model_copy(update={"resume": tmp_path})
    assert prepare_data(resumed, quiet=True).split == load_split(file)
