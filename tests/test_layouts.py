"""Data folders as people have them: what is found, what is passed over and said, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from helpers import SWEEP

from trainable.cases.case_files import Case, CaseError, find_case
from trainable.cases.case_reader import load_case
from trainable.cases.case_search import case_around, find_cases, survey
from trainable.cli import main
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.cache import cache_folder, read_metadata
from trainable.data.cache_check import PLAIN_READING
from trainable.data.cache_writer import place_of_cache, prepare
from trainable.data.prepare import Data, prepare_data
from tune.driver.launch.resumable import with_prepared_data
from tune.run.provenance import digest_of
from tune.spec.sweep_config import make_sweep_config

ROOT = Path(__file__).parents[1]
WORDS = ("flair", "t1", "t1ce", "t2", "seg")


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of four whole cases, Phantom_00000 to Phantom_00003."""
    for number in range(4):
        name = f"Phantom_{number:05d}"
        shutil.copytree(phantoms / name, tmp_path / "data" / name)
    return tmp_path / "data"


def names_in(data: Path) -> list[str]:
    cases, errors = find_cases(data, need_seg=True)
    assert errors == []
    return [case.name for case in cases]


def rename_case(folder: Path, name: str, files: str | None = None) -> Path:
    """Give a case's folder, and its files, another name; files: a different one for them."""
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(folder.name, files or name))
    return folder.rename(folder.with_name(name))


def test_grades_years_and_further_levels_down_to_the_fourth_are_searched(data: Path) -> None:
    places = ["HGG", "LGG", "BraTS2021_Training_Data/BraTS2021_1", "a/b/c"]
    for number, place in enumerate(places):
        (data / place).mkdir(parents=True)
        (data / f"Phantom_{number:05d}").rename(data / place / f"Phantom_{number:05d}")
    assert names_in(data) == [f"Phantom_{number:05d}" for number in range(4)]
    deep = data / "a/b/c/d"
    deep.mkdir()
    (data / "a/b/c/Phantom_00003").rename(deep / "Phantom_00003")
    found = survey(data, need_seg=True)
    assert [case.name for case in found.cases] == [f"Phantom_{number:05d}" for number in range(3)]
    assert found.passed_over == [
        f"passed over: 1 folder whose sub-folders lie too deep (over 4 levels), {data / 'a/b/c/d'}"
    ]


def test_what_is_no_case_is_passed_over_with_one_line_per_kind(data: Path) -> None:
    seg = data / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    for stray in ("atlas.nii.gz", "x.nii.gz", "._y.nii.gz", "Phantom_00001/._Phantom_00001_t1.nii.gz"):
        shutil.copy(seg, data / stray)
    for folder in ("pred/Phantom_00000", "masks", "notes/empty", ".hidden", "__MACOSX/Phantom_00000"):
        (data / folder).mkdir(parents=True)
        shutil.copy(seg, data / folder / (".DS_Store" if "notes" in folder else "Phantom_00000_seg.nii.gz"))
    (data / "README.txt").write_text("hello")
    (data / "Phantom_00077").symlink_to("nowhere")
    (data / "again").symlink_to(data)
    found = survey(data, need_seg=True)
    assert [case.name for case in found.cases] == [f"Phantom_{number:05d}" for number in range(4)]
    assert found.errors == []
    assert sorted(found.passed_over) == [
        f"passed over: 1 folder without a NIfTI file, {data / 'notes'}",
        f"passed over: 1 link to nothing, {data / 'Phantom_00077'}",
        f"passed over: 2 NIfTI files beside the cases, such as {data / 'atlas.nii.gz'}",
        f"passed over: 2 folders with NIfTI files but no case of their name, such as {data / 'masks'}",
    ]


def test_prepare_prints_what_it_passes_over(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "notes").mkdir()
    prepare_data(TrainConfig(data_dir=data, cache_dir=tmp_path / "cache"))
    assert f"passed over: 1 folder without a NIfTI file, {data / 'notes'}\nprepared 4" in capsys.readouterr().err


