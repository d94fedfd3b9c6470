"""Real sweeps on a real local Ray, driven as a user does: launch, Ctrl-C, kill -9, resume, best, retrain, predict."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import SPACE, rows, start_voxtune, voxtune, voxtune_here, wait_for
from optuna.trial import TrialState

from trainable import cli as train_cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.core.option_files import load_options
from trainable.core.options import make_config
from trainable.data.prepare import Data
from trainable.data.split import Split, load_split, save_split
from trainable.training import checkpoint
from trainable.training.training_dir import TrainingDir
from tune.confirmation.export import recipe_text
from tune.driver.cluster.connection import Cluster
from tune.driver.dry_run import dry_run
from tune.driver.recording import recorder, report_keeper
from tune.driver.sweep import launch, resume, with_absolute_paths
from tune.retrain import retrain
from tune.run.events import EventKind, read_events
from tune.run.live_state import read_live_state
from tune.run.results import Run, read_run, resolve_checkpoint
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.search.journal import Journal, read_trials
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config
from tune.spec.trial_spec import Report

STEEP = """
{lr: 1.0e+4, optimizer: sgd, gradient_clipping: 0, epochs: 4, depth: 2, base_channels: 4, num_workers: 0, device: cpu,
 target_shape: [16, 16, 16], patches_per_epoch: 8, overlap: 0, max_skipped_steps: 1}
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the sweeps here; windows that do not overlap take a third of the time to validate."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE.replace("device: cpu", "device: cpu, overlap: 0"))
    return path


