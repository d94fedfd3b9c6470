"""Cross-validated scores: each case is scored by models that have not been trained on it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainable.core.brats import Labels
from trainable.core.counted import counted
from trainable.core.device import kernel_selection
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.data.cache import CachedCase, require_same
from trainable.data.prepare import Data
from trainable.evaluate import COLUMNS
from trainable.evaluation.averaging import predict_averaged
from trainable.evaluation.inference import NonFiniteLogitsError
from trainable.evaluation.metrics import Scores, mean_scores
from trainable.evaluation.prediction_setting import PredictionSetting
from trainable.evaluation.validate import score_cases
from trainable.member_scores import MemberScores
from trainable.training.ensemble import Ensemble, Member, find_models, load_ensemble
from trainable.training.training_dir import TrainingDir

PART = "val"  # what each case is to the models that score it


@dataclass(frozen=True)
class Fold:
    """The cases of a fold, and the folders of the trainings that were not trained on them: one per seed."""

    cases: tuple[str, ...]
    trainings: tuple[Path, ...]


@dataclass(frozen=True)
class CrossValidation:
    """The scores of all cases, see score_case, out of fold.

    Attributes:
        scores: of each case, sorted by name.
        fold: index of the fold of each case.
        members: the Dice of each training of a case's fold, alone; empty with one training per fold.
        models: of each training its name, its identity and the options that it predicted with, as plain values.
    """

    scores: dict[str, Scores]
    fold: dict[str, int]
    members: MemberScores
    models: list[dict[str, Any]]

    def table(self) -> str:
        """Return the mean scores of each fold and of all cases, and their deviation over cases, as text."""
        by_fold: dict[int, list[Scores]] = {}
        for case, index in self.fold.items():
            by_fold.setdefault(index, []).append(self.scores[case])
        rows = [(f"fold {index}", len(scores), mean_scores(scores)) for index, scores in sorted(by_fold.items())]
        rows += [("all", len(self.scores), self.mean()), ("deviation", len(self.scores), self.deviation())]
        lines = [f"{'fold':<9} cases", *(f"{name:<9}{count:6}" for name, count, _ in rows)]
        groups = " " * len(lines[0])
        for title, stem, digits, columns in COLUMNS:
            if f"{stem}_{columns[0]}" in rows[0][2]:
                groups += "   " + title.center(8 * len(columns) - 1)
                lines[0] += "  " + "".join(f"{column:>8}" for column in columns)
                for index, (_, _, row) in enumerate(rows, 1):
                    lines[index] += "  " + "".join(f"{row[f'{stem}_{column}']:8.{digits}f}" for column in columns)
        gain = self.members.table(self.scores, dict.fromkeys(self.scores, PART))
        return "\n".join(filter(None, [groups.rstrip(), *lines, gain]))

    def mean(self) -> Scores:
        """Return the mean of each score over all cases."""
        return mean_scores(self.scores.values())

    def deviation(self) -> Scores:
        """Return the standard deviation of each score over all cases, of the sample; 0 for one case."""
        names = next(iter(self.scores.values()))
        ddof = min(1, len(self.scores) - 1)
        return {name: float(np.std([case[name] for case in self.scores.values()], ddof=ddof)) for name in names}

    def save(self, stem: Path, about: Mapping[str, Any]) -> None:
        """Write one row per case as STEM.csv, and all with mean and deviation as STEM.json.

        about: what was scored, by name; it precedes the scores in the JSON.
        """
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["case", "fold", *self.mean()], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"case": case, "fold": self.fold[case], **scores} for case, scores in self.scores.items())
        atomic_write_text(stem.with_suffix(".csv"), table.getvalue())
        content = {**about, "members": self.models, "cases": self.scores, "folds": self.fold}
        content |= {"mean": self.mean(), "sd": self.deviation()}
        content |= self.members.for_json(self.scores, dict.fromkeys(self.scores, PART))
        atomic_write_text(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")


def cross_validate(folds: Sequence[Fold], names: Sequence[str], data: Data, device: torch.device) -> CrossValidation:
    """Score the cases of each fold with the models of that fold, whose probabilities are averaged.

    Each model predicts with the options of its training, at its best epoch, which was chosen by cases of its fold.

    Args:
        folds: all with as many trainings.
        names: of the trainings of a fold, in the order of their paths, the same for each fold.
        data: the prepared cases.
        device: that predicts.

    Raises:
        InputError: if a checkpoint cannot be used, a training was trained on a case of its fold, or a case has changed
            since the data was read; or if logits are not finite.
    """
    members, scores = MemberScores(names if len(names) > 1 else ()), dict[str, Scores]()
    models = list[dict[str, Any]]()
    for index, fold in enumerate(folds):
        ensemble = load_ensemble(find_models(fold.trainings), device)
        refuse_trained_cases(fold, ensemble)
        scores |= score_fold(fold, ensemble, members, data, device)
        models += map(describe_model, ensemble.members)
        cases = counted(len(fold.cases), "case")
        logger.info(f"fold {index}: {cases} scored by models that were not trained on this fold")
    fold_of = {name: index for index, fold in enumerate(folds) for name in fold.cases}
    by_name = {name: scores[name] for name in sorted(scores)}
    return CrossValidation(by_name, dict(sorted(fold_of.items())), members, models)


def describe_model(member: Member) -> dict[str, Any]:
    """Return the name of a training's folder, its model's identity and the options that it predicts with."""
    name = TrainingDir.of_checkpoint(member.checkpoint).path.name
    return {"name": name, **member.identity, "setting": PredictionSetting.of_config(member.config).to_dict()}


def score_fold(
    fold: Fold, ensemble: Ensemble, members: MemberScores, data: Data, device: torch.device
) -> dict[str, Scores]:
    """Return the scores of the cases of a fold by its models together; add those of each model alone to `members`."""

    def predict(case: CachedCase) -> Labels:
        require_same({case.name: case.content}, data.contents)
        label, of_members = predict_averaged(ensemble.predictors, case.image, case.mean, case.std)
        members.add(case.name, of_members, case.label)
        return label

    try:
        with kernel_selection(ensemble.first.config):
            return score_cases(predict, data.folder, fold.cases, device=device, full=True)
    except NonFiniteLogitsError as error:
        raise InputError(f"{' and '.join(ensemble.names)} cannot be scored: {error}") from None


def refuse_trained_cases(fold: Fold, ensemble: Ensemble) -> None:
    """Raise InputError if a model was trained on a case of the fold, or does not say its cases."""
    for member in ensemble.members:
        trained = member.state.get("cases", {}).get("train")
        if trained is None or (seen := sorted({*fold.cases} & {*trained})):
            what = "does not say which cases it was trained on" if trained is None else f"was trained on {seen[0]}"
            raise InputError(f"{member.checkpoint} {what}, so it cannot score this fold; train it again")
