"""What voxtune uses of Optuna that is not its public API, each name once."""

from __future__ import annotations

from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, Trial


def trial_id(trial: Trial | FrozenTrial) -> int:
    """Return the id of a trial in its storage, which `Trial(study, id)` takes; it differs from the trial's number."""
    return trial._trial_id


def study_id(study: Study) -> int:
    """Return the id of a study in its storage."""
    return study._study_id


def set_intermediate_value(study: Study, trial: Trial, step: int, value: float) -> None:
    """Report a score, which replaces an earlier one of this step; `trial.report` would keep the earlier one."""
    study._storage.set_trial_intermediate_value(trial_id(trial), step, value)


def study_attrs(study: Study) -> dict[str, Any]:
    """Return the system attributes of a study; Optuna itself and optuna-dashboard keep what they note there."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_study_attr(study: Study, key: str, value: Any) -> None:
    """Set a system attribute of a study."""
    study._storage.set_study_system_attr(study._study_id, key, value)
