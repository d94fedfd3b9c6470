"""Sweeps whose checkpoints and snapshots are on S3: a real S3 server (moto's) on loopback, a real local Ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
import yaml
from helpers import ONE_CORE, SPACE, SWEEP, rows, start, start_journal, start_voxtune, voxtune, wait_for
from optuna.trial import TrialState

from trainable.core.errors import InputError
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data
from trainable.training import checkpoint
from tune.driver.sweep import launch
from tune.run import snapshot
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.run.snapshot import Snapshot, check_storage, restore_snapshot
from tune.run.verify import verify
from tune.search.journal import read_trials
from tune.search.trial_progress import Progress
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump

BUCKET = "sweeps"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """moto_server in a separate process."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        log = (folder / "moto.log").open("wb")
        self.process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **environment})
        self.client: Any = boto3.client("s3", endpoint_url=self.url)
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert self.process.poll() is None, (folder / "moto.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override={quote(self.url, safe='')}&scheme=http"

    def keys(self, prefix: str) -> list[str]:
        """The objects below a prefix, without the markers of folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key for key in keys if not key.endswith("/")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server with one bucket; nothing here can reach AWS."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        started = Server(tmp_path_factory.mktemp("moto"))
        started.client.create_bucket(Bucket=BUCKET)
        yield started
        started.process.terminate()
        started.process.wait()


def launch_words(tmp: Path, phantoms: Path, prepared: Data, out: Path, uri: str, trials: int = 5) -> list[object]:
    """A sweep with one trial at a time."""
    space = tmp / "space.yaml"
    space.write_text(SPACE)
    options = ["--trials", trials, "--set", f"train.cache_dir={prepared.folder}"]
    return ["launch", space, "--data", phantoms, "--out", out, "--storage", uri, *options]


@pytest.fixture(scope="module")
def run(server: Server, phantoms: Path, prepared: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing interrupted, on S3."""
    tmp = tmp_path_factory.mktemp("runs")
    done = voxtune(*launch_words(tmp, phantoms, prepared, tmp / "whole", server.uri(f"{BUCKET}/dir")))
    assert done.returncode == 0, done.stdout + done.stderr
    uri = server.uri(f"{BUCKET}/dir/whole")
    assert f"snapshots: {uri}\n" in done.stdout
    assert f"voxtune resume FOLDER --from '{uri}' --data DATA" in done.stdout
    return tmp / "whole"


def facts(folder: Path) -> list[tuple[Any, ...]]:
    return [(t.params, t.state, t.value, t.intermediate_values) for t in read_trials(folder)]


def findings(folder: Path) -> list[str]:
    return [finding for each in verify(read_run(folder)).values() for finding in each]


@pytest.mark.slow
def test_an_ended_trial_keeps_one_checkpoint_of_its_best_epoch_on_s3(run: Path, server: Server, tmp_path: Path):
    trials = read_run(run).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert not (run / "ray").exists()
    for trial in trials:
        [key] = [key for key in server.keys("dir/whole-") if f"/{trial.number:04d}/" in key and key.endswith(".pth")]
        assert key == f"dir/{trial.checkpoint}/best_model.pth"
        server.client.download_file(BUCKET, key, str(tmp_path / "model.pth"))
        assert checkpoint.load_checkpoint(tmp_path / "model.pth")["epoch"] == trial.best_epoch


@pytest.mark.slow
def test_best_is_the_winners_model_fetched_from_s3(run: Path):
    best = read_run(run).best()
    state = checkpoint.load_checkpoint(run / "best" / "best_model.pth")
    assert (state["best_score"], state["epoch"]) == (best.score, best.best_epoch)
    assert findings(run) == []


@pytest.mark.slow
def test_the_snapshot_of_an_ended_sweep_is_its_text_files(run: Path, server: Server):
    prefix = "dir/whole/snapshot/"
    kept = {key.removeprefix(prefix) for key in server.keys("dir/whole/")}
    suffixes = (".yaml", ".json", ".jsonl", ".log", ".csv")
    texts = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.suffix in suffixes}
    assert kept == texts - {"live.json"}
    assert {"study.yaml", "journal.log", "best/config.yaml", "trials/0004/metrics.csv", "trials/0000/stdout.log"} < kept
    assert {f"trials/{number:04d}/case_scores.csv" for number in range(5)} < kept
    for name in kept:
        body = server.client.get_object(Bucket=BUCKET, Key=prefix + name)["Body"].read()
        assert body == (run / name).read_bytes(), name


