"""Other ways to name the winner of a sweep than that of the arm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from search_quality.simulator import Training


def candidates(trainings: dict[int, Training]) -> list[Training]:
    """Return the trainings that trained to their end; if there are none, all."""
    return [training for training in trainings.values() if training.whole] or list(trainings.values())


def first_by(score: Callable[[Training], float], trainings: Iterable[Training]) -> int:
    """Return the number of the training with the highest score, of equal ones the lowest number."""
    return max(trainings, key=lambda training: (score(training), -training.number)).number


def by_best(trainings: dict[int, Training]) -> int:
    """Name the winner by its highest score."""
    return first_by(lambda training: max(training.scores), candidates(trainings))


def by_last(count: int, trainings: dict[int, Training]) -> int:
    """Name the winner by the mean of its last `count` validations."""
    return first_by(lambda training: float(np.mean(training.scores[-count:])), candidates(trainings))


def by_best_window(count: int, trainings: dict[int, Training]) -> int:
    """Name the winner by its best mean of `count` validations in a row, which a single lucky one does not win."""

    def score(training: Training) -> float:
        scores = training.scores
        window = min(count, len(scores))
        return float(np.convolve(scores, np.ones(window) / window, "valid").max()) - (window < count)

    return first_by(score, candidates(trainings))
