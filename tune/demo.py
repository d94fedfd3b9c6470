"""`voxtune demo`: everything once, on synthetic cases and a laptop's CPU."""

from __future__ import annotations

import json
import shlex
import time
from itertools import chain, count
from pathlib import Path

from trainable.core.console import duration, make_console, wrap_prose
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.phantom import write_phantoms
from trainable.evaluation.metrics import mean_scores
from trainable.predict import predict_cases
from trainable.training.training_dir import TrainingDir
from tune.confirm import confirm
from tune.confirmation.export import export_recipe
from tune.confirmation.race import DEFAULT
from tune.confirmation.status import confirmation_text, confirmed_choice, load_result
from tune.confirmation.verdict import Arm, Verdict
from tune.driver.cluster.connection import Cluster
from tune.driver.recording.report_keeper import write_last_report
from tune.driver.sweep import launch
from tune.retrain import retrain
from tune.run.results import Run, read_run
from tune.spec.sweep_file import load_sweep_config
from tune.terminal.next_steps import print_next
from tune.terminal.outcome import print_outcome

CASES, SHAPE = 20, (64, 64, 48)
SEEDS = 3  # trainings of the winner and of the default that confirm it


def run_demo(out: Path | None, trials: int | None = None, epochs: int = 40) -> None:
    """Write synthetic cases, run a sweep, confirm its winner, retrain and predict the test cases, all in a new folder.

    Args:
        out: the folder; None for the first of voxtune_demo, voxtune_demo_2, _3, ... that does not exist.
        trials: number of trials of the sweep; None for that in demo.yaml.
        epochs: number of epochs of the retraining.

    Raises:
        InputError: before anything is written, if `out` exists, or for no trials.
        SystemExit: with code 1 if no trial has a score; else as `launch`.
    """
    out = out or free_folder(Path("voxtune_demo"))
    if out.exists():
        raise InputError(f"{out} exists; take another --out, or remove it")
    overrides = [f"train.data_dir={json.dumps(str(out / 'data'))}"] + [f"study.trials={trials}"] * (trials is not None)
    config = load_sweep_config("demo", overrides)
    console, started = make_console(), time.monotonic()

    def chapter(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}. {text}[/]  ({duration(time.monotonic() - started)})")

    chapter(1, f"{CASES} synthetic cases of {' x '.join(map(str, SHAPE))} voxels")
    write_phantoms(out / "data", cases=CASES, shape=SHAPE, seed=0)
    chapter(2, "a sweep on Ray: demo.yaml")
    with Cluster() as cluster:
        run = launch(config, out / "run", cluster=cluster)
        print_outcome(run, steps=False)
        if not run.ranking:
            raise SystemExit(1)
        chapter(3, f"is the winner real? {SEEDS} more trainings of it and of the default, with other seeds")
        confirm(run.folder, top=1, seeds=SEEDS, cluster=cluster)
    run = read_run(run.folder)
    export_recipe(run, run.best(), out / "best.yaml")
    chapter(4, f"the chosen recipe, retrained for {epochs} epochs")
    model = TrainingDir(retrain(run.folder, epochs=epochs)).best
    chapter(5, "held-out cases, predicted from their folders, with pictures")
    cases = [out / "data" / name for name in run.split().test]
    predictions = predict_cases(model, cases, out / "predictions", pictures=True)
    write_last_report(run)
    lines = found_lines(run, epochs, mean_scores(predictions.scores.values())["dice_mean"], len(cases))
    logger.info(wrap_prose("\n".join(["", f"done in {duration(time.monotonic() - started)}", "", *lines])))
    logger.info(f"\npictures: {out / 'predictions'}")
    logger.info(f"all of it in one HTML file, to open in a browser: {run.dir.report}")
    folder = shlex.quote(str(run.folder))
    print_next(
        [
            (f"voxtune best {folder}", "the best trials and the winner's recipe"),
            (f"voxtune show {folder} {run.best().number}", "the winner in detail"),
            ("voxtune launch brats --data DATA --out RUN", "a sweep on your own cases"),
        ]
    )


def found_lines(run: Run, epochs: int, dice: float, cases: int) -> list[str]:
    """Return what the demo has found, as lines.

    Args:
        epochs: of the retraining.
        dice: its mean over the test cases.
        cases: number of these.
    """
    winner, default = run.best(), run.default_trial
    against = "" if default is None or default.score is None else f", the default recipe {default.score:.4f}"
    chosen = confirmed_choice(run)
    lines = [
        f"in the sweep: trial {winner.number} scored {winner.score:.4f}{against} ({counted(len(run.trials), 'trial')})",
        f"with other seeds: {confirmation_text(run)[0]}",
        f"retrained for {epochs} epochs: {chosen[0] if chosen else f'trial {winner.number}'}, "
        f"mean Dice {dice:.4f} on {counted(cases, 'test case')}",
    ]
    if (arm := default_on_test_cases(run)) is not None:
        scored = f"{arm.mean['dice_mean']:.4f} over {counted(arm.trainings, 'training')}"
        lines.append(f"the default recipe, trained as in the sweep, on the same cases: {scored}")
    return lines


def default_on_test_cases(run: Run) -> Arm | None:
    """Return what the confirmation has found of the default recipe on the test cases; None if it has not scored it."""
    content = load_result(run.dir.confirm)
    if content is None or content["test"] is None:
        return None
    return next((arm for arm in Verdict.from_json(content["test"]).arms if arm.name == DEFAULT and arm.mean), None)


def free_folder(wanted: Path) -> Path:
    """Return the absolute path of `wanted`, or if that exists of the first of wanted_2, wanted_3, ... that does not."""
    numbered = (wanted.with_name(f"{wanted.name}_{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if not folder.exists()).resolve()
