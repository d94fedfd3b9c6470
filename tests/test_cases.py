from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from trainable.cases.case_files import NAMES_2021, NAMES_2023, Case, CaseError, find_case
from trainable.cases.case_reader import load_case
from trainable.cases.case_search import find_cases
from trainable.core.brats import MODALITIES
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.data.split import Split, load_split, save_split, split_cases

SHAPE = (12, 10, 8)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def volumes() -> dict[str, Any]:
    """Voxels of a small case by the words of BraTS2021."""
    rng = np.random.default_rng(0)
    images: dict[str, Any] = {}
    for word in MODALITIES:
        image = np.zeros(SHAPE, np.int16)
        image[2:9, 3:8, 1:6] = rng.integers(1, 900, (7, 5, 5))
        images[word] = image
    seg = np.zeros(SHAPE, np.uint8)
    seg[3:7, 4:7, 2:5] = 2
    seg[4:6, 4:6, 3:5] = 1
    seg[4, 4, 3] = 4
    return images | {"seg": seg}


@dataclass
class Writer:
    """Writes cases below a folder."""

    root: Path

    def __call__(self, name: str, sep: str = "_", end: str = ".nii.gz", affine: Any = AFFINE, **changed: Any) -> Path:
        """A case's folder; changed: other voxels by word, or None to leave the file out."""
        folder = self.root / name
        folder.mkdir(parents=True)
        for word, voxels in (volumes() | changed).items():
            if voxels is not None:
                nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}{sep}{word}{end}")
        return folder


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "data")


def load(folder: Path) -> Any:
    return load_case(find_case(folder, need_seg=True))


@pytest.mark.parametrize("end", [".nii.gz", ".nii"])
def test_reads_a_case_of_2021(write: Writer, end: str) -> None:
    folder = write("BraTS2021_00001", end=end)
    case = find_case(folder, need_seg=True)
    loaded = load_case(case)
    assert (case.name, case.naming) == ("BraTS2021_00001", NAMES_2021)
    assert [path.name for path in case.images] == [f"BraTS2021_00001_{word}{end}" for word in MODALITIES]
    assert loaded.image.dtype == np.int16
    assert loaded.label.dtype == loaded.seg_dtype == np.uint8
    for channel, word in enumerate(MODALITIES):
        np.testing.assert_array_equal(loaded.image[channel], volumes()[word])
    np.testing.assert_array_equal(loaded.label, volumes()["seg"])
    np.testing.assert_array_equal(loaded.affine, AFFINE)


def test_reads_the_names_of_2023_and_makes_et_4(write: Writer) -> None:
    originals = volumes()
    seg = np.where(originals["seg"] == 4, 3, originals["seg"]).astype(np.uint8)
    new = dict(zip(("t2f", "t1n", "t1c", "t2w"), (originals[word] for word in MODALITIES), strict=True))
    folder = write("BraTS-GLI-00001-000", sep="-", **dict.fromkeys(MODALITIES), **new, seg=seg)
    case = find_case(folder, need_seg=True)
    assert case.naming == NAMES_2023
    loaded = load_case(case)
    np.testing.assert_array_equal(loaded.label, originals["seg"])
    np.testing.assert_array_equal(loaded.image[2], originals["t1ce"])


def test_a_folder_without_seg_serves_for_prediction_only(write: Writer) -> None:
    folder = write("A", seg=None)
    loaded = load_case(find_case(folder, need_seg=False))
    assert loaded.label is None
    assert loaded.seg_dtype == np.uint8
    with pytest.raises(CaseError, match=r"A: A_seg\.nii\.gz missing in .*, which has A_flair"):
        find_case(folder, need_seg=True)


def test_missing_modality_names_the_file_and_what_is_there(write: Writer) -> None:
    folder = write("A", t1ce=None)
    with pytest.raises(CaseError, match=r"A: A_t1ce\.nii\.gz missing .*has A_flair\.nii\.gz, A_seg\.nii\.gz"):
        find_case(folder, need_seg=True)


def test_uint16_labels_and_saturated_images_load(write: Writer) -> None:
    saturated = volumes()["t2"]
    saturated[4, 4, 4] = 32767
    loaded = load(write("A", seg=volumes()["seg"].astype(np.uint16), t2=saturated))
    assert loaded.seg_dtype == np.uint16
    assert loaded.label.dtype == np.uint8
    assert loaded.image[3].max() == 32767


