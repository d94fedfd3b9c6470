"""What a confirmation has found: verdicts on validation and test cases, as text, CSV and JSON in RUN/confirm."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.console import duration, wrap_prose
from trainable.core.counted import counted
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.evaluation.comparison import Comparison
from trainable.training.case_scores import SCORE_COLUMNS
from tune.confirmation.export import portable_recipe
from tune.confirmation.plan import ConfirmPlan
from tune.confirmation.race import DEFAULT, Race
from tune.confirmation.scores import ConfirmScores, column_of, replay_race, scores_text
from tune.confirmation.status import VERSION, sentence
from tune.confirmation.verdict import Verdict, make_test_verdict, make_verdict
from tune.run.results import Run
from tune.run.run_dir import confirm_command
from tune.run.training_progress import read_progress

Errors = Mapping[tuple[str, int], str]  # why a training has no model, by arm and index of its seed


@dataclass(frozen=True)
class Confirmation:
    """What a confirmation has found so far.

    winner: number of the trial at the head of the ranking when it was made. race: as it stands. val: verdict by which
    the recipe is chosen. test: on test cases, None until they are scored. cost: trainings that have begun, and their
    seconds in all. errors: of trainings without a model. take_best: how the recipe was chosen.
    """

    winner: int
    plan: ConfirmPlan
    race: Race
    val: Verdict
    test: Verdict | None
    trainings: int
    seconds: float
    errors: dict[tuple[str, int], str]
    take_best: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return {
            "version": VERSION,
            "winner": self.winner,
            "arms": [arm.name for arm in self.plan.arms],
            "seeds": list(self.plan.seeds),
            "chosen": self.val.chosen,
            "chosen_trial": self.plan.arm(self.val.chosen).trial,
            "take_best": self.take_best,
            "ended": self.race.ended,
            "dropped": self.race.dropped,
            "errors": [[arm, index, error] for (arm, index), error in sorted(self.errors.items())],
            "trainings": self.trainings,
            "seconds": self.seconds,
            "extended_after_test": self.plan.extended_after_test,
            "validation": self.val.to_json(),
            "test": None if self.test is None else self.test.to_json(),
        }


def tested_seeds(race: Race, val: Verdict) -> dict[str, int]:
    """Return by arm the number of seeds whose models score the test cases; none until the race has ended.

    They are the default and the winner on the validation cases, so that the test cases select nothing.
    """
    count = race.judged.get(val.winner, 0)
    return dict.fromkeys((DEFAULT, val.winner), count) if race.ended and count else {}


def evaluate_confirmation(
    run: Run, plan: ConfirmPlan, scores: ConfirmScores, errors: Errors, *, take_best: bool
) -> Confirmation:
    """Return what a confirmation has found, by the folders of its trainings.

    Args:
        plan: what is compared.
        scores: of its trainings.
        errors: of trainings without a model.
        take_best: as for make_verdict.
    """
    state = replay_race(scores, errors)
    val = judge(run, plan, scores, state, take_best=take_best)
    tested, test = tested_seeds(state, val), None
    if tested:
        of_test = {column: scores.of_test(tested, tested[DEFAULT], column) for column in SCORE_COLUMNS}
        wanted = tested[DEFAULT] * len(plan.fold_indices)
        if all(len(of_arm) == wanted for of_arm in of_test[column_of(plan.metric)].values()):
            test = make_test_verdict(of_test, column_of(plan.metric), val.winner)
    progress = [
        read_progress("", folder.parent, plan.epochs)
        for folder in sorted(scores.folder.trainings.glob("*/*/metrics.csv"))
    ]
    seconds = sum(item.seconds for item in progress)
    return Confirmation(plan.winner, plan, state, val, test, len(progress), seconds, dict(errors), take_best)


def judge(run: Run, plan: ConfirmPlan, scores: ConfirmScores, state: Race, *, take_best: bool) -> Verdict:
    """Return the verdict on the validation cases."""
    comparable = not plan.folds and plan.epochs == run.config.fixed("epochs")  # as in the sweep: the same cases, length
    arms = [arm for arm in plan.arms if arm.sweep_score is not None] if comparable else []
    return make_verdict(
        {column: scores.of_arms(column) for column in SCORE_COLUMNS},
        column_of(plan.metric),
        state,
        sweep_scores={arm.name: arm.sweep_score for arm in arms if arm.sweep_score is not None},
        take_best=take_best,
    )


def write_report(run: Run, found: Confirmation, scores: ConfirmScores, *, address: str | None = None) -> None:
    """Write scores.csv, chosen.yaml, verdict.txt and last confirm.json; print the text.

    address: of the cluster, for the command that goes on.
    """
    folder = scores.folder
    tested = tested_seeds(found.race, found.val) if found.test else {}
    atomic_write_text(folder.scores, scores_text(scores.rows(found.race.judged, tested)))
    base = run.config.base_config()
    chosen = found.plan.arm(found.val.chosen)
    head = [f"{chosen.name}, as chosen by the confirmation of {run.folder.name}: {found.val.reason}"]
    atomic_write_text(folder.chosen, portable_recipe(run, chosen.config(base), head))
    text = report_text(run, found, address)
    atomic_write_text(folder.text, text + "\n")
    atomic_write_text(folder.result, json.dumps(found.to_json(), indent=2) + "\n")
    logger.info(wrap_prose(f"\n{text}"))


def report_text(run: Run, found: Confirmation, address: str | None = None) -> str:
    """Return what a confirmation prints at its end. address: of the cluster, for the command that goes on."""
    plan, val = found.plan, found.val
    on = f"{plan.folds} folds of the train and val cases" if plan.folds else "the cases that the sweep validated on"
    hours = found.seconds / 3600 * run.config.resources.all_gpus
    cost = f"{hours:.2f} GPU hours" if hours else f"{duration(found.seconds)} on the CPU"
    ended = found.race.ended
    race = f"the race ended: {ended}" if ended else "the race has not ended: what follows may change"
    so_far = "" if ended else " so far"
    dropped = [
        f"{name}{'' if reason.startswith('failed') else ' left in'} {reason}"
        for name, reason in found.race.dropped.items()
    ]
    lines = [
        f"confirmation of {run.folder.name}: {plan.metric} of {plan.epochs} epochs on {on}",
        "",
        table_text(found),
        "",
        "; ".join([race, *dropped]),
        f"{'cases out of fold' if plan.folds else 'validation cases'}{so_far}: {sentence(val)}",
        *test_lines(run, found),
        f"chosen{so_far}: {val.chosen}; {val.reason}",
        f"cost: {counted(found.trainings, 'training')}, {cost}",
        f"next: {next_command(run, found, address)}",
    ]
    return "\n".join(lines)


def table_text(found: Confirmation) -> str:
    """Return the table of the recipes: mean Dice of each region, mean and deviation over seeds of their mean.

    Below it is the difference to the default.
    """
    in_sweep = any(arm.sweep_score is not None for arm in found.val.arms)
    unit = "seeds" if found.plan.folds else "trainings"
    rows = [["recipe", unit, *REGIONS, "mean", *["sweep", "curse"] * in_sweep]]
    for arm in found.val.arms:
        means = ["" if (mean := arm.mean.get(column)) is None else f"{mean:.4f}" for column in SCORE_COLUMNS[:3]]
        with_deviation = plus_minus(arm.mean.get(SCORE_COLUMNS[3]), arm.sd.get(SCORE_COLUMNS[3]))
        curse = ["" if value is None else f"{value:.4f}" for value in (arm.sweep_score, arm.curse)]
        rows.append([arm.name, str(arm.trainings), *means, with_deviation, *curse * in_sweep])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(" ".join([f"{name:{widths[0]}}", *right]).rstrip())
    if comparison := found.val.comparison:
        lines += ["", f"{found.val.winner} minus the default: {difference_text(comparison)}"]
        lines += [
            f"  {column.removeprefix('dice_'):4} {region_text(found.val, column)}" for column in SCORE_COLUMNS[:3]
        ]
    return "\n".join(lines)


def plus_minus(mean: float | None, deviation: float | None) -> str:
    """Return a mean and its deviation over seeds; "" without a mean, only the mean without a deviation."""
    if mean is None:
        return ""
    return f"{mean:.4f}" + ("" if deviation is None or math.isnan(deviation) else f" +- {deviation:.4f}")


def difference_text(comparison: Comparison) -> str:
    """Return a difference with its interval, the confidence of that, and the probability that it is above 0."""
    difference = f"{comparison.difference:+.4f}"
    if math.isnan(comparison.low):
        return f"{difference}, no interval"
    interval = f"[{comparison.dice_low:+.4f}, {comparison.dice_high:+.4f}] ({comparison.confidence:.1%} interval)"
    return f"{difference} {interval}, {comparison.probability:.1%} likely to be better"


def region_text(verdict: Verdict, column: str) -> str:
    """Return the difference to the default of one region, with its interval."""
    comparison = verdict.comparisons[column]
    interval = "" if math.isnan(comparison.low) else f" [{comparison.dice_low:+.4f}, {comparison.dice_high:+.4f}]"
    return f"{comparison.difference:+.4f}{interval}"


def test_lines(run: Run, found: Confirmation) -> list[str]:
    """Return what is said of the test cases."""
    if not run.split().test:
        return ["test cases: the split has none, so nothing is known of cases that nothing selected by"]
    if not found.race.ended:
        return ["test cases: scored when the race has ended"]
    if found.test is None:
        why = "not scored yet" if found.val.winner else "not scored, as no challenger has a score"
        return [f"test cases: {why}"]
    lines = [f"test cases: {sentence(found.test)}; {found.test.reason}"]
    for arm in found.test.arms:
        means = ", ".join(f"{name} {arm.mean[f'dice_{name}']:.4f}" for name in (*REGIONS, "mean"))
        lines.append(f"  {arm.name}: {means}, {arm.trainings} trainings")
    if found.plan.extended_after_test:
        lines.append("  they had been scored before this confirmation was extended, so they have been looked at")
    return lines


def next_command(run: Run, found: Confirmation, address: str | None) -> str:
    """Return what to type next. address: of the cluster."""
    if not found.race.ended:
        return confirm_command(run.folder, take_best=found.take_best, address=address)
    trial, folder = found.plan.arm(found.val.chosen).trial, shlex.quote(str(run.folder))
    if found.val.comparison is None:
        return f"voxtune retrain {folder}"
    recipe = f"--trial {trial}" if trial is not None else f"--config {shlex.quote(str(run.dir.confirm.chosen))}"
    return f"voxtune retrain {folder} {recipe}"
