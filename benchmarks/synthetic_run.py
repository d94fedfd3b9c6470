"""A run's folder as a sweep of many trials would have left it, made without training; for tests and benchmarks.

    python benchmarks/synthetic_run.py RUN [--trials 1000] [--space YAML] [--gpus 8] [--cases 20] [--running 4]

The curves rise to a plateau that depends on lr and optimizer, with noise; early stopping decides by the real rules on
simulated GPUs that train at the same time. There are no checkpoints and no images.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainable.core.brats import REGIONS
from trainable.core.option_files import dump_yaml
from trainable.core.options import to_dict
from trainable.data.split import Split, save_split
from trainable.training.case_scores import CaseScoreFile, case_rows
from tune.run.events import Event, EventKind, append_event
from tune.run.live_state import Activity, LiveState, write_live_state
from tune.run.run_dir import RunDir
from tune.search.asha import Rungs, rung_epochs
from tune.search.journal import Journal
from tune.search.trial_progress import with_decision
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump, load_sweep_config

# brats.yaml as it was: with one range of lr for all optimizers, which the scores here are made for
SPACE = str(Path(__file__).parent / "data" / "brats_2026_11.yaml")
START = 1_790_000_000.0  # seconds since 1970 at which the sweep began
LR_AT_BEST = {"adam": 1e-3, "adamw": 1.5e-3, "sgd": 1e-2}


class SyntheticTrial:
    """One trial: its params, its curve and what has become of it."""

    def __init__(self, number: int, config: SweepConfig, frozen: FrozenTrial, cases: Sequence[str]) -> None:
        self.number, self.frozen, self.cases = number, frozen, cases
        self.values = config.space.decode_params(frozen.params)
        self.rng = np.random.default_rng([config.seed, number])
        off = abs(np.log10(self.values.get("lr", 1e-3) / LR_AT_BEST.get(self.values.get("optimizer", "adam"), 1e-3)))
        self.plateau = 0.88 - 0.22 * min(off, 3.0) + self.rng.normal(0, 0.01)
        self.difficulty = np.random.default_rng(config.seed).normal(0, 0.08, (len(cases), len(REGIONS)))
        self.seconds_per_epoch = float(self.rng.uniform(50, 90))
        self.epoch, self.best, self.attrs, self.status = 0, None, {}, ""
        self.rows: list[dict[str, Any]] = []
        self.case_scores: dict[int, dict[str, dict[str, float]]] = {}

    def train_to(self, epoch: int, epochs: int) -> None:
        """Add the row and the case scores of a validated epoch."""
        level = self.plateau * (1 - np.exp(-4 * epoch / epochs))
        scores = np.clip(level + self.difficulty + self.rng.normal(0, 0.02, self.difficulty.shape), 0, 1)
        by_case = {
            case: {**{f"dice_{r}": float(s) for r, s in zip(REGIONS, row, strict=True)}, "dice_mean": float(row.mean())}
            for case, row in zip(self.cases, scores, strict=True)
        }
        means = {name: float(np.mean([of[name] for of in by_case.values()])) for name in next(iter(by_case.values()))}
        score = means["dice_mean"]
        if self.best is None or score > self.best["score"]:
            self.best = {"epoch": epoch, "score": score, "dice": {r: means[f"dice_{r}"] for r in REGIONS}}
        self.case_scores[epoch], self.epoch = by_case, epoch
        seconds = self.seconds_per_epoch
        self.rows.append(
            {
                "epoch": epoch, **{f"val_{name}": value for name, value in means.items()},
                "best_score": self.best["score"], "best_epoch": self.best["epoch"], "end_reason": "",
                "avg_total_loss": 1.2 - level, "avg_base_loss": 0.6 - level / 2, "avg_dice_loss": 0.6 - level / 2,
                "grad_norm": 1.0, "steps": 200.0, "lr": self.values.get("lr", 1e-3) * (1 - epoch / (epochs + 1)),
                "epoch_time": seconds, "avg_batch_time": seconds / 200, "patches_per_second": 400 / seconds,
                "data_wait_share": 0.02, "avg_gpu_memory": 9000.0, "max_gpu_memory": 11000.0, "val_time": 6.0,
            }
        )  # fmt: skip

    def progress(self, end_reason: str) -> dict[str, Any]:
        """The attribute "progress" in the journal."""
        return {
            "epoch": self.epoch, "seconds": self.epoch * (self.seconds_per_epoch + 1), "end_reason": end_reason,
            "checkpoint": None, "best": self.best or {}, "device": "simulated", "case_scores": len(self.case_scores),
        }  # fmt: skip


def make_synthetic_run(
    folder: Path, *, trials: int = 1000, space: str = SPACE, gpus: int = 8, cases: int = 20, running: int = 0,
    failed_every: int = 50, overrides: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write a run and return its folder.

    Args:
        trials: number of trials that have started.
        space: a YAML, or the name of a shipped one.
        gpus: on which the trials ran, one each.
        cases: number of validation cases; as many test cases, and four times as many to train on.
        running: number of trials, the last ones to start, that have not ended; fewer if some of these end early.
        failed_every: one in so many trials fails, and one runs out of memory.
        overrides: SECTION.KEY=VALUE of the YAML.
    """
    settings = [f"study.trials={trials}", "resources.gpu=1", "early_stopping.min_trials=1", *overrides]
    config = load_sweep_config(space, settings)
    names = [f"BraTS2021_{number:05d}" for number in range(6 * cases)]
    split = Split(tuple(names[2 * cases :]), tuple(names[:cases]), tuple(names[cases : 2 * cases]))
    config = config.with_record(
        split=split.digest(), data="0" * 64, cache_dir="/data/BraTS.cache", attempts=["one"], commit="none",
        versions={"voxtune": "0.1.0", "torch": "2.13.0", "python": "3.11"},
    )  # fmt: skip
    folder.mkdir(parents=True)
    paths = RunDir(folder)
    journal = Journal(folder, config, reset=True)
    save_split(split, paths.split)
    sampler = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    sampler.enqueue_trial(config.space.default_params())
    made: list[SyntheticTrial] = []
    for number in range(trials):
        asked = sampler.ask()
        config.space.suggest(asked)
        made.append(SyntheticTrial(number, config, frozen_of(asked), names[:cases]))
    events = simulate(config, made, gpus, running, failed_every)
    for event in events:
        append_event(paths.events, event)
    journal.study.add_trials([finished(trial, config) for trial in made])
    for trial in made:
        write_files(paths, config, trial)
    if running:
        going = [trial for trial in made if trial.status == "running"]
        now = events[-1].time
        activities = tuple(
            Activity(t.number, "training", t.epoch + 1, 20 + t.number % 150, 200, 6.5, now, "node1", (place % gpus,))
            for place, t in enumerate(going)
        )
        write_live_state(paths.live, LiveState(now, START, "node1", 1, gpus, activities))
    paths.config.write_text(dump(config))
    return folder


