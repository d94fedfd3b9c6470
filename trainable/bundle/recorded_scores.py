"""The Dice of a model's validation and test cases as its folder has them, without predicting anything again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.data.cache import scan_of
from trainable.evaluation.metrics import Scores
from trainable.evaluation.prediction_setting import PredictionSetting
from trainable.postprocess_record import Record, read_record
from trainable.training.case_scores import read_case_scores
from trainable.training.ensemble import Ensemble
from trainable.training.scored_models import are_of
from trainable.training.training_dir import EnsembleDir, TrainingDir

DICE = tuple(f"dice_{name}" for name in (*REGIONS, "mean"))


@dataclass(frozen=True)
class RecordedScores:
    """Dice of cases of one part, as they were scored once.

    Attributes:
        part: val or test.
        source: where they are from, in words.
        setting: the prediction options that they were scored with.
        cases: DICE of each case, by name.
        scans: scan_hash of each case, by name.
        members: of each case the numbers, from 0, of the networks that predicted it: not all for out-of-fold scores.
    """

    part: str
    source: str
    setting: PredictionSetting
    cases: Mapping[str, Scores]
    scans: Mapping[str, str]
    members: Mapping[str, Sequence[int]]

    @property
    def means(self) -> Scores:
        """Mean of each score over the cases."""
        return {name: float(np.mean([scores[name] for scores in self.cases.values()])) for name in DICE}

    @property
    def deviations(self) -> Scores:
        """Standard deviation of each score over the cases; 0 for one case."""
        ddof = int(len(self.cases) > 1)
        return {name: float(np.std([scores[name] for scores in self.cases.values()], ddof=ddof)) for name in DICE}

    def for_record(self, *, with_names: bool) -> dict[str, Any]:
        """Return them as plain values, each case known by its scan_hash, with its name too only if with_names."""
        return {
            "source": self.source,
            "setting": self.setting.to_dict(),
            "means": self.means,
            "cases": [
                {
                    "scan": self.scans[name],
                    **({"case": name} if with_names else {}),
                    "members": list(self.members[name]),
                    **{key: self.cases[name][key] for key in DICE},
                }
                for name in sorted(self.cases)
            ],
        }


def recorded_scores(folder: Path, ensemble: Ensemble) -> list[RecordedScores]:
    """Return the scores of a model's validation cases, then of its test cases; a part without scores is left out.

    Validation scores are those after post-processing if it was chosen for this very model, else those of its best
    epoch. Of an ensemble over folds each case is scored by the members that it validated.
    """
    found = [_validation(folder, ensemble), _test(folder, ensemble)]
    return [with_seen(scores, ensemble) for scores in found if scores is not None and scores.cases]


def with_seen(scores: RecordedScores, ensemble: Ensemble) -> RecordedScores:
    """Return the scores with a source that says how many of the cases the pretrained weights had seen, if any."""
    scans = {name: scores.scans[name] for name in scores.cases}
    seen = ensemble.seen_before({scores.part: scans}).get(scores.part, [])
    note = f"; the pretrained weights had seen {len(seen)} of them" if seen else ""
    return replace(scores, source=scores.source + note)


def validating_members(ensemble: Ensemble) -> dict[str, list[int]]:
    """Return for each validation case the numbers of the members that it validated."""
    members: dict[str, list[int]] = {}
    for index, member in enumerate(ensemble.members):
        for name in member.state.get("cases", {}).get("val", {}):
            members.setdefault(name, []).append(index)
    return members


def scans_by_name(ensemble: Ensemble) -> dict[str, str]:
    """Return the scan_hash of each case that a member knows, by name."""
    parts = [cases for member in ensemble.members for cases in member.state.get("cases", {}).values()]
    return {name: scan_of(content) for cases in parts for name, content in cases.items()}


def _validation(folder: Path, ensemble: Ensemble) -> RecordedScores | None:
    """Return the validation scores; None if there are none."""
    scans, members = scans_by_name(ensemble), validating_members(ensemble)
    record, setting = read_record(folder), PredictionSetting.of_config(ensemble.first.config)
    models = {_relative(member.checkpoint, folder): member.identity for member in ensemble.members}
    if record is not None and record.chosen == setting and record.is_of(models):
        folds = any(len(numbers) < len(ensemble.members) for numbers in members.values())
        how = ", each scored by the networks that were not trained on it" if folds else ""
        source = f"validation cases{how}; they selected the epoch and the post-processing, perhaps the recipe too"
        return RecordedScores("val", source, record.chosen, record.scores, scans, members)
    if len(ensemble.members) > 1:
        path = EnsembleDir(folder).cross_validation.with_suffix(".json")
        if (crossed := _cross_validated_with(path, ensemble, record)) is None:
            return None
        source = "validation cases, each scored by the networks that were not trained on it; they selected the epoch"
        return RecordedScores("val", source, crossed, _scores_in(path, members), scans, members)
    state = ensemble.first.state
    scores = read_case_scores(TrainingDir(folder).case_scores).get(state["epoch"], {})
    source = f"validation cases at epoch {state['epoch']}, which they selected, perhaps the recipe too"
    known = {name: values for name, values in scores.items() if name in members}
    return RecordedScores("val", source, setting, known, scans, members)


def _cross_validated_with(path: Path, ensemble: Ensemble, record: Record | None) -> PredictionSetting | None:
    """Return the options that the members predicted with in a cross_validation.json.

    A file of an older version does not say them: they are those from before post-processing was chosen.

    Args:
        path: of the file.
        ensemble: the members.
        record: of post-processing; None for none.

    Returns:
        None if there is no file, it is of other weights, or the members predicted differently.

    Raises:
        InputError: if it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if not are_of(content, [member.identity for member in ensemble.members]):
            return None
        settings = {PredictionSetting(**member["setting"]) for member in content.get("members", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and score the cases again") from None
    if not settings:
        settings = {PredictionSetting.of_config(ensemble.first.config) if record is None else record.before}
    return settings.pop() if len(settings) == 1 else None


def _relative(file: Path, folder: Path) -> str:
    """Return the path of a model's file in its folder, as text."""
    return str(file.resolve().relative_to(folder.resolve()))


def _scores_in(path: Path, names: Collection[str]) -> dict[str, Scores]:
    """Return DICE of these cases in a JSON of scores.

    Raises:
        InputError: if it is damaged.
    """
    try:
        cases = json.loads(path.read_text())["cases"]
        return {name: {key: float(cases[name][key]) for key in DICE} for name in cases if name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and score the cases again") from None


def _test(folder: Path, ensemble: Ensemble) -> RecordedScores | None:
    """Return the test scores of the model; None if there are none, or if they are of other weights.

    Raises:
        InputError: if test_scores.json is damaged.
    """
    path = TrainingDir(folder).test_scores.with_suffix(".json")
    window = list(ensemble.first.config.target_shape)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        same = are_of(content, [member.identity for member in ensemble.members])
        setting = PredictionSetting(**{name: content[name] for name in PredictionSetting.names()})
        names = [name for name, part in content["parts"].items() if part == "test"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged or of an older version ({error}); score the test cases again") from None
    if not same:
        return None
    if content.get("target_shape", window) != window:  # asked for in that call only; a bundle predicts otherwise
        return None
    scans = scans_by_name(ensemble)
    cases = _scores_in(path, {*names} & scans.keys())
    source = "held-out test cases, by which nothing was selected"
    return RecordedScores("test", source, setting, cases, scans, dict.fromkeys(cases, range(len(ensemble.members))))