@pytest.mark.slow
def test_kill_9_then_resume_then_resume_elsewhere_from_the_snapshot_equals_uninterrupted(
    run: Path, server: Server, phantoms: Path, prepared: Data, tmp_path: Path
):
    """Killed in trial 0, resumed, killed in trial 1 or later; the folder is lost; the data is at another place then."""
    folder, other, uri = tmp_path / "parts", tmp_path / "other", server.uri(f"{BUCKET}/dir")
    first = start_voxtune(*launch_words(tmp_path, phantoms, prepared, folder, uri))
    wait_for(first, lambda: len(rows(folder / "trials" / "0000")) >= 2)
    kill(first)
    second = start_voxtune("resume", folder)
    wait_for(second, lambda: len(read_trials(folder)) >= 3)
    kill(second)
    ended = [fact for fact in facts(folder) if fact[1] != TrialState.RUNNING]
    shutil.rmtree(folder)
    shutil.copytree(phantoms, tmp_path / "data")

    done = voxtune("resume", other, "--from", server.uri(f"{BUCKET}/dir/parts"), "--data", tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{other}: " in done.stdout
    assert facts(other) == facts(run)
    assert facts(other)[: len(ended)] == ended
    assert findings(other) == []
    assert (tmp_path / "data.cache").is_dir()
    assert read_run(other).config.fixed("data_dir") == str(tmp_path / "data")
    best = read_run(other).best()
    assert checkpoint.load_checkpoint(other / "best" / "best_model.pth")["epoch"] == best.best_epoch
    for trial in read_run(other).trials:
        [key] = [key for key in server.keys("dir/parts-") if f"/{trial.number:04d}/" in key and key.endswith(".pth")]
        assert key == f"dir/{trial.checkpoint}/best_model.pth"


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


# What `voxtune` does, but with one snapshot only after the first, once trial 0 has reported.
ONCE = """
from tune.__main__ import main
from tune.run.snapshot import Snapshot

def due(self):
    before, self.made = getattr(self, "made", False), (self.folder / "trials" / "0000" / "metrics.csv").exists()
    return self.made and not before

Snapshot.due = due
main()
"""


@pytest.mark.slow
def test_a_killed_trial_goes_on_elsewhere_from_the_checkpoint_that_an_older_snapshot_names(
    server: Server, phantoms: Path, prepared: Data, tmp_path: Path
):
    """Some epochs pass between a snapshot and the kill; what it names is still there, Ray having gone on."""
    folder, other, uri = tmp_path / "one", tmp_path / "another", server.uri(f"{BUCKET}/one")
    words = launch_words(tmp_path, phantoms, prepared, folder, server.uri(BUCKET), trials=1)
    launched = start("-c", ONCE, *words, "--set", "train.epochs=8", **ONE_CORE)
    wait_for(launched, lambda: len(rows(folder / "trials" / "0000")) >= 5)
    kill(launched)
    shutil.rmtree(folder)
    restore_snapshot(uri, tmp_path / "seen")
    progress = Progress.from_attrs(read_trials(tmp_path / "seen")[0].user_attrs)
    assert progress.epoch in (1, 2)
    assert {f"{progress.checkpoint}/{name}" for name in ("latest.pth", "best_model.pth")} & set(server.keys("one-"))

    done = voxtune("resume", other, "--from", uri)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"goes on after epoch {progress.epoch}\n" in (other / "trials" / "0000" / "stdout.log").read_text()
    assert [int(row["epoch"]) for row in rows(other / "trials" / "0000")] == list(range(1, 9))
    assert findings(other) == []

    again = voxtune("resume", other, "--from", uri)
    assert again.returncode == 2
    assert f"{other} is not empty; --from needs a new folder" in again.stderr


@pytest.mark.slow
def test_a_taken_name_and_a_copy_older_than_the_snapshot_are_refused(
    run: Path, server: Server, phantoms: Path, prepared: Data, tmp_path: Path
):
    words = launch_words(tmp_path, phantoms, prepared, tmp_path / "whole", server.uri(f"{BUCKET}/dir"))
    taken = voxtune(*words)
    assert taken.returncode == 2
    assert f"{server.uri(f'{BUCKET}/dir/whole')} holds a sweep already; go on with it by" in taken.stderr
    assert not (tmp_path / "whole").exists()

    shutil.copytree(run, tmp_path / "copy")
    study = yaml.safe_load((tmp_path / "copy" / "study.yaml").read_text())
    study["record"]["attempts"] = ["whole-20200101-000000"]  # what it had before another machine went on
    (tmp_path / "copy" / "study.yaml").write_text(yaml.safe_dump(study))
    older = voxtune("resume", tmp_path / "copy", "--trials", "6")
    assert older.returncode == 2
    assert "has gone on elsewhere (whole-" in older.stderr
    assert len(read_trials(tmp_path / "copy")) == 5


@pytest.mark.slow
def test_data_that_is_not_there_is_asked_for_and_other_data_is_refused(run: Path, server: Server, tmp_path: Path):
    restore_snapshot(server.uri(f"{BUCKET}/dir/whole"), tmp_path / "moved")
    text = (tmp_path / "moved" / "study.yaml").read_text()
    data = read_run(run).config.fixed("data_dir")
    (tmp_path / "moved" / "study.yaml").write_text(text.replace(data, "/nowhere/data"))
    missing = voxtune("resume", tmp_path / "moved")
    assert missing.returncode == 2
    assert "/nowhere/data: no such folder; pass the folder of the cases with --data" in missing.stderr
    write_phantoms(tmp_path / "others", cases=8, shape=(48, 48, 40), workers=1, seed=9)
    wrong = voxtune("resume", tmp_path / "moved", "--data", tmp_path / "others")
    assert wrong.returncode == 2
    assert "the cases are not those that" in wrong.stderr


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://no-such-bucket/dir?SERVER", "no-such-bucket"),
        ("s3://sweeps/dir?endpoint_overide=http%3A%2F%2F127.0.0.1%3A1", "Unexpected query parameter"),
        ("s3://key:secret@sweeps/dir?SERVER", "no keys in the URI"),
        ("s4://sweeps/dir", "no storage: Unrecognized filesystem type"),
        ("s3://sweeps/dir?endpoint_override=http%3A%2F%2F127.0.0.1%3A1&scheme=http", "check the bucket, the endpoint"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_before_anything_starts(
    uri: str, message: str, server: Server, tmp_path: Path
):
    uri = uri.replace("?SERVER", server.uri("").removeprefix("s3://"))
    with pytest.raises(InputError, match=message) as error:
        launch(make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}}), tmp_path / "run", storage=uri)
    assert "secret@" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_missing_bucket_is_exit_code_2_without_a_traceback(
    server: Server, phantoms: Path, prepared: Data, tmp_path: Path
):
    done = voxtune(*launch_words(tmp_path, phantoms, prepared, tmp_path / "run", server.uri("no-such-bucket/dir")))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: s3://no-such-bucket/dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_credentials_that_the_server_does_not_know_are_refused(server: Server, tmp_path: Path):
    strict = Server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="1")
    try:
        strict.client.create_bucket(Bucket=BUCKET)
        with pytest.raises(InputError, match=r"the endpoint and the credentials \(for S3: AWS_ACCESS_KEY_ID"):
            check_storage(strict.uri(f"{BUCKET}/dir"), "run")
    finally:
        strict.process.terminate()
        strict.process.wait()


