from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trainable.cases.case_files import Case
from trainable.cases.case_reader import load_case
from trainable.cases.case_search import find_cases
from trainable.core.errors import InputError
from trainable.data.cache import cache_folder, data_digest, open_case
from trainable.data.cache_writer import FOREGROUND_LIMIT, prepare
from trainable.data.normalise import brain_box, channel_stats
from trainable.data.phantom import write_phantoms

REPOSITORY = Path(__file__).parents[1]
SHAPE = (40, 40, 36)
PREPARE = """
import sys
from pathlib import Path
from trainable.data.cache_writer import prepare
from trainable.cases.case_search import find_cases
if __name__ == "__main__":
    cases, _ = find_cases(Path(sys.argv[1]), need_seg=True)
    print("start", flush=True)
    print(prepare(cases, Path(sys.argv[2]), workers=int(sys.argv[3]))[0], flush=True)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "data", cases=3, shape=SHAPE, workers=1)
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cases_of(data: Path) -> list[Case]:
    return find_cases(data, need_seg=True)[0]


def start_prepare(data: Path, folder: Path, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(data), str(folder), str(workers)]
    if workers > 1:  # worker processes import the main module, so it must be a file
        script = folder.parent / "prepare_script.py"
        script.write_text(
            PREPARE.replace(
                "if __name__", "from trainable.data import cache_writer\ncache_writer.THREADS_UP_TO = 0\nif __name__"
            )
        )
        command[1:3] = [str(script)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder.parent, env=env, stdout=pipe, stderr=pipe, text=True)


def assert_whole(data: Path, folder: Path) -> None:
    """The cache equals the crop of each source, and contains nothing else."""
    cases = cases_of(data)
    assert sorted(path.name for path in folder.iterdir()) == [case.name for case in cases]
    for case in cases:
        cached, loaded = open_case(folder, case.name), load_case(case)
        assert loaded.label is not None
        box = tuple(slice(low, low + size) for low, size in zip(cached.offset, cached.label.shape, strict=True))
        np.testing.assert_array_equal(cached.image, loaded.image[:, *box])
        np.testing.assert_array_equal(cached.label, loaded.label[box])


def test_round_trip_equals_the_crop_of_the_source(data: Path, folder: Path) -> None:
    names, errors = prepare(cases_of(data), folder, workers=1)
    assert (names, errors) == (["Phantom_00000", "Phantom_00001", "Phantom_00002"], [])
    assert_whole(data, folder)
    for case in cases_of(data):
        cached, loaded = open_case(folder, case.name), load_case(case)
        assert cached.name == case.name
        assert isinstance(cached.image, np.memmap)
        assert isinstance(cached.label, np.memmap)
        assert (cached.image.dtype, cached.label.dtype) == (np.int16, np.uint8)
        assert cached.full_shape == SHAPE
        assert cached.label.size < np.prod(SHAPE)
        np.testing.assert_array_equal(cached.affine, loaded.affine)
        # Nothing of the brain is outside the crop.
        assert np.count_nonzero(cached.image) == np.count_nonzero(loaded.image)


def test_a_folder_of_cases_is_no_cache(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", cases=2, shape=(48, 48, 40), workers=1)
    before = sorted((tmp_path / "data").rglob("*"))
    cases, _ = find_cases(tmp_path / "data", need_seg=True)
    with pytest.raises(InputError, match="data contains cases as NIfTI files, such as .*; choose another cache_dir"):
        prepare(cases, tmp_path / "data", workers=1)
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_foreground_voxels_lie_in_their_regions(data: Path, folder: Path) -> None:
    prepare(cases_of(data), folder, workers=1)
    cached = open_case(folder, "Phantom_00001")
    for voxels, labels in zip(cached.foreground, ([1, 2, 4], [1, 4], [4]), strict=True):
        inside = np.isin(cached.label, labels)
        assert voxels.dtype == np.int16
        assert len(voxels) == min(FOREGROUND_LIMIT, np.count_nonzero(inside)) > 0
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        assert inside[tuple(voxels.T)].all()


def test_foreground_of_a_region_may_be_empty_and_is_limited(tmp_path: Path, data: Path, folder: Path) -> None:
    path = data / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    brain = np.asanyarray(nib.load(path.with_name("Phantom_00000_t1.nii.gz")).dataobj) != 0
    label = np.where(brain, 2, 0).astype(np.uint8)
    label[[0, -1], [0, -1], [0, -1]] = 2
    nib.save(nib.Nifti1Image(label, nib.load(path).affine), path)
    prepare(cases_of(data)[:1], folder)
    first = open_case(folder, "Phantom_00000")
    assert [voxels.shape for voxels in first.foreground] == [(FOREGROUND_LIMIT, 3), (0, 3), (0, 3)]
    assert first.label.shape == SHAPE, "a labelled voxel outside the brain was cut off"
    prepare(cases_of(data)[:1], tmp_path / "again")
    np.testing.assert_array_equal(first.foreground[0], open_case(tmp_path / "again", "Phantom_00000").foreground[0])


def test_mean_and_std_are_those_of_non_zero_voxels(data: Path, folder: Path) -> None:
    prepare(cases_of(data), folder, workers=1)
    cached = open_case(folder, "Phantom_00000")
    assert cached.mean.dtype == cached.std.dtype == np.float32
    for channel in range(4):
        values = np.asarray(cached.image[channel], np.float64)
        values = values[values != 0]
        assert cached.mean[channel] == pytest.approx(values.mean(), rel=1e-6)
        assert cached.std[channel] == pytest.approx(values.std(), rel=1e-6)


def test_channel_stats_by_hand() -> None:
    image = np.zeros((4, 2, 2, 1), np.int16)
    image[0, :, 0, 0] = [1, 3]
    image[1, 0, 0, 0] = 7
    image[2] = -32768
    mean, std = channel_stats(image)
    np.testing.assert_array_equal(mean, [2, 7, -32768, 0])
    np.testing.assert_array_equal(std, [1, 1, 1, 1])


def test_brain_box_by_hand() -> None:
    image = np.zeros((4, 9, 8, 7), np.int16)
    image[3, 2, 3, 4] = 1
    image[0, 5, 3, 4] = -1
    label = np.zeros((9, 8, 7), np.uint8)
    assert brain_box(image) == (slice(2, 6), slice(3, 4), slice(4, 5))
    label[8, 7, 0] = 4
    assert brain_box(image, label) == (slice(2, 9), slice(3, 8), slice(0, 5))
    with pytest.raises(ValueError, match="0 everywhere"):
        brain_box(np.zeros((4, 2, 2, 2), np.int16))


def made(folder: Path) -> dict[str, int]:
    """Cases in the cache and what tells one writing of their folder from another."""
    return {path.name: path.stat().st_ino for path in sorted(folder.iterdir())}


def redone(data: Path, folder: Path) -> list[str]:
    """Names of the cases that another prepare writes again."""
    before = made(folder)
    prepare(cases_of(data), folder, workers=1)
    assert_whole(data, folder)
    return [name for name, folder_id in made(folder).items() if folder_id != before[name]]


def test_only_what_changed_is_redone(data: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(cases_of(data)[:2], folder, workers=1)
    prepare(cases_of(data), folder, workers=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "prepared 2 cases in " in err
    assert f"s, 2 were ready: {folder}" in err
    assert redone(data, folder) == []
    digest = data_digest(folder, list(made(folder)))
    path = data / "Phantom_00001" / "Phantom_00001_t2.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj) * np.int16(2), image.affine), path)
    assert redone(data, folder) == ["Phantom_00001"]
    assert data_digest(folder, list(made(folder))) != digest


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
@pytest.mark.parametrize("file", ["image.npy", "label.npy", "foreground.npy", "case.json"])
def test_damage_is_redone(data: Path, folder: Path, damage: object, file: str) -> None:
    prepare(cases_of(data), folder, workers=1, quiet=True)
    path = folder / "Phantom_00002" / file
    if file == "case.json" and damage is flip_a_byte:
        path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    else:
        damage(path)  # type: ignore[operator]
    assert redone(data, folder) == ["Phantom_00002"]


def test_open_case_asks_for_prepare(data: Path, folder: Path) -> None:
    prepare(cases_of(data), folder, workers=1)
    with pytest.raises(InputError, match=r"Nobody: not a whole prepared case .* run prepare again"):
        open_case(folder, "Nobody")
    truncate(folder / "Phantom_00000" / "label.npy")
    with pytest.raises(InputError, match=r"Phantom_00000: not a whole prepared case .*size.* run prepare again"):
        open_case(folder, "Phantom_00000")
    with pytest.raises(InputError, match="Nobody: not a whole prepared case"):
        data_digest(folder, ["Nobody"])


def test_data_digest_depends_on_names_and_not_on_their_order(data: Path, folder: Path) -> None:
    names, _ = prepare(cases_of(data), folder, workers=1)
    assert data_digest(folder, names) == data_digest(folder, names[::-1])
    assert data_digest(folder, names) != data_digest(folder, names[:2])


def test_open_arrays_outlive_a_replacement(data: Path, folder: Path) -> None:
    prepare(cases_of(data), folder, workers=1)
    cached = open_case(folder, "Phantom_00000")
    flip_a_byte(folder / "Phantom_00000" / "label.npy")
    before = np.array(cached.image)
    assert redone(data, folder) == ["Phantom_00000"]
    np.testing.assert_array_equal(cached.image, before)


def test_arrays_are_shared_by_mapping(data: Path, folder: Path) -> None:
    prepare(cases_of(data), folder, workers=1)
    one, two = open_case(folder, "Phantom_00000"), open_case(folder, "Phantom_00000")
    assert Path(one.image.filename) == Path(two.image.filename) == folder / "Phantom_00000" / "image.npy"
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(folder / "Phantom_00000" / "image.npy")) == 2
    assert not one.image.flags.writeable


def test_kill_9_at_any_moment_leaves_a_cache_that_prepare_makes_whole(data: Path, folder: Path) -> None:
    for delay in (0.0, 0.02, 0.06):
        process = start_prepare(data, folder)
        assert process.stdout
        assert process.stdout.readline() == "start\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        for path in folder.glob("[!.]*") if folder.exists() else []:
            open_case(folder, path.name)
    prepare(cases_of(data), folder, workers=1)
    hours_ago = time.time() - 7200
    for path in folder.glob(".*"):
        os.utime(path, (hours_ago, hours_ago))
    prepare(cases_of(data), folder, workers=1)
    assert_whole(data, folder)


def test_leftovers_are_removed_once_old_and_their_writer_dead(data: Path, folder: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    young, old, running, own = (
        folder / f".{name}.{pid}.0123abcd.tmp"
        for name, pid in (("a.b", ended.pid), ("b", ended.pid), ("c", os.getpid()), ("d", "x"))
    )
    for path in (young, old, running, own):
        path.mkdir(parents=True)
    for path in (old, running, own):
        os.utime(path, (0, 0))
    prepare(cases_of(data), folder, workers=1)
    assert [path.exists() for path in (young, old, running, own)] == [True, False, True, True]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_end_when_the_preparing_process_is_killed(data: Path, folder: Path) -> None:
    process = start_prepare(data, folder, workers=2)
    pids: list[int] = []
    deadline = time.monotonic() + 30
    while len(pids) < 3 and time.monotonic() < deadline and process.poll() is None:  # two and a resource tracker
        pids = children(process.pid)
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(pids) == 3
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    prepare(cases_of(data), folder, workers=1)
    for case in cases_of(data):
        open_case(folder, case.name)


def test_two_processes_prepare_one_folder_at_once(data: Path, folder: Path) -> None:
    processes = [start_prepare(data, folder) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "['Phantom_00000', 'Phantom_00001', 'Phantom_00002']" in out
    assert_whole(data, folder)


def spoil(data: Path) -> None:
    truncate(data / "Phantom_00000" / "Phantom_00000_t1.nii.gz")
    path = data / "Phantom_00002" / "Phantom_00002_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, 7, np.uint8), nib.load(path).affine), path)


def test_every_bad_case_is_listed(data: Path, folder: Path) -> None:
    spoil(data)
    with pytest.raises(InputError, match="2 of 3 cases cannot be used") as caught:
        prepare(cases_of(data), folder, workers=2)
    assert "Phantom_00000: Phantom_00000_t1.nii.gz cannot be read" in str(caught.value)
    assert "Phantom_00002: Phantom_00002_seg.nii.gz has labels [7]" in str(caught.value)
    open_case(folder, "Phantom_00001")


def test_skip_bad_goes_on_with_the_rest(data: Path, folder: Path) -> None:
    spoil(data)
    names, errors = prepare(cases_of(data), folder, workers=1, skip_bad=True)
    assert names == ["Phantom_00001"]
    assert [str(error).split(":")[0] for error in errors] == ["Phantom_00000", "Phantom_00002"]


def test_no_good_case_is_an_error(data: Path, folder: Path) -> None:
    spoil(data)
    cases = cases_of(data)
    with pytest.raises(InputError, match="2 of 2 cases cannot be used; no case is left"):
        prepare([cases[0], cases[2]], folder, workers=1, skip_bad=True)
    assert not folder.exists()
    with pytest.raises(InputError, match="0 of 0 cases"):
        prepare([], folder)
    (data / "Phantom_00001" / "Phantom_00001_seg.nii.gz").unlink()
    unlabelled = find_cases(data, need_seg=False)[0][1]
    with pytest.raises(InputError, match="Phantom_00001: has no seg"):
        prepare([unlabelled], folder)


def test_a_folder_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/cache: the cache cannot be written"):
        prepare(cases_of(data), tmp_path / "file" / "cache")


def test_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "brats"
    data.mkdir()
    assert cache_folder(data, tmp_path / "mine") == tmp_path / "mine"
    assert cache_folder(data, None) == tmp_path / "brats.cache"
    monkeypatch.chdir(data)
    assert cache_folder(Path("."), None) == tmp_path / "brats.cache"
    # /proc cannot be written, not even by root.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    place = cache_folder(Path("/proc/sys"), None)
    assert place.parent == tmp_path / "xdg" / "voxtune"
    assert place.name.startswith("sys-")
    assert len(place.name) == len("sys-") + 8
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(Path("/proc/sys"), None) == tmp_path / ".cache" / "voxtune" / place.name
