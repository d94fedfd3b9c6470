"""How much the score of a trial goes up and down from one validation to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RECENT_SCORES = 20  # of a trial that count: noise falls with the learning rate, and what is kept of them must be small
ORDER = 3  # of the differences: the third are next to free of a curve's rise, the second are not
MIN_SCORES = ORDER + 1


def score_noise(scores: Sequence[float]) -> float | None:
    """Return the standard deviation of a trial's scores around its learning curve.

    It is the median of their third differences, without sign, as a share of what normal noise of deviation 1 has: a
    rise takes no part in it, and single bad validations hardly do.

    Args:
        scores: of a trial's last validated epochs, in their order.

    Returns:
        None if there are fewer than MIN_SCORES.
    """
    if len(scores) < MIN_SCORES:
        return None
    differences = np.abs(np.diff(np.asarray(scores), ORDER))
    return float(np.median(differences)) / (0.6745 * math.sqrt(math.comb(2 * ORDER, ORDER)))
