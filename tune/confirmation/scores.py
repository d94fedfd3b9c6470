"""The scores of a confirmation's trainings, as their folders have them, and what the race makes of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainable.core.errors import InputError
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from trainable.training.epoch_result import EndReason
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.confirmation.plan import ConfirmPlan
from tune.confirmation.race import Race, race
from tune.run.confirm_dir import ConfirmDir

if TYPE_CHECKING:  # it imports torch, and what only reads a run does without it
    from trainable.evaluation.metrics import Scores

CaseScores = Mapping[str, "Scores"]  # of one training, by case


def best_epoch(paths: TrainingDir) -> int:
    """Return the best epoch of a training that has ended with a model; 0 if it has not, or has diverged."""
    rows = read_rows(paths.metrics)
    if not rows or rows[-1]["end_reason"] in ("", EndReason.NON_FINITE):
        return 0
    return int(rows[-1]["best_epoch"])


def val_scores(paths: TrainingDir) -> CaseScores:
    """Return the scores per case of a training's best epoch; {} if it has not ended with a model.

    Raises:
        InputError: if case_scores.csv is damaged or lacks that epoch.
    """
    if not (epoch := best_epoch(paths)):
        return {}
    scores = read_case_scores(paths.case_scores)
    if epoch not in scores:
        raise InputError(f"{paths.case_scores} lacks epoch {epoch}, the best one; restore it, or delete its folder")
    return scores[epoch]


def test_scores(paths: TrainingDir) -> CaseScores:
    """Return the scores per test case of a training's model; {} if they have not been scored, or with other weights.

    Raises:
        InputError: if the file is damaged.
    """
    path = paths.test_scores.with_suffix(".json")
    if not path.exists():
        return {}
    from trainable.training.scored_models import has_scores_of  # here: torch takes seconds to import

    try:
        cases: dict[str, dict[str, float]] = json.loads(path.read_text())["cases"]
        scores = {case: {name: scores[name] for name in SCORE_COLUMNS} for case, scores in cases.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; restore it, or delete it to have the cases scored again") from None
    return scores if has_scores_of(path, [paths.best]) else {}


def has_tested(folder: ConfirmDir) -> bool:
    """Return whether a training of a confirmation has scored its test cases."""
    trainings = map(TrainingDir, folder.trainings.glob("*/*"))
    return any(paths.test_scores.with_suffix(".json").exists() for paths in trainings)


def values_of(scores: CaseScores, column: str) -> NDArray[np.float64]:
    """Return one column of scores, (cases,), in the order of the cases' names."""
    return np.array([scores[case][column] for case in sorted(scores)])


def column_of(metric: str) -> str:
    """Return the column of case scores that a metric is the mean of: dice_mean of val_dice_mean."""
    return metric.removeprefix("val_")


class ConfirmScores:
    """The scores of a confirmation's trainings, read once from the folder of each as soon as it has ended.

    counted: arm, seed and fold of the trainings that count, looked up at each call; None for all that have ended.
    """

    def __init__(
        self, folder: ConfirmDir, plan: ConfirmPlan, counted: Container[tuple[str, int, int | None]] | None = None
    ) -> None:
        self.folder, self.plan, self.counted = folder, plan, counted
        self._val: dict[tuple[str, int, int | None], CaseScores] = {}

    def val(self, arm: str, seed: int, fold: int | None) -> CaseScores:
        """Return the validation scores of a training; {} if it has not ended with a model."""
        key = arm, seed, fold
        if self.counted is not None and key not in self.counted:
            return {}
        if not self._val.get(key):
            self._val[key] = val_scores(self.folder.training(*key))
        return self._val[key]

    def of_arms(self, column: str) -> dict[str, list[list[NDArray[np.float64]]]]:
        """Return by arm, for its first seeds that are trained in all folds, per fold (cases,): a race's scores.

        column: of case scores, such as dice_mean.
        """
        result = {}
        for arm in self.plan.arms:
            of_arm: list[list[NDArray[np.float64]]] = []
            for seed in self.plan.seeds:
                of_seed = [self.val(arm.name, seed, fold) for fold in self.plan.fold_indices]
                if not all(of_seed):
                    break
                of_arm.append([values_of(scores, column) for scores in of_seed])
            result[arm.name] = of_arm
        return result

    def of_test(self, arms: Iterable[str], count: int, column: str) -> dict[str, list[list[NDArray[np.float64]]]]:
        """Return by arm, for each of its first trainings that was tested, (cases,): folds count as trainings here.

        count: number of seeds; their folds predict the same test cases.
        """
        result = {}
        for arm in arms:
            scores = [
                test_scores(self.folder.training(arm, seed, fold))
                for seed in self.plan.seeds[:count]
                for fold in self.plan.fold_indices
            ]
            result[arm] = [[values_of(of_case, column)] for of_case in scores if of_case]
        return result

    def rows(self, counted: Mapping[str, int], tested: Iterable[str]) -> list[list[Any]]:
        """Return the rows of scores.csv.

        Args:
            counted: number of seeds by arm that count for the verdict.
            tested: the arms whose test scores are reported.
        """
        rows: list[list[Any]] = []
        for arm in self.plan.arms:
            for seed in self.plan.seeds[: counted[arm.name]]:
                for fold in self.plan.fold_indices:
                    parts = {"val": self.val(arm.name, seed, fold)}
                    if arm.name in tested:
                        parts["test"] = test_scores(self.folder.training(arm.name, seed, fold))
                    for part, scores in parts.items():
                        head = [arm.name, seed, "" if fold is None else fold, part]
                        rows += [[*head, case, *(of[name] for name in SCORE_COLUMNS)] for case, of in scores.items()]
        return rows


def scores_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return the text of scores.csv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "fold", "part", "case", *SCORE_COLUMNS])
    writer.writerows(rows)
    return text.getvalue()


def replay_race(scores: ConfirmScores, errors: Mapping[tuple[str, int], str]) -> Race:
    """Return what the scores so far decide.

    A training that failed makes its arm leave the race in the round that needs it, not when a free GPU has trained it
    ahead: so the race does not depend on how many GPUs there are, or on what was killed.

    errors: why a training has no model, by arm and index of its seed.
    """
    of_arms, failed = scores.of_arms(column_of(scores.plan.metric)), dict[str, str]()
    while True:
        state = race(of_arms, scores.plan.challengers, len(scores.plan.seeds), failed)
        new = {arm: errors[arm, index] for arm, index in state.wanted if (arm, index) in errors}
        if not new:
            return state
        failed |= new
