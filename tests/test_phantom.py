from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from trainable.cases.case_reader import load_case
from trainable.cases.case_search import find_cases
from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError
from trainable.data.phantom import write_phantoms
from trainable.data.phantom_anatomy import make_case
from tune.cli import app

SHAPE = (48, 48, 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), cases=12, shape=SHAPE, seed=3, workers=1)


def label_of(folder: Path) -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"{folder.name}_seg.nii.gz").dataobj)


def image_of(folder: Path, word: str) -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"{folder.name}_{word}.nii.gz").dataobj)


def test_files_are_as_in_brats(folders: list[Path]) -> None:
    assert [folder.name for folder in folders] == [f"Phantom_{index:05d}" for index in range(12)]
    for word in (*MODALITIES, "seg"):
        image = nib.load(folders[0] / f"Phantom_00000_{word}.nii.gz")
        assert image.shape == SHAPE
        assert image.get_data_dtype() == (np.uint8 if word == "seg" else np.int16)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_array_equal(image.affine[:3, 3], [0, SHAPE[1] - 1, 0])
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
    cases, errors = find_cases(folders[0].parent, need_seg=True)
    assert len(cases) == 12
    assert not errors
    for case in cases:
        load_case(case)


def test_background_is_zero_in_all_and_the_brain_in_none(folders: list[Path]) -> None:
    for folder in folders:
        images = np.stack([image_of(folder, word) for word in MODALITIES])
        brain = images.any(axis=0)
        assert (images[:, brain] > 0).all()
        assert 0.1 < brain.mean() < 0.5
        assert not brain[[0, -1]].any()
        assert not brain[:, [0, -1]].any()
        assert not brain[:, :, [0, -1]].any()
        assert not label_of(folder)[~brain].any()


def test_labels_nest_and_one_in_six_lacks_et(folders: list[Path]) -> None:
    without = [folder.name for folder in folders if not (label_of(folder) == 4).any()]
    assert without == ["Phantom_00005", "Phantom_00011"]
    for folder in folders:
        label = label_of(folder)
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert (label == 2).sum() > 50
        assert (label == 1).sum() > 3
        # The core lies inside the tumour: few of its neighbours are healthy (sulci, ventricles).
        core = (label == 1) | (label == 4)
        brain = image_of(folder, "t1") > 0
        around = ndimage.binary_dilation(core) & ~core & brain
        assert (label[around] == 2).mean() > 0.7
        if folder.name not in without:
            necrosis = label == 1
            rim = ndimage.binary_dilation(necrosis) & ~necrosis & brain
            assert (label[rim] == 4).mean() > 0.6
        parts, count = ndimage.label(label > 0, np.ones((3, 3, 3)))
        assert np.bincount(parts[parts > 0]).max() > 0.95 * (label > 0).sum(), count


def test_sizes_vary(folders: list[Path]) -> None:
    shares = [float((label_of(f) > 0).sum() / (image_of(f, "t1") > 0).sum()) for f in folders]
    assert max(shares) > 2 * min(shares)
    assert min(shares) > 0.005
    assert max(shares) < 0.6


def test_some_tumours_touch_the_border_of_the_brain(folders: list[Path]) -> None:
    touching = []
    for folder in folders:
        brain = image_of(folder, "t1") > 0
        rim = brain & ~ndimage.binary_erosion(brain)
        touching.append(bool((((label_of(folder) == 1) | (label_of(folder) == 4)) & rim).any()))
    assert [touching[index] for index in (2, 6, 10)] == [True] * 3
    assert not all(touching)


