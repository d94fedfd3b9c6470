"""Runs what a plan of trainings wants in a pool of processes, and ends when it has, or when something ends it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from trainable.core.console import duration
from trainable.core.logger import logger
from trainable.core.options import to_dict
from tune.driver.cluster import ray_compat
from tune.driver.cluster.signal_handling import SignalHandling
from tune.driver.cluster.wait_watch import WaitWatch
from tune.driver.processes.training_process import TrainingEnd, TrainingSpec
from tune.driver.processes.watchdog import OWN_PAUSE_SECONDS
from tune.driver.training_set.process_pool import PooledProcess, ProcessPool
from tune.driver.training_set.training_plan import Outcome, Plan, Training, earlier_outcome
from tune.run.training_progress import TrainingProgress, read_progress
from tune.terminal.training_table import TrainingTable

POLL_SECONDS = 0.5  # between two looks at the metrics.csv of running trainings


class TrainingsStopper(SignalHandling):
    """Ends a set of trainings so that it can go on: at a signal, an error that all would meet, or a spent time budget.

    time_budget: seconds from now; None for no limit.
    """

    def __init__(self, time_budget: float | None, resume_command: str) -> None:
        super().__init__()
        self.time_budget, self.resume_command = time_budget, resume_command
        self.started = time.monotonic()

    def reason(self) -> str:
        """Return why everything ends now; "" while it goes on."""
        if self.signal_name or self.error:
            return self.signal_name or self.error
        if self.time_budget is not None and time.monotonic() > self.started + self.time_budget:
            return f"the time budget of {duration(self.time_budget)}"
        return ""

    def message(self) -> str:
        """Return why everything ended and how to go on, as printed at the end."""
        return f"stopped by {self.reason()}; go on with: {self.resume_command}"

    def exit(self) -> None:
        """Print why everything ended early, and how to go on; nothing if nothing was left to do.

        Raises:
            SystemExit: after a signal with 128 + its number, after an error with 1.
        """
        if self.reason():
            logger.info(self.message())
        self.exit_if_ended_early()


@dataclass
class RunningTraining:
    """A training in a process. began: its progress at its start. progress: as last read."""

    training: Training
    process: PooledProcess
    began: TrainingProgress
    progress: TrainingProgress
    stamp: tuple[int, int] = (0, 0)  # of metrics.csv as last read
    changed: float = field(default_factory=time.monotonic)  # when that was another one


class TrainingRunner:
    """Runs what a plan wants in a pool of processes.

    outcomes: of the trainings that have ended, by name. wanted: those that have not, the most urgent first.
    """

    def __init__(self, plan: Plan, stopper: TrainingsStopper, contents_file: Path | None) -> None:
        self.plan, self.stopper, self.contents_file = plan, stopper, contents_file
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[Any, RunningTraining] = {}  # by what Ray answers when it ends
        self.checked: set[str] = set()
        self.failures: Counter[str] = Counter()
        self.last_look = time.monotonic()
        self.wanted = self.ask_plan()

    def ask_plan(self) -> list[Training]:
        """Return the wanted trainings that have not ended; the outcomes of those that turn out to have are noted."""
        while True:
            wanted = [training for training in self.plan(self.outcomes) if training.name not in self.outcomes]
            new = [training for training in wanted if training.name not in self.checked]
            self.checked |= {training.name for training in new}
            ended = {training.name: outcome for training in new if (outcome := earlier_outcome(training)) is not None}
            if not ended:
                return wanted
            self.outcomes |= ended

    def run(self, pool: ProcessPool, table: TrainingTable) -> None:
        """Run trainings until all that are wanted have ended, or the stopper has a reason to end; then end the pool."""
        self.pool, self.table = pool, table
        waits = WaitWatch(pool.slots, "training", lambda text, _: logger.info(text))
        try:
            while (self.wanted or self.running) and not self.stopper.reason():
                pool.fit_to(len(self.wanted))
                self.start_next()
                if self.collect():
                    self.ask_again()
                self.look_at_progress()
                died = ray_compat.started_here() and ray_compat.cluster_died()  # of another cluster Ray tells
                self.stopper.error = self.stopper.error or pool.trouble or "Ray, which has died" * died
                if not self.stopper.error:
                    waits.look(ask=bool(pool.starting))
        except ray.exceptions.RayError as error:
            self.stopper.error = self.stopper.error or f"Ray: {str(error).splitlines()[0]}"
        finally:
            pool.close()

    def start_next(self) -> None:
        """Start the most urgent trainings that do not run, one per free process."""
        busy = {item.training.name for item in self.running.values()}
        waiting = [training for training in self.wanted if training.name not in busy]
        while waiting and (process := self.pool.free()) is not None:
            training = waiting.pop(0)
            contents = None if self.contents_file is None else str(self.contents_file)
            recipe, timeout = to_dict(training.config), self.pool.resources.report_timeout
            if not self.pool.resources.gpu_share:
                recipe["device"] = "cpu"  # Ray leaves GPUs visible to processes that requested none
            answer = self.pool.run(process, TrainingSpec(recipe, training.test, contents, timeout))
            progress = self.read_progress(training)
            self.running[answer] = RunningTraining(training, process, progress, progress)

    def collect(self) -> bool:
        """Wait a moment for processes that start and trainings that end; return whether a training has ended."""
        waited = [*self.running, *self.pool.starting]
        if not waited:  # all slots are taken by others, or have just been lost
            time.sleep(POLL_SECONDS)
            return False
        ready, _ = ray.wait(waited, num_returns=1, timeout=POLL_SECONDS)
        more, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        ended = False
        for answer in dict.fromkeys([*ready, *more]):
            if answer in self.running:
                ended |= self.end_of(answer)
            else:
                self.pool.note_started(answer)
        return ended

    def end_of(self, answer: Any) -> bool:
        """Note how a training ended in its process; return False if it is to be run again."""
        item = self.running.pop(answer)
        name = item.training.name
        try:
            end: TrainingEnd = ray.get(answer)
        except ray.exceptions.RayError as error:
            self.pool.remove(item.process)
            end = TrainingEnd(failure="the death of its process")
            if host := ray_compat.lost_node(getattr(error, "actor_id", None)):
                self.say_restart(name, f"the loss of its node {host}")
                return False
            if self.read_progress(item.training).epoch > item.began.epoch:
                self.say_restart(name, end.failure)
                return False
            logger.debug(f"{name}: {error}")
        else:
            if end.dirty or end.lost:
                self.pool.remove(item.process)
                if end.lost:
                    self.say_restart(name, end.lost)
                return False
            self.pool.release(item.process)
        if end.trouble:
            self.stopper.error = self.stopper.error or end.trouble
            return False
        if end.failure:
            self.failures[name] += 1
            if self.failures[name] <= self.pool.resources.max_failures:
                self.say_restart(name, end.failure)
                return False
        return self.note_outcome(item, end.error or (end.failure and f"failed: {end.failure}"))

    def say_restart(self, name: str, why: str) -> None:
        """Print that a training is run again."""
        logger.warning(f"{name}: {why}; it goes on from its last checkpoint")

    def note_outcome(self, item: RunningTraining, error: str) -> bool:
        """Note and print how a training ended; return True."""
        name = item.training.name
        self.outcomes[name] = outcome = Outcome(name, item.training.dir.path, " ".join(error.split()))
        self.draw_table()
        only_test = bool(item.began.end_reason)
        self.table.ended(self.read_progress(item.training), outcome.error, only_test=only_test)
        return True

    def read_progress(self, training: Training) -> TrainingProgress:
        """Return how far a training is, by its folder."""
        return read_progress(training.name, training.dir.path, training.config.epochs)

    def draw_table(self) -> None:
        """Draw the table of the running trainings with the counts of all."""
        running = [item.progress for item in self.running.values()]
        left = [training for training in self.wanted if training.name not in self.outcomes]
        waiting = {training.name: training.config.epochs for training in left}
        for progress in running:
            waiting.pop(progress.name, None)
        failed = sum(bool(outcome.error) for outcome in self.outcomes.values())
        self.table.refresh(running, ended=len(self.outcomes), failed=failed, waiting_epochs=list(waiting.values()))

    def ask_again(self) -> None:
        """Ask the plan what is wanted now, and end what runs and is not wanted any more; its checkpoints stay.

        A training that has its last epoch is waited for: its process is about to return, and a new one would take long
        to start (20 s on a GPU).
        """
        self.wanted = self.ask_plan()
        wanted = {training.name for training in self.wanted}
        for answer, item in list(self.running.items()):
            if item.training.name not in wanted and not self.read_progress(item.training).end_reason:
                del self.running[answer]
                self.pool.remove(item.process)

    def look_at_progress(self) -> None:
        """Read how far the running trainings are, end those that hang, and draw the table, at most once a second.

        One that scores its test cases is not taken for hung: it writes nothing meanwhile.
        """
        if not self.table.due():
            return
        now = time.monotonic()
        paused, self.last_look = now > self.last_look + OWN_PAUSE_SECONDS, now  # Ctrl-Z, a paused machine
        hung = False
        for answer, item in list(self.running.items()):
            stamp = file_stamp(item.training.dir.metrics)
            if stamp != item.stamp or paused:
                item.stamp, item.changed = stamp, now
                item.progress = self.read_progress(item.training)
            timeout = self.pool.resources.report_timeout
            if timeout is not None and not item.progress.end_reason and now > item.changed + timeout:
                self.end_hung(answer, now - item.changed)
                hung = True
        if hung:
            self.ask_again()
        self.draw_table()

    def end_hung(self, answer: Any, silent: float) -> None:
        """End a training that has finished no epoch for `silent` seconds; it is not tried again."""
        item = self.running.pop(answer)
        self.pool.remove(item.process)
        message = f"no epoch for {duration(silent)}, more than resources.report_timeout: treated as hung"
        self.note_outcome(item, message)


def file_stamp(path: Path) -> tuple[int, int]:
    """Return the time of the last change of a file, in ns, and its size; zeros if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
