"""The same toy sweeps with plain Ray Tune and with voxtune, real Ray processes on both sides: what can be trusted.

    python benchmarks/against_plain_ray.py [--seeds 10] [--trials 24] [--out FOLDER]

Three sweeps a seed and side: one whole, with NaN in 12 % of the space; one whose driver gets kill -9 about half-way and
that is restored 3 s later; one where half of the space does not fit into memory. The default recipe comes first.
Plain Ray is plain_ray_sweep.py: OptunaSearch, ASHAScheduler, Tuner, Tuner.restore as their documentation teaches, with
reuse_actors=True (the default, False, starts one process per trial), a snapshot of the sweep each second (the default,
10 s or more, is long for trials of a second), checkpoints of some bytes without fsync, the sampler in memory and
restart_errored=True. A trial out of memory fails; one with NaN reports it and goes on.
voxtune is tune.driver.sweep.launch and resume as shipped. A trial with NaN ends as its trainer ends it, by non_finite.
The toy: a high lr peaks early and then falls, a low one rises to the end; scores grow with base_channels * batch_size,
of which half of all pairs fit where memory is limited.
Decisions are replayed in the order in which ASHA saw the reports, by Ray's own _Bracket on both sides. At a rung plain
Ray judges a trial by its score there, voxtune by its best so far. Reports of trials that a restore lost do not count.
"""

import argparse
import inspect
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain_ray_sweep
from common import NO_STATS, prepare_phantoms, scored_epoch
from plain_ray_sweep import CPUS, EPOCHS, GRACE_PERIOD, REDUCTION_FACTOR, SPACE, Facts, Toy, append, sweep_arguments
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.options import to_dict
from trainable.data.prepare import Data
from trainable.training import checkpoint
from trainable.training.epoch_result import EndReason, EpochResult
from trainable.training.step_progress import OnProgress
from trainable.training.training_dir import BEST, LATEST
from tune.driver.sweep import launch, resume
from tune.run.provenance import commit, version
from tune.run.results import Run, read_run
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.trial_spec import Report

STARTUP = 10  # trials drawn at random, the default of both
MEMORY_TRIALS = 40
SIDES = ("plain Ray", "voxtune")
WAYS = {
    "study": "study.best_trial | read_run(run).best()",
    "last": "get_best_result()",
    "all": "get_best_result(scope='all')",
}
ASKED = [
    ("stopped", "seeds", "the trial named best was stopped by ASHA"),
    ("below", "seeds", "the score given with it is not its best"),
    ("reaches", "median", f"its recipe's best of {EPOCHS} epochs"),
]
MEASURES = [  # name, how the seeds are put together, label
    *((f"{name} {way}", how, f"{label}: {WAYS[way]}") for name, how, label in ASKED for way in WAYS),
    ("nan", "sum", "trials that gave NaN"),
    ("hung", "sum", "Optuna trials RUNNING after the sweep"),
    ("killed at", "sum", "kill -9: trials that had reported by then"),
    ("differ before the kill", "sum", "check: decisions before it that differ from the replay"),
    ("at rungs", "sum", "decisions at rungs after the restore"),
    ("differ", "sum", "of all decisions then, those that differ from what the rungs of both lives demand"),
    ("wrongly stopped", "sum", "of those, trials stopped that should have gone on"),
    ("trials run on", "sum", "trials that went on and should have been stopped"),
    ("epochs run on", "sum", "epochs that they took"),
    ("lost", "sum", "trials that had reported and are gone"),
    ("doubled", "sum", "recipes twice among the trials"),
    ("epochs twice", "sum", "epochs trained twice"),
    ("oom", "median", f"% of the trials after the first {STARTUP} that ran out of memory"),
    ("seconds", "median", "seconds of the whole sweep, from ray.init to its end"),
    ("epochs", "median", "epochs that it trained"),
    ("rate", "median", "epochs per second"),
]