@pytest.fixture(scope="module")
def run(space: Path, phantoms: Path, prepared: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = voxtune("launch", space, "--data", phantoms, "--out", folder, "--set", f"train.cache_dir={prepared.folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 trials" in done.stdout
    return folder


@pytest.fixture(scope="module")
def one_core() -> Iterator[Cluster]:
    """A cluster for the sweeps in this process: one core, and a GPU that the trials reserve and do not use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1, "GPU": 1}')
        cluster = Cluster().__enter__()
        cluster.wait()
    yield cluster
    cluster.__exit__()


@pytest.fixture
def config_of(space: Path, phantoms: Path, prepared: Data) -> Callable[..., SweepConfig]:
    """A function that returns the config of a sweep here, with options as KEY=VALUE."""
    paths = [f"train.data_dir={phantoms}", f"train.cache_dir={prepared.folder}"]
    return lambda *options: load_sweep_config(space, [*paths, *options])


def test_states_in_the_journal_tell_how_each_trial_ended(run: Path):
    trials = read_trials(run)
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        values = trial.intermediate_values
        assert list(values) == list(range(1, trial.user_attrs["progress"]["epoch"] + 1))
        if trial.state == TrialState.PRUNED:
            assert trial.last_step in (1, 2)
            assert trial.value == values[trial.last_step]
            assert trial.user_attrs["rungs"][str(trial.last_step)]["decision"] == "STOP"
        else:
            assert trial.last_step == 4
            assert trial.value == max(values.values()) == trial.user_attrs["progress"]["best"]["score"]
            assert trial.user_attrs["progress"]["end_reason"] == "epochs"


def test_trial_0_is_the_default_recipe(run: Path):
    assert read_trials(run)[0].params == {"optimizer": "adam", "lr": 3e-4, "loss_weights": "[1.0, 1.0]"}


def test_the_driver_writes_each_trial_as_text(run: Path):
    for trial in read_trials(run):
        folder = run / "trials" / f"{trial.number:04d}"
        assert [int(row["epoch"]) for row in rows(folder)] == list(trial.intermediate_values)
        assert [float(row["val_dice_mean"]) for row in rows(folder)] == list(trial.intermediate_values.values())
        assert f"lr: {trial.params['lr']}"[:8] in (folder / "config.yaml").read_text()
        assert (folder / "stdout.log").read_text().count("val Dice") == len(trial.intermediate_values)
        assert len(list(run.glob(f"tensorboard/{trial.number:04d} */events.out.tfevents.*"))) == 1


def test_viewers_have_the_winners_pictures_and_a_note_on_each_trial(run: Path):
    best = read_run(run).best()
    drawn = RunDir(run).trial(best.number).drawn()
    assert [path.stem for path in drawn] == list(load_split(run / "split.json").val)
    assert [path.read_bytes() for path in (run / "artifacts").iterdir()] == [path.read_bytes() for path in drawn]
    assert len(list(run.glob(f"tensorboard/winner {best.number:04d} */events.out.tfevents.*"))) == 1
    assert (run / "journal.log").read_text().count(":note_ver") == 6  # and one on the study


def test_best_is_the_winners_recipe_and_its_model_of_its_best_epoch(run: Path):
    best, complete = read_run(run).best(), [t for t in read_trials(run) if t.state == TrialState.COMPLETE]
    last = {trial.number: trial.intermediate_values[max(trial.intermediate_values)] for trial in complete}
    assert best.late_score == max(last.values()), "the last quarter of four validations is one"
    assert best.score == max(trial.value for trial in complete if trial.number == best.number)
    state = checkpoint.load_checkpoint(run / "best" / "best_model.pth")
    assert (state["best_score"], state["epoch"]) == (best.score, best.best_epoch)
    heading = f"# trial {best.number} of {run.name}: val_dice_mean {best.score:.4f} at epoch {best.best_epoch}\n"
    assert (run / "best" / "config.yaml").read_text().startswith(heading)


def test_events_tell_how_the_sweep_went_as_the_journal_has_it(run: Path):
    events, done = read_events(RunDir(run).events), read_run(run)
    assert (events[0].kind, events[0].text) == (EventKind.SWEEP_STARTED, "launched")
    assert (events[-1].kind, events[-1].text) == (EventKind.SWEEP_ENDED, "all 5 trials have ended")
    assert [event.time for event in events] == sorted(event.time for event in events)
    for trial in done.trials:
        own = [event for event in events if event.trial == trial.number and event.kind != EventKind.NEW_BEST]
        assert (own[0].kind, own[0].host, own[0].gpus) == (EventKind.TRIAL_STARTED, platform.node(), ())
        assert (own[-1].kind, own[-1].status) == (EventKind.TRIAL_ENDED, trial.status)
        stops = [event.text for event in own if event.kind == EventKind.TRIAL_STOPPED]
        assert bool(stops) == (trial.status == "stopped early")
        if stops:
            at = trial.rungs[trial.epoch]
            assert stops == [f"stopped at epoch {trial.epoch}: {at.value:.4f}, {at.needed:.4f} was needed"]
    assert [event.trial for event in events if event.kind == EventKind.NEW_BEST][-1] == done.best().number
    state = read_live_state(RunDir(run).live)
    assert state is not None
    assert state.activities == ()


def test_every_trial_has_the_runs_split_and_a_seed_of_its_own(run: Path):
    seeds = set()
    for trial in read_run(run).trials:
        state = checkpoint.load_checkpoint(run / "ray" / str(trial.checkpoint))
        seeds.add(state["config"]["seed"])
        assert state["split"] == load_split(run / "split.json").digest()
    assert seeds == {1, 2, 3, 4, 5}


def test_an_ended_trial_keeps_one_checkpoint_of_its_best_epoch(run: Path):
    for trial in read_run(run).trials:
        files = list((run / "ray").glob(f"*/{trial.number:04d}/*/*.pth"))
        assert [path.name for path in files] == ["best_model.pth"]
        assert checkpoint.load_checkpoint(files[0])["epoch"] == trial.best_epoch


def test_sigterm_and_kill_9_then_resume_equals_uninterrupted(
    run: Path, space: Path, phantoms: Path, prepared: Data, one_core: Cluster, tmp_path: Path
):
    """Stopped by SIGTERM in trial 0, killed in trial 2: trials, states and scores are those of the whole sweep.

    SIGTERM goes to the whole group, Ray's processes too, as from a batch system or `timeout`; test_survival.py has the
    other signals.
    """
    folder = tmp_path / "parts"
    cache = f"train.cache_dir={prepared.folder}"
    launched = start_voxtune("launch", space, "--data", phantoms, "--out", folder, "--set", cache)
    wait_for(launched, lambda: len(rows(folder / "trials" / "0000")) >= 1)
    with pytest.raises(InputError, match=rf"in use by process {launched.pid} on .* since"), lock_folder(folder):
        pass  # what a second launch or resume tries first
    sent = time.monotonic()
    os.killpg(launched.pid, signal.SIGTERM)
    output, _ = launched.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert launched.returncode == 128 + signal.SIGTERM, output
    assert f"stopped by SIGTERM; go on with: voxtune resume {folder}" in output
    assert "Traceback" not in output
    assert not any(verify(read_run(folder)).values())
    assert TrialState.RUNNING in [trial.state for trial in read_trials(folder)]

    resumed = start_voxtune("resume", folder)
    wait_for(resumed, lambda: len(rows(folder / "trials" / "0002")) >= 1)
    os.kill(resumed.pid, signal.SIGKILL)
    resumed.wait()
    resume(folder, cluster=one_core)

    def facts(path: Path) -> list[tuple]:
        return [(t.params, t.state, t.value, t.intermediate_values) for t in read_trials(path)]

    assert facts(folder) == facts(run)
    for trial in read_trials(folder):
        paths, whole = RunDir(folder).trial(trial.number), RunDir(run).trial(trial.number)
        assert [int(row["epoch"]) for row in rows(paths.path)] == list(
            range(1, trial.user_attrs["progress"]["epoch"] + 1)
        )
        assert paths.case_scores.read_text() == whole.case_scores.read_text()
    assert not any(verify(read_run(folder)).values())
    events = read_events(RunDir(folder).events)
    starts_and_ends = [event.text for event in events if event.trial is None]
    assert starts_and_ends.pop(1) in ("stopped by SIGTERM", "was killed"), "it ends at once if Ray has died before it"
    assert starts_and_ends == [
        *("launched", "resumed: attempt 2", "was killed", "resumed: attempt 3", "all 5 trials have ended"),
    ]
    assert len([event for event in events if event.status]) == 5
    assert any("goes on after epoch" in event.text for event in events)


def test_launch_into_a_run_is_refused_and_resume_of_a_finished_one_says_so(run: Path, config_of, capsys):
    with pytest.raises(InputError, match=f"holds a sweep already; go on with `voxtune resume {run}`"):
        launch(config_of(), run)
    resume(run)
    assert "all 5 trials have ended; add some with --trials" in capsys.readouterr().out


@pytest.mark.slow
def test_a_moved_run_goes_on_where_it_lies_and_its_lost_cache_is_made_again(
    run: Path, phantoms: Path, prepared: Data, tmp_path: Path
):
    """Its paths are below itself; the environment's RAY_ADDRESS is not taken for a cluster of this sweep."""
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    text = (moved / "study.yaml").read_text().replace(str(prepared.folder), str(tmp_path / "cache"))
    (moved / "study.yaml").write_text(text)
    done = voxtune("resume", moved, "--trials", "6", RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepared 8 cases" in done.stderr
    assert len(read_trials(moved)) == 6
    assert len(list((moved / "ray").iterdir())) == 2
    assert read_trials(run)[-1].number == 4


def test_resume_on_other_data_is_refused_and_nothing_is_lost(run: Path, prepared: Data, tmp_path: Path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    text = (moved / "study.yaml").read_text()
    (moved / "study.yaml").write_text(re.sub(r"data: [0-9a-f']{12,14}\n", "data: 000000000000x\n", text))
    with pytest.raises(InputError, match="the cases are not those that"):
        resume(moved, overrides=["study.trials=6"])
    assert len(read_trials(moved)) == 5


def test_best_prints_and_exports_a_recipe_that_train_py_and_retrain_take_in_any_folder(
    run: Path, phantoms: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown = voxtune_here("best", run, "--top", "2", "--export", tmp_path / "best.yaml")
    assert shown.returncode == 0, shown.stderr
    best = read_run(run).best()
    assert f"{best.score:.4f}" in shown.stdout
    for region, value in best.dice.items():
        assert region in shown.stdout
        assert f"{value:.4f}" in shown.stdout
    text, recorded = (tmp_path / "best.yaml").read_text(), read_run(run).config.record
    assert f"data {recorded.data}, split {recorded.split}" in text
    assert "/" not in text
    recipe = read_run(run).recipe(best)
    exported = make_config(load_options(tmp_path / "best.yaml"))
    assert exported == TrainConfig.model_validate(
        {**recipe.model_dump(), "seed": 1, "data_dir": None, "cache_dir": None, "split_file": None, "device": "auto"}
    )
    split = load_split(run / "split.json")
    assert load_split(tmp_path / "best.split.json") == split
    monkeypatch.chdir(tmp_path)
    words = f"--config best.yaml --data_dir {phantoms} --cache_dir {prepared.folder} --output_dir out --epochs 1"
    assert train_cli.main(words.split()) == 0
    assert load_split(tmp_path / "out" / "split.json") == split  # the sweep's seed draws the sweep's split
    again = retrain(run, config_file=Path("best.yaml"), epochs=1)
    assert again.name == "best_1_epochs"
    assert load_options(again / "training_config.json")["lr"] == recipe.lr


@pytest.mark.slow
def test_a_target_ends_the_sweep_once_a_finished_trial_has_it_and_resume_can_raise_it(
    run: Path, config_of, one_core: Cluster, tmp_path: Path, capsys
):
    """Trial 0 ends with the score that it has in the whole sweep; later ones are not started."""
    folder, score = tmp_path / "run", read_run(run).trial(0).score
    launch(config_of(f"study.target={score - 1e-6}"), folder, cluster=one_core)
    assert f"stopped by study.target: a finished trial has {score:.4f}" in capsys.readouterr().out
    states = [trial.state for trial in read_trials(folder)]
    assert states[0] == TrialState.COMPLETE
    assert len(states) <= 2
    resume(folder, cluster=one_core)
    assert "stopped by study.target" in capsys.readouterr().out
    assert len(read_trials(folder)) == len(states)
    resume(folder, cluster=one_core, overrides=["study.target=1", "study.trials=3"])
    facts = [[(t.params, t.value) for t in read_trials(path)] for path in (run, folder)]
    assert facts[1] == facts[0][:3]


@pytest.mark.slow
def test_gpu_hours_are_summed_over_launch_and_resume(config_of, one_core: Cluster, tmp_path: Path, capsys):
    """Ray has a GPU that the trials reserve and do not use."""
    folder = tmp_path / "run"
    launch(config_of("resources.gpu=1", "study.gpu_hours=0.0005"), folder, cluster=one_core)  # 1.8 s
    assert "stopped by study.gpu_hours: 0.00 of 0.0005 are spent; go on with" in capsys.readouterr().out
    spent = sum(trial.seconds for trial in read_run(folder).trials)
    assert 1.8 <= spent < 30
    resume(folder, cluster=one_core)
    assert "stopped by study.gpu_hours" in capsys.readouterr().out
    assert sum(trial.seconds for trial in read_run(folder).trials) == spent
    resume(folder, cluster=one_core, overrides=["study.gpu_hours=1"])
    assert not read_run(folder).unfinished


@pytest.mark.slow
def test_the_next_trial_starts_while_run_best_is_brought_up_to_date(
    config_of, one_core: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, started = tmp_path / "run", list[bool]()
    sync_best = recorder.sync_best

    def wait_and_sync(run: Run) -> bool:
        next_trial, end = run.dir.trial(1).config, time.monotonic() + 60
        while not next_trial.exists() and time.monotonic() < end:
            time.sleep(0.05)
        started.append(next_trial.exists())
        return sync_best(run)

    monkeypatch.setattr(recorder, "sync_best", wait_and_sync)
    launch(config_of("train.epochs=1", "study.trials=2"), folder, cluster=one_core)
    assert started[0]
    best = read_run(folder).best()
    assert (folder / "best" / "config.yaml").read_text().startswith(f"# trial {best.number} of")
    assert checkpoint.load_checkpoint(folder / "best")["epoch"] == best.best_epoch


@pytest.mark.slow
def test_a_caller_s_hook_gets_each_report_and_the_decision_on_it_and_the_end_is_reported_with_pictures(
    config_of, one_core: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def report_command(run_dir: RunDir, *, images: str) -> list[str]:
        return [sys.executable, "-c", f"open({str(run_dir.report)!r}, 'w').write({images!r})"]

    monkeypatch.setattr(report_keeper, "report_command", report_command)
    calls: list[tuple[int, int, float, str]] = []

    def note(number: int, report: Report, decision: str) -> None:
        calls.append((number, report["epoch"], report["val_dice_mean"], decision))

    config = config_of("train.epochs=2", "study.trials=3", "resources.gpu=1")
    launch(config, tmp_path / "run", cluster=one_core, on_report=note, report=True, note="why")
    starts = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e.kind == EventKind.TRIAL_STARTED]
    text = f"started on GPU 0 of {platform.node()}"
    assert [(event.trial, event.gpus, event.text) for event in starts] == [(number, (0,), text) for number in range(3)]
    assert (tmp_path / "run" / "report.html").read_text() == "make"
    assert read_run(tmp_path / "run").config.record.note == "why"
    for trial in read_trials(tmp_path / "run"):
        scores = {epoch: score for number, epoch, score, _ in calls if number == trial.number}
        assert scores == trial.intermediate_values
        stopped = trial.state == TrialState.PRUNED
        assert [decision for number, *_, decision in calls if number == trial.number][-1] == (
            "STOP" if stopped else "CONTINUE"
        )


def test_a_dry_run_says_what_would_run_and_writes_nothing(
    run: Path, config_of, one_core: Cluster, phantoms: Path, tmp_path: Path, capsys
):
    for folder, state in [
        ("", "all are preprocessed"),
        (tmp_path / "new", "8 would be checked and preprocessed first"),
    ]:
        options = [f"train.cache_dir={folder}"] if folder else []
        config = config_of("study.time_budget=2h", *options)
        dry_run(config, tmp_path / "run", cluster=one_core, earlier=[run])
        printed = capsys.readouterr().out
        assert "8 cases: 6 to train on, 1 to validate on, 1 to test on; labels: 2021 (ET 4)\n" in printed
        assert f"cache {config.fixed('cache_dir')}: {state}\n" in printed
        assert "cluster: 1 machine, 1 CPU, 1 GPU\n" in printed
        assert "would run 5 trials of up to 4 epochs, 1 at once with 1 CPU and 0 GPU each; at most 2:00:00\n" in printed
        assert printed.endswith(f"dry run: nothing was written; without --dry_run, {tmp_path}/run would be made\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.val_fraction=0"], "the split has no validation cases"),
        (["resources.gpu=64", "train.batch_size=64"], "ask for 1 CPUs and 64 GPUs per trial"),
        (["train.epochs=5"], r"--warm_start .*: train\.epochs is 4 there, 5 here"),
        (["train.val_fraction=0.3"], r"--warm_start .*: record\.split is \w+ there"),
    ],
)
def test_a_dry_run_refuses_what_a_launch_refuses(
    run: Path, config_of, one_core: Cluster, tmp_path: Path, options: list[str], message: str
):
    with pytest.raises(InputError, match=message):
        dry_run(config_of(*options), tmp_path / "run", cluster=one_core, earlier=[run])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_change_on_resume_of_a_sweep_is_refused(run: Path):
    done = voxtune_here("resume", run, "--set", "study.seed=4")
    assert done.returncode == 2
    assert "study.seed cannot change on resume, only study.trials" in done.stderr
    with pytest.raises(InputError, match=f"study.trials is 4, but {run} has 5 already; choose at least 5"):
        resume(run, overrides=["study.trials=4"])
    assert read_run(run).config.budget.trials == 5


def exchange_train_and_val(path: Path) -> None:
    split = load_split(path)
    save_split(Split(split.val, split.train, split.test), path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("journal.log", lambda path: path.unlink(), "journal.log is missing; restore it"),
        ("journal.log", lambda path: path.write_text(path.read_text()[:99]), "has no trial for trials/0000, .*cut"),
        ("journal.log", lambda path: path.write_text(path.read_text() + "x\n"), r"journal.log:\d+ is damaged"),
        ("split.json", exchange_train_and_val, "not the split that the sweep began with"),
        ("cases.json", lambda path: path.write_text(path.read_text()[:99]), "cases.json is damaged; restore it"),
    ],
)
def test_a_run_whose_journal_or_split_was_changed_is_not_gone_on_with(run, one_core, tmp_path, name, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change(copy / name)
    metrics = (copy / "trials" / "0000" / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=message):
        resume(copy, cluster=one_core, overrides=["study.trials=6"])
    assert (copy / "trials" / "0000" / "metrics.csv").read_bytes() == metrics


def test_a_folder_of_something_else_takes_no_sweep_and_a_sweep_no_training(run: Path, phantoms: Path, tmp_path: Path):
    study = make_sweep_config({"space": {"lr": {"uniform": [0.1, 0.2]}}})
    (tmp_path / "split.json").touch()
    for folder in (phantoms, tmp_path):
        with pytest.raises(InputError, match=r"holds .* already, which is of something else"):
            launch(study, folder)
    split = (run / "split.json").read_bytes()
    for folder in (run, run / "best"):
        assert train_cli.main(["--data_dir", str(phantoms), "--output_dir", str(folder), "--epochs", "1"]) == 2
    assert (run / "split.json").read_bytes() == split


def test_pretrained_weights_are_looked_for_before_a_sweep_starts(phantoms: Path, tmp_path: Path):
    for overrides in ([], [f"train.pretrained={tmp_path}/x.pth"]):
        with pytest.raises(InputError, match=r"best_model.pth: no checkpoint there|x.pth: no checkpoint there"):
            launch(load_sweep_config("finetune", overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_status_says_how_to_go_on_where_no_process_drives_a_sweep(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "a run")
    study = load_sweep_config(run / "study.yaml", ["study.trials=6"])
    (tmp_path / "a run" / "study.yaml").write_text(dump(study))
    hint = f"no process drives it now; go on with: voxtune resume '{tmp_path}/a run'"
    assert hint in voxtune_here("status", tmp_path / "a run").stdout.replace("\n", "")
    with lock_folder(tmp_path / "a run"):
        assert "no process" not in voxtune_here("status", tmp_path / "a run").stdout


def test_paths_in_study_yaml_are_whole_and_those_of_checkpoints_lie_below_the_storage(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = {"data_dir": "data", "cache_dir": None}
    study = with_absolute_paths(make_sweep_config({"train": train, "space": {"lr": {"uniform": [0.1, 0.2]}}}))
    assert study.train == {"data_dir": str(tmp_path / "data"), "cache_dir": None}
    assert resolve_checkpoint("/what?/ray", "run-1/0000") == "/what?/ray/run-1/0000"
    assert resolve_checkpoint("s3://bucket/sweeps?region=x", "run-1/0000") == "s3://bucket/sweeps/run-1/0000?region=x"


def test_status_shows_every_trial(run: Path):
    shown = voxtune_here("status", run)
    assert shown.returncode == 0
    assert len(re.findall(r"complete|stopped early", shown.stdout)) >= 5


@pytest.mark.slow
def test_retrain_scores_the_test_cases_at_the_end_and_predict_gives_the_same_dice(
    run: Path, phantoms: Path, tmp_path: Path
):
    done = voxtune("retrain", run, "--epochs", "6", "--name", "winner")
    assert done.returncode == 0, done.stdout + done.stderr
    test = load_split(run / "split.json").test
    lines = done.stdout.splitlines()
    assert "6/6" in done.stdout
    assert lines.index(next(line for line in lines if " test case" in line)) > lines.index(
        next(line for line in lines if "epoch   6/6" in line)
    )
    model = run / "retrain" / "winner" / "checkpoints" / "best_model.pth"
    predicted = voxtune("predict", model, *(phantoms / name for name in test), "--out", tmp_path, "--pictures")
    assert predicted.returncode == 0, predicted.stderr
    for name in test:
        printed = next(line for line in predicted.stdout.splitlines() if line.startswith(name))
        assert printed in done.stdout  # from the raw files as from the cache
        assert printed.split()[1] == "test"
        image = nib.load(tmp_path / f"{name}.nii.gz")
        truth = nib.load(phantoms / name / f"{name}_seg.nii.gz")
        assert image.get_data_dtype() == np.uint8
        assert np.array_equal(image.affine, truth.affine)
        a, b = np.asarray(image.dataobj), np.asarray(truth.dataobj)
        assert set(np.unique(a)) <= {0, 1, 2, 4}
        for index, labels in enumerate([(1, 2, 4), (1, 4), (4,)]):
            x, y = np.isin(a, labels), np.isin(b, labels)
            dice = 2 * (x & y).sum() / (x.sum() + y.sum()) if x.any() or y.any() else 1
            assert printed.split()[2 + index] == f"{dice:.4f}"
        assert (tmp_path / f"{name}.png").exists()


def test_retrain_with_val_leaves_only_the_test_cases_out(run: Path, tmp_path: Path):
    done = voxtune_here("retrain", run, "--with_val", "--epochs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next((run / "retrain").glob("*_with_val"))
    split = load_split(folder / "split.json")
    whole = load_split(run / "split.json")
    assert set(split.train) == {*whole.train, *whole.val}
    assert (split.val, split.test) == ((), whole.test)
    name, before = folder.name, (folder / "split.json").read_bytes()
    recipe = tmp_path / "best.yaml"
    recipe.write_text(
        recipe_text(read_run(run), read_run(run).best(), "split.json")
        .replace("\nepochs: 4\n", "\nepochs: 1\n")
        .replace("\nscheduler: plateau\n", "\nscheduler: multistep\n")
        .replace("\ndropout: 0.0\n", "\ndropout: 0.1\n")
    )
    for how, message in [
        ({"epochs": 1}, "was begun with the validation cases among those to train on"),
        ({"epochs": 2, "with_val": True}, "was begun with epochs 1, and it would be 2 now: take another --name"),
        ({"config_file": recipe, "epochs": 1, "with_val": True}, "was begun with dropout 0.0, and it would be 0.1 now"),
        ({"name": "../x"}, "expected the name of a folder in"),
    ]:
        with pytest.raises(InputError, match=message):
            retrain(run, **{"name": name, **how})
    assert (folder / "split.json").read_bytes() == before


def test_a_retraining_that_diverges_ends_with_1_and_is_not_scored(run: Path, tmp_path: Path):
    """Though there is a model of its first epoch."""
    recipe = tmp_path / "steep.yaml"
    recipe.write_text(STEEP)
    done = voxtune_here("retrain", run, "--config", recipe, "--name", "steep")
    assert done.returncode == 1, done.stdout + done.stderr
    folder = run / "retrain" / "steep"
    assert re.search(rf"\n{folder} diverged in epoch [2-4]: no test case is scored", done.stdout)
    assert TrainingDir(folder).best.exists()
    assert not list(folder.glob("test_scores.*"))


def test_a_retraining_that_was_killed_before_its_last_row_has_it_once_called_again(run: Path):
    done = voxtune_here("retrain", run, "--epochs", "2", "--name", "row")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = TrainingDir(run / "retrain" / "row")
    before = {path: path.read_text() for path in (folder.metrics, folder.case_scores)}
    for path, text in before.items():
        cases = 1 if path == folder.metrics else len(load_split(folder.split).val)
        path.write_text("".join(text.splitlines(keepends=True)[:-cases]))
    for path in folder.path.glob("test_scores.*"):
        path.unlink()
    again = voxtune_here("retrain", run, "--epochs", "2", "--name", "row")
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.read_text() for path in before} == before
    assert "retrained row: 2 epochs in" in again.stdout


def test_gpu_hours_of_a_retraining_are_of_all_its_gpus(run: Path, tmp_path: Path):
    """In a copy whose trials had a GPU each; its epoch gets a time of an hour before it is called again, with two."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "study.yaml").write_text((copy / "study.yaml").read_text().replace("{gpu: 0, cpu", "{gpu: 1, cpu"))
    assert voxtune_here("retrain", copy, "--epochs", "1", "--name", "hour").returncode == 0
    folder = TrainingDir(copy / "retrain" / "hour")
    header, row = folder.metrics.read_text().splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True)) | {"epoch_time": "3600", "val_time": "0"}
    folder.metrics.write_text(f"{header}\n{','.join(values.values())}\n")
    folder.test_scores.with_suffix(".json").unlink()
    again = voxtune_here("retrain", copy, "--epochs", "1", "--name", "hour", "--gpus", "2")
    assert "retrained hour: 1 epoch in 1:00:00, 2.00 GPU hours" in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("place", "refused"),
    [
        ({"gpus": 3}, r"cannot be divided among 3 processes \(--gpus 3 x --nodes 1\); take 1, 2 of them, or another"),
        ({"gpus": 2, "nodes": 3, "address": "127.0.0.1:1"}, "cannot be divided among 6 processes"),
    ],
)
def test_what_cannot_retrain_is_refused_before_anything_is_written(run: Path, place: dict[str, object], refused: str):
    with pytest.raises(InputError, match=refused):
        retrain(run, epochs=1, name="refused", **place)  # type: ignore[arg-type]
    assert not (run / "retrain" / "refused").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launch", "nothing.yaml", "--data", ".", "--out", "x"], "no such file"),
        (["check", "brats", "--set", "space.lrr={uniform: [0, 1]}"], r"did you mean lr\?"),
        (["check", "brats", "--set", "space.seed={choice: [0, 1]}"], "never searched"),
        (["check", "brats", "--set", "study.seed=-1"], "study.seed is -1"),
        (["launch", "demo", "--data", "x", "--out", "x"], "no such folder"),
        (["resume", "x", "--trials", "0"], "trials"),
        (["status", "/nowhere"], "no study.yaml there"),
        (["predict", "/nowhere", "/nowhere", "--out", "x"], "no such folder"),
        (["phantom", "x", "--cases", "0"], "cases"),
        (["phantom", "x", "--seed", "-1"], "seed"),
        (["check", "brats", "--set", "study.seed=99999999999999999999999"], "study.seed is 9+; expected"),
    ],
)
def test_wrong_input_of_a_verb_is_exit_code_2_without_a_traceback(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    done = voxtune_here(*words)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_resources_that_the_cluster_lacks_are_refused(config_of, one_core: Cluster, tmp_path: Path):
    with pytest.raises(InputError, match=r"ask for 1 CPUs and 64 GPUs per trial, .*--set resources\.gpu"):
        launch(config_of("resources.gpu=64", "train.batch_size=64"), tmp_path / "run", cluster=one_core)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_depth_is_searched_with_paths_and_a_seed_of_any_size(
    phantoms: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A patch that depth 6 would refuse, a data folder that YAML would cut at its #, a relative path, a large seed."""
    text = SPACE.replace("seed: 1", "seed: 123456789").replace("depth: 3, ", "").replace("trials: 5", "trials: 2")
    (tmp_path / "depth.yaml").write_text(text + "  depth: {choice: [2, 3]}\n")
    (tmp_path / "data #1").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    options = ["--set", f"train.cache_dir={os.path.relpath(prepared.folder)}"]
    done = voxtune("launch", "depth.yaml", "--data", "data #1", "--out", "run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {trial.params["depth"] for trial in read_trials(tmp_path / "run")} <= {2, 3}
    assert all(trial.state == TrialState.COMPLETE or trial.value for trial in read_trials(tmp_path / "run"))


@pytest.mark.slow
def test_a_killed_worker_is_restarted_from_its_checkpoint(
    run: Path, space: Path, phantoms: Path, prepared: Data, tmp_path: Path
):
    folder = tmp_path / "run"
    options = ["--trials", "1", "--set", f"train.cache_dir={prepared.folder}"]
    launched = start_voxtune("launch", space, "--data", phantoms, "--out", folder, *options)
    trial = folder / "trials" / "0000"
    wait_for(launched, lambda: len(rows(trial)) >= 1)
    os.kill(worker_of(launched.pid), signal.SIGKILL)
    output, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, output
    assert "goes on after epoch" in (trial / "stdout.log").read_text()
    whole = read_trials(run)[0]
    [restarted] = read_trials(folder)
    assert (restarted.state, restarted.intermediate_values) == (whole.state, whole.intermediate_values)
    assert [int(row["epoch"]) for row in rows(trial)] == [1, 2, 3, 4]
    scores = [RunDir(folder_of_run).trial(0).case_scores.read_text() for folder_of_run in (folder, run)]
    assert scores[0] == scores[1]


def worker_of(driver: int) -> int:
    """The process of the trial that this driver's Ray runs."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    parents, names = {}, {}
    for line in listing.splitlines()[1:]:
        pid, parent, name = line.split(None, 2)
        parents[int(pid)], names[int(pid)] = int(parent), name
    for pid, name in names.items():
        ancestor = pid
        while ancestor in parents and ancestor != driver:
            ancestor = parents[ancestor]
        if ancestor == driver and name.startswith("ray::ImplicitFunc"):
            return pid
    raise AssertionError(listing)


def test_an_address_where_no_cluster_answers_is_refused(
    run: Path, space: Path, phantoms: Path, prepared: Data, tmp_path: Path
):
    cache = f"train.cache_dir={prepared.folder}"
    launched = ["launch", space, "--data", phantoms, "--out", tmp_path / "run", "--set", cache]
    retrained = ["retrain", run, "--epochs", 1, "--name", "refused", "--nodes", 2]
    for words in (launched, retrained):
        done = voxtune(*words, "--address", "127.0.0.1:1")
        assert done.returncode == 2
        assert "--address 127.0.0.1:1: no Ray cluster answers there" in done.stderr
    assert not (tmp_path / "run" / "study.yaml").exists()
    assert not (run / "retrain" / "refused").exists()


def test_a_run_of_another_format_of_checkpoints_is_refused(tmp_path: Path) -> None:
    study = make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}}).with_record(format=3, attempts=[])
    (tmp_path / "study.yaml").write_text(dump(study))
    Journal(tmp_path, study)
    with pytest.raises(InputError, match="its checkpoints are of format 3, here of 4; go on with that version"):
        resume(tmp_path)
