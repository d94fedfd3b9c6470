"""Cases at a URI: a real S3 server (moto's) on loopback; they are fetched once, prepared, trained and swept on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import SPACE, start_voxtune, voxtune, wait_for
from test_storage import ENVIRONMENT, Server

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.core.storage import Uri
from trainable.data.cache import cache_folder, data_digest
from trainable.data.fetch import FETCHED, fetch_cases
from trainable.data.local_cases import cases_here
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import save_split
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

    flair = next((tmp_path / "cache" / FETCHED / "Phantom_00003").glob("*_flair.nii.gz"))
    flair.write_bytes(flair.read_bytes()[:1000])  # as a copy that broke off
    (tmp_path / "cache" / FETCHED / "Phantom_00009").mkdir()
    (tmp_path / "cache" / FETCHED / "Phantom_00009/Phantom_00009_t1.nii.gz").touch()  # of a case that was taken away
    prepare_data(config)
    printed = capsys.readouterr().err
    assert "fetched 1 files" in printed
    assert "39 were there" in printed
    assert not (tmp_path / "cache" / FETCHED / "Phantom_00009").exists()

    seg = "brats/Phantom_00003/" + next(flair.parent.glob("*_seg.nii.gz")).name
    body = server.client.get_object(Bucket=BUCKET, Key=seg)["Body"].read()
    time.sleep(1.1)  # S3 tells whole seconds
    server.client.put_object(Bucket=BUCKET, Key=seg, Body=body)  # written again: it may be another truth
    prepare_data(config)
    assert "fetched 1 files" in capsys.readouterr().err


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


def test_doctor_tells_whether_a_node_can_list_the_cases_at_a_uri(uri: Uri, server: Server) -> None:
    places = {"DATA": Folder(uri, Use.NOBODY), "gone": Folder(Uri(server.uri("no-such-bucket/brats")), Use.NOBODY)}
    with marked_folders(places, "token" * 4) as marks:
        assert look_at(marks["DATA"], "node1") == FolderFacts(Sight.SEEN)
        found = look_at(marks["gone"], "node1")
    assert found.sight == Sight.ERROR
    assert "NO_SUCH_BUCKET" in found.error


@pytest.mark.parametrize("verb", ["prepare", "launch", "doctor", "check", "train"])
def test_keys_in_the_uri_are_refused_and_not_repeated(verb: str, tmp_path: Path) -> None:
    uri = "s3://key:secret@cases/brats"
    (tmp_path / "space.yaml").write_text(SPACE)
    words = {
        "prepare": [uri],
        "launch": [tmp_path / "space.yaml", "--data", uri, "--out", tmp_path / "run"],
        "doctor": ["--data", uri],
        "check": [tmp_path / "space.yaml", "--set", f"train.data_dir={uri}"],
        "train": ["--data_dir", uri, "--output_dir", tmp_path / "out"],
    }
    done = voxtune(verb, *words[verb])
    assert done.returncode == 2, done.stdout
    assert "no keys in the URI" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


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


def test_a_training_takes_a_uri_and_keeps_it(uri: Uri, tmp_path: Path) -> None:
    small = ["--depth", "2", "--base_channels", "2", "--target_shape", "16", "16", "16", "--patches_per_epoch", "4"]
    words = ["--data_dir", uri, "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    assert cli.main([*words, *small, "--epochs", "1", "--device", "cpu"]) == 0
    saved = json.loads((tmp_path / "out/training_config.json").read_text())
    assert saved["data_dir"] == uri
    assert cli.main(["--resume", str(tmp_path / "out"), "--test_only"]) == 0
    assert json.loads((tmp_path / "out/test_scores.json").read_text())["cases"].keys() == {"Phantom_00002"}


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
