"""A set of trainings on all slots: each ends once, in its own folder, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import ray
from helpers import ONE_CORE, rows, run_fit, start, wait_for
from ray.util.placement_group import placement_group, remove_placement_group

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import is_locked, lock_folder
from trainable.data.prepare import Data
from trainable.data.split import save_split
from trainable.train import train
from trainable.training.case_scores import read_case_scores
from trainable.training.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from trainable.training.training_dir import TrainingDir
from tune.driver.cluster.connection import Cluster
from tune.driver.processes.training_process import TrainingEnd, TrainingProcess, TrainingSpec, train_to_the_end
from tune.driver.training_set.process_pool import ProcessPool
from tune.driver.trainings import Outcome, Training, run_trainings
from tune.spec.sections import Resources

ONE_EACH = Resources(gpu=0, cpu=1)


def training(folder: Path, prepared: Data, name: str, *, test: bool = False, **options: object) -> Training:
    """A training of a second or two in folder/name."""
    split = folder / "split.json"
    if not split.exists():
        save_split(prepared.split, split)
    small = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "patches_per_epoch": 8, "num_workers": 0}
    small |= {"overlap": 0}
    places = {"output_dir": folder / name, "cache_dir": prepared.folder, "split_file": split, "device": "cpu"}
    return Training(name, TrainConfig(**{**small, **places, "epochs": 2, **options}), test)


def scores(folder: Path) -> list[tuple[str, str, str]]:
    """What is deterministic in the rows of a training's metrics.csv."""
    return [(row["epoch"], row["avg_total_loss"], row["val_dice_mean"]) for row in rows(folder)]


def run(plan, folder: Path, cluster: Cluster, resources: Resources = ONE_EACH, **options) -> dict[str, Outcome]:
    """run_trainings on the test's cluster; a sequence of trainings is a plan that always wants these."""
    asked = plan if callable(plan) else lambda _: plan
    return run_trainings(asked, folder, resources, cluster=cluster, resume_command="again", **options)


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    """Two trainings at a time, also on a larger machine."""
    before = os.environ.get("RAY_OVERRIDE_RESOURCES")
    os.environ["RAY_OVERRIDE_RESOURCES"] = '{"CPU": 2}'
    yield
    os.environ.pop("RAY_OVERRIDE_RESOURCES")
    if before is not None:
        os.environ["RAY_OVERRIDE_RESOURCES"] = before


@pytest.fixture
def worker_killer(tmp_path: Path) -> Iterator[threading.Thread]:
    """A thread that kills the process of the training in tmp_path/killed once, after its second epoch."""

    def kill() -> None:
        folder = tmp_path / "killed"
        while len(rows(folder)) < 2:
            time.sleep(0.02)
        pid = re.match(r"process (\d+) ", (folder / ".lock").read_text())
        assert pid is not None
        os.kill(int(pid[1]), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield thread
    thread.join(10)


@pytest.mark.slow
def test_a_plan_is_asked_again_after_each_training_and_what_has_ended_is_not_run_again(
    cluster: Cluster, prepared: Data, tmp_path: Path
) -> None:
    one, two = (training(tmp_path, prepared, name, seed=seed) for seed, name in enumerate(("one", "two")))
    diverges = training(tmp_path, prepared, "diverges", optimizer="sgd", lr=1e30, max_skipped_steps=2)
    tested = training(tmp_path, prepared, "tested", test=True)
    asked: list[set[str]] = []

    def plan(outcomes: Mapping[str, Outcome]) -> Sequence[Training]:
        asked.append(set(outcomes))
        return [one, two, diverges, *([tested] if "two" in outcomes else [])]

    outcomes = run(plan, tmp_path, cluster)
    assert set(outcomes) == {"one", "two", "diverges", "tested"}
    assert asked[0] == set()
    assert len(asked) == 5
    assert {name for name, outcome in outcomes.items() if outcome.error} == {"diverges"}
    assert outcomes["diverges"].error.startswith("diverged in epoch ")
    assert TrainingDir(tmp_path / "tested").test_scores.with_suffix(".json").exists()
    assert not TrainingDir(tmp_path / "one").test_scores.with_suffix(".json").exists()
    alone = run_fit(one.config.model_copy(update={"output_dir": tmp_path / "alone"}), prepared)
    assert scores(tmp_path / "one") == [
        (str(e.epoch), str(e.stats.avg_total_loss), str(e.row()["val_dice_mean"])) for e in alone
    ]
    assert read_case_scores(TrainingDir(tmp_path / "one").case_scores).keys() == {1, 2}
    assert "epoch   2/2" in (tmp_path / "one" / "stdout.log").read_text()

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}
    assert run(plan, tmp_path, cluster) == outcomes
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")} == stamps
    impatient = Resources(gpu=0, cpu=1, report_timeout=0.1)  # less than a test takes, which writes no epoch
    one_tested, paths = training(tmp_path, prepared, "one", test=True), TrainingDir(tmp_path / "one")
    assert run([one_tested], tmp_path, cluster, impatient)["one"].error == ""
    assert paths.test_scores.with_suffix(".json").exists()
    state = load_checkpoint(paths.best)
    state["network"] = {name: tensor * 2 for name, tensor in state["network"].items()}
    save_checkpoint(state, paths.best)  # other weights are tested again
    run([one_tested], tmp_path, cluster)
    assert json.loads(paths.test_scores.with_suffix(".json").read_text())["weights_hash"] == weights_hash(state)