def test_a_partly_copied_case_is_an_error_by_name_and_its_whole_copy_elsewhere_counts(data: Path) -> None:
    (data / "Phantom_00001" / "Phantom_00001_t2.nii.gz").unlink()
    (data / "BraTS2021_00009").mkdir()
    cases, errors = find_cases(data, need_seg=True)
    assert len(cases) == 3
    assert [str(error).split(":")[0] for error in errors] == ["BraTS2021_00009", "Phantom_00001"]
    half = data / "backup" / "Phantom_00000"
    shutil.copytree(data / "Phantom_00000", half)
    (half / "Phantom_00000_t1.nii.gz").unlink()
    found = survey(data, need_seg=True)
    assert len(found.errors) == 2
    assert found.passed_over == [f"passed over: 1 incomplete copy of a case that is whole elsewhere, {half}"]


def test_a_case_of_links_to_files_that_were_not_fetched_is_an_error_by_name(data: Path) -> None:
    folder = data / "Phantom_00002"
    for path in list(folder.iterdir()):
        path.unlink()
        path.symlink_to(f".git/annex/{path.name}")
    _, errors = find_cases(data, need_seg=True)
    assert [str(error).split(":")[0] for error in errors] == ["Phantom_00002"]
    assert "which has Phantom_00002_flair.nii.gz (a link to nothing), " in str(errors[0])


def test_a_renamed_case_folder_is_an_error_that_says_whose_files_it_has(data: Path) -> None:
    rename_case(data / "Phantom_00000", "patient7", files="Phantom_00000")
    _, errors = find_cases(data, need_seg=True)
    assert [str(error) for error in errors] == [
        f"patient7: {data / 'patient7'} has the files of Phantom_00000; expected files named as their folder; rename it"
    ]


def test_one_name_in_two_places_is_refused_with_both_and_a_link_to_a_case_is_not_another(data: Path) -> None:
    (data / "LGG").mkdir()
    (data / "LGG" / "Phantom_00001").symlink_to(data / "Phantom_00001")
    assert len(names_in(data)) == 4
    shutil.copytree(data / "Phantom_00002", data / "LGG" / "Phantom_00002")
    places = f"Phantom_00002: {data / 'LGG/Phantom_00002'} and {data / 'Phantom_00002'}"
    with pytest.raises(InputError, match=f"1 case names are there twice.*\n  {places}"):
        find_cases(data, need_seg=True)