def frozen_of(asked: optuna.trial.Trial) -> FrozenTrial:
    """The params and distributions of a trial."""
    return asked.study._storage.get_trial(asked._trial_id)


def simulate(
    config: SweepConfig, made: Sequence[SyntheticTrial], gpus: int, running: int, failed_every: int
) -> list[Event]:
    """Train the trials on simulated GPUs, one trial each; return the events in their order."""
    epochs, val_freq = config.fixed("epochs"), config.fixed("val_freq")
    rungs, at_rungs = Rungs(config), set(rung_epochs(config))
    events = [Event(START, EventKind.SWEEP_STARTED, f"launched: {len(made)} trials")]
    queue: list[tuple[float, int, int]] = []  # time, trial, gpu
    waiting, best = iter(made), 0.0

    def start(time: float, gpu: int) -> None:
        if (trial := next(waiting, None)) is not None:
            events.append(Event(time, EventKind.TRIAL_STARTED, "started", trial.number, "node1", (gpu,)))
            heapq.heappush(queue, (time + val_freq * trial.seconds_per_epoch, trial.number, gpu))

    for gpu in range(gpus):
        start(START + 5 * gpu, gpu)
    while queue:
        time, number, gpu = heapq.heappop(queue)
        trial, text, status, end = made[number], "", "", ""
        if len(queue) < running and all(any((other.epoch, other.status)) for other in made):
            trial.status = "running"
            continue
        if failed_every and number % failed_every in (failed_every - 1, failed_every - 2):
            status = "failed" if number % failed_every == failed_every - 1 else "out of memory"
            text = "RuntimeError: CUDA error: unspecified launch failure" if status == "failed" else "out of GPU memory"
            end = "oom" if status == "out of memory" else ""
            trial.attrs |= {"error": text} if status == "failed" else {}
        else:
            trial.train_to(min(trial.epoch + val_freq, epochs), epochs)
            if trial.best["score"] > best:
                best = trial.best["score"]
                events.append(Event(time, EventKind.NEW_BEST, f"new best: {best:.4f} at epoch {trial.epoch}", number))
            if trial.epoch >= epochs:
                status, end, text = "complete", "epochs", f"complete: {trial.best['score']:.4f}"
            elif trial.epoch in at_rungs:
                decided = rungs.decide(number, trial.epoch, trial.best["score"], default=number == 0)
                trial.attrs["rungs"] = with_decision(trial.attrs, trial.epoch, decided)
                rungs.add(number, trial.epoch, decided)
                if decided.decision == "STOP":
                    status = "stopped early"
                    text = f"stopped at epoch {trial.epoch}: {decided.value:.4f}, {decided.needed:.4f} was needed"
                    events.append(Event(time, EventKind.TRIAL_STOPPED, text, number))
        if status:
            trial.status = status
            trial.attrs["progress"] = trial.progress(end)
            events.append(Event(time, EventKind.TRIAL_ENDED, text, number, status=status))
            start(time + 2, gpu)
        else:
            heapq.heappush(queue, (time + val_freq * trial.seconds_per_epoch, number, gpu))
    if not running:
        events.append(Event(events[-1].time + 1, EventKind.SWEEP_ENDED, "all trials have ended"))
    return events


