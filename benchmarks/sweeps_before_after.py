"""Sweeps that really train, by two checkouts of voxtune: what each names as winner, how good that is, how soon it came.

    python benchmarks/sweeps_before_after.py --before DIR --after DIR --out FOLDER [--seeds 10] [--data DATA --val 2]
        [--space demo] [--set KEY=VALUE ...] [--set_after KEY=VALUE ...] [--at_once 2] [--gpus 0 1] [--minutes 9]

Each side is `voxtune launch SPACE` of its own checkout: its code, its shipped YAML, the same --set (a name is that of a
shipped YAML). Without --data the cases are 6 phantoms; the last --val cases by name are validated, by both sides.
--at_once sweeps run at a time, each with one trial at a time, and both sides of a seed next to each other; with --gpus
that many on each of these GPUs. Seconds count from the start of the process, imports and Ray's start included. Scores
so far come from metrics.csv of the trials, looked at four times a second.

The truth: the winner's recipe, trained again with --truth fresh seeds, the same for both sides and all with the code of
--after, after all sweeps; the mean of their best epochs' scores. Also that of the default recipe. "reached" is when any
trial first had the best score that the sweep of --before has for that seed (or --dice): its epochs, of all trials, and
seconds. p is of the sign test over seeds, of pairs that are not equal.

FOLDER keeps what each sweep and training has found; called again, the rest is run. After --minutes nothing new begins,
and the table has the pairs that are complete. table.json has all numbers.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy.stats import binomtest

from trainable.core.console import make_console
from trainable.core.options import format_value, option_names, path_options
from trainable.data.phantom import write_phantoms

SIDES = "before", "after"
SCORE = "val_dice_mean"
LOOK_SECONDS = 0.25
TRIES = 2  # of a job: Ray gives up on a start that takes 30 s, as on a busy machine
START_SECONDS = 2.0  # between the starts of two processes: many Ray clusters at once look for free ports
FIRST_FRESH_SEED = 7001  # no sweep's trial has it
Found = dict[str, Any]
MEASURES = {  # name in table.json: what the table says, digits, whether more is better
    "seconds": ("seconds", 0, False),
    "epochs": ("epochs", 0, False),
    "score": ("winner's score", 4, True),
    "truth": ("winner trained again", 4, True),
    "reached_epochs": ("reached, epochs", 0, False),
    "reached_seconds": ("reached, s", 0, False),
}


class FailedError(Exception):
    """A command has failed; the text says where its output is."""


@dataclass(frozen=True)
class Bench:
    """The arguments of this call, and what follows from them."""

    asked: argparse.Namespace
    local: threading.local  # its `gpu` is that of the job that runs in the thread

    @property
    def device(self) -> str:
        """Where everything is trained."""
        return "cuda" if self.asked.gpus else "cpu"

    def path(self, name: str) -> Path:
        """Return a path in the folder of this call."""
        return Path(self.asked.out / name)

    def command(self, side: str, log: Path, *words: object) -> subprocess.Popen[bytes]:
        """Start a verb of a side's voxtune, whose output goes to a file."""
        checkout = getattr(self.asked, side)
        path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
        one_trial = json.dumps({"CPU": 1} | ({"GPU": 1} if self.asked.gpus else {}))
        environment = {**os.environ, "PYTHONPATH": path, "RAY_OVERRIDE_RESOURCES": one_trial, "OMP_NUM_THREADS": "1"}
        if self.asked.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(getattr(self.local, "gpu", self.asked.gpus[0]))
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "tune", *map(str, words)], stdout=out, stderr=subprocess.STDOUT, env=environment,
                cwd=checkout,
            )  # fmt: skip

    def settings(self, side: str, seed: int) -> list[str]:
        """Return the --set of a sweep: what makes sides and seeds comparable, then what was asked for."""
        shared = {
            "study.seed": seed,
            "train.split_file": self.path("split.json"),
            "train.cache_dir": self.path(f"cache_{side}"),
            "train.num_workers": 0,
            "train.device": self.device,
            "resources.cpu": 1,
            "resources.gpu": math.floor(1e4 / self.asked.at_once) / 1e4 if self.asked.gpus else 0,
        }
        own = [f"{name}={value}" for name, value in shared.items()]
        return [*own, *self.asked.set, *getattr(self.asked, f"set_{side}")]


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a process, whose output goes to `log`; raise FailedError if it fails."""
    if process.wait():
        last = (log.read_text(errors="replace").splitlines() or [""])[-1]
        raise FailedError(f"exit code {process.returncode}, see {log}: {last}")


def reported(run: Path, known: dict[Path, int]) -> list[float]:
    """Return the scores reported since the last call. known: rows of each metrics.csv that it had; changed."""
    scores = []
    for path in sorted(run.glob("trials/*/metrics.csv")):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        scores += [float(row[SCORE]) if row[SCORE] else -math.inf for row in rows[known.get(path, 0) :]]
        known[path] = len(rows)
    return scores


def run_sweep(bench: Bench, side: str, seed: int) -> Found:
    """Run one sweep; return its seconds, its epochs, its winner and each better score: (seconds, epochs, score)."""
    name = f"seed{seed}_{side}"
    run, log, started = bench.path(name), bench.path(f"{name}.log"), time.monotonic()
    shutil.rmtree(run, ignore_errors=True)
    words = [word for setting in bench.settings(side, seed) for word in ("--set", setting)]
    data = ["--data", bench.asked.data, "--out", run, "--no_report"]
    process = bench.command(side, log, "launch", bench.asked.space, *data, *words)
    known: dict[Path, int] = {}
    better: list[tuple[float, int, float]] = []
    epochs, running = 0, True
    while running:
        running = process.poll() is None  # before the last look
        for score in reported(run, known):
            epochs += 1
            if score > (better[-1][2] if better else -math.inf):
                better.append((time.monotonic() - started, epochs, score))
        time.sleep(LOOK_SECONDS if running else 0)
    seconds = time.monotonic() - started
    finish(process, log)
    best = read_best(bench, side, run)
    shutil.rmtree(run / "ray", ignore_errors=True)  # checkpoints
    winner, recipes = best["trials"][0], {"recipe": best["recipe"], "default": best["default_recipe"]}
    sweep = {"seconds": seconds, "epochs": epochs, "score": winner["score"], "better": better}
    return {**sweep, "options": winner["params"], **recipes}


def read_best(bench: Bench, side: str, run: Path) -> Found:
    """Return what a side's `voxtune best --json` says of a sweep."""
    output = run / "best.log"
    finish(bench.command(side, output, "best", run, "--json"), output)
    text = output.read_text()
    best: Found = json.loads(text[text.index("{") : text.rindex("}") + 1])  # without messages
    return best