def toy_fit(
    config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress, *, toy: Toy
) -> EpochResult:
    """Replace trainable.training.loop.fit by the toy: checkpoints, reports and ends as fit's, no network."""
    folder = config.output_dir / "checkpoints"
    done, best_score, best_epoch = 0, 0.0, 0
    if config.resume is not None:
        state = checkpoint.load_checkpoint(config.resume)
        done, best_score, best_epoch = state["epoch"], state["row"]["best_score"], state["row"]["best_epoch"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config.resume.with_name(BEST), folder / BEST)
    while True:
        done += 1
        score = toy.train({name: getattr(config, name) for name in SPACE}, done)
        if np.isnan(score):  # as fit ends when no gradient is finite any more
            result = EpochResult(done, NO_STATS, None, best_score, best_epoch, EndReason.NON_FINITE, folder, note="NaN")
            on_epoch_end(result)
            return result
        better = score > best_score or not best_epoch
        best_score, best_epoch = (score, done) if better else (best_score, best_epoch)
        end = EndReason.EPOCHS if done == config.epochs else EndReason.NONE
        result = scored_epoch(done, score, folder, best=(best_score, best_epoch), end_reason=end)
        state = {"epoch": done, "row": result.row(), "config": to_dict(config)}
        for name in [BEST] * better + [LATEST]:
            checkpoint.save_checkpoint(state, folder / name)
        on_epoch_end(result)
        if end:
            return result


def make_toy_sweep(data: Path, seed: int, trials: int) -> SweepConfig:
    """Return the config, as from a YAML."""
    train = {"epochs": EPOCHS, "optimizer": "sgd", "data_dir": str(data / "cases"), "cache_dir": str(data / "cache")}
    small = {"depth": 3, "target_shape": [16, 16, 16], "num_workers": 0, "device": "cpu"}
    return make_sweep_config(
        {
            "study": {"trials": trials, "seed": seed},
            "early_stopping": {  # as Ray's
                "grace_period": GRACE_PERIOD,
                "reduction_factor": REDUCTION_FACTOR,
                "min_trials": 1,
                "margin": 0.0,
            },
            "resources": {"gpu": 0, "cpu": CPUS},
            "train": {**train, **small},
            "space": {name: {kind: ends} for name, (kind, ends) in SPACE.items()},
        }
    )


def log_decision(log: Path, number: int, report: Report, decision: str) -> None:
    """Write down a decision, as WatchedASHA does for plain Ray."""
    if "best_score" in report:
        line = {"epoch": report["epoch"], "score": report.get("val_dice_mean"), "value": report["best_score"]}
        append(log, json.dumps({"trial": number, **line, "decision": decision}))


def run_voxtune(asked: argparse.Namespace) -> None:
    """One sweep of voxtune, or what a killed one left."""
    started, folder = time.monotonic(), asked.folder
    run = folder / "run"
    on_report = partial(log_decision, folder / "reports.jsonl")
    fit = partial(toy_fit, toy=Toy(str(folder / "epochs.txt"), asked.memory, asked.nan))
    if asked.restore:
        done = resume(run, fit=fit, on_report=on_report)
    else:
        config = make_toy_sweep(folder.parent / "data", asked.seed, asked.trials)
        done = launch(config, run, fit=fit, on_report=on_report)
    (folder / "found.json").write_text(json.dumps({**facts_of(done), "seconds": time.monotonic() - started}))


def facts_of(run: Run) -> Facts:
    """Return what plain_ray_sweep.found returns, of a run of voxtune, read again from its folder."""
    run = read_run(run.folder)
    trials = [{"trial": t.number, "config": t.values, "oom": t.end_reason == "oom"} for t in run.trials]
    best = run.best()
    named = {"study": {"config": best.values, "score": best.score}}
    return {"trials": trials, "named": named, "states": [t.state.name for t in run.trials]}


