"""What the driver relies on in Ray beyond its documentation: a small sweep of plain Ray Tune, its calls in order."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray.train._internal import checkpoint_manager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune.driver.cluster import ray_compat
from tune.driver.cluster.connection import Cluster
from tune.driver.processes.progress_board import start_board
from tune.driver.scheduling import controller_compat
from tune.driver.scheduling.controller_compat import changed_controller, keep_starting_processes

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests

STOPPED, FAILS, ENDS, HANGS, RESTARTS = TRIALS = range(5)
MAX_FAILURES = 1
REPORT = ["stopper", "scheduler", "searcher", "callback"]  # the calls for a report after which a trial goes on


def train(config: dict[str, Any]) -> None:
    """Report from a background thread, as trainable.training.loop.fit does."""
    number, folder = config["number"], Path(config["folder"])

    def work() -> None:
        with (folder / f"lives_{number}").open("a") as file:
            file.write("x")
        if number == RESTARTS and len((folder / f"lives_{number}").read_text()) > MAX_FAILURES + 1:
            return
        report(1)
        if number in (FAILS, RESTARTS):
            raise RuntimeError("injected")
        if number == HANGS:
            time.sleep(600)
        if number == STOPPED:
            try:
                report(2)
            except SystemExit:
                (folder / f"raised_in_{threading.current_thread().name}").touch()
                raise
            (folder / "went_on").touch()

    def report(epoch: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            Path(name, "state").write_text(str(epoch))
            ray_tune.report({"epoch": epoch}, checkpoint=ray_tune.Checkpoint.from_directory(name))

    with ray_compat.own_checkpoint_folders(), ThreadPoolExecutor(1, "background") as pool:
        pool.submit(work).result()


class Events:
    """The calls of Ray in the driver, per trial."""

    def __init__(self) -> None:
        self.of: dict[int, list[str]] = {number: [] for number in TRIALS}
        self.numbers: dict[str, int] = {}  # by Ray's id
        self.checkpoints: dict[int, str | None] = {}
        self.errors: dict[int, str] = {}

    def add(self, trial_id: str, event: str) -> None:
        self.of[self.numbers[trial_id]].append(event)


class RecordingSearcher(Searcher):
    def __init__(self, events: Events, folder: Path) -> None:
        super().__init__()
        self.events, self.folder = events, folder

    def suggest(self, trial_id: str) -> Any:
        number = len(self.events.numbers)
        if number == len(TRIALS):
            return Searcher.FINISHED
        self.events.numbers[trial_id] = number
        return {"number": number, "folder": str(self.folder)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.events.add(trial_id, "searcher")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.events.add(trial_id, f"searcher: {'error' if error else 'complete'}")


class RecordingScheduler(FIFOScheduler):
    def __init__(self, events: Events, storage: Path) -> None:
        super().__init__()
        self.events, self.storage = events, storage

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        self.events.add(trial.trial_id, "scheduler")
        name = ray_compat.checkpoint_name(result)
        state = self.storage / "attempt" / f"{number:04d}" / str(name) / "state"
        self.events.checkpoints[number] = state.read_text() if state.exists() else None
        if number == RESTARTS and trial.max_failures == MAX_FAILURES:
            ray_compat.allow_one_more_restart(trial)
        return TrialScheduler.STOP if result["epoch"] == 2 else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.events.errors[trial.config["number"]] = Path(trial.error_file).read_text()
        self.events.add(trial.trial_id, "scheduler: error")


class RecordingStopper(ray_tune.Stopper):
    def __init__(self, events: Events) -> None:
        self.events = events

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        assert result["time_this_iter_s"] > 0
        self.events.add(trial_id, "stopper again" if result.get("done") else "stopper")
        return False

    def stop_all(self) -> bool:
        return False


class RecordingCallback(ray_tune.Callback):
    def __init__(self, events: Events) -> None:
        self.events = events

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.events.add(trial.trial_id, "start")

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        self.events.add(trial.trial_id, "callback")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.events.add(trial.trial_id, "callback: complete")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.events.add(trial.trial_id, "callback: error")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for trial in trials:
            if trial.config["number"] == HANGS and self.events.of[HANGS][-1:] == ["callback"]:
                actor = ray_compat.actor_of(trial)
                assert actor is not None
                self.events.add(trial.trial_id, "killed")
                ray_compat.forbid_restarts(trial)
                ray.kill(actor)


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Events]:
    """What the trials of the sweep wrote, and Ray's calls."""
    path, events = tmp_path_factory.mktemp("ray"), Events()
    ray_tune.Tuner(
        ray_tune.with_resources(train, {"cpu": 0.5}),
        tune_config=ray_tune.TuneConfig(
            search_alg=RecordingSearcher(events, path),
            scheduler=RecordingScheduler(events, path / "storage"),
            num_samples=len(TRIALS),
            reuse_actors=True,
            trial_dirname_creator=lambda ray_trial: f"{ray_trial.config['number']:04d}",
        ),
        run_config=ray_tune.RunConfig(
            name="attempt",
            storage_path=str(path / "storage"),
            failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[RecordingCallback(events)],
            stop=RecordingStopper(events),
            verbose=0,
        ),
    ).fit()
    return path, events


