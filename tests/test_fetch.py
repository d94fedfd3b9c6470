"""Cases at a URI: a real S3 server (moto's) on loopback; they are fetched once, prepared, trained and swept on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from helpers import SPACE, start_voxtune, voxtune, voxtune_here, wait_for
from test_doctor import HERE, NODE, SEEN, with_facts
from test_storage import ENVIRONMENT, Server

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import one_at_a_time
from trainable.core.options import make_config, to_dict
from trainable.core.storage import Uri
from trainable.data.cache import cache_folder, data_digest
from trainable.data.cache_publish import unfinished_folder
from trainable.data.fetch import FETCHED, _remove_others, fetch_cases, fetched_folder
from trainable.data.local_cases import cases_here, last_change
from trainable.data.prepare import Data, prepare_data
from trainable.data.preview import preview_data
from trainable.data.split import save_split
from tune.nodes.checks import CHECKS
from tune.nodes.folders import Folder, FolderFacts, Sight, Use, look_at, marked_folders
from tune.run.results import read_run

BUCKET = "cases"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Iterator[Server]:
    """An S3 server that has the phantoms in a bucket, with a text beside them; nothing here can reach AWS."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        started = Server(tmp_path_factory.mktemp("moto"))
        started.client.create_bucket(Bucket=BUCKET)
        for path in phantoms.rglob("*.nii.gz"):
            started.client.upload_file(str(path), BUCKET, f"brats/{path.relative_to(phantoms).as_posix()}")
        started.client.put_object(Bucket=BUCKET, Key="brats/README.md", Body=b"not a case")
        yield started
        started.process.terminate()
        started.process.wait()


@pytest.fixture(scope="module")
def uri(server: Server) -> Uri:
    return Uri(server.uri(f"{BUCKET}/brats"))


