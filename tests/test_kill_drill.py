"""The long proofs, by `make test-slow`: 20 kills of a training, and every option with its effect taken away."""

from __future__ import annotations

from pathlib import Path

import kill_drill
import option_proofs
import pytest


@pytest.mark.slow
def test_nothing_is_lost_by_20_kills_and_the_weights_are_those_of_an_untouched_training(tmp_path: Path) -> None:
    assert kill_drill.drill(tmp_path, kills=20, seed=1)


@pytest.mark.slow
def test_each_option_s_test_fails_without_its_effect() -> None:
    assert option_proofs.main([]) == 0