@pytest.mark.parametrize("uri", ["s3://sweeps", "sweeps/whole", "SERVER/dir/nothing"])
def test_from_what_is_no_snapshot_is_refused_and_leaves_nothing(uri: str, server: Server, tmp_path: Path):
    uri = server.uri(f"{BUCKET}/dir/nothing") if uri.startswith("SERVER") else uri
    with pytest.raises(InputError, match=r"expected STORAGE/NAME"):
        restore_snapshot(uri, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def small_run(folder: Path, storage: str) -> Run:
    """The text files of a run, without trainings."""
    study = make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    study = study.with_record(storage=storage, attempts=[])
    home = folder / "trials" / "0000"
    home.mkdir(parents=True)
    for path in (folder / "study.yaml", folder / "journal.log", home / "metrics.csv", home / "error.txt"):
        path.write_text("1\n")
    for path in (home / "events.out.tfevents.1", folder / "best_model.pth", folder / ".lock"):
        path.write_text("not a text of the run")
    return Run(RunDir(folder), study, [])


def test_only_what_has_changed_is_sent_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[str] = []
    write = snapshot.write_file
    monkeypatch.setattr(snapshot, "write_file", lambda files, path, data: (sent.append(path), write(files, path, data)))
    kept = Snapshot(small_run(tmp_path / "mine", server.uri(BUCKET)))
    assert kept.update()
    names = ["trials/0000/error.txt", "trials/0000/metrics.csv", "journal.log", "study.yaml"]
    home = f"{BUCKET}/mine/snapshot/"
    assert (sorted(sent[:2]), sent[2:]) == ([home + name for name in names[:2]], [home + name for name in names[2:]])
    assert sorted(server.keys("mine/")) == sorted(f"mine/snapshot/{name}" for name in names)
    assert kept.update()
    (tmp_path / "mine" / "journal.log").write_text("1\n2\n")
    assert kept.update()
    assert sent[4:] == [home + "journal.log"]
    assert server.client.get_object(Bucket=BUCKET, Key="mine/snapshot/journal.log")["Body"].read() == b"1\n2\n"


def test_what_comes_while_a_snapshot_is_sent_is_not_in_its_journal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So that its other files know no less than its journal."""
    run = small_run(tmp_path / "grows", server.uri(BUCKET))
    journal, write = run.folder / "journal.log", snapshot.write_file
    journal.write_text("1\n2")  # half an entry, too

    def meanwhile(files: Any, path: str, data: bytes) -> None:
        with journal.open("a") as file:
            file.write("\n3\n")
        write(files, path, data)

    monkeypatch.setattr(snapshot, "write_file", meanwhile)
    kept = Snapshot(run)
    key = {"Bucket": BUCKET, "Key": "grows/snapshot/journal.log"}
    assert kept.update()
    assert server.client.get_object(**key)["Body"].read() == b"1\n"
    monkeypatch.setattr(snapshot, "write_file", write)
    assert kept.update()
    assert server.client.get_object(**key)["Body"].read() == journal.read_bytes()


def test_a_snapshot_that_fails_is_said_once_and_tried_again(server: Server, tmp_path: Path, capsys):
    kept = Snapshot(small_run(tmp_path / "run", server.uri("later")))
    assert [kept.update(), kept.update()] == [False, False]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "the snapshot is not up to date, the sweep goes on" in lines[0]
    server.client.create_bucket(Bucket="later")
    assert [kept.update(), kept.update()] == [True, True]
    assert capsys.readouterr().out == f"{server.uri('later/run')}: the snapshot is up to date again\n"


def test_a_snapshot_is_due_after_its_period_and_never_for_a_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = Snapshot(small_run(tmp_path / "due", server.uri(BUCKET)))
    local = Snapshot(small_run(tmp_path / "local", str(tmp_path / "storage")))
    assert kept.update()
    assert local.update()
    assert not kept.due()
    monkeypatch.setattr(snapshot, "PERIOD_SECONDS", 0)
    assert kept.due()
    assert not local.due()
    assert not (tmp_path / "storage").exists()


def test_a_snapshot_that_a_kill_cut_off_can_be_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before its journal, which lacks the trial whose folder was sent already; suggestions are in it."""
    folder, uri, write = tmp_path / "cut", f"file://{tmp_path}/store", snapshot.write_file
    folder.mkdir()
    config = make_sweep_config(SWEEP).with_record(storage=uri, attempts=["one"])
    (folder / "study.yaml").write_text(dump(config))
    journal, _ = start_journal(folder, config)
    kept = Snapshot(Run(RunDir(folder), config, []))
    for number in range(2):
        assert journal.ask()[0] == number
        for path in (RunDir(folder).trial(number).config, folder / "suggestions" / "1.yaml"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("lr: 0.002\n")
        assert kept.update() == (number == 0)

        def killed(files: Any, path: str, data: bytes) -> None:
            if path.endswith("journal.log"):
                raise OSError("killed")
            write(files, path, data)

        monkeypatch.setattr(snapshot, "write_file", killed)
    assert (tmp_path / "store/cut/snapshot/trials/0001/config.yaml").exists()
    restore_snapshot(f"{uri}/cut", tmp_path / "new")
    assert read_run(tmp_path / "new").orphan_trial_dirs == []
    assert sorted(path.name for path in (tmp_path / "new").glob("*/*")) == ["0000", "1.yaml"]


def test_another_run_s_snapshot_is_not_replaced_and_a_damaged_one_is_named(tmp_path: Path):
    """Two launches of the same name that both found none before they prepared their cases."""
    uri = f"file://{tmp_path}/store"
    first, second = (small_run(tmp_path / home / "run", uri) for home in ("first", "second"))
    check_storage(uri, "run")
    (first.folder / "study.yaml").write_text(dump(first.config.with_record(attempts=["first"])))
    Snapshot(first).begin()
    with pytest.raises(InputError, match=f"{uri}/run holds a sweep already"):
        Snapshot(second).begin()
    study = tmp_path / "store/run/snapshot/study.yaml"
    check_storage(uri, "run", ["first"])
    for text in ("", study.read_text()[:-20], "record: {att"):
        study.write_text(text)
        with pytest.raises(InputError, match=r"snapshot/study\.yaml is damaged"):
            check_storage(uri, "run", ["first"])
