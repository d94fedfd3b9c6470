"""What voxtune uses of Optuna that is not its public API, each name once."""

from __future__ import annotations

from optuna import Study
from optuna.trial import FrozenTrial, Trial


def trial_id(trial: Trial | FrozenTrial) -> int:
    """Return the id of a trial in its storage, which `Trial(study, id)` attaches to; its number is another one."""
    return trial._trial_id


def set_intermediate_value(study: Study, trial: Trial, step: int, value: float) -> None:
    """Report a score, in place of one that was reported for this step before; `trial.report` would keep that one."""
    study._storage.set_trial_intermediate_value(trial_id(trial), step, value)