UNREADABLE = """
import os, sys
from pathlib import Path
from trainable.cases.case_search import survey
data = Path(sys.argv[1])
os.setgid(12345); os.setuid(12345)
found = survey(data, need_seg=True)
print(len(found.cases), [str(error).split(' (')[0] for error in found.errors], found.passed_over)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_read_is_said_or_an_error_if_it_is_named_as_a_case(data: Path) -> None:
    for name in ("lost+found", "BraTS2021_00009"):
        (data / name).mkdir(mode=0o700)
    for folder in list(data.parents)[:4]:
        folder.chmod(0o755)
    code = f"import trainable.cases.case_search\n{UNREADABLE}"
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    line = f"passed over: 1 folder that cannot be read, {data / 'lost+found'}"
    assert done.stdout.strip() == f"4 ['BraTS2021_00009: {data / 'BraTS2021_00009'} cannot be read'] ['{line}']"


def test_endings_in_upper_case_are_read(data: Path) -> None:
    folder = data / "Phantom_00003"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(".nii.gz", ".NII.GZ"))
    assert len(names_in(data)) == 4
    assert load_case(find_case(folder, need_seg=True)).label is not None


def test_folders_named_like_files_are_read_as_the_one_file_in_them(data: Path, phantoms: Path) -> None:
    folder = data / "Phantom_00001"
    for word in WORDS:
        packed = folder / f"Phantom_00001_{word}.nii.gz"
        inner = folder / f"Phantom_00001_{word}.nii"
        inner.mkdir()
        (inner / f"00000057_{word}.nii").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert len(names_in(data)) == 4
    loaded = load_case(find_case(folder, need_seg=True))
    original = load_case(find_case(phantoms / folder.name, need_seg=True))
    assert (loaded.image == original.image).all()
    (folder / "Phantom_00001_t1.nii" / "second.nii").write_text("")
    with pytest.raises(CaseError, match=r"_t1\.nii\.gz missing .*_t1\.nii/ \(a folder with 2 NIfTI files\)"):
        find_case(folder, need_seg=True)


def test_a_folder_and_files_that_differ_in_unicode_form_alone_are_a_case(data: Path) -> None:
    name = "Müller_01"
    decomposed = unicodedata.normalize("NFD", name)
    rename_case(data / "Phantom_00000", decomposed, files=unicodedata.normalize("NFC", name))
    assert decomposed in names_in(data)


def test_of_a_packed_and_an_unpacked_file_the_packed_one_is_read(data: Path) -> None:
    folder = data / "Phantom_00000"
    (folder / "Phantom_00000_t1.nii").write_text("half")
    assert find_case(folder, need_seg=True).images[1].name == "Phantom_00000_t1.nii.gz"


def test_the_misnamed_seg_of_2020_is_named(data: Path) -> None:
    folder = rename_case(data / "Phantom_00002", "BraTS20_Training_355")
    (folder / "BraTS20_Training_355_seg.nii.gz").rename(folder / "W39_1998.09.19_Segm.nii")
    _, (error,) = find_cases(data, need_seg=True)
    assert "_355_seg.nii.gz missing" in str(error)
    assert "has W39_1998.09.19_Segm.nii, Bra" in str(error)
    assert "if W39_1998.09.19_Segm.nii is the missing file, rename it" in str(error)


def test_a_message_lists_five_files_and_counts_the_rest(data: Path) -> None:
    folder = data / "Phantom_00000"
    (folder / "Phantom_00000_t2.nii.gz").unlink()
    for number in range(300):
        (folder / f"slice_{number:03d}.png").touch()
    with pytest.raises(CaseError, match=r"slice_004\.png and 299 more; expected") as caught:
        find_case(folder, need_seg=True)
    assert len(str(caught.value)) < 500


def test_a_name_as_long_as_it_can_be_is_prepared_and_one_too_long_for_the_cache_is_a_bad_case(
    data: Path, tmp_path: Path
) -> None:
    long = rename_case(data / "Phantom_00000", "A" * 240)
    cases, _ = find_cases(data, need_seg=True)
    real = cases[0]
    assert real.name == long.name
    names, bad = prepare(
        [*cases, Case("B" * 256, real.images, real.seg, 4)], tmp_path / "cache", skip_bad=True, quiet=True
    )
    assert names == [case.name for case in cases]
    assert [str(error).split(": ")[1][-60:] for error in bad] == [
        f"{tmp_path / 'cache'} cannot have a folder of this name (File name too long); shorten the name"[-60:]
    ]


def test_a_ready_cache_that_cannot_be_written_is_used(
    data: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, _ = find_cases(data, need_seg=True)
    sibling = tmp_path / "data.cache"
    prepare(cases, sibling, quiet=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    # a file system that cannot be written, for root too
    monkeypatch.setattr("trainable.data.cache_writer.can_be_written", lambda folder: False)
    monkeypatch.setattr("trainable.data.cache.can_be_written", lambda folder: False)
    assert place_of_cache(cases, PLAIN_READING, data, None) == sibling
    (sibling / cases[0].name / "case.json").unlink()
    assert place_of_cache(cases, PLAIN_READING, data, None).parent == tmp_path / "xdg" / "voxtune"


def test_without_a_home_folder_a_cache_dir_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match=r"no place for the cache.*--cache_dir DIR"):
        cache_folder(Path("/proc/sys"), None)


def write_split(path: Path, numbers: tuple[int, ...]) -> Path:
    names = [f"Phantom_{number:05d}" for number in numbers]
    path.write_text(json.dumps({"train": names[:-1], "val": names[-1:], "test": []}))
    return path


def test_with_a_split_file_only_its_cases_are_needed_and_the_others_are_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_file = write_split(tmp_path / "split.json", (0, 1, 2))
    for folder in ("pred/Phantom_00000", "BraTS2021_00009"):
        (data / folder).mkdir(parents=True)
    shutil.copy(data / "Phantom_00000" / "Phantom_00000_seg.nii.gz", data / "pred" / "Phantom_00000")
    config = TrainConfig(data_dir=data, cache_dir=tmp_path / "cache", split_file=split_file)
    result = prepare_data(config)
    assert result.split.train == ("Phantom_00000", "Phantom_00001")
    assert not (result.folder / "Phantom_00003").exists()
    err = capsys.readouterr().err
    assert f"left out: 1 case in {data} that {split_file} does not name: Phantom_00003\n" in err
    (data / "Phantom_00001" / "Phantom_00001_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"1 of 3 cases cannot be used; repair them, as {split_file} names them:\n"):
        prepare_data(config.model_copy(update={"skip_bad_cases": True}), quiet=True)
    shutil.rmtree(data / "Phantom_00001")
    message = rf"1 of the cases that {split_file} names cannot be found: Phantom_00001; .* {data / 'Phantom_00001'}"
    with pytest.raises(InputError, match=message) as caught:
        prepare_data(config, quiet=True)
    assert "--" not in str(caught.value)


def test_a_sweep_is_resumed_beside_half_copied_cases_and_names_one_that_it_lacks(data: Path, tmp_path: Path) -> None:
    run, split_file = tmp_path / "run", write_split(tmp_path / "split.json", (0, 1, 2))
    run.mkdir()
    shutil.copy(split_file, run / "split.json")
    train = {"data_dir": str(data), "cache_dir": str(tmp_path / "cache")}
    begun = prepare_data(TrainConfig(**train, split_file=split_file), quiet=True)
    config = make_sweep_config({**SWEEP, "train": train}).with_record(
        cache_dir=str(begun.folder), data=digest_of(begun)
    )
    (data / "BraTS2021_00009").mkdir()
    (data / "Phantom_00003" / "Phantom_00003_t1.nii.gz").unlink()
    assert with_prepared_data(config, run, None).record.data == digest_of(begun)
    shutil.rmtree(data / "Phantom_00002")
    with pytest.raises(InputError, match=f"1 of the cases that {run / 'split.json'} names cannot be found") as caught:
        with_prepared_data(config, run, None)
    assert "--" not in str(caught.value)


SMALL = (
    "--depth 3 --base_channels 4 --target_shape 16 16 16 --overlap 0 --num_workers 0 --device cpu --patches_per_epoch 2"
)


def test_a_training_resumes_beside_half_copied_cases_and_keeps_its_list_of_bad_ones(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "BraTS2021_00009").mkdir()
    out = tmp_path / "out"
    words = f"--data_dir {data} --output_dir {out} --cache_dir {tmp_path / 'cache'} --epochs 1 --skip_bad_cases"
    assert main([*words.split(), *SMALL.split()]) == 0
    skipped = (out / "skipped_cases.txt").read_text()
    assert skipped.startswith("BraTS2021_00009: ")
    (data / "BraTS2021_00010").mkdir()
    assert main(["--resume", str(out), "--epochs", "2", "--no-skip_bad_cases"]) == 0
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert (out / "skipped_cases.txt").read_text() == skipped


@pytest.mark.parametrize("place", [".", "Phantom_00001", "Phantom_00001/out"])
def test_a_training_is_not_written_among_the_cases(data: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.rglob("*"))
    assert main(["--data_dir", str(data), "--output_dir", str(data / place), *SMALL.split()]) == 2
    assert "take another --output_dir" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before
    assert case_around(data / "new", data) is None


def test_data_laid_out_as_msd_is_named_with_the_command_that_converts_it(data: Path, tmp_path: Path) -> None:
    task = tmp_path / "Task01_BrainTumour"
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
        for number in range(300):
            (task / folder / f"BRATS_{number:03d}.nii.gz").touch()
    command = f"voxtune convert_msd {task} {task}_cases"
    for given in (task, task / "imagesTr", task.parent / "only"):
        if given.name == "only":
            given.mkdir()
            task = task.rename(given / task.name)
            command = f"voxtune convert_msd {task} {task}_cases"
        with pytest.raises(InputError, match=command) as caught:
            find_cases(given, need_seg=True)
        assert len(str(caught.value)) < 600


def test_metadata_of_a_case_from_a_folder_named_like_a_file_has_the_inner_file(data: Path, tmp_path: Path) -> None:
    folder = data / "Phantom_00000"
    (folder / "Phantom_00000_t1.nii.gz").rename(folder / "x")
    (folder / "Phantom_00000_t1.nii.gz").mkdir()
    (folder / "x").rename(folder / "Phantom_00000_t1.nii.gz" / "inner.nii.gz")
    prepare([find_case(folder, need_seg=True)], tmp_path / "cache", quiet=True)
    assert read_metadata(tmp_path / "cache" / "Phantom_00000")["source"][1][0] == "inner.nii.gz"
