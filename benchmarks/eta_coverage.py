"""How often the end of a sweep lies within the range that `voxtune status` gives for the time left.

    python benchmarks/eta_coverage.py [RUN ...] [--simulated 200]

Each sweep is looked at when a quarter, half and three quarters of its time have passed: its trials are put back to
where they were then, as metrics.csv and events.jsonl tell. Simulated sweeps have brats.yaml's space and rules, curves
of another kind than the estimate knows, 1 to 8 GPUs, 12 to 64 trials and a load that stays, grows or comes and goes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from trainable.training.training_log import read_rows
from tune.analysis.time_left import estimate_time_left
from tune.run.events import EventKind, read_events
from tune.run.results import Run, TrialResult, read_run

SHARES = (0.25, 0.5, 0.75)
Warp = Callable[[float], float]  # of the seconds since the start, increasing
LOADS: dict[str, Warp] = {
    "steady": lambda t: t,
    "growing": lambda t: t + t * t / 2,  # of a whole of 1: twice as slow at the end
    "falling": lambda t: 2 * t - t * t / 2,
    "in waves": lambda t: t + 0.03 * np.sin(12 * t),
}


@dataclass(frozen=True)
class Timeline:
    """When a trial did what, in seconds since the start of the first trial: start, end of each epoch, end."""

    trial: TrialResult
    start: float
    epochs: dict[int, float]
    end: float

    def at(self, now: float) -> TrialResult | None:
        """The trial as it was then; None before its start."""
        if self.start > now:
            return None
        if self.end <= now:
            return self.trial
        done = [epoch for epoch, time in self.epochs.items() if time <= now]
        epoch = max(done, default=0)
        seconds = self.epochs[epoch] - self.start if epoch else 0.0
        rungs = {at: decided for at, decided in self.trial.rungs.items() if at <= epoch}
        return replace(
            self.trial, state=TrialState.RUNNING, epoch=epoch, seconds=seconds, rungs=rungs, end_reason="",
            score=self.trial.score if epoch else None,
        )  # fmt: skip


def timelines(run: Run, warp: Warp = LOADS["steady"]) -> list[Timeline]:
    """When the trials of a run did what; warp: of the time, whose whole is 1."""
    events = read_events(run.dir.events)
    starts = {e.trial: e.time for e in reversed(events) if e.kind == EventKind.TRIAL_STARTED}
    ends = {e.trial: e.time for e in events if e.kind == EventKind.TRIAL_ENDED}
    zero, whole = min(starts.values()), max(ends.values()) - min(starts.values())
    found = []
    for trial in run.own_trials:
        if trial.number not in ends:
            continue
        start, end = starts[trial.number] - zero, ends[trial.number] - zero
        rows = read_rows(run.dir.trial(trial.number).metrics) if trial.epoch else []
        taken = np.cumsum([float(row["epoch_time"]) + float(row["val_time"] or 0) for row in rows])
        factor = (end - start) / taken[-1] if len(taken) else 1.0  # rows are of validated epochs; a trial also starts
        times = {int(row["epoch"]): start + float(time) * factor for row, time in zip(rows, taken, strict=True)}
        warped = {epoch: whole * warp(time / whole) for epoch, time in times.items()}
        found.append(Timeline(trial, whole * warp(start / whole), warped, whole * warp(end / whole)))
    return found


def looks(run: Run, slots: int, warp: Warp = LOADS["steady"]) -> Iterator[tuple[float, float, float, float]]:
    """Yield the share of the time, the range that is given then, and the seconds that were left."""
    lines = timelines(run, warp)
    whole = max(line.end for line in lines)
    for share in SHARES:
        now = share * whole
        trials = [trial for line in lines if (trial := line.at(now)) is not None]
        trials = [t if t.seconds == 0 or t.state == TrialState.RUNNING else with_seconds(t, lines) for t in trials]
        left = estimate_time_left(replace(run, trials=trials), slots)
        if left is not None:
            yield share, *left, whole - now


def with_seconds(trial: TrialResult, lines: Sequence[Timeline]) -> TrialResult:
    """The trial with the seconds of its timeline, which may be warped."""
    line = next(line for line in lines if line.trial.number == trial.number)
    return replace(trial, seconds=line.end - line.start)


def slots_of(run: Run) -> int:
    """How many trials ran at once at most."""
    lines = timelines(run)
    return max(sum(line.start <= one.start < line.end for line in lines) for one in lines)


def simulated(count: int) -> Iterator[tuple[str, Run, int, Warp]]:
    """Yield the load, the run and its slots of this many simulated sweeps."""
    rng = np.random.default_rng(0)
    for number in range(count):
        load = list(LOADS)[number % len(LOADS)]
        gpus, trials = int(rng.choice([1, 2, 4, 8])), int(rng.integers(12, 65))
        epochs = int(rng.choice([20, 50, 100]))
        changes = [
            f"study.seed={number}",
            f"train.epochs={epochs}",
            f"early_stopping.grace_period={max(1, epochs // 20)}",
        ]
        changes += ["train.val_freq=1", f"early_stopping.reduction_factor={rng.choice([2, 3, 4])}"]
        with tempfile.TemporaryDirectory() as folder:
            made = make_synthetic_run(Path(folder) / "run", trials=trials, gpus=gpus, cases=1, overrides=changes)
            yield load, read_run(made), gpus, LOADS[load]


def print_rows(title: str, found: dict[float, list[tuple[float, float, float]]]) -> None:
    """Print how often the end was within the range, and how wide that was, by the share of the time."""
    for share, ranges in sorted(found.items()):
        inside = sum(low <= left <= high for low, high, left in ranges)
        below, above = (sum(left < low for low, _, left in ranges), sum(left > high for _, high, left in ranges))
        widths = np.median([(high - low) / left for low, high, left in ranges])
        hits = f"{inside} of {len(ranges)} ({inside / len(ranges):.0%})"
        print(f"| {title} | {share:.2f} | {hits} | {below} | {above} | {widths:.2f} |")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--simulated", type=int, default=0)
    args = parser.parse_args()
    print("| sweeps | time passed | end within the range | sooner | later | width / time left, median |")
    print("| --- | --- | --- | --- | --- | --- |")
    real: dict[float, list[tuple[float, float, float]]] = defaultdict(list)
    for path in args.runs:
        run = read_run(path)
        for share, *look in looks(run, slots_of(run)):
            real[share].append((look[0], look[1], look[2]))
    print_rows("real", real)
    by_load: dict[str, dict[float, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for load, run, slots, warp in simulated(args.simulated):
        for share, *look in looks(run, slots, warp):
            by_load[f"simulated, {load}"][share].append((look[0], look[1], look[2]))
    for title, found in by_load.items():
        print_rows(title, found)


if __name__ == "__main__":
    main()
