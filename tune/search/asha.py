"""Early stopping whose rungs outlive a crash: ASHA in its stopping variant (Li et al. 2020,
https://arxiv.org/abs/1810.05934), and the median rule (Golovin et al. 2017, https://doi.org/10.1145/3097983.3098043)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tune.spec.sweep_config import EarlyStopping


def cutoff(values: Sequence[float], stopping: EarlyStopping) -> float:
    """The lowest score that goes on, where these were at the rung before; -inf for too few of them."""
    return float(np.quantile(values, stopping.quantile)) if len(values) >= stopping.min_trials else -np.inf