def test_a_report_goes_to_the_stopper_the_scheduler_the_searcher_and_the_callbacks_in_this_order(folder) -> None:
    assert folder[1].of[STOPPED][: 1 + len(REPORT)] == ["start", *REPORT]


def test_a_stopped_trial_s_last_report_does_not_reach_the_searcher_which_hears_of_its_end_before_the_callbacks(folder):
    ending = ["stopper", "scheduler", "callback", "searcher: complete", "callback: complete"]
    assert folder[1].of[STOPPED][1 + len(REPORT) :] == ending


def test_a_stopped_trial_gets_system_exit_inside_report_in_the_thread_that_reports(folder) -> None:
    names = [path.name for path in folder[0].glob("raised_in_*")]
    assert [name.startswith("raised_in_background") for name in names] == [True]
    assert not (folder[0] / "went_on").exists()


def test_an_ended_trial_s_last_report_comes_to_the_stopper_again_marked_as_done(folder) -> None:
    events = folder[1].of[ENDS]
    assert events == ["start", *REPORT, "stopper again", "searcher: complete", "callback: complete"]


def test_each_failure_reaches_the_scheduler_and_the_last_one_also_the_searcher_and_the_callbacks(folder) -> None:
    one_life = ["start", *REPORT, "scheduler: error"]
    assert folder[1].of[FAILS] == one_life * (1 + MAX_FAILURES) + ["searcher: error", "callback: error"]
    assert "RuntimeError: injected" in folder[1].errors[FAILS]


def test_a_killed_trial_that_may_not_be_restarted_has_failed(folder) -> None:
    events = folder[1].of[HANGS]
    assert events == ["start", *REPORT, "killed", "scheduler: error", "searcher: error", "callback: error"]
    assert (folder[0] / f"lives_{HANGS}").read_text() == "x"


def test_one_more_restart_can_be_allowed(folder) -> None:
    assert (folder[0] / f"lives_{RESTARTS}").read_text() == "x" * (MAX_FAILURES + 2)
    assert folder[1].of[RESTARTS][-1] == "callback: complete"


def test_a_report_s_checkpoint_is_in_the_storage_when_the_scheduler_hears_of_it(folder) -> None:
    assert folder[1].checkpoints == {STOPPED: "2", FAILS: "1", ENDS: "1", HANGS: "1", RESTARTS: "1"}


DIES = """
import os, signal
from tune.driver.scheduling import controller_compat
from tune.driver.cluster import ray_compat
from tune.driver.cluster.connection import Cluster
from tune.driver.scheduling.controller_compat import changed_controller, keep_starting_processes
from tune.driver.processes.progress_board import start_board

assert not ray_compat.cluster_died()
with Cluster() as cluster:
    cluster.wait()
    assert not ray_compat.cluster_died()
    import ray._private.worker as worker
    os.kill(worker._global_node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    while not ray_compat.cluster_died():
        pass
    print("its death is noticed", flush=True)
    os._exit(0)
"""


def test_a_dead_process_of_the_cluster_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "its death is noticed" in done.stdout  # Ray may print more, even into this line


def test_a_process_that_dies_with_two_calls_fails_its_next_trial_once() -> None:
    """As when a node is lost while a trial is handed to a process on it that was free."""
    failures: list[Exception] = []
    controller = SimpleNamespace(
        _fail_fast=False, RAISE=TuneController.RAISE, _print_trial_errors=False,
        _process_trial_failure=lambda trial, exception: failures.append(exception),
    )  # fmt: skip
    died, other = ray.exceptions.ActorUnavailableError("lost", None), RuntimeError("its own error")
    before = TuneController._trial_task_failure
    with changed_controller():
        for status, error in ((Trial.RUNNING, died), (Trial.PENDING, died), (Trial.PENDING, other)):
            TuneController._trial_task_failure(controller, SimpleNamespace(status=status), error)
    assert failures == [died, other]
    assert TuneController._trial_task_failure is before


def test_ray_has_the_methods_of_its_controller_that_are_changed() -> None:
    names = "_trial_task_failure", "_maybe_reuse_cached_actor", "checkpoint", "_get_trial_checkpoints"
    before = [getattr(TuneController, name) for name in names]
    with changed_controller():
        assert not any(getattr(TuneController, name) is plain for name, plain in zip(names, before, strict=True))
    assert [getattr(TuneController, name) for name in names] == before


def test_a_trial_whose_process_starts_takes_no_other_if_a_new_trial_can() -> None:
    reused: list[str] = []

    def reuse(self: Any, trial: str) -> bool:
        reused.append(trial)
        return True

    for pending in ({"starting", "new"}, {"starting"}):
        controller = SimpleNamespace(_trial_to_actor={"starting": "process"}, _pending_trials=pending)
        assert keep_starting_processes(reuse)(controller, "starting") is ("new" not in pending)
        assert keep_starting_processes(reuse)(controller, "new")
    assert reused == ["new", "starting", "new"]