def test_float_images_are_kept_if_whole_and_else_scaled_by_one_factor(write: Writer) -> None:
    whole = volumes()["t1"].astype(np.float32)
    fraction = volumes()["t2"] * 0.01
    large = volumes()["flair"].astype(np.int32) * 1000
    loaded = load(write("A", t1=whole, t2=fraction, flair=large))
    np.testing.assert_array_equal(loaded.image[1], whole)
    for channel, source in ((0, large), (3, fraction)):
        assert loaded.image[channel].max() == 32767
        np.testing.assert_array_equal(loaded.image[channel] == 0, source == 0)
        np.testing.assert_allclose(loaded.image[channel], source * (32767 / source.max()), atol=0.5001)


def test_header_scaling_is_applied(write: Writer) -> None:
    folder = write("A", end=".nii")
    path = folder / "A_t1.nii"
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([2.0, 0.0], np.float32).tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    np.testing.assert_array_equal(load(folder).image[1], volumes()["t1"] * 2)


def changed(word: str, value: float, kind: Any = np.float32) -> dict[str, Any]:
    voxels = volumes()[word].astype(kind)
    voxels[4, 4, 4] = value
    return {word: voxels}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"t1": np.ones((12, 10, 9), np.int16)}, r"A: A_t1\.nii\.gz has shape \(12, 10, 9\); expected \(12, 10, 8\)"),
        ({"seg": np.ones((12, 9, 8), np.uint8)}, r"A_seg\.nii\.gz has shape \(12, 9, 8\)"),
        ({"flair": np.ones((*SHAPE, 2), np.int16)}, r"A_flair.* has shape \(12, 10, 8, 2\); expected one 3D volume"),
        ({"t1ce": np.ones(SHAPE, np.complex64)}, "A_t1ce.* has voxels of type complex64; expected real numbers"),
        (changed("t2", np.nan), r"A_t2\.nii\.gz has NaN or inf in 1 voxels"),
        (changed("t2", np.inf), r"A_t2\.nii\.gz has NaN or inf in 1 voxels"),
        ({"t1": np.zeros(SHAPE, np.int16)}, r"A_t1\.nii\.gz is 0 everywhere; expected a brain"),
        (changed("seg", 5, np.uint8), r"A_seg.* has labels \[0, 1, 2, 4, 5\]; expected \[0, 1, 2, 4\]"),
        (changed("seg", 3, np.uint8), r"labels \[0, 1, 2, 3, 4\].*--labels 2021 .* 2023 \(3 ET\), ped2024 .* gli2024"),
        (changed("seg", 1.5), r"A_seg\.nii\.gz has non-integer labels such as \[1\.5\]"),
        (changed("seg", np.nan), r"A_seg\.nii\.gz has non-integer labels such as \[nan\]"),
    ],
)
def test_refuses(write: Writer, files: dict[str, Any], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        load(write("A", **files))


def test_refuses_another_affine(write: Writer) -> None:
    folder = write("A")
    moved = AFFINE.copy()
    moved[0, 3] = 2.5
    nib.save(nib.Nifti1Image(volumes()["t2"], moved), folder / "A_t2.nii.gz")
    with pytest.raises(CaseError, match=r"A: A_t2\.nii\.gz has affine .*2\.5.*that of A_flair\.nii\.gz"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
@pytest.mark.parametrize("end", [".nii.gz", ".nii"])
def test_refuses_a_truncated_file(write: Writer, keep: int, end: str) -> None:
    folder = write("A", end=end)
    path = folder / f"A_t1{end}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CaseError, match=r"A: A_t1\.nii.* cannot be read, truncated or damaged"):
        load(folder)


def test_refuses_a_damaged_byte_and_what_is_no_nifti(write: Writer) -> None:
    folder = write("A")
    path = folder / "A_t2.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CaseError, match=r"A_t2.* cannot be read"):
        load(folder)
    path.write_text("<html>not found</html>" * 50)
    with pytest.raises(CaseError, match=r"A_t2.* cannot be read"):
        load(folder)


def test_find_cases_sorts_and_keeps_the_errors_apart(write: Writer) -> None:
    write("B")
    write("A")
    write("C", t2=None)
    (write.root / "BraTS2021_00009").mkdir()
    (write.root / "notes").mkdir()
    (write.root / "README.txt").write_text("hello")
    cases, errors = find_cases(write.root, need_seg=True)
    assert [case.name for case in cases] == ["A", "B"]
    assert [str(error).split(":")[0] for error in errors] == ["BraTS2021_00009", "C"]


def test_find_cases_says_what_it_expects(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; expected a folder laid out as DATA/CASE"):
        find_cases(tmp_path / "nowhere", need_seg=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty: contains no case; expected DATA/CASE"):
        find_cases(empty, need_seg=True)
    case = write("A")
    with pytest.raises(InputError, match="looks like one case, give the folder above it"):
        find_cases(case, need_seg=True)


NAMES = [f"case{index:02d}" for index in range(20)]


def parts(split: Split) -> list[set[str]]:
    return [set(split.train), set(split.val), set(split.test)]


def test_split_is_seeded_disjoint_and_blind_to_order() -> None:
    split = split_cases(NAMES, TrainConfig())
    train, val, test = parts(split)
    assert [len(train), len(val), len(test)] == [14, 3, 3]
    assert train | val | test == set(NAMES)
    assert split_cases(NAMES[::-1], TrainConfig()) == split
    assert split_cases(NAMES, TrainConfig()).digest() == split.digest()
    other = split_cases(NAMES, TrainConfig(seed=1))
    assert other != split
    assert other.digest() != split.digest()


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_each_fraction_gets_a_case(count: int) -> None:
    assert [len(part) for part in parts(split_cases(NAMES[:count], TrainConfig()))] == [count - 2, 1, 1]


@pytest.mark.parametrize(
    ("val", "test", "sizes"), [(0.3, 0.2, (10, 6, 4)), (0.05, 0.5, (9, 1, 10)), (0, 0, (20, 0, 0))]
)
def test_fractions_are_shares_of_all_cases(val: float, test: float, sizes: tuple[int, int, int]) -> None:
    names = [f"case_{number}" for number in range(20)]
    split = split_cases(names, TrainConfig(val_fraction=val, test_fraction=test))
    assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_split_of_few_cases() -> None:
    assert parts(split_cases(["a"], TrainConfig())) == [{"a"}, set(), set()]
    assert parts(split_cases(NAMES, TrainConfig(val_fraction=0, test_fraction=0))) == [set(NAMES), set(), set()]
    with pytest.raises(InputError, match="of 3 cases none is left to train on: test takes 1, val 2"):
        split_cases(NAMES[:3], TrainConfig(val_fraction=0.6, test_fraction=0.3))
    with pytest.raises(InputError, match="none is left"):
        split_cases([], TrainConfig())
    with pytest.raises(InputError, match="the cases: b appears more than once"):
        split_cases(["a", "b", "b"], TrainConfig())


def test_folds_partition_what_the_test_part_leaves() -> None:
    splits = [split_cases(NAMES, TrainConfig(folds=5, fold=fold)) for fold in range(5)]
    assert len({split.test for split in splits}) == 1
    assert splits[0].test == split_cases(NAMES, TrainConfig()).test
    assert sorted(name for split in splits for name in split.val) == sorted(set(NAMES) - set(splits[0].test))
    for split in splits:
        train, val, test = parts(split)
        assert train | val | test == set(NAMES)
        assert len(train) + len(val) + len(test) == len(NAMES)
    with pytest.raises(InputError, match="folds is 5, but of 4 cases 3 are left"):
        split_cases(NAMES[:4], TrainConfig(folds=5))


def test_split_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = Split(("case01", "case04"), ("case02",), ())
    save_split(split, path)
    assert load_split(path) == split
    assert split_cases(NAMES, make_config({"split_file": str(path)})) == split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["Case07"], "val": [], "test": []}, r"train names Case07 \(did you mean case07\?\), which is not"),
        ({"train": ["case01", "case01"], "val": [], "test": []}, "case01 appears more than once"),
        ({"train": ["case01"], "val": ["case01"], "test": []}, "case01 appears more than once"),
        ({"train": [], "val": ["case01"], "test": []}, "train is empty"),
        ({"train": ["case01"], "valid": [], "test": []}, r"contains \['test', 'train', 'valid'\]; expected JSON"),
        ({"train": "case01", "val": [], "test": []}, "train is not a list of names"),
        (["case01"], "contains list; expected JSON"),
    ],
)
def test_split_file_errors(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        split_cases(NAMES, TrainConfig(split_file=path))


def test_split_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        load_split(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{train: ")
    with pytest.raises(InputError, match=r"bad\.json: cannot be read"):
        load_split(tmp_path / "bad.json")


def test_case_is_found_from_inside_its_folder(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("A"))
    case = find_case(Path("."), need_seg=True)
    assert isinstance(case, Case)
    assert load_case(case).image.shape == (4, *SHAPE)