def test_contrast_is_that_of_mri(folders: list[Path]) -> None:
    for folder in folders[:5]:
        label = label_of(folder)
        mean = {}
        for word in MODALITIES:
            image = image_of(folder, word)
            tissue = [image[label == value].mean() for value in (1, 2, 4)]
            mean[word] = np.array(tissue) / np.median(image[(image > 0) & (label == 0)])
        necrosis, oedema, enhancing = range(3)
        assert mean["flair"][oedema] > 1.2
        assert mean["t2"][oedema] > 1.2
        assert mean["t1"][oedema] < 0.95
        assert mean["t1ce"][enhancing] > 1.2
        assert mean["t1ce"][necrosis] < mean["t1ce"][enhancing] * 0.7
        assert mean["t1"][necrosis] < mean["t1"][oedema]
        assert mean["t1ce"][enhancing] > mean["t1"][enhancing] * 1.5


def best_dice(image: np.ndarray, truth: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.array([2 * ((image > t) & truth).sum() / ((image > t).sum() + truth.sum()) for t in levels])


def test_one_threshold_of_one_modality_does_not_find_the_tumour(folders: list[Path]) -> None:
    levels = np.arange(0, 4, 0.1)
    for word, labels in (("flair", (1, 2, 4)), ("t2", (1, 2, 4)), ("t1ce", (4,))):
        curves = []
        for folder in folders:
            image = image_of(folder, word).astype(float)
            image = (image - image[image > 0].mean()) / image[image > 0].std() * (image > 0)
            truth = np.isin(label_of(folder), labels)
            if truth.any():
                curves.append(best_dice(image, truth, levels))
        assert np.mean(curves, axis=0).max() < 0.88, word


def digest(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def test_the_same_seed_gives_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    again = write_phantoms(tmp_path / "again", cases=3, shape=SHAPE, seed=3, workers=2)
    assert [digest(folder) for folder in again] == [digest(folder) for folder in folders[:3]]
    other = write_phantoms(tmp_path / "other", cases=1, shape=SHAPE, seed=4)
    assert not set(digest(other[0])) & set(digest(folders[0]))


def test_writing_the_same_set_again_is_fine_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = (32, 32, 32)
    first = digest(write_phantoms(out, cases=1, shape=small)[0])
    assert digest(write_phantoms(out, cases=2, shape=small, workers=1)[0]) == first
    with pytest.raises(InputError, match=r"contains Phantom_00000, made from .*'seed': 0.*requested are .*'seed': 1"):
        write_phantoms(out, cases=1, shape=small, seed=1)
    with pytest.raises(InputError, match="choose another folder"):
        write_phantoms(out, cases=1, shape=(32, 32, 33))
    (out / "phantom.json").unlink()
    with pytest.raises(InputError, match="not known to be phantoms"):
        write_phantoms(out, cases=1, shape=small)


def test_refuses_small_shapes_and_no_cases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape is \[48, 31, 48\]; expected three sizes of 32"):
        write_phantoms(tmp_path, cases=1, shape=(48, 31, 48))
    with pytest.raises(InputError, match="cases is 0; expected 1 or more"):
        write_phantoms(tmp_path, cases=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: phantoms cannot be written there"):
        write_phantoms(tmp_path / "file", cases=1)


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 64, 40), (64, 48, 96)])
@pytest.mark.parametrize("with_et", [True, False])
def test_make_case_at_odd_shapes(shape: tuple[int, int, int], with_et: bool) -> None:
    for seed in range(4):
        image, label = make_case(shape, seed, with_et=with_et, at_border=bool(seed % 2))
        assert image.shape == (4, *shape)
        assert image.dtype == np.int16
        assert label.shape == shape
        assert label.dtype == np.uint8
        assert bool((label == 4).any()) == with_et
        assert (label == 2).any()
        assert image.min() == 0


def test_the_verb_says_what_it_wrote_and_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cases in (1, 2):
        app(
            ["phantom", str(tmp_path / "data"), "--cases", str(cases), "--shape", "32", "32", "32"],
            standalone_mode=False,
        )
    first, second = (line for line in capsys.readouterr().out.splitlines() if "wrote" in line)
    assert first == f"wrote 1 synthetic case of 32 x 32 x 32 voxels, one folder each, to {tmp_path / 'data'}"
    assert second.startswith("wrote 2 synthetic cases")
    assert second.endswith("; 1 of them were there already, and are the same")
