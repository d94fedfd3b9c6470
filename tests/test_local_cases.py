"""A cache on a disk of each machine's own: copied or prepared where it is needed, once, and whole after any kill."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainable.cases.case_search import find_cases
from trainable.core.config import TrainConfig
from trainable.core.locks import one_at_a_time
from trainable.data import local_cases
from trainable.data.cache import CacheError, data_digest, open_case, read_contents
from trainable.data.cache_writer import prepare
from trainable.data.local_cases import cases_here
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, save_split
from tune.driver.measurement.plan_by_time import sweep_cases_here
from tune.spec.sweep_config import make_sweep_config

REPOSITORY = Path(__file__).parents[1]
PREPARE = """
import sys
from pathlib import Path
from trainable.core.config import TrainConfig
from trainable.core.logger import init_logger
from trainable.data.prepare import prepare_data
init_logger()
prepare_data(TrainConfig(data_dir=Path(sys.argv[1]), cache_dir=Path(sys.argv[2])))
"""


@pytest.fixture
def own(prepared: Data, phantoms: Path, tmp_path: Path) -> TrainConfig:
    """The config of a machine that has no cache yet."""
    save_split(prepared.split, tmp_path / "split.json")
    return TrainConfig(data_dir=phantoms, cache_dir=tmp_path / "own", split_file=tmp_path / "split.json")


def digest(folder: Path, prepared: Data) -> str:
    return data_digest(folder, prepared.split.names)


def test_another_machine_prepares_what_it_lacks_of_cases_that_were_read_on_the_first(
    own: TrainConfig, prepared: Data
) -> None:
    """The first one sends its `Data`, with what it has read of them, to a process of the other."""
    assert own.cache_dir is not None
    shutil.copytree(prepared.folder, own.cache_dir)
    first = Data(own.cache_dir, prepared.split)
    begun = first.contents
    sent = pickle.dumps(first)
    shutil.rmtree(own.cache_dir)  # so it is on the other machine
    there = cases_here(pickle.loads(sent), own, begun)
    assert sorted(path.name for path in there.folder.iterdir()) == prepared.split.names
    assert there.contents == begun


def test_cases_are_copied_from_the_cache_next_to_data_unless_damaged_there_or_changed(
    phantoms: Path, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "phantoms"
    shutil.copytree(phantoms, data)  # with its times, by which cases are recognised
    shared = tmp_path / "phantoms.cache"
    shutil.copytree(prepared.folder, shared)
    names = prepared.split.names
    image = shared / names[0] / "image.npy"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    (shared / names[1] / "label.npy").unlink()
    flair = next((data / names[2]).glob("*_flair.nii.gz"))
    flair.write_bytes(flair.read_bytes() + b"\0")  # read as before, but not the file that was prepared
    found = prepare_data(TrainConfig(data_dir=data, cache_dir=tmp_path / "own"))
    assert found.folder == tmp_path / "own"
    assert "prepared 3 cases in " in (printed := capsys.readouterr().err)
    assert f"copied 5 from {shared}, 0 were ready" in printed
    assert digest(tmp_path / "own", prepared) == digest(prepared.folder, prepared)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == names


def start_prepare(data: Path, cache: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PREPARE, str(data), str(cache)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_begin_at_once_prepare_each_case_once(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    cache.mkdir()
    with one_at_a_time(cache, "tests"):
        processes = [start_prepare(phantoms, cache) for _ in range(2)]
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == f"waiting for another process, which prepares cases in {cache}\n"
    printed = [process.communicate(timeout=60)[1] for process in processes]
    counts = sorted(int(text.split("prepared ")[1].split()[0]) for text in printed)
    assert counts == [0, 8], printed
    assert digest(cache, prepared) == digest(prepared.folder, prepared)


def test_one_that_waits_goes_on_when_the_other_is_killed(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    first = start_prepare(phantoms, cache)
    end = time.monotonic() + 60
    while not list(cache.glob("Phantom_*")):
        assert time.monotonic() < end
        time.sleep(0.005)
    second = start_prepare(phantoms, cache)
    first.kill()
    first.wait()
    for path in cache.glob("Phantom_*"):
        open_case(cache, path.name)
    printed = second.communicate(timeout=60)[1]
    assert second.returncode == 0, printed
    assert 0 < int(printed.split("prepared ")[1].split()[0]) < 8
    assert digest(cache, prepared) == digest(prepared.folder, prepared)


def test_a_machine_that_lacks_cases_or_has_others_prepares_them(
    own: TrainConfig, prepared: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_cases, "LOOK_SECONDS", 0.01)
    assert own.cache_dir is not None
    signs: list[int] = []
    data = Data(own.cache_dir, prepared.split)
    found = cases_here(data, own, prepared.contents, lambda: signs.append(1))
    assert (found.contents, signs[:1]) == (prepared.contents, [1])
    assert f"prepares what {own.cache_dir} lacks of 8 cases\n" in capsys.readouterr().out

    name = prepared.split.val[0]  # of an older truth, as a cache that was kept from another sweep has it
    other = Path(own.cache_dir.parent, "older", name)
    shutil.copytree(Path(str(own.data_dir), name), other)
    seg = next(other.glob("*_seg.nii.gz"))
    shutil.copy(next(Path(str(own.data_dir), prepared.split.train[0]).glob("*_seg.nii.gz")), seg)
    prepare(find_cases(other.parent, need_seg=True)[0], own.cache_dir, quiet=True)
    assert read_contents(own.cache_dir, [name])[name] != prepared.contents[name]
    found = cases_here(data, own, prepared.contents)
    assert found.contents == prepared.contents
    assert "prepares what" in capsys.readouterr().out
    assert cases_here(found, own, prepared.contents) is found
    assert capsys.readouterr().out == ""


def test_a_machine_that_measures_for_a_plan_prepares_the_cases_of_the_split_alone(
    phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    data = tmp_path / "phantoms"
    shutil.copytree(phantoms, data)
    bad = next((data / prepared.split.names[-1]).glob("*_flair.nii.gz"))  # left out by --skip_bad_cases
    bad.write_bytes(b"no image")
    config = make_sweep_config({"train": {"data_dir": str(data)}, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    one, two, three = prepared.split.names[:3]
    split = Split((two, three), (one,), ())
    begun = {name: prepared.contents[name] for name in split.names}
    found = sweep_cases_here(config, Data(tmp_path / "own", split), begun)
    assert (found.split, found.contents) == (split, begun)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [one, two, three]


def test_without_the_cases_the_missing_one_is_named(own: TrainConfig, prepared: Data, tmp_path: Path) -> None:
    assert own.cache_dir is not None
    gone = own.model_copy(update={"data_dir": tmp_path / "gone"})
    with pytest.raises(CacheError, match=r"own/Phantom_00000: .*; .*/gone, to prepare it from, is not there either"):
        cases_here(Data(own.cache_dir, prepared.split), gone, prepared.contents)
    assert not own.cache_dir.exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 64 KiB, which is an error as that of a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_said(own: TrainConfig, prepared: Data) -> None:
    assert own.cache_dir is not None
    with pytest.raises(CacheError, match="the cache cannot be written .*free some space, or choose a cache_dir that"):
        cases_here(Data(own.cache_dir, prepared.split), own, prepared.contents)
    assert not list(own.cache_dir.iterdir())