def train_again(bench: Bench, name: str, recipe: Found, seed: int) -> Found:
    """Train a recipe with a fresh seed by the code of --after; return the score of its best epoch."""
    output, config, log = (bench.path(f"{name}{ending}") for ending in ("", ".config.json", ".log"))
    shutil.rmtree(output, ignore_errors=True)
    left_out = {"seed", *option_names(role="run", exported=False), *path_options()}  # as `voxtune best --export`
    config.write_text(json.dumps({option: value for option, value in recipe.items() if option not in left_out}))
    data = ["--data_dir", bench.asked.data, "--cache_dir", bench.path("cache_after"), "--device", bench.device]
    words = ["--config", config, "--split_file", bench.path("split.json"), "--seed", seed, "--output_dir", output]
    finish(bench.command("after", log, "train", *words, *data), log)
    with (output / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    shutil.rmtree(output)
    return {"score": float(last["best_score"])}


class Jobs:
    """Runs jobs, some at a time: what each returns is kept as NAME.json in the folder of the call, and not run again.

    A job that fails twice is left out.
    """

    def __init__(self, bench: Bench, deadline: float) -> None:
        self.bench, self.deadline = bench, deadline
        self.starting, self.next_start = threading.Lock(), 0.0

    def run(self, jobs: dict[str, Callable[[], Found]]) -> dict[str, Found]:
        """Run the jobs, by name, in their order; return what those have found that are done."""
        gpus = self.bench.asked.gpus or [0]
        places = iter(gpus * self.bench.asked.at_once)

        def take_gpu() -> None:
            self.bench.local.gpu = next(places)

        with ThreadPoolExecutor(len(gpus) * self.bench.asked.at_once, initializer=take_gpu) as pool:
            found = list(pool.map(self.run_one, jobs, jobs.values()))
        return {name: each for name, each in zip(jobs, found, strict=True) if each is not None}

    def run_one(self, name: str, job: Callable[[], Found]) -> Found | None:
        """Return what a job has found, now or in an earlier call; None if it fails or no time is left."""
        path = self.bench.path(f"{name}.json")
        for _ in range(TRIES):
            if path.exists():
                break
            with self.starting:
                time.sleep(max(0.0, self.next_start - time.monotonic()))
                self.next_start = time.monotonic() + START_SECONDS
            if (started := time.monotonic()) > self.deadline:
                break
            try:
                path.write_text(json.dumps(job()))
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            except FailedError as error:
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
        found: Found | None = json.loads(path.read_text()) if path.exists() else None
        return found


def reach(found: Found, goal: float) -> tuple[float, float]:
    """Return the seconds and the epochs until a score of `goal` or more; infinite if never."""
    return next(((seconds, epochs) for seconds, epochs, score in found["better"] if score >= goal), (math.inf,) * 2)


def measure(bench: Bench, jobs: Jobs) -> list[Found]:
    """Run all sweeps, then the trainings of their winners; return a row per sweep of the pairs that are complete."""
    seeds, fresh = range(bench.asked.seeds), range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + bench.asked.truth)
    names = [(seed, side) for seed in seeds for side in (SIDES if seed % 2 == 0 else SIDES[::-1])]
    sweeps = jobs.run({f"seed{n}_{side}": partial(run_sweep, bench, side, n) for n, side in names})
    recipes = {name: found["recipe"] for name, found in sweeps.items()}
    if sweeps:
        recipes["default"] = next(iter(sweeps.values()))["default"]
    trainings = {f"{name}_again{seed}": (recipe, seed) for name, recipe in recipes.items() for seed in fresh}
    again = jobs.run({name: partial(train_again, bench, name, *each) for name, each in trainings.items()})

    def truth(name: str) -> float:
        scores = [again[key]["score"] for seed in fresh if (key := f"{name}_again{seed}") in again]
        return statistics.mean(scores) if scores and len(scores) == len(fresh) else math.nan

    rows: list[Found] = [{"seed": "", "side": "default", "truth": truth("default")}]
    for seed in seeds:
        pair = {side: sweeps.get(f"seed{seed}_{side}") for side in SIDES}
        usual = pair["before"]
        if usual is None or pair["after"] is None:
            continue
        for side, found in pair.items():
            assert found is not None
            seconds, epochs = reach(found, bench.asked.dice or usual["better"][-1][2])
            row = {"seed": seed, "side": side, "truth": truth(f"seed{seed}_{side}"), **found}
            rows.append({**row, "reached_seconds": seconds, "reached_epochs": epochs})
    return rows


