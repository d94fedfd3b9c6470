"""The options of a trained model's prediction, and how to choose among them by the scores of validation cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from trainable.core.config import TrainConfig
from trainable.evaluation.comparison import Comparison, compare_predictions
from trainable.evaluation.metrics import Scores

CONFIDENCE = 0.95  # that no candidate that is taken is without a gain, over all candidates together

MIN_CHANGED = 3  # cases whose score must differ: from one or two nothing can be said about others

# How the network is run: averaged over 8 mirrored volumes, or each voxel in 64 windows instead of 8. Each costs 8 times
# the network's time, so no candidate has both: that would cost 64 times.
MIRROR = (False, True)
OVERLAPS = (0.5, 0.75)
# Voxels, of 1 mm^3 in BraTS: the size up to which BraTS 2023 does not count a lesion, and ever more cautious ones.
MIN_COMPONENTS = (0, 50, 200, 1000)
# Voxels: winners of BraTS took 200 to 500; below, a few false voxels in a case without ET score 0 instead of 1.
ET_THRESHOLDS = (0, 50, 100, 200, 500)


@dataclass(frozen=True)
class PredictionSetting:
    """The options of this name: those of `TrainConfig` that change predictions and need no other training."""

    mirror: bool
    overlap: float
    min_component: int
    et_threshold: int

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the options."""
        return [option.name for option in fields(cls)]

    @classmethod
    def of_config(cls, config: TrainConfig) -> Self:
        """Return the setting in a config."""
        return cls(config.mirror, config.overlap, config.min_component, config.et_threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return asdict(self)

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Return a config with these options."""
        return config.model_copy(update=self.to_dict())

    def __str__(self) -> str:
        """Return all options as text: "mirror false, overlap 0.5, min_component 0, et_threshold 0"."""
        return ", ".join(f"{name} {str(value).lower()}" for name, value in self.to_dict().items())

    def changes(self, before: PredictionSetting) -> str:
        """Return the options that differ from another setting's, as text: "mirror true, et_threshold 200"."""
        old = before.to_dict()
        return ", ".join(f"{name} {str(value).lower()}" for name, value in self.to_dict().items() if value != old[name])


@dataclass(frozen=True)
class Tried:
    """A candidate, compared with the setting that was the best before it.

    Attributes:
        setting, against: the two.
        comparison: of the candidate with `against`, at the confidence of one of all candidates.
        changed: number of cases whose score differs.
        taken: whether it is the new best setting.
    """

    setting: PredictionSetting
    against: PredictionSetting
    comparison: Comparison
    changed: int
    taken: bool = False


@dataclass(frozen=True)
class Choice:
    """The outcome of `choose_setting`.

    Attributes:
        before, chosen: the setting at the start, and the one at the end; the same if nothing helped.
        tried: all candidates, in their order.
        confidence: of each of their intervals.
    """

    before: PredictionSetting
    chosen: PredictionSetting
    tried: tuple[Tried, ...]
    confidence: float


def candidates(setting: PredictionSetting) -> tuple[tuple[PredictionSetting, ...], ...]:
    """Return the candidates of each stage: other values of one option, the others as in `setting`.

    The first stage is how the network is run, the next ones are the steps of `postprocess` in their order.
    """
    by_network = [*_others(setting, "mirror", MIRROR), *_others(setting, "overlap", OVERLAPS)]
    return (
        tuple(other for other in by_network if not (other.mirror and other.overlap > OVERLAPS[0])),
        tuple(_others(setting, "min_component", MIN_COMPONENTS)),
        tuple(_others(setting, "et_threshold", ET_THRESHOLDS)),
    )


def _others(setting: PredictionSetting, name: str, values: tuple[Any, ...]) -> Iterator[PredictionSetting]:
    """Yield the setting with each of these values of an option, except its own."""
    yield from (replace(setting, **{name: value}) for value in values if value != getattr(setting, name))


def choose_setting(
    start: PredictionSetting, score: Callable[[PredictionSetting], Mapping[str, Scores]], metric: str
) -> Choice:
    """Choose a setting stage by stage: a candidate is taken only if it is shown to be better than the best before it.

    Shown means that the interval of the mean gain, paired by case, is above 0, and that MIN_CHANGED cases differ. The
    error allowed to all candidates together is divided by their number, so that trying many on few cases finds nothing
    by chance. If several are shown in a stage, the one with the largest gain is taken.

    Args:
        start: the setting to start from.
        score: returns the scores of the same cases under any setting.
        metric: the name of the score that decides, such as dice_mean.
    """
    count = sum(map(len, candidates(start)))
    confidence = 1 - (1 - CONFIDENCE) / count
    best, tried = start, list[Tried]()
    for stage in range(len(candidates(start))):
        present = _values(score(best), metric)
        compared = []
        for setting in candidates(best)[stage]:
            values = _values(score(setting), metric)
            comparison = compare_predictions(values, present, confidence=confidence)
            compared.append(Tried(setting, best, comparison, int(np.count_nonzero(values != present))))
        shown = [item for item in compared if item.changed >= MIN_CHANGED and item.comparison.verdict == "better"]
        winner = max(shown, key=lambda item: item.comparison.difference, default=None)
        tried += [replace(item, taken=item is winner) for item in compared]
        best = winner.setting if winner else best
    return Choice(start, best, tuple(tried), confidence)


def _values(scores: Mapping[str, Scores], metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return one score of each case, in the order of the cases' names."""
    return np.array([scores[name][metric] for name in sorted(scores)], np.float64)