@pytest.mark.slow
def test_a_killed_process_counts_for_nothing_and_its_training_ends_as_one_never_killed(
    cluster: Cluster, prepared: Data, tmp_path: Path, worker_killer: threading.Thread
) -> None:
    never = Resources(gpu=0, cpu=1, max_failures=0)
    killed, other = (training(tmp_path, prepared, name, epochs=20) for name in ("killed", "other"))
    outcomes = run([killed, other], tmp_path, cluster, never)
    assert not worker_killer.is_alive()
    assert [outcome.error for outcome in outcomes.values()] == ["", ""]
    assert scores(tmp_path / "killed") == scores(tmp_path / "other")
    assert [row["epoch"] for row in rows(tmp_path / "killed")] == [str(epoch) for epoch in range(1, 21)]
    log = (tmp_path / "killed" / "stdout.log").read_text()
    assert log.count("goes on after epoch") == 1


@pytest.mark.slow
def test_what_is_not_wanted_any_more_is_cancelled_and_a_budget_leaves_the_rest_for_later(
    cluster: Cluster, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, endless = training(tmp_path, prepared, "short"), training(tmp_path, prepared, "endless", epochs=10_000)
    outcomes = run(lambda ended: [short] if "short" in ended else [short, endless], tmp_path, cluster)
    assert set(outcomes) == {"short"}

    outcomes = run([short, endless], tmp_path, cluster, time_budget=8)
    assert set(outcomes) == {"short"}
    assert "stopped by the time budget of 0:08; go on with: again\n" in capsys.readouterr().out
    assert len(rows(tmp_path / "endless")) > 0


@pytest.mark.slow
def test_a_training_that_has_its_last_epoch_is_waited_for_also_if_it_is_not_wanted_any_more(
    cluster: Cluster, prepared: Data, tmp_path: Path
) -> None:
    first, last = training(tmp_path, prepared, "first", epochs=1), training(tmp_path, prepared, "last", epochs=3)
    long = training(tmp_path, prepared, "long", epochs=10_000)

    def plan(outcomes: Mapping[str, Outcome]) -> Sequence[Training]:
        if outcomes.keys() >= {"first"}:  # its end and that of the others race, as when each ends at any moment
            while not (written := rows(tmp_path / "last")) or not written[-1]["end_reason"]:
                time.sleep(0.01)
            return []
        return [first, last, long]

    assert set(run(plan, tmp_path, cluster)) == {"first", "last"}


@pytest.mark.slow
def test_trainings_that_wait_for_cores_say_who_has_them(
    cluster: Cluster, prepared: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two cores is taken, so that one training runs while the other waits."""
    cluster.wait()
    held = placement_group([{"CPU": 1}])
    assert held.wait(60)

    def release() -> None:
        while "waits for" not in caplog.text:
            time.sleep(0.1)
        remove_placement_group(held)

    releasing = threading.Thread(target=release, daemon=True)
    releasing.start()
    with caplog.at_level(logging.INFO):
        outcomes = run([training(tmp_path, prepared, name, epochs=20) for name in "ab"], tmp_path, cluster)
    assert [outcome.error for outcome in outcomes.values()] == ["", ""]
    lines = [record.getMessage() for record in caplog.records if " wait" in record.getMessage()]
    assert lines[0].startswith("1 training waits for 1 CPU: 2 of 2 CPU are taken by ")
    assert lines[0].endswith(" (this process): 2 CPU")
    assert lines[1].startswith("no training waits any more; it took 0:")


def test_after_a_process_that_could_not_start_the_next_one_waits(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else three could fail before Ray knows that their node is lost, which ends the set."""
    cluster.wait()
    pool = ProcessPool(ONE_EACH, tmp_path / ".workers")
    pool.fit_to(1)
    [process] = pool.processes
    ray.kill(process.actor)
    pool.note_started(process.starting)
    pool.fit_to(1)
    assert (pool.failed_starts, pool.processes) == (1, [])
    monkeypatch.setattr("tune.driver.training_set.process_pool.START_PAUSE", 0)
    pool.fit_to(1)
    assert len(pool.processes) == 1
    pool.close()


@pytest.mark.slow
def test_a_process_without_a_training_ends_and_frees_its_cores(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.wait()
    pool = ProcessPool(ONE_EACH, tmp_path / ".workers")
    pool.fit_to(2)
    while pool.starting:
        pool.note_started(ray.wait(pool.starting, timeout=60)[0][0])
    pool.fit_to(1)
    assert len(pool.processes) == 2  # another training may follow
    monkeypatch.setattr("tune.driver.training_set.process_pool.FREE_SECONDS", 0)
    busy = pool.free()
    assert busy is not None
    busy.busy = True
    pool.fit_to(1)
    assert pool.processes == [busy]
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    pool.fit_to(1)
    assert pool.processes == [busy]
    pool.close()


@pytest.mark.slow
def test_a_training_that_finishes_no_epoch_is_ended_as_hung(cluster: Cluster, prepared: Data, tmp_path: Path) -> None:
    slow = training(tmp_path, prepared, "slow", patches_per_epoch=10**6)
    hangs = Resources(gpu=0, cpu=1, report_timeout=3.0)
    outcomes = run([slow, training(tmp_path, prepared, "quick")], tmp_path, cluster, hangs)
    assert outcomes["slow"].error.startswith("no epoch for 0:0")
    assert outcomes["slow"].error.endswith("more than resources.report_timeout: treated as hung")
    assert outcomes["quick"].error == ""
    assert "Timeout" in (tmp_path / "slow" / "stdout.log").read_text(), "the stacks"


def test_changed_cases_end_everything_with_exit_code_1(
    cluster: Cluster, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = tmp_path / "cases.json"
    contents.write_text(json.dumps(dict.fromkeys(prepared.split.val, "other")))
    with pytest.raises(SystemExit) as caught:
        run([training(tmp_path, prepared, "one")], tmp_path, cluster, contents_file=contents)
    assert caught.value.code == 1
    assert "cases have changed since the sweep began" in (printed := capsys.readouterr().out)
    assert printed.endswith("go on with: again\n")


def test_an_error_is_retried_from_the_last_checkpoint_and_then_the_training_has_failed(
    cluster: Cluster, prepared: Data, tmp_path: Path
) -> None:
    one = training(tmp_path, prepared, "one")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "case_scores.csv").mkdir()  # a folder, which cannot be read as a file
    outcomes = run([one], tmp_path, cluster, Resources(gpu=0, cpu=1, max_failures=1))
    assert outcomes["one"].error.startswith("failed: IsADirectoryError")
    assert (tmp_path / "one" / "stdout.log").read_text().count("Traceback") == 2


def test_a_row_that_a_kill_has_cut_off_is_written_when_the_training_goes_on(prepared: Data, tmp_path: Path) -> None:
    one = training(tmp_path, prepared, "one")
    assert train_to_the_end(one.config, lambda config: train(config, prepared)) == ""
    before = one.dir.metrics.read_text(), one.dir.case_scores.read_text()
    for path in (one.dir.metrics, one.dir.case_scores):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:2]))  # of the heading and the first epoch
    assert train_to_the_end(one.config, lambda config: train(config, prepared)) == ""
    assert one.dir.case_scores.read_text() == before[1]
    assert scores(one.dir.path)[-1][0] == "2"


