"""Kills a sweep in each of its phases and resumes it, until it is done; `voxtune verify` must find nothing wrong.

    python tests/drills/sweep_drill.py [--kills 55] [--seed 0] [--serial]

Each kill is a kill -9, of the driver only or of the driver and all of Ray, at a random moment within a phase that is
read from a log of the sweep: training, checkpoint write, journal append, between rung decision and tell, between
trials. The driver and its trials are the real ones, with that log and a pause in the target phase.
--serial: one trial at a time; the trials must also equal those of an uninterrupted sweep.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from faults import small_sweep
from optuna.trial import FrozenTrial, TrialState
from ray import cloudpickle

from trainable.core import files
from trainable.core.config import TrainConfig
from trainable.core.logger import init_logger
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data
from trainable.training import checkpoint
from trainable.training.epoch_result import EpochResult
from trainable.training.step_progress import OnProgress
from tune.driver.processes.trial_fit import Fit, fit_to_storage
from tune.driver.scheduling.rung_scheduler import RungScheduler
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.sweep import launch, resume
from tune.run.results import read_run
from tune.run.verify import verify
from tune.search.asha import STOP
from tune.search.journal import read_trials
from tune.search.journal_file import AtomicJournalBackend
from tune.search.trial_progress import Progress

# Each phase; the kill comes at one of this many first entries of it in one life of the driver.
ENTRIES = {
    "training": 6,
    "checkpoint write": 6,
    "journal append": 25,
    "between rung decision and tell": 3,
    "between trials": 3,
}
PAUSE = 20.0  # seconds that the target phase lasts; the kill comes within the first one
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Phases:
    """Writes the target entry of the target phase to the log, and pauses in it."""

    def __init__(self, log: Path, aim: str, entry: int) -> None:
        self.log, self.aim, self.left = log, aim, entry

    def enter(self, phase: str) -> bool:
        """Count that a phase begins. Returns True if the kill is to come in it."""
        if phase != self.aim:
            return False
        self.left -= 1
        if self.left != 0:
            return False
        with self.log.open("a") as file:
            file.write(f"{phase}\n")
        return True

    def pause(self, phase: str) -> None:
        """Wait to be killed, if this is the target."""
        if self.enter(phase):
            time.sleep(PAUSE)

    def watch_driver(self) -> None:
        """Log the phases of the driver, which this process is."""
        append, decide, complete = (
            AtomicJournalBackend.append_logs,
            RungScheduler.decide,
            OptunaSearcher.on_trial_complete,
        )

        def append_logs(backend: AtomicJournalBackend, logs: list[dict[str, Any]]) -> None:
            if self.enter("journal append"):
                before = backend.path.read_bytes()
                append(backend, logs)
                added = backend.path.read_bytes()[len(before) :]
                backend.path.write_bytes(before + added[: len(added) // 2])
                time.sleep(PAUSE)
            append(backend, logs)

        def decided(scheduler: RungScheduler, number: int, row: dict[str, Any]) -> str:
            decision = decide(scheduler, number, row)
            if decision == STOP:
                self.pause("between rung decision and tell")
            return decision

        def completed(searcher: OptunaSearcher, *arguments: Any, **named: Any) -> None:
            complete(searcher, *arguments, **named)
            self.pause("between trials")

        AtomicJournalBackend.append_logs = append_logs  # type: ignore[method-assign]
        RungScheduler.decide = decided  # type: ignore[method-assign]
        OptunaSearcher.on_trial_complete = completed  # type: ignore[method-assign]

    def fit(self) -> Fit:
        """Return a fit that logs the phases of its process."""

        def watched(
            config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress
        ) -> EpochResult:
            write = checkpoint.atomic_write

            def halting_write(path: Path, content: Callable[[BinaryIO], None], **how: bool) -> None:
                if not self.enter("checkpoint write"):
                    return write(path, content, **how)
                whole = path.with_name(".whole")
                write(whole, content, **how)
                half = whole.read_bytes()[: whole.stat().st_size // 2]
                path.with_name(f".{path.name}.new").write_bytes(half)
                time.sleep(PAUSE)
                whole.replace(path)

            def after(result: EpochResult) -> None:
                on_epoch_end(result)
                self.enter("training")  # goes on: the kill comes somewhere in the epochs that follow

            for module in (checkpoint, files):
                module.atomic_write = halting_write
            self.enter("training")
            try:
                return fit_to_storage(config, data, after, on_progress)
            finally:
                for module in (checkpoint, files):
                    module.atomic_write = write

        return watched


def drive(arguments: argparse.Namespace) -> None:
    """Be the driver: launch, or resume if there is a run."""
    init_logger()
    phases = Phases(arguments.log, arguments.aim, arguments.entry)
    phases.watch_driver()
    run = arguments.folder / arguments.name
    if (run / "study.yaml").exists():
        resume(run, fit=phases.fit())
        return
    data_dir = arguments.folder / "data"
    cache = arguments.folder / "cache"
    data = prepare_data(TrainConfig(data_dir=data_dir, cache_dir=cache), quiet=True)
    config = small_sweep(
        data,
        data_dir,
        study={"trials": arguments.trials},
        early_stopping={"type": "asha", "grace_period": 1, "reduction_factor": 2, "min_trials": 1},
        searcher={"type": "tpe", "startup_trials": 5},
        resources={"cpu": (os.cpu_count() or 1) if arguments.serial else 1},
        train={"epochs": 5},
    )
    launch(config, run, fit=phases.fit())


def start(
    folder: Path, name: str, trials: int, serial: bool, log: Path | None = None, aim: str = "", entry: int = 0
) -> subprocess.Popen[bytes]:
    """Start the driver in a new process group."""
    options = {"folder": folder, "name": name, "trials": trials, "log": log or folder, "aim": aim, "entry": entry}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, __file__, "drive", *words, *(["--serial"] if serial else [])]
    output = (folder / "output.log").open("ab")
    return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def kill_in_phase(process: subprocess.Popen[bytes], log: Path, delay: float, *, group: bool) -> str:
    """kill -9 `delay` seconds after a phase began by the log. Returns the phase, or "" if the sweep ended before."""
    while not log.exists():
        if process.poll() is not None:
            return ""
        time.sleep(0.005)
    phase = log.read_text().strip()
    time.sleep(delay)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return phase


def lost(before: list[FrozenTrial], after: list[FrozenTrial]) -> list[str]:
    """Return what was in the journal before and is not now."""
    missing = []
    for old in before:
        new = after[old.number] if old.number < len(after) else None
        if new is None or not old.params.items() <= new.params.items():  # an interrupted proposal is completed
            missing.append(f"trial {old.number}")
        elif old.state != TrialState.RUNNING and (new.state, new.value) != (old.state, old.value):
            missing.append(f"the end of trial {old.number}")
        elif Progress.from_attrs(new.user_attrs).epoch < Progress.from_attrs(old.user_attrs).epoch:
            missing.append(f"epochs of trial {old.number}")
    return missing


def drill(folder: Path, kills: int, seed: int, *, serial: bool, trials: int) -> bool:
    """Run the drill. Returns True if nothing is lost or wrong."""
    rng, run = random.Random(seed), folder / "killed"
    counted: Counter[str] = Counter()
    good, number, before = True, 0, list[FrozenTrial]()
    print(f"{'kill':>4}  {'phase':32} {'killed':12} trials  running  epochs  lost or wrong")
    while number < kills:
        aim = min(ENTRIES, key=lambda phase: (counted[phase], rng.random()))
        entry, group = rng.randint(1, ENTRIES[aim]), rng.random() < 0.5
        log = folder / f"phases-{number + 1}.log"  # one per life, since the trials of the last one may still write
        process = start(folder, run.name, trials, serial, log, aim, entry)
        phase = kill_in_phase(process, log, rng.uniform(0, 1.0), group=group)
        if not phase:
            good = False
            print(f"      the sweep has ended (exit code {process.returncode}) after {number} kills; expected {kills}")
            print((folder / "output.log").read_text()[-3000:] if process.returncode else "")
            break
        number, counted[phase] = number + 1, counted[phase] + 1
        after = read_trials(run)
        wrong = lost(before, after)
        if (run / "study.yaml").exists():
            wrong += [finding for findings in verify(read_run(run)).values() for finding in findings]
        before, good = after, good and not wrong
        epochs = sum(Progress.from_attrs(trial.user_attrs).epoch for trial in after)
        running = sum(trial.state == TrialState.RUNNING for trial in after)
        who = "all of it" if group else "the driver"
        numbers = f"{len(after):6}  {running:7}  {epochs:6}"
        print(f"{number:4}  {phase:32} {who:12} {numbers}  {wrong or 'nothing'}", flush=True)
    code = start(folder, run.name, trials, serial).wait()
    print(", ".join(f"{phase}: {counted[phase]}" for phase in ENTRIES))
    good &= code == 0 and whole(run, before)
    return good and (not serial or same(folder, run, trials))


def whole(run: Path, before: list[FrozenTrial]) -> bool:
    """Print what `voxtune verify` finds at the end. Returns True if it finds nothing wrong."""
    found, trials = read_run(run), read_trials(run)
    checks = verify(found)
    checks["what was in the journal at the last kill"] = lost(before, trials)
    for name, findings in checks.items():
        print(f"{'ok   ' if not findings else 'WRONG'}  {name} {findings or ''}")
    states = Counter(trial.state.name for trial in trials)
    print(f"{len(trials)} trials: {dict(states)}")
    return not any(checks.values()) and not found.unfinished and not states["FAIL"]


def same(folder: Path, run: Path, trials: int) -> bool:
    """Compare with an uninterrupted sweep. Returns True if all is equal."""
    assert start(folder, "untouched", trials, True).wait() == 0
    facts = [
        [(t.params, t.state, t.value, t.intermediate_values, t.user_attrs.get("rungs")) for t in read_trials(path)]
        for path in (run, folder / "untouched")
    ]
    equal = facts[0] == facts[1]
    print(f"parameters, states, scores, decisions of an untouched sweep: {'the same' if equal else 'DIFFERENT'}")
    return equal


def main() -> int:
    """Run the drill in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["drill", "drive"], default="drill", help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=55)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, help="by default 12 per kill, so that the sweep does not end before them")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--aim", help=argparse.SUPPRESS)
    parser.add_argument("--entry", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "drive":
        drive(arguments)
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_phantoms(Path(folder) / "data", cases=8, shape=(48, 48, 40), workers=1)
        trials = arguments.trials or 12 * arguments.kills
        good = drill(Path(folder), arguments.kills, arguments.seed, serial=arguments.serial, trials=trials)
    print("passed" if good else "FAILED")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