def start(side: str, folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a sweep of a side in a new process."""
    here = Path(__file__).resolve()
    script = [str(here.with_name("plain_ray_sweep.py"))] if side == SIDES[0] else [str(here), "sweep"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stdout.log").open("ab") as out:
        command = [sys.executable, *script, str(folder), *words]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)


def finish(process: subprocess.Popen[bytes], folder: Path) -> Facts:
    """Wait for a sweep; return what it found."""
    if process.wait():
        raise SystemExit(f"a sweep failed, see {folder}/stdout.log")
    return {**json.loads((folder / "found.json").read_text()), "reports": read_reports(folder)}


def read_reports(folder: Path) -> list[Facts]:
    """The reports so far that reached ASHA, in that order."""
    path = folder / "reports.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killed_and_restored(side: str, folder: Path, words: list[str], trials: int) -> Facts:
    """Kill the driver once `trials` trials have reported; restore the sweep 3 s later."""
    process = start(side, folder, words)
    while len({report["trial"] for report in read_reports(folder)}) < trials:
        if process.poll() is not None:
            raise SystemExit(f"a sweep ended before it was killed, see {folder}/stdout.log")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)
    before = len(read_reports(folder))
    return {**finish(start(side, folder, [*words, "--restore"]), folder), "before": before}


def measure(side: str, seed: int, trials: int, out: Path) -> Facts:
    """All numbers of a side and seed."""
    whole, killed, memory = (out / f"{name}_{side.split()[0]}_{seed}" for name in ("whole", "killed", "memory"))
    for folder in (whole, killed, memory):
        shutil.rmtree(folder, ignore_errors=True)
    words = ["--seed", str(seed), "--trials", str(trials)]
    found = finish(start(side, whole, [*words, "--nan"]), whole)
    moment = int(np.random.default_rng(seed).integers(0.4 * trials, 0.6 * trials + 1))
    restored = killed_and_restored(side, killed, words, moment)
    words = ["--seed", str(seed), "--trials", str(MEMORY_TRIALS), "--memory"]
    later = [trial["oom"] for trial in finish(start(side, memory, words), memory)["trials"]][STARTUP:]
    return {
        **plain_ray_sweep.judge_best(found),
        "nan": len({each["trial"] for each in found["reports"] if each["score"] is None or np.isnan(each["score"])}),
        "hung": found["states"].count("RUNNING"),
        "seconds": found["seconds"],
        "epochs": len(found["reports"]),
        "rate": len(found["reports"]) / found["seconds"],
        "killed at": moment,
        **plain_ray_sweep.judge_restored(restored, killed),
        "oom": 100 * sum(later) / len(later),
    }


def in_short(values: list[float], how: str) -> str:
    """The numbers of all seeds in one: their sum, their median, or of how many seeds they are not 0."""
    if not values:
        return "-"
    if how == "seeds":
        return f"{sum(values):g} of {len(values)}"
    return number(sum(values) if how == "sum" else statistics.median(values))


def number(value: float) -> str:
    """Three digits."""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def report(found: dict[str, list[Facts]]) -> None:
    """Print the table, then every seed's numbers."""
    console = make_console()
    table = Table("", "", *SIDES, box=None, header_style="bold")
    for name, how, label in MEASURES:
        values = [[facts[name] for facts in found[side] if name in facts] for side in SIDES]
        table.add_row(label, how, *(in_short(each, how) for each in values))
    code = (plain_ray_sweep.train, plain_ray_sweep.make_tuner), (toy_fit, make_toy_sweep)
    table.add_row("lines of code: trainable or fit, and sweep", "", *(str(lines_of(each)) for each in code))
    console.print(table)
    console.print("\nevery seed, in their order")
    for name, _, label in MEASURES:
        console.print(f"\n{label}", highlight=False)
        for side in SIDES:
            if values := [number(facts[name]) for facts in found[side] if name in facts]:
                console.print(f"  {side:10}" + "".join(f"{value:>7}" for value in values), highlight=False)


def lines_of(functions: Sequence[Callable[..., Any]]) -> int:
    """Lines of code, without blank ones."""
    return sum(bool(line.strip()) for each in functions for line in inspect.getsource(each).splitlines())


def main() -> None:
    """Run all sweeps of all seeds, or the one of voxtune that `sweep` asks for."""
    if sys.argv[1:2] == ["sweep"]:
        return run_voxtune(sweep_arguments(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=24, help="of the sweeps without a limit of memory")
    parser.add_argument("--out", type=Path, help="keep what the sweeps wrote; goes on after the last seed there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = (asked.out or Path(scratch)).resolve()
        prepare_phantoms(out / "data" / "cases", out / "data" / "cache")
        packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "torch", "voxtune"))
        print(f"{packages} (commit {commit()}), Python {platform.python_version()}, {os.cpu_count()} cores")
        sizes = f"{asked.trials} trials, {MEMORY_TRIALS} where memory is limited, {CPUS} CPU and {EPOCHS} epochs each"
        print(f"seeds 0 to {asked.seeds - 1}; {sizes}; ASHA from epoch {GRACE_PERIOD}, factor {REDUCTION_FACTOR}")
        print(__doc__)
        found: dict[str, list[Facts]] = {side: [] for side in SIDES}
        for seed in range(asked.seeds):
            for side in SIDES:
                known = out / f"{side.split()[0]}_{seed}.json"
                if not known.exists():
                    known.write_text(json.dumps(measure(side, seed, asked.trials, out)))
                found[side].append(json.loads(known.read_text()))
                print(f"seed {seed}, {side}: done", file=sys.stderr, flush=True)
    report(found)


if __name__ == "__main__":
    main()
