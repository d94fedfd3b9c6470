"""RUN/report.html while a sweep runs: written now and then by a process of its own, which takes what trials leave."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

from ray import tune as ray_tune
from ray.tune.experiment import Trial

from trainable.core.console import make_console
from trainable.core.logger import logger
from tune.run.results import Run
from tune.run.run_dir import RunDir

PERIOD_SECONDS = 60.0  # from the end of one report to the start of the next
TIMEOUT_SECONDS = 300.0  # of a report while the sweep runs
LAST_TIMEOUT_SECONDS = 1800.0  # of the last one, which predicts cases
LOWEST_PRIORITY = 19


class ReportKeeper(ray_tune.Callback):
    """Has RUN/report.html written again and again, as a context that ends with the attempt.

    A report that fails or takes too long is said once; it is no error of the sweep.

    wanted: False to do nothing.
    """

    def __init__(self, run_dir: RunDir, *, wanted: bool) -> None:
        self.run_dir, self.wanted = run_dir, wanted
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed at the end of the context
        self.changes_at = time.monotonic() + PERIOD_SECONDS  # when to start a report, or to end the one being written
        self.warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End a report that is being written."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Start a report if it is due, and look after one that is being written. Called by Ray after each event."""
        if not self.wanted:
            return
        now = time.monotonic()
        if self.process is None:
            if now >= self.changes_at:
                self.start()
        elif self.process.poll() is not None or now >= self.changes_at:
            self.finish(self.process)

    def start(self) -> None:
        """Start a report, in a process that the trials do not notice."""
        self.errors.seek(0)
        self.errors.truncate()
        try:
            self.process = subprocess.Popen(
                report_command(self.run_dir, images="kept"),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
                start_new_session=True, env=report_environment(gpu=False),
            )  # fmt: skip
            with contextlib.suppress(OSError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, self.process.pid, LOWEST_PRIORITY)
        except OSError as error:  # no memory for a process
            self.warn(str(error))
        self.changes_at = time.monotonic() + (TIMEOUT_SECONDS if self.process else PERIOD_SECONDS)

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Note the end of a report; one that takes too long is ended."""
        if process.poll() is None:
            process.kill()
            process.wait()
            self.warn(f"it took over {TIMEOUT_SECONDS:.0f} s")
        elif process.returncode:
            self.errors.seek(0)
            self.warn(last_line(self.errors.read().decode(errors="replace"), process.returncode))
        self.process = None
        self.changes_at = time.monotonic() + PERIOD_SECONDS

    def warn(self, why: str) -> None:
        """Print once that the report is not up to date."""
        if not self.warned:
            logger.warning(f"{self.run_dir.report} is not up to date: {why}")
        self.warned = True


def write_last_report(run: Run) -> None:
    """Write the report of a sweep that has ended or is interrupted; if that fails, print why and how to do it again.

    If all trials have ended and the winner has a model, that predicts the cases that the report shows.
    """
    images = "make" if not run.unfinished and run.ranking and run.dir.best_model.exists() else "kept"
    command, console = report_command(run.dir, images=images), make_console()
    text = f"writing {run.dir.report.name}" + ", with predictions of the cases that it shows" * (images == "make")
    if not console.is_terminal:
        logger.info(text)
    with console.status(text):
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                text=True, errors="replace", timeout=LAST_TIMEOUT_SECONDS, env=report_environment(gpu=True),
            )  # fmt: skip
            why = last_line(done.stderr, done.returncode) if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
    if why:
        again = f"voxtune report {shlex.quote(str(run.folder))}"
        logger.warning(f"{run.dir.report} is not up to date: {why}; write it with: {again}")


def report_command(run_dir: RunDir, *, images: str) -> list[str]:
    """Return the command that writes a report; images: "kept" to use predictions made earlier, "make" to make them."""
    return [sys.executable, "-m", "tune", "report", str(run_dir.path), "--quiet", "--images", images]


def report_environment(*, gpu: bool) -> dict[str, str]:
    """Return the environment of a process that writes a report, with this one's modules.

    gpu: False for one core and no GPU.
    """
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def last_line(text: str, code: int) -> str:
    """Return the last line of what a command has printed as its error, or its exit code if it printed nothing."""
    lines = [line.strip(" │") for line in text.splitlines() if line.strip(" │╭╮╰╯─")]
    return lines[-1] if lines else f"exit code {code}"
