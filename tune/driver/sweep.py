"""Launch and resume a sweep: a Ray Tuner that runs the trials of the run's journal.

launch   new folder, cluster, cases, journal, study.yaml, then sweep
resume   checks of the folder, cases, cluster, study.yaml, then sweep
sweep    run_tuner until all trials have ended or something ends the sweep, then finalize
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainable.core.errors import InputError
from trainable.core.locks import LOST_NODE_SECONDS, lock_folder, wait_for_exclusive_lock
from trainable.core.logger import logger
from trainable.core.storage import Uri
from trainable.data.empty_regions import check_regions
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import load_split
from trainable.training.seen_cases import cases_by_part, history_of_pretrained
from tune.driver.cluster.connection import Cluster, Slots, running_or_new
from tune.driver.cluster.node_request import NodeRequest
from tune.driver.launch.launch_arguments import ensure_new
from tune.driver.launch.node_check import check_nodes
from tune.driver.launch.resumable import all_ended, check_resumable, refuse_unchangeable, with_prepared_data
from tune.driver.launch.run_files import (
    begin_run,
    check_launch,
    refuse_no_validation,
    start_attempt,
    with_absolute_paths,
    with_choices,
    write_config,
)
from tune.driver.measurement.plan_by_time import plan_by_time
from tune.driver.measurement.trial_gpus import refuse_what_never_fits, resolve_gpu
from tune.driver.processes.progress_board import start_board
from tune.driver.processes.trial_fit import Fit, fit_to_storage
from tune.driver.processes.watchdog import HangWatchdog
from tune.driver.recording.event_log import EventLog
from tune.driver.recording.live_recorder import LiveRecorder
from tune.driver.recording.notifier import Notifier
from tune.driver.recording.recorder import LostCheckpointError, Recorder, sync_outputs
from tune.driver.recording.report_keeper import ReportKeeper, write_last_report
from tune.driver.recording.resource_wait import ResourceWait
from tune.driver.scheduling.rung_scheduler import OnReport, RungScheduler
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.driver.scheduling.sweep_stopper import SignalKeeper, SweepStopper
from tune.driver.scheduling.tuner import make_tuner, run_tuner
from tune.planning.time_plan import GivenTime
from tune.run.import_trials import change_space
from tune.run.results import Run, ensure_run, read_run
from tune.run.retention import Retention, check_disk_space
from tune.run.run_dir import resume_command
from tune.run.snapshot import Snapshot
from tune.search.enqueue import enqueue_start
from tune.search.journal import Journal
from tune.spec.short_trainings import adapted_if_short
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config
from tune.terminal.live_screen import SweepScreen
from tune.viewers.sweep_viewers import begin_viewers, finish_viewers

WORKER_EXIT_TIMEOUT = 60  # seconds that the processes of a part's trials may take to end


@dataclass(frozen=True)
class Hooks:
    """What the caller of a launch or resume adds to its sweep; the fields are arguments of launch."""

    fit: Fit
    on_report: OnReport | None
    report: bool
    notifier: Notifier


def launch(
    config: SweepConfig,
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    storage: str | None = None,
    params: tuple[dict[str, Any], ...] = (),
    earlier: Sequence[Path] = (),
    note: str | None = None,
    fit: Fit = fit_to_storage,
    on_report: OnReport | None = None,
    report: bool = False,
    notify: str | None = None,
    given_time: GivenTime | None = None,
) -> Run:
    """Start a sweep in a new folder and run it until all trials have ended, a budget is spent or the target is reached.

    Args:
        cluster: an entered Cluster, which is left open; None for a new Cluster(address).
        address: of a running Ray cluster; None to start one on this machine.
        storage: folder or URI for the checkpoints; by default RUN/ray.
        params: Optuna parameters to try first; by default those of Space.default_params. Those of `start:` follow.
        earlier: folders of runs whose trials are imported first, see warm_start.
        note: what the sweep is for.
        fit: called in the process of each trial to train its recipe.
        on_report: called in this process with each report of a trial and the decision on it.
        report: keep RUN/report.html up to date, see ReportKeeper.
        notify: URL to post to when the sweep ends, its budget is spent or a trial has failed; it is written nowhere.
        given_time: to choose trials, epochs and rungs for, see plan_by_time; None to leave them as they are.

    Returns:
        The run as it is at the end.

    Raises:
        InputError: if the folder, the data, the storage, the address, a node or the resources cannot be used.
        SystemExit: after a signal, a full disk, changed cases, a lost cluster, or a failed trial with fail_fast.
    """
    hooks = Hooks(fit, on_report, report, Notifier(notify, run_dir.name))
    storage = check_launch(config, run_dir, storage)
    config = with_choices(with_absolute_paths(config), report, notify)
    with lock_folder(run_dir), running_or_new(cluster, address) as cluster:
        ensure_new(run_dir)  # another launch may have ended meanwhile
        cluster.wait()  # before cases are prepared, which takes all cores: Ray gives up on a start that takes long
        check_nodes(config, run_dir, storage, cluster.address)
        refuse_what_never_fits(config)  # before cases are prepared
        data = prepare_cases(config)
        seen = history_of_pretrained(config.base_config(), data).seen_of(cases_by_part(data))
        config = resolve_gpu(config)
        if config.resources.gpu == 0 and config.train.get("amp", "off") != "off":
            logger.info(f"train.amp is {config.train['amp']}, which acts on a GPU only: trials train in float32")
        slots = Slots.of(config.resources)
        config = adapted_if_short(config, len(data.split.train))
        if given_time is not None:
            config = plan_by_time(config, data, slots, given_time)
            config = adapted_if_short(config, len(data.split.train))  # its trainings may be shorter
        logger.info(check_disk_space(config, storage or str(run_dir / "ray"), slots.count()))
        begin_run(config, run_dir, data, storage, earlier, seen, note)
        return sweep(read_run(run_dir), slots, hooks, params=params)


def prepare_cases(config: SweepConfig) -> Data:
    """Prepare and split the cases of a new sweep; InputError if trials could not be trained or scored on them."""
    data = prepare_data(config.base_config())
    refuse_no_validation(data.split)
    check_regions(data.folder, data.split)
    return data


def resume(
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    overrides: Sequence[str] = (),
    space: str | None = None,
    data_dir: Path | Uri | None = None,
    fit: Fit = fit_to_storage,
    on_report: OnReport | None = None,
    report: bool | None = None,
    notify: str | None = None,
) -> Run:
    """Go on with an interrupted sweep, or extend it; if all its trials have ended, only finalize it.

    Args:
        cluster, address, fit, on_report, notify: as for launch; the URL of the launch is not kept.
        report: as for launch; None for what was chosen last.
        overrides: KEY=VALUE; without `space` of the keys in CHANGEABLE, else of any key of that YAML.
        space: a YAML, or the name of a shipped one, to go on with, see change_space.
        data_dir: where the cases are now, if they were moved.

    Returns, Raises: as launch; InputError also if the run is damaged, in use or of another version.
    """
    notifier = Notifier(notify, run_dir.name)
    refuse_unchangeable(overrides if space is None else ())
    paths = ensure_run(run_dir)
    with lock_folder(run_dir):
        config = load_sweep_config(paths.config, overrides if space is None else ())
        check_resumable(config, run_dir)
        config = with_prepared_data(config, run_dir, data_dir)
        if space is not None:
            study, config = config.record.study, change_space(read_run(run_dir, config), space, overrides)
            train_cases = len(load_split(paths.split).train)
            config = adapted_if_short(config, train_cases, begun=config.record.study == study)
        config = with_choices(config, report, notify)
        run = read_run(run_dir, config)
        if (count := len(run.own_trials)) > config.budget.trials:
            raise InputError(
                f"study.trials is {config.budget.trials}, but {run_dir} has {count} already; choose at least {count}"
            )
        if not run.unfinished:
            logger.info(all_ended(config, count))
            write_config(config, run_dir)
            return finalize(run, Snapshot(run))
        run.require_file("pretrained")
        if notify is None and config.record.notify:
            logger.info("--notify was given before, but RUN does not keep its URL: give it again to be notified")
        with running_or_new(cluster, address) as cluster:
            cluster.wait()
            check_nodes(config, run_dir, config.record.storage, cluster.address)
            config = resolve_gpu(config)
            slots = Slots.of(config.resources)
            write_config(config, run_dir)
            hooks = Hooks(fit, on_report, config.record.report, notifier)
            return sweep(replace(run, config=config), slots, hooks)


def sweep(run: Run, slots: Slots, hooks: Hooks, *, params: tuple[dict[str, Any], ...] = ()) -> Run:
    """Run what is left of a sweep on the connected cluster; return the run as it is at the end.

    Raises: as launch; InputError also if processes of a killed driver do not end, or the folder is moved meanwhile.
    """
    config = run.config
    journal = Journal(run.folder, config)
    journal.enqueue_first(params or [config.space.default_params()])
    enqueue_start(journal.study, config)  # also those of another YAML, with which the sweep goes on
    storage = StorageWatch(run.storage)
    searcher = OptunaSearcher(journal, run, slots, storage)
    stopper = SweepStopper(read_run(run.folder), storage)
    snapshot = Snapshot(run)
    began = bool(searcher.remaining or journal.paused()) and not stopper.stop_all()
    with hooks.notifier:
        if began:
            wait_for_exclusive_lock(run.dir.worker_lock, LOST_NODE_SECONDS)
            run = start_attempt(run)
            begin_viewers(journal, run)
            snapshot.begin()
            run_attempt(run, journal, searcher, stopper, snapshot, hooks)
        if not run.dir.config.exists():
            raise InputError(
                f"{run.folder} was moved or deleted while the sweep ran; if it was moved, go on with "
                f"`{resume_command(Path('NEW_PLACE'))}`"
            )
        try:
            journal.finalize_ended()
            run = read_run(run.folder)
            finish_viewers(journal, run)  # before the last snapshot, which has the journal
            finalize(run, snapshot)
        except (OSError, InputError) as error:
            if isinstance(error, InputError) and not storage.lost():
                raise
            stopper.error = stopper.error or str(error)
            run = read_run(run.folder)
        stopper.error = stopper.error or storage.lost()
        if began:
            hooks.notifier.sweep_ended(run, stopper)
    if began and hooks.report and not (stopper.signal or stopper.error):
        write_last_report(run)
    stopper.exit(run)
    return run


def run_attempt(
    run: Run,
    journal: Journal,
    searcher: OptunaSearcher,
    stopper: SweepStopper,
    snapshot: Snapshot,
    hooks: Hooks,
) -> None:
    """Run trials until all have ended or the stopper ends them, with all that is written about them meanwhile.

    If trials pause at a rung, Ray's Tuner ends when all are there, and another one trains the best of them on: to Ray
    each is a new trial, which goes on from its checkpoint, so that it needs another folder for its own.

    Args:
        run: with the name of the attempt, see start_attempt.

    Raises: as run_tuner.
    """
    config, slots = run.config, searcher.slots
    with (
        SweepScreen(config, len(run.own_trials) + run.trials_left) as screen,
        stopper.handle_signals(),
        ReportKeeper(run.dir, wanted=hooks.report) as report,
        start_board() as board,
        closing(NodeRequest(slots)) as request,
    ):
        live = LiveRecorder(run.dir, slots, board)
        events = EventLog(run.dir, screen.event, hooks.notifier.event)
        recorder = Recorder(run, journal, stopper, snapshot, screen, live, events)
        before = recorder.read_current()
        with events.attempt(before, lambda: stopper.why_ended(recorder.read_current())), live, recorder.worker:
            searcher.promote(recorder.promoted)
            while searcher.remaining:
                attempt = run.config.record.attempts[-1]
                searcher.storage.begin(attempt)
                scheduler = RungScheduler(journal, config, recorder.write, attempt, hooks.on_report, events.decided)
                watchdog = HangWatchdog(journal, config.resources.report_timeout)
                waits = ResourceWait(journal, searcher, events, request)
                tuner = make_tuner(
                    run, hooks.fit, board.address, searcher, scheduler, stopper,
                    callbacks=[SignalKeeper(stopper), live, recorder, watchdog, waits, report],
                )  # fmt: skip
                run_tuner(tuner, stopper)
                if searcher.remaining or stopper.stop_all():
                    break
                searcher.promote(recorder.promoted)
                if searcher.remaining:
                    with suppress(InputError):  # processes of the first part may hold GPU memory, which trials wait for
                        wait_for_exclusive_lock(run.dir.worker_lock, WORKER_EXIT_TIMEOUT)
                    run = start_attempt(run)
                    recorder.follow(run)


def finalize(run: Run, snapshot: Snapshot) -> Run:
    """Delete checkpoints that are not needed, bring events, RUN/best and the snapshot up to date; return the given run.

    If the winner's checkpoint is lost, this says so: the scores stand, and the recipe can be trained again.
    """
    EventLog(run.dir).catch_up(run)
    try:
        sync_outputs(run, snapshot, Retention(run))
    except LostCheckpointError as error:
        left = "has the model of an earlier winner" if run.dir.best_model.exists() else "has no model"
        again = f"voxtune retrain {shlex.quote(str(run.folder))}"
        logger.warning(f"{error}; the scores stand, and {run.dir.best} {left}: train the recipe again with {again}")
    snapshot.update()
    return run
