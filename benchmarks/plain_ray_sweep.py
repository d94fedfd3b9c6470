"""One sweep of a toy with plain Ray Tune, as its documentation teaches, in a process that can be killed.

    python benchmarks/plain_ray_sweep.py FOLDER --seed 0 --trials 30 [--memory] [--nan] [--restore]

Called by against_plain_ray.py, which shares the toy and the functions that judge what the sweeps of both sides wrote.
Writes FOLDER/found.json, FOLDER/reports.jsonl (each report that reached ASHA, and what ASHA decided) and
FOLDER/epochs.txt (each epoch that was trained).
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.search.optuna import OptunaSearch

EPOCHS, GRACE_PERIOD, REDUCTION_FACTOR = 9, 1, 3
CPUS = max(1, (os.cpu_count() or 1) // 2)  # per trial: two at a time
MEMORY = 130  # the largest base_channels * batch_size that fits: that of half of the 456 pairs
SPACE: dict[str, tuple[str, list[float]]] = {
    "lr": ("loguniform", [1e-5, 1e-2]),
    "momentum": ("uniform", [0.8, 0.99]),
    "dropout": ("uniform", [0.0, 0.5]),
    "base_channels": ("randint", [8, 64]),
    "batch_size": ("randint", [1, 8]),
}
FIRST = {"lr": 3e-4, "momentum": 0.9, "dropout": 0.0, "base_channels": 32, "batch_size": 2}
RUNGS = [GRACE_PERIOD * REDUCTION_FACTOR**k for k in range(9) if GRACE_PERIOD * REDUCTION_FACTOR**k < EPOCHS]
Config = dict[str, Any]
Facts = dict[str, Any]


class Toy(NamedTuple):
    """The objective: only the training is a toy.

    memory: do configs of more than MEMORY run out of memory? nan: do high lr with high momentum give NaN from epoch 2?
    log: gets a line for each epoch trained.
    """

    log: str
    memory: bool
    nan: bool

    def train(self, config: Config, epoch: int) -> float:
        """Train an epoch, 10 to 30 ms; its score."""
        if self.memory and config["base_channels"] * config["batch_size"] > MEMORY:
            from torch.cuda import OutOfMemoryError

            raise OutOfMemoryError("CUDA out of memory. (a toy)")
        score = math.nan if self.nan and epoch > 1 and diverges(config) else curve(config, epoch)
        time.sleep(0.01 + 0.02 * (config["lr"] * 1e9 % 1))
        append(Path(self.log), f"{config['lr']!r} {epoch}")
        return score


def diverges(config: Config) -> bool:
    """The region of NaN: 12 % of the space."""
    return bool(config["lr"] > 2e-3 and config["momentum"] > 0.89)


def curve(config: Config, epoch: int) -> float:
    """The score after an epoch. A high lr peaks early and then falls, a low one rises to the end; 0.02 of noise."""
    speed = math.log10(config["lr"] / 1e-5) / 3
    past_peak = math.log(epoch) / math.log(EPOCHS) - (1 - speed)  # in shares of the logarithm of the epochs
    top = 0.7 - 0.1 * abs(config["momentum"] - 0.9) / 0.1 - 0.1 * abs(config["dropout"] - 0.2) / 0.3
    top += 0.2 * math.log(config["base_channels"] * config["batch_size"] / 8) / math.log(64)  # 8 to 512
    noise = np.random.default_rng([int(config["lr"] * 1e12), epoch]).normal() * 0.02
    return float(np.clip(top - 0.3 * max(0, -past_peak) - 0.15 * max(0, past_peak) + noise, 0, 1))


def append(path: Path, line: str) -> None:
    """Append a line in one write."""
    with path.open("a") as file:
        file.write(line + "\n")


class WatchedASHA(ASHAScheduler):
    """ASHAScheduler that writes down what it says."""

    def __init__(self, log: Path, **options: Any) -> None:
        super().__init__(**options)
        self.log = log

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        score = result["score"]
        line = {"trial": trial.trial_id, "epoch": result["epoch"], "score": score, "value": score, "decision": decision}
        append(self.log, json.dumps(line))
        return decision


def train(config: Config, toy: Toy) -> None:
    """The trainable: it goes on from its checkpoint and reports each epoch with one."""
    done = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            done = json.loads(Path(folder, "state.json").read_text())["epoch"]
    for epoch in range(done + 1, EPOCHS + 1):
        score = toy.train(config, epoch)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "state.json").write_text(json.dumps({"epoch": epoch}))
            tune.report({"score": score, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(folder))


def make_tuner(folder: Path, trainable: Any, search: OptunaSearch, trials: int) -> tune.Tuner:
    """The sweep."""
    kinds = {"loguniform": tune.loguniform, "uniform": tune.uniform, "randint": lambda a, b: tune.randint(a, b + 1)}
    return tune.Tuner(
        trainable,
        param_space={name: kinds[kind](*ends) for name, (kind, ends) in SPACE.items()},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            search_alg=search,
            scheduler=WatchedASHA(
                folder / "reports.jsonl",
                max_t=EPOCHS,
                grace_period=GRACE_PERIOD,
                reduction_factor=REDUCTION_FACTOR,
            ),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=str(folder), verbose=0),
    )


def found(grid: tune.ResultGrid, search: OptunaSearch | None) -> Facts:
    """The trials in their order, the states in Optuna's study, and what is named as the best.

    By study.best_trial of it, by get_best_result() in its default scope "last" and in scope "all".
    """
    trials = [
        {"trial": result.metrics.get("trial_id"), "config": result.config, "oom": result.error is not None}
        for result in grid
    ]
    named = {}
    for scope in ("last", "all"):
        best = grid.get_best_result(scope=scope)
        named[scope] = {"config": best.config, "score": best.metrics["score"]}
    states = []
    if search is not None:
        study = search._ot_study
        named["study"] = {"config": study.best_trial.params, "score": study.best_value}
        states = [trial.state.name for trial in study.trials]
    return {"trials": trials, "named": named, "states": states}


def sweep_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of one sweep, of either side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=30)
    for flag in ("memory", "nan", "restore"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args(words)


def judge_best(facts: Facts) -> Facts:
    """Of each way to ask for the best: did ASHA stop that trial, is the score handed over below the trial's highest.

    reaches: the highest score of its recipe in all epochs, also those that were not trained.
    """
    trial_of = {trial["config"]["lr"]: trial["trial"] for trial in facts["trials"]}
    judged: Facts = {}
    for way, best in facts["named"].items():
        reports = [each for each in facts["reports"] if each["trial"] == trial_of[best["config"]["lr"]]]
        judged[f"stopped {way}"] = int(max(each["epoch"] for each in reports) < EPOCHS)
        judged[f"below {way}"] = int(best["score"] < max(each["score"] for each in reports))
        judged[f"reaches {way}"] = max(curve(best["config"], epoch) for epoch in range(1, EPOCHS + 1))
    return judged


def judge_rungs(reports: list[Facts], before: int) -> dict[str, int]:
    """Replay the reports of both lives through Ray's own rungs; the decisions after the kill against what they demand.

    A trial that they stop is followed no further: what it reports later are epochs that it ran on.
    """
    rungs, stopped = _Bracket(GRACE_PERIOD, EPOCHS, REDUCTION_FACTOR, 0), dict[Any, int]()
    count = dict.fromkeys(("at rungs", "differ before the kill", "differ", "wrongly stopped", "epochs run on"), 0)
    ran_on = set()
    for index, report in enumerate(reports):
        trial, epoch, decision = report["trial"], report["epoch"], report["decision"]
        again = trial in stopped
        if again and epoch > stopped[trial]:
            ran_on.add(trial)
            count["epochs run on"] += 1
            continue
        if epoch == EPOCHS:
            continue
        due = "STOP" if again else rungs.on_result(SimpleNamespace(trial_id=trial), epoch, report["value"])
        if due == "STOP":
            stopped[trial] = epoch
        late = index >= before
        count["at rungs"] += late and epoch in RUNGS
        count["differ" if late else "differ before the kill"] += decision != due
        count["wrongly stopped"] += late and decision == "STOP" != due
    return {**count, "trials run on": len(ran_on)}


def judge_restored(facts: Facts, folder: Path) -> dict[str, int]:
    """What a kill has cost."""
    kept = {trial["trial"] for trial in facts["trials"]}
    first, rest = facts["reports"][: facts["before"]], facts["reports"][facts["before"] :]
    lost = {report["trial"] for report in first} - kept
    known = [report for report in first if report["trial"] in kept]
    trained = (folder / "epochs.txt").read_text().splitlines()
    recipes = [trial["config"]["lr"] for trial in facts["trials"]]
    return {
        **judge_rungs(known + rest, len(known)),
        "differ before the kill": judge_rungs(first, len(first))["differ before the kill"],
        "lost": len(lost),
        "doubled": len(recipes) - len(set(recipes)),
        "epochs twice": len(trained) - len(set(trained)),
    }


def main() -> None:
    """Run one sweep, or what a killed one left."""
    asked = sweep_arguments(sys.argv[1:])
    started = time.monotonic()
    ray.init(include_dashboard=False, log_to_driver=False)
    toy = Toy(str(asked.folder / "epochs.txt"), asked.memory, asked.nan)
    trainable = tune.with_resources(tune.with_parameters(train, toy=toy), {"cpu": CPUS})
    search = OptunaSearch(metric="score", mode="max", seed=asked.seed, points_to_evaluate=[FIRST])
    if asked.restore:
        tuner = tune.Tuner.restore(str(asked.folder / "sweep"), trainable, restart_errored=True)
    else:
        tuner = make_tuner(asked.folder, trainable, search, asked.trials)
    grid = tuner.fit()
    facts = {**found(grid, None if asked.restore else search), "seconds": time.monotonic() - started}
    (asked.folder / "found.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