def print_rows(rows: Sequence[Found]) -> None:
    """Print a line per sweep."""
    table = Table("seed", "side", *(label for label, _, _ in MEASURES.values()), "winner", box=None)
    for row in rows:
        figures = [f"{row[name]:.{digits}f}" if name in row else "" for name, (_, digits, _) in MEASURES.items()]
        options = ", ".join(f"{name} {format_value(value)}" for name, value in row.get("options", {}).items())
        table.add_row(str(row["seed"]), row["side"], *figures, options)
    make_console().print(table)


def print_means(rows: Sequence[Found]) -> None:
    """Print the mean of each side and measure, on how many seeds which is better, and p of the sign test."""
    table = Table("mean of the seeds", *SIDES, "better, before", "better, after", "p", box=None)
    for name, (label, digits, more) in MEASURES.items():
        first, second = ([row[name] for row in rows if row["side"] == side] for side in SIDES)
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if not (math.isnan(a) or math.isnan(b))]
        wins, losses = (sum((b > a) == side for a, b in pairs if a != b) for side in (more, not more))
        p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        means = [f"{statistics.mean(each):.{digits}f}" for each in zip(*pairs, strict=True)] or ["-", "-"]
        table.add_row(label, *means, str(losses), str(wins), f"{p:.3f}")
    make_console().print(table)


def prepare(bench: Bench) -> None:
    """Write phantoms if no data are given, the split, and each side's cache; raise FailedError if that fails."""
    asked = bench.asked
    if asked.data is None:
        asked.data = bench.path("phantoms")
        if not asked.data.exists():
            write_phantoms(asked.data, cases=6, shape=(48, 48, 40), workers=1)
    names = sorted(path.name for path in asked.data.iterdir() if path.is_dir())
    split = {"train": names[: -asked.val], "val": names[-asked.val :], "test": []}
    bench.path("split.json").write_text(json.dumps(split))
    for side in SIDES:
        log = bench.path(f"prepare_{side}.log")
        finish(bench.command(side, log, "prepare", asked.data, "--cache_dir", bench.path(f"cache_{side}")), log)


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of this call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after", "out", "data"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=name != "data")
    for name, number in (("val", 2), ("seeds", 10), ("truth", 2), ("at_once", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--space", default="demo")
    for name in ("set", "set_before", "set_after"):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--gpus", type=int, nargs="+", default=[], metavar="INDEX")
    parser.add_argument("--dice", type=float)
    parser.add_argument("--minutes", type=float, default=math.inf)
    return parser.parse_args()


def main() -> None:
    """Run what is not run yet, print both tables, and write table.json."""
    started, bench = time.monotonic(), Bench(parse_arguments(), threading.local())
    bench.asked.out.mkdir(parents=True, exist_ok=True)
    try:
        prepare(bench)
    except FailedError as error:
        raise SystemExit(str(error)) from None
    rows = measure(bench, Jobs(bench, started + 60 * bench.asked.minutes))
    print(__doc__)
    print_rows(rows)
    print_means(rows)
    bench.path("table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