def test_a_training_whose_checkpoints_a_power_cut_has_damaged_begins_again(
    prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = training(tmp_path, prepared, "one")
    assert train_to_the_end(one.config, lambda config: train(config, prepared)) == ""
    before = scores(one.dir.path)
    for damaged in ([one.dir.best], [one.dir.latest, one.dir.best, one.dir.metrics]):  # as it had ended, and before
        for path in damaged:
            path.write_bytes(b"")
        assert train_to_the_end(one.config, lambda config: train(config, prepared)) == ""
        assert scores(one.dir.path) == before
        assert "the training begins again" in capsys.readouterr().out
        assert load_checkpoint(one.dir.best)["epoch"] in (1, 2)


def test_a_process_says_what_an_error_means_for_the_others(prepared: Data, tmp_path: Path) -> None:
    lock = tmp_path / ".workers"
    lock.touch()
    process = TrainingProcess(1, 0, str(lock))
    assert process.prepare() == ""
    one = training(tmp_path, prepared, "one")
    recipe = one.config.model_dump(mode="json")
    end = process.run(TrainingSpec({**recipe, "cache_dir": str(tmp_path / "none")}, False, None, None))
    assert "the cache on" in end.trouble
    with lock_folder(tmp_path / "one"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.driver.processes.training_process.LOST_NODE_SECONDS", 0.1)
        assert "is still in use" in process.run(TrainingSpec(recipe, False, None, None)).failure
    assert process.run(TrainingSpec(recipe, False, None, None)) == TrainingEnd()


def test_a_folder_of_another_training_is_refused_before_anything_runs(prepared: Data, tmp_path: Path) -> None:
    one = training(tmp_path, prepared, "one")
    assert train_to_the_end(one.config, lambda config: train(config, prepared)) == ""
    for other, reason in (("lr", 1e-2), ("epochs", 3), ("seed", 8)):
        changed = Training("one", one.config.model_copy(update={other: reason}))
        with pytest.raises(InputError, match=f"was begun with {other} .*, and it would be {reason} now"):
            run_trainings(lambda _, wanted=changed: [wanted], tmp_path, ONE_EACH, resume_command="again")


PROGRAM = """
import sys
from pathlib import Path
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import init_logger
from tune.driver.trainings import Training, run_trainings
from tune.spec.sections import Resources

init_logger()
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
small = dict(depth=3, base_channels=4, target_shape=(16, 16, 16), patches_per_epoch=8, num_workers=0, device="cpu")
small |= dict(overlap=0, save_freq=100)
places = dict(cache_dir=cache, split_file=folder / "split.json")
wanted = [
    Training(f"seed_{n}", TrainConfig(**small, **places, output_dir=folder / f"seed_{n}", seed=n, epochs=60))
    for n in range(2)
]
try:
    print(len(run_trainings(lambda _: wanted, folder, Resources(gpu=0, cpu=1), resume_command="AGAIN")), "ended")
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_or_stopped_leaves_its_trainings_for_the_next(prepared: Data, tmp_path: Path) -> None:
    save_split(prepared.split, tmp_path / "split.json")
    words = ("-c", PROGRAM, tmp_path, prepared.folder)
    killed = start(*words, **ONE_CORE)
    wait_for(killed, lambda: is_locked(tmp_path))  # while its cluster starts, so that no training ends meanwhile
    second = start(*words, **ONE_CORE)
    assert "is in use by process" in second.communicate(timeout=60)[0]
    assert second.returncode == 1
    wait_for(killed, lambda: len(rows(tmp_path / "seed_0")) > 2)
    os.kill(killed.pid, signal.SIGKILL)
    done = len(rows(tmp_path / "seed_0"))
    stopped = start(*words, **ONE_CORE)
    wait_for(stopped, lambda: len(rows(tmp_path / "seed_1")) > 2)
    os.kill(stopped.pid, signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, output
    assert "stopped by SIGINT; go on with: AGAIN\n" in output
    last = start(*words, **ONE_CORE)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    assert "2 ended" in output
    for name in ("seed_0", "seed_1"):
        assert [row["epoch"] for row in rows(tmp_path / name)] == [str(epoch) for epoch in range(1, 61)]
    log = (tmp_path / "seed_0" / "stdout.log").read_text()
    assert int(re.search(r"goes on after epoch (\d+)", log)[1]) >= done  # type: ignore[index]
    killed.communicate()


@pytest.mark.slow
def test_a_full_disk_ends_all_trainings_with_the_cause_and_they_go_on_after_room_is_made(
    prepared: Data, small_disk: Path
) -> None:
    save_split(prepared.split, small_disk / "split.json")
    words, filler = ("-c", PROGRAM, small_disk, prepared.folder), small_disk / "filler"
    process = start(*words, **ONE_CORE)
    wait_for(process, lambda: len(rows(small_disk / "seed_0")) > 2)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "No space left on device" in output
    assert output.endswith("go on with: AGAIN\n")
    assert "Traceback" not in output
    filler.unlink()
    again = start(*words, **ONE_CORE)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert "2 ended" in output
    for name in ("seed_0", "seed_1"):
        assert [row["epoch"] for row in rows(small_disk / name)] == [str(epoch) for epoch in range(1, 61)]