def finished(trial: SyntheticTrial, config: SweepConfig) -> FrozenTrial:
    """The trial as the driver would have left it in the journal."""
    states = {"complete": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "failed": TrialState.FAIL}
    state = states.get(trial.status, TrialState.COMPLETE if trial.status == "out of memory" else TrialState.RUNNING)
    score = {"complete": (trial.best or {}).get("score"), "out of memory": 0.0}.get(trial.status)
    seconds = trial.progress("")["seconds"]
    cost = [config.cost_of(seconds, seconds * config.resources.all_gpus)] if config.objective.cost else []
    scores = {} if cost else {row["epoch"]: row["val_dice_mean"] for row in trial.rows}
    return create_trial(
        state=state,
        values=None if score is None else [score, *cost],
        params=trial.frozen.params,
        distributions=trial.frozen.distributions,
        user_attrs={"progress": trial.progress(""), **trial.attrs},
        intermediate_values=scores,
    )


def write_files(paths: RunDir, config: SweepConfig, trial: SyntheticTrial) -> None:
    """Write the files in the trial's folder."""
    folder = paths.trial(trial.number)
    folder.path.mkdir(parents=True)
    recipe = to_dict(config.train_config(trial.values, seed=config.seed + trial.number))
    folder.config.write_text(dump_yaml(recipe))
    folder.stdout.write_text(
        "".join(f"epoch {row['epoch']}  val Dice {row['val_dice_mean']:.4f}\n" for row in trial.rows)
    )
    if trial.rows:
        names = list(trial.rows[0])
        lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in trial.rows)]
        folder.metrics.write_text("\n".join(lines) + "\n")
        file = CaseScoreFile(folder.case_scores)
        file.rows = {epoch: case_rows(epoch, scores).encode() for epoch, scores in trial.case_scores.items()}
        last = max(file.rows)
        file.write(last, file.rows[last].decode())
    if trial.status == "failed":
        folder.error.write_text(f"Traceback (most recent call last):\n{trial.attrs['error']}\n")


def main() -> None:
    """Write one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--running", type=int, default=0)
    args = parser.parse_args()
    make_synthetic_run(
        args.run, trials=args.trials, space=args.space, gpus=args.gpus, cases=args.cases, running=args.running
    )


if __name__ == "__main__":
    main()