@pytest.mark.parametrize("linkable", [True, False])
def test_a_checkpoint_is_linked_into_the_storage_or_copied(
    linkable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a link fails at the second file, none of the originals may be written to."""
    made = []

    def link(source: Path, target: Path) -> None:
        if made and not linkable:
            raise OSError(errno.EXDEV, "not on one file system")
        made.append(target)
        plain_link(source, target)

    plain_link = os.link
    monkeypatch.setattr(os, "link", link)
    for name in "ab":
        (tmp_path / "trial" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "trial" / name).write_text(name)
    checkpoint = ray_tune.Checkpoint.from_directory(str(tmp_path / "trial"))
    storage: Any = SimpleNamespace(
        storage_filesystem=checkpoint.filesystem, checkpoint_fs_path=str(tmp_path / "storage" / "checkpoint"),
        _check_validation_file=lambda: None,
    )  # fmt: skip
    with ray_compat.linked_checkpoints():
        persisted = StorageContext.persist_current_checkpoint(storage, checkpoint)
    assert persisted.path == storage.checkpoint_fs_path
    for name in "ab":
        source, target = tmp_path / "trial" / name, Path(persisted.path) / name
        assert target.samefile(source) is linkable
        assert source.read_text() == target.read_text() == name


def test_no_two_processes_of_a_trial_write_into_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StorageContext.__new__(StorageContext)
    storage.current_checkpoint_index = 3
    names = []
    for _ in range(2):
        with ray_compat.own_checkpoint_folders():
            names += [storage.checkpoint_dir_name, storage.checkpoint_dir_name]
    assert names[0] == names[1] != names[2] == names[3]
    assert all(re.fullmatch(r"checkpoint_000003_[0-9a-f]{8}", name) for name in names)
    assert storage.checkpoint_dir_name == "checkpoint_000003"
    monkeypatch.delattr(StorageContext, "checkpoint_dir_name")
    with ray_compat.own_checkpoint_folders():
        assert not hasattr(storage, "checkpoint_dir_name")


def test_checkpoints_are_deleted_while_the_driver_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them is gone already, as Retention deletes too."""
    may_delete, plain = threading.Event(), controller_compat.delete_folder

    def delete(**place: Any) -> None:
        assert may_delete.wait(60)
        plain(**place)

    monkeypatch.setattr(controller_compat, "delete_folder", delete)
    kept = checkpoint_manager._CheckpointManager(ray_tune.CheckpointConfig(num_to_keep=1))
    folders = [tmp_path / name for name in "abcd"]
    with controller_compat.deletion_in_background():
        for folder in folders:
            folder.mkdir()
            kept.register_checkpoint(_TrainingResult(ray_tune.Checkpoint.from_directory(str(folder)), {}))
        assert all(folder.exists() for folder in folders)
        folders[1].rmdir()
        may_delete.set()
    assert [folder.name for folder in folders if folder.exists()] == ["d"]
    assert not caplog.messages


def test_without_ray_s_private_names_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_compat, "_local_node", lambda: None)
    assert not ray_compat.cluster_died()
    assert not ray_compat.started_here()
    assert ray_compat.actor_of(SimpleNamespace()) is None  # type: ignore[arg-type]
    monkeypatch.delattr("ray._private.state.jobs")
    assert ray_compat.live_jobs() == {}
    monkeypatch.delattr("ray._raylet.GcsClient")
    ray_compat.refuse_wrong_token("no.such.host:1")


def test_the_start_of_a_cluster_waits_for_its_node_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._private.services as services

    def late(number: int) -> int:
        if time.monotonic() < there:
            raise RuntimeError("no such node yet")
        return number

    monkeypatch.setattr(services, "get_node", late)
    there = time.monotonic() + 0.5
    with ray_compat.patient_start(60):
        assert services.get_node(7) == 7
    there = time.monotonic() + 60
    with ray_compat.patient_start(0.2), pytest.raises(RuntimeError, match="no such node yet"):
        services.get_node(7)
    assert services.get_node is late
    monkeypatch.setattr(ray, "_private", SimpleNamespace())
    with ray_compat.patient_start(0.2):
        pass  # Ray's own patience


@pytest.mark.parametrize("params", [None, lambda no_monitor=False: None])
def test_a_cluster_starts_with_all_its_processes_if_ray_has_no_such_parameters(
    params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Node:
        def start_api_server(self) -> None: ...

    module, before = SimpleNamespace(RayParams=params), Node.start_api_server
    monkeypatch.setattr(ray, "_private", SimpleNamespace(parameter=module, node=SimpleNamespace(Node=Node)))
    with ray_compat.fewer_processes():
        assert (module.RayParams, Node.start_api_server) == (params, before)


def test_a_cluster_has_no_process_that_nothing_uses(cluster: Cluster) -> None:
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    node = ray_compat._local_node()
    assert node is not None
    assert set(node.all_processes) <= {"gcs_server", "raylet"}
    assert list(node.dead_processes()) == []
    assert ray_compat.started_here()
    with start_board() as board:
        assert board.address.host == "127.0.0.1"
    assert RayParams().no_monitor is False  # for other clusters of this process it is as before
    assert Node.start_api_server.__name__ == "start_api_server"
