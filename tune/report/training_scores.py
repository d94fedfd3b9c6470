"""The scores of cases in the folder of a training or of an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainable.core.errors import InputError
from trainable.core.options import option_names
from trainable.core.storage import place_of_data
from trainable.data.cache import cache_folder
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from trainable.training.training_dir import EnsembleDir, TrainingDir
from trainable.training.training_log import read_rows

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores


@dataclass(frozen=True)
class TestScores:
    """What a training's test_scores.json says: the scores of the test cases, the epoch and options of the prediction.

    scores: those of SCORE_COLUMNS at least, by case; cases that the model was trained on all the same are left out.
    epoch: None for an ensemble. of_other_weights: the file's scores are not the model's, so that `scores` is empty.
    """

    __test__ = False  # no test of pytest's

    scores: Mapping[str, Scores] = field(default_factory=dict)
    epoch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    of_other_weights: bool = False


def member_folders(folder: Path) -> list[Path]:
    """Return the folders of an ensemble's members; [] if the folder is of a training."""
    return sorted(path for path in EnsembleDir(folder).members.glob("*") if path.is_dir())


def validation_scores(folder: Path) -> tuple[int, Mapping[str, Scores]]:
    """Return a training's best epoch so far, and the scores of its validation cases; 0 and {} before it, or without.

    Raises:
        InputError: if case_scores.csv is damaged.
    """
    paths = TrainingDir(folder)
    rows = read_rows(paths.metrics)
    epoch = int(rows[-1].get("best_epoch") or 0) if rows else 0
    return epoch, read_case_scores(paths.case_scores).get(epoch, {})


def read_test_scores(folder: Path) -> TestScores:
    """Return the test scores of a training or an ensemble; without scores if its test cases have not been scored.

    Those of other weights than the model has now, as from before it was trained on, are left out.

    Raises:
        InputError: if test_scores.json is damaged.
    """
    path = TrainingDir(folder).test_scores.with_suffix(".json")
    try:
        content = json.loads(path.read_text())
        parts = content.get("parts", {})
        tested = {name: scores for name, scores in content["cases"].items() if parts.get(name, "test") == "test"}
        scores = {name: {column: float(value) for column, value in of.items()} for name, of in tested.items()}
        if missing := [name for name, of in scores.items() if not of.keys() >= set(SCORE_COLUMNS)]:
            raise ValueError(f"no Dice of {missing[0]}")
        same = _are_of_model(content, folder)
    except FileNotFoundError:
        return TestScores()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); restore or delete it") from None
    if not same:
        return TestScores(of_other_weights=True)
    options = {name: content[name] for name in option_names(prediction=True) if name in content}
    return TestScores(scores, content.get("epoch"), options)


def _are_of_model(content: Mapping[str, Any], folder: Path) -> bool:
    """Return whether scores are of the model in a folder; True if it has none any more, to compare with."""
    files = [TrainingDir(member).best for member in member_folders(folder) or [folder]]
    if not all(file.is_file() for file in files):
        return True
    from trainable.training.scored_models import are_of, identities  # here: torch takes seconds to import

    models = identities(files)
    return models is None or are_of(content, models)


def cache_of(folder: Path) -> Path:
    """Return the folder of the preprocessed cases of a training or an ensemble; a missing one if that is not known."""
    training = TrainingDir(next(iter(member_folders(folder)), folder))
    try:
        options = json.loads(training.config.read_text())
        cache_dir, data_dir = options.get("cache_dir"), options.get("data_dir")
        return Path(cache_dir) if cache_dir else cache_folder(place_of_data(data_dir), None)
    except (OSError, ValueError, TypeError, InputError):
        return folder / "no_cache"