def test_cases_at_a_uri_become_the_same_cache_and_are_fetched_once(
    uri: Uri, server: Server, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(data_dir=uri, cache_dir=tmp_path / "cache")
    data = prepare_data(config)
    assert "fetched 40 files, " in (printed := capsys.readouterr().err)
    assert "0 were there" in printed
    assert data.split == prepared.split
    assert data_digest(data.folder, data.split.names) == data_digest(prepared.folder, prepared.split.names)
    prepare_data(config)
    printed = capsys.readouterr().err
    assert "fetched" not in printed
    assert "prepared 0 cases" in printed

    fetched = fetched_folder(uri, tmp_path / "cache")
    flair = next((fetched / "Phantom_00003").glob("*_flair.nii.gz"))
    flair.write_bytes(flair.read_bytes()[:1000])  # as a copy that broke off
    (fetched / "Phantom_00009").mkdir()
    (fetched / "Phantom_00009/Phantom_00009_t1.nii.gz").touch()  # of a case that was taken away
    before = last_change(tmp_path / "cache", uri)
    fetch_cases(uri, tmp_path / "cache")
    assert last_change(tmp_path / "cache", uri) > before  # a sign of life, though the file is in a folder below
    printed = capsys.readouterr().err
    assert "fetched 1 files" in printed
    assert "39 were there" in printed
    assert not (fetched / "Phantom_00009").exists()
    prepare_data(config)
    capsys.readouterr()

    seg = "brats/Phantom_00003/" + next(flair.parent.glob("*_seg.nii.gz")).name
    body = server.client.get_object(Bucket=BUCKET, Key=seg)["Body"].read()
    time.sleep(1.1)  # S3 tells whole seconds
    server.client.put_object(Bucket=BUCKET, Key=seg, Body=body)  # written again: it may be another truth
    prepare_data(config)
    assert "fetched 1 files" in capsys.readouterr().err


def test_a_dry_run_lists_the_cases_at_a_uri_and_fetches_none(
    uri: Uri, server: Server, prepared: Data, tmp_path: Path
) -> None:
    config = TrainConfig(data_dir=uri, cache_dir=tmp_path / "cache")
    found = preview_data(config)
    assert (found.split, found.ready, found.cache) == (prepared.split, (), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    prepare_data(config, quiet=True)
    assert preview_data(config).ready == tuple(sorted(prepared.split.names))
    lost = next(fetched_folder(uri, tmp_path / "cache").glob("Phantom_00003/*_flair.nii.gz"))
    lost.unlink()
    assert set(prepared.split.names) - {*preview_data(config).ready} == {"Phantom_00003"}
    assert not lost.exists()
    server.client.put_object(Bucket=BUCKET, Key="part/A/A_t1.nii.gz", Body=b"content")
    part = config.model_copy(update={"data_dir": Uri(server.uri(f"{BUCKET}/part"))})
    lacks = r"1 of 1 cases cannot be used(.|\n)*missing in s3://cases/part/A, which has A_t1"
    with pytest.raises(InputError, match=lacks):
        preview_data(part)


def test_what_needs_a_folder_of_cases_refuses_a_uri_in_words_and_shows_no_key(tmp_path: Path) -> None:
    done = voxtune_here("predict", tmp_path, "s3://bucket/cases", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "error: s3://bucket/cases: a URI, not a folder: copy the cases to a folder of this machine" in done.stderr
    done = voxtune_here("predict", tmp_path, "s3://me:hidden@bucket/cases", "--out", tmp_path / "out")
    assert "error: s3://...: a URI, not a folder" in done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert "here:/x: no such folder" in voxtune_here("predict", tmp_path, "not here:/x", "--out", "out").stderr


def test_two_uris_with_one_cache_keep_their_files_apart(uri: Uri, server: Server, tmp_path: Path) -> None:
    whole = fetch_cases(uri, tmp_path, quiet=True)
    part = fetch_cases(Uri(server.uri(f"{BUCKET}/brats/Phantom_00003")), tmp_path, quiet=True)
    assert part != whole
    assert part.parent == whole.parent == tmp_path / FETCHED
    assert (len(list(whole.rglob("*.nii.gz"))), len(list(part.rglob("*.nii.gz")))) == (40, 5)


def test_what_the_store_has_no_more_is_removed_under_the_lock_only(
    uri: Uri, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch_cases(uri, tmp_path, quiet=True)
    gone = folder / "Phantom_00009/Phantom_00009_t1.nii.gz"
    gone.parent.mkdir()
    gone.touch()
    with ThreadPoolExecutor(1) as thread:
        with one_at_a_time(folder, "tests"):
            task, end = thread.submit(fetch_cases, uri, tmp_path, quiet=True), time.monotonic() + 60
            while "waiting for another process, which fetches cases into" not in caplog.text:
                assert time.monotonic() < end
                assert not task.done()
                time.sleep(0.05)
            assert gone.exists()
        assert task.result() == folder
    assert not gone.parent.exists()


def test_the_removal_leaves_what_another_fetch_writes_now(tmp_path: Path) -> None:
    (tmp_path / "Old/years").mkdir(parents=True)
    (tmp_path / "Old/years/a.nii.gz").touch()
    (tmp_path / "New").mkdir()  # just made, for its first file
    (tmp_path / "Case").mkdir()
    (tmp_path / "Case/old.nii.gz").touch()
    with unfinished_folder(tmp_path) as temp:
        (temp / "file").touch()
        _remove_others(tmp_path, dict.fromkeys(["New/a.nii.gz", "Case/a.nii.gz"]))
        assert (temp / "file").exists()
        assert sorted(path.name for path in tmp_path.iterdir() if path != temp) == ["Case", "New"]
    assert not list((tmp_path / "Case").iterdir())


def test_fetches_at_once_on_a_disk_without_locks_do_not_harm_each_other(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client.put_object(Bucket=BUCKET, Key="single/A/A_t1.nii.gz", Body=b"content")
    both, replace = threading.Barrier(2, timeout=60), Path.replace

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def replace_when_both_have_written(path: Path, target: Path) -> Path:
        both.wait()
        return replace(path, target)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(Path, "replace", replace_when_both_have_written)
    with ThreadPoolExecutor(2) as threads:
        tasks = [threads.submit(fetch_cases, Uri(server.uri(f"{BUCKET}/single")), tmp_path) for _ in range(2)]
        (folder,) = {task.result() for task in tasks}
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    assert (path.name, path.read_bytes()) == ("A_t1.nii.gz", b"content")


PREPARE = """
import sys
from pathlib import Path
from trainable.core.config import TrainConfig
from trainable.core.storage import Uri
from trainable.data.prepare import prepare_data
prepare_data(TrainConfig(data_dir=Uri(sys.argv[1]), cache_dir=Path(sys.argv[2])))
"""


def test_kill_9_while_files_are_fetched_leaves_whole_ones_and_the_next_call_fetches_the_others(
    uri: Uri, prepared: Data, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PREPARE, uri, str(cache)]
        return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)

    killed = start()
    wait_for(killed, lambda: bool(list(cache.rglob("*.nii.gz"))))
    killed.kill()
    killed.wait()
    had = list(cache.rglob("Phantom*.nii.gz"))
    both = [start(), start()]  # which wait for each other
    printed = [process.communicate(timeout=90)[1] for process in both]
    fetched = [int(text.split("fetched ")[1].split()[0]) for text in printed if "fetched " in text]
    assert sum(fetched) in range(40 - len(had), 41 - len(had) + 1), printed  # one may have lacked its time
    assert data_digest(cache, prepared.split.names) == data_digest(prepared.folder, prepared.split.names)


def test_a_node_that_lacks_the_cases_fetches_them(uri: Uri, prepared: Data, tmp_path: Path) -> None:
    save_split(prepared.split, tmp_path / "split.json")
    config = TrainConfig(data_dir=uri, cache_dir=tmp_path / "cache", split_file=tmp_path / "split.json")
    data = cases_here(Data(tmp_path / "cache", prepared.split), config, prepared.contents)
    assert data.contents == prepared.contents


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no-such-bucket/brats", r"no-such-bucket/brats.*NO_SUCH_BUCKET.*check the bucket, the endpoint and the cred"),
        ("cases/none", r"cases/none.*Path does not exist.*check the bucket"),
        ("cases/brats/README.md", r"cases/brats/README.md.*check the bucket"),
    ],
)
def test_a_place_without_cases_is_named(place: str, message: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fetch_cases(Uri(server.uri(place)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_refused_key_is_said_and_not_shown(phantoms: Path, tmp_path: Path, server: Server) -> None:
    strict = Server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0")
    try:
        done = voxtune("prepare", strict.uri(f"{BUCKET}/brats"), "--cache_dir", tmp_path / "cache")
    finally:
        strict.process.terminate()
        strict.process.wait()
    assert done.returncode == 2
    assert "the credentials (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "nothing" not in done.stderr  # the key
    assert "Traceback" not in done.stderr


def test_doctor_tells_whether_a_node_can_list_the_cases_at_a_uri_and_what_to_do(uri: Uri, server: Server) -> None:
    places = {"DATA": Folder(uri, Use.NOBODY), "gone": Folder(Uri(server.uri("no-such-bucket/brats")), Use.NOBODY)}
    with marked_folders(places, "token" * 4) as marks:
        assert look_at(marks["DATA"], "node1") == FolderFacts(Sight.SEEN)
        found = look_at(marks["gone"], "node1")
    assert found.sight == Sight.UNREACHED
    assert "NO_SUCH_BUCKET" in found.error
    facts = with_facts(folders={"RUN": SEEN, "DATA": found}).facts
    assert facts is not None
    cell = CHECKS["DATA"](NODE, facts, HERE)
    assert cell is not None
    assert cell.advice.startswith("DATA: cannot be listed from there (s3://no-such-bucket/brats?")
    assert "start Ray there with the store's credentials (for S3: AWS_ACCESS_KEY_ID" in cell.advice
    assert "let the user" not in cell.advice


def test_a_full_disk_is_said(uri: Uri, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"cannot be fetched .*; free some space, or choose another cache_dir"):
            fetch_cases(uri, tmp_path / "cache", quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_option_is_a_uri_or_a_path_and_its_cache_is_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"data_dir": "s3://bucket/cases?scheme=http"})
    assert isinstance(config.data_dir, Uri)
    assert to_dict(config)["data_dir"] == "s3://bucket/cases?scheme=http"
    assert yaml.safe_load(yaml.safe_dump(to_dict(config))) == json.loads(json.dumps(to_dict(config)))
    assert isinstance(make_config({"data_dir": "cases"}).data_dir, Path)
    with pytest.raises(InputError, match=r"^options: data_dir is 5; expected a URI or a path$"):
        make_config({"data_dir": 5})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, two = (cache_folder(Uri(f"s3://{bucket}/cases"), None) for bucket in ("a", "b"))
    assert (one.parent, one.name[:6], one != two) == (tmp_path / "voxtune", "cases-", True)


def test_a_training_takes_a_uri_and_keeps_it_and_postprocess_takes_one_too(
    uri: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--depth", "2", "--base_channels", "2", "--target_shape", "16", "16", "16", "--patches_per_epoch", "4"]
    words = ["--data_dir", uri, "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    assert cli.main([*words, *small, "--epochs", "1", "--device", "cpu"]) == 0
    saved = json.loads((tmp_path / "out/training_config.json").read_text())
    assert saved["data_dir"] == uri
    assert cli.main(["--resume", str(tmp_path / "out"), "--test_only"]) == 0
    assert json.loads((tmp_path / "out/test_scores.json").read_text())["cases"].keys() == {"Phantom_00002"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    done = voxtune_here("postprocess", tmp_path / "out", "--data", uri)
    assert done.returncode == 0, done.stderr
    assert "fetched 40 files" in done.stderr
    assert len(list((tmp_path / "caches/voxtune").glob("brats-*/Phantom_*"))) == 7  # those of train and val


@pytest.mark.slow
def test_a_sweep_on_a_uri_is_launched_killed_resumed_without_its_cache_and_retrained(uri: Uri, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    cache, run = tmp_path / "cache", tmp_path / "run"
    words = ["launch", tmp_path / "space.yaml", "--data", uri, "--cache_dir", cache, "--out", run, "--trials", 3]
    launched = start_voxtune(*words)
    wait_for(launched, lambda: (run / "trials/0000/metrics.csv").exists())
    launched.kill()
    launched.wait()
    shutil.rmtree(cache)  # as on a machine that has taken over
    resumed = voxtune("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "fetched 40 files" in resumed.stderr
    assert read_run(run).config.fixed("data_dir") == uri
    assert voxtune("verify", run).returncode == 0
    retrained = voxtune("retrain", run, "--epochs", 2)
    assert retrained.returncode == 0, retrained.stdout + retrained.stderr
    for path in run.rglob("*"):  # no key in any file
        assert not path.is_file() or ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path
