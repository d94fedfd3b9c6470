"""What several test files share."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from trainable.core.config import TrainConfig
    from trainable.data.prepare import Data
    from trainable.training.epoch_result import EpochResult
    from tune.driver.scheduling.rung_scheduler import RungScheduler
    from tune.search.journal import Journal
    from tune.spec.sweep_config import SweepConfig

SWEEP: dict[str, Any] = {
    "study": {"trials": 20, "seed": 3},
    "early_stopping": {"type": "asha", "grace_period": 1, "reduction_factor": 3, "min_trials": 1, "margin": 0.0},
    "searcher": {"startup_trials": 3},
    "train": {"epochs": 9},
    "space": {
        "lr": {"loguniform": [1e-5, 1e-2]},
        "optimizer": {"choice": ["adam", "sgd"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    },
}


class Interrupted(Exception):
    """Ends a training as a kill between two epochs does."""


def run_fit(config: TrainConfig, data: Data, *, interrupt_after: int = 0) -> list[EpochResult]:
    """Train, and return the result of each epoch; interrupt_after: the epoch after which it ends, 0 for none."""
    import pytest

    from trainable.training.loop import fit

    results: list[EpochResult] = []

    def on_epoch_end(result: EpochResult) -> None:
        results.append(result)
        if result.epoch == interrupt_after:
            raise Interrupted

    with pytest.raises(Interrupted) if interrupt_after else contextlib.nullcontext():
        fit(config, data, on_epoch_end)
    return results


def make_report(epoch: int, score: float, best: float | None = None, end_reason: str = "") -> dict[str, Any]:
    """Return a report as a trial makes it; its best epoch is this one, or the first if another best is given."""
    best = score if best is None else best
    dice = {f"val_dice_{name}": score for name in ("mean", "WT", "TC", "ET")}
    return {
        "epoch": epoch, **dice, "best_score": best, "best_epoch": epoch if best == score else 1,
        "end_reason": end_reason,
    }  # fmt: skip


def with_case_scores(report: dict[str, Any], cases: Sequence[str]) -> dict[str, Any]:
    """Return a report as a trial makes it that validates these cases, all with the report's scores."""
    from trainable.training.case_scores import case_rows

    scores = {name: report[f"val_{name}"] for name in ("dice_WT", "dice_TC", "dice_ET", "dice_mean")}
    return {**report, "case_scores": case_rows(report["epoch"], dict.fromkeys(cases, scores))}


def start_journal(run_dir: Path, config: SweepConfig) -> tuple[Journal, RungScheduler]:
    """Open a run's journal, and the scheduler that a launch or resume begins with."""
    from tune.driver.scheduling.rung_scheduler import RungScheduler  # here, because it imports Ray
    from tune.search.journal import Journal

    journal = Journal(run_dir, config)
    return journal, RungScheduler(journal, config, lambda *_: None)


def report_all(journal: Journal, scheduler: RungScheduler, number: int, *reports: dict[str, Any]) -> str:
    """Report these epochs of a trial until it is stopped; return the last decision."""
    decision = "CONTINUE"
    for report in reports:
        journal.record(number, report)
        decision = scheduler.decide(number, report)
        if decision == "STOP":
            break
    return decision


# The YAML of sweeps that really train, in seconds: some trials are stopped early, the others run to their end.
SPACE = """
study: {trials: 5, seed: 1}
early_stopping: {type: asha, grace_period: 1, reduction_factor: 2, min_trials: 1, margin: 0.0}
searcher: {type: tpe, startup_trials: 3}
resources: {gpu: 0, cpu: 1}
train: {epochs: 4, depth: 3, base_channels: 4, target_shape: [16, 16, 16], patches_per_epoch: 24, num_workers: 0,
        device: cpu}
space:
  optimizer: {choice: [adam, adamw, sgd]}
  lr: {loguniform: [1e-5, 3e-2]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  loss_weights: {choice: [[1.0, 1.0], [1.0, 2.0]]}
"""
ONE_CORE = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}  # one trial at a time, so that two sweeps can be compared


def make_warm_start(folder: Path) -> Path:
    """Make FOLDER/run, which has imported the 12 trials of FOLDER/earlier, the default recipe first; return it."""
    from synthetic_run import make_synthetic_run

    from tune.run.import_trials import warm_start
    from tune.run.results import read_run
    from tune.search.journal import Journal

    earlier, run = make_synthetic_run(folder / "earlier", trials=12, cases=1), folder / "run"
    run.mkdir()
    shutil.copy(earlier / "study.yaml", run)
    warm_start(Journal(run, read_run(earlier).config, reset=True), [earlier])
    return run


def clean_environment() -> dict[str, str]:
    """Return this environment without the token of a Ray cluster of this process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """Start Python in a new process group, as a shell does, with these variables; stderr goes to stdout."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=clean_environment() | environment,
    )  # fmt: skip


def start_voxtune(*words: object) -> subprocess.Popen[str]:
    """Start a verb whose sweep trains one trial at a time and writes no report."""
    return start("-m", "tune", *words, *without_report(words), **ONE_CORE)


def without_report(words: Sequence[object]) -> list[str]:
    """Return the option that saves the seconds of a report, for the verbs that write one."""
    return ["--no_report"] * (words[0] in ("launch", "resume"))


def voxtune(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end, with these variables; its sweep trains one trial at a time and writes no report."""
    return subprocess.run(
        [sys.executable, "-m", "tune", *map(str, words), *without_report(words)],
        capture_output=True, text=True, check=False, env=clean_environment() | ONE_CORE | environment,
    )  # fmt: skip


def verb(words: Sequence[object], monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
    """Run a verb in this process, as if its output went into a file, `columns` wide."""
    from tune.__main__ import main

    monkeypatch.setattr(sys, "argv", ["voxtune", *map(str, words)])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


def voxtune_here(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a verb in this process, which has imported what it needs; return what a process of its own would.

    A verb that starts Ray, or that is sent a signal, needs a process: `voxtune`.
    """
    from trainable.core.signals import END_SIGNALS, restore_handlers
    from tune.__main__ import main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in END_SIGNALS}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["voxtune", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
    restore_handlers(handlers)
    code = caught.value.code or 0
    assert isinstance(code, int)
    printed = [cast(io.BytesIO, stream.detach()).getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(words, code, *printed)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition holds, while a process must run."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv in a trial's folder; none if there is no such file yet."""
    path = folder / "metrics.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


@contextlib.contextmanager
def notices_at(path: str, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve a URL of this path on this machine; yield it with the list of what is posted there, in order."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == path
            assert self.headers["Content-Type"] == "application/json"
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{path}", posted
    finally:
        server.shutdown()
        server.server_close()
