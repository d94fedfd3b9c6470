"""postprocess.json: which prediction options were tried for a model, and what the chosen ones gain."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from trainable.core.brats import REGIONS
from trainable.core.command_name import train_command
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.evaluation.comparison import Comparison, compare_predictions
from trainable.evaluation.metrics import Scores
from trainable.evaluation.prediction_setting import CONFIDENCE, MIN_CHANGED, Choice, PredictionSetting
from trainable.training.training_dir import TrainingDir

VERSION = 1
DICE = tuple(f"dice_{name}" for name in (*REGIONS, "mean"))


@dataclass(frozen=True)
class Record:
    """The content of postprocess.json.

    Attributes:
        models: the epoch of each checkpoint, by its path in the folder.
        metric: the score that decided.
        before, chosen: settings before the first call and now.
        scores_before, scores: Dice of each validation case with these two, out of fold for an ensemble over folds.
        gain: of `scores` over `scores_before`, for each of DICE; as the same cases chose, it is an upper bound.
        tried: one item per candidate, as plain values.
        confidence: of each candidate's interval.
        weights: the hash of each checkpoint's weights, by its path; of others the scores do not hold. Empty in a file
            of an older version, which is known by `models`.
    """

    models: Mapping[str, int]
    metric: str
    before: PredictionSetting
    chosen: PredictionSetting
    scores_before: Mapping[str, Scores]
    scores: Mapping[str, Scores]
    gain: Mapping[str, Mapping[str, float | None]]
    tried: Sequence[Mapping[str, Any]]
    confidence: float
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def helped(self) -> bool:
        """Whether a candidate was taken."""
        return self.chosen != self.before

    @classmethod
    def of(
        cls,
        choice: Choice,
        scored: Mapping[PredictionSetting, Mapping[str, Scores]],
        metric: str,
        models: Mapping[str, Mapping[str, Any]],
    ) -> Self:
        """Return the record of a choice. scored: the scores of each case, by setting. models: identity_of, by path."""
        before, after = scored[choice.before], scored[choice.chosen]
        names = sorted(before)
        gains = {
            name: _plain(compare_predictions(_values(after, name, names), _values(before, name, names)))
            for name in DICE
        }
        tried = [
            {
                "changes": item.setting.changes(item.against),
                "against": item.against.changes(choice.before),
                **_plain(item.comparison),
                "cases_changed": item.changed,
                "taken": item.taken,
            }
            for item in choice.tried
        ]
        epochs, weights = ({path: one[key] for path, one in models.items()} for key in ("epoch", "weights_hash"))
        return cls(
            epochs, metric, choice.before, choice.chosen, before, after, gains, tried, choice.confidence, weights
        )

    def is_of(self, models: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether the scores are of these models. models: see identity_of, by the checkpoint's path."""
        if self.weights:
            return dict(self.weights) == {path: one["weights_hash"] for path, one in models.items()}
        return dict(self.models) == {path: one["epoch"] for path, one in models.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the content as plain values."""
        return {
            "version": VERSION,
            "models": dict(self.models),
            "weights": dict(self.weights),
            "metric": self.metric,
            "before": self.before.to_dict(),
            "chosen": self.chosen.to_dict(),
            "gain": {name: dict(gain) for name, gain in self.gain.items()},
            "confidence": self.confidence,
            "tried": [dict(item) for item in self.tried],
            "scores_before": {name: dict(scores) for name, scores in self.scores_before.items()},
            "scores": {name: dict(scores) for name, scores in self.scores.items()},
        }


def _values(scores: Mapping[str, Scores], metric: str, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return one score of these cases, (cases,)."""
    return np.array([scores[name][metric] for name in names], np.float64)


def _plain(comparison: Comparison) -> dict[str, float | None]:
    """Return a comparison for JSON; what cannot be estimated is None."""
    numbers = {name: getattr(comparison, name) for name in ("difference", "low", "high", "probability")}
    return {name: None if math.isnan(number) else float(number) for name, number in numbers.items()}


def record_file(folder: Path) -> Path:
    """Return the path of postprocess.json in the folder of a training or an ensemble."""
    return folder / "postprocess.json"


def write_record(folder: Path, record: Record) -> None:
    """Write postprocess.json."""
    atomic_write_text(record_file(folder), json.dumps(record.to_dict(), indent=1) + "\n")


def read_record(folder: Path) -> Record | None:
    """Return the content of postprocess.json; None if there is no such file.

    Raises:
        InputError: if it is damaged or of another version.
    """
    path = record_file(folder)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        version = content.pop("version")
        if version != VERSION:
            raise ValueError(f"version {version} instead of {VERSION}")
        before, chosen = (PredictionSetting(**content.pop(name)) for name in ("before", "chosen"))
        return Record(before=before, chosen=chosen, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged or of another version ({error}); remove it, the model's own options are then the start"
        ) from None


def heading(folder: Path, names: Sequence[Sequence[str]], metric: str, start: PredictionSetting) -> str:
    """Return what decides: the number of cases, and out of fold or not. names: the validation cases of each model."""
    cases = {name for of_one in names for name in of_one}
    out_of_fold = ", each predicted by the members of its fold" if any({*of_one} != cases for of_one in names) else ""
    return (
        f"{folder}: {counted(len(cases), 'validation case')}{out_of_fold}, compared by {metric}; "
        f"no test case is opened\nstart: {start}"
    )


def choice_table(choice: Choice) -> str:
    """Return a line per candidate: its gain over the best setting before it, with the interval."""
    width = max(len(item.setting.changes(item.against)) for item in choice.tried)
    lines = [
        f"{len(choice.tried)} candidates, each compared with the best setting before it, and taken if at least "
        f"{MIN_CHANGED} cases differ and the interval of its gain is above 0. The intervals are of "
        f"{choice.confidence:.2%}, so that all {len(choice.tried)} together hold at {CONFIDENCE:.0%}"
    ]
    for item in choice.tried:
        comparison, name = item.comparison, item.setting.changes(item.against)
        gain = "no case differs"
        if item.changed:
            gain = f"{_interval(comparison.difference, comparison.low, comparison.high)}  {differ(item.changed)}"
        lines.append(f"  {name:<{width}}  {gain}{'  taken' * item.taken}")
    return "\n".join(lines)


def differ(cases: int) -> str:
    """Return "1 case differs", or "3 cases differ"."""
    return f"{counted(cases, 'case')} differ{'s' * (cases == 1)}"


def _interval(difference: float, low: float | None, high: float | None) -> str:
    """Return a difference and its interval as text; without one if it cannot be estimated."""
    if low is None or high is None or math.isnan(low):
        return f"{difference:+.4f}"
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def outcome_text(record: Record, folder: Path) -> str:
    """Return what was written into the model, its gain, and which earlier test scores are without it."""
    if not record.helped:
        few = f"; {counted(cases, 'case')} cannot show it" if (cases := len(record.scores)) < MIN_CHANGED else ""
        return f"nothing is shown to help{few}: the model stays as it was, {record.chosen}"
    gain = record.gain[record.metric]
    lines = [
        f"chosen: {record.chosen.changes(record.before)}; {record.metric} "
        f"{_interval(gain['difference'] or 0.0, gain['low'], gain['high'])} on the cases that chose, so rather less on "
        "others",
        f"written into the model, which predicts so from now on; what was tried: {record_file(folder)}",
    ]
    if line := stale_test_scores(folder, record.chosen):
        lines.append(line)
    return "\n".join(lines)


def stale_test_scores(folder: Path, setting: PredictionSetting) -> str:
    """Return a line if the folder has test scores of another setting than the model's; "" if it has none."""
    file = TrainingDir(folder).test_scores.with_suffix(".json")
    if not file.exists():
        return ""
    about = json.loads(file.read_text())
    if all(about.get(name) == value for name, value in setting.to_dict().items()):
        return ""
    return (
        f"{file} has scores without this post-processing; to score the test cases again with it: "
        f"{train_command()} --resume {shlex.quote(str(folder))} --test_only"
    )
