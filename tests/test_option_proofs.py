"""The table of proofs is whole, and the page made from it is up to date; `make proofs` runs it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import option_proofs
import pin_option
import pytest
from option_proofs import PROOFS, ROOT, Proof
from pydantic import ValidationError

from trainable.core.config import TrainConfig
from trainable.core.options import to_dict

BY_A_LINE = [proof for proof in PROOFS if proof.file]


def test_every_option_has_a_proof() -> None:
    assert {proof.option for proof in PROOFS} == set(TrainConfig.model_fields)


@pytest.mark.parametrize("proof", BY_A_LINE, ids=lambda proof: f"{proof.option}-{proof.file}")
def test_line_of_a_proof_is_there_once(proof: Proof) -> None:
    assert option_proofs.changed(proof, ROOT) != option_proofs.source(proof, ROOT).read_text()


@pytest.mark.slow
def test_tests_of_the_proofs_exist() -> None:
    """And the cases of those that are named by one."""
    tests = sorted({option_proofs.node(proof.test) for proof in PROOFS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu or not gpu", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_page_of_options_is_up_to_date() -> None:
    assert option_proofs.PAGE.read_text() == option_proofs.page(), "run `make docs`"


@pytest.mark.slow
@pytest.mark.parametrize(("option", "by_line"), [("poly_power", False), ("batch_dice", True)])
def test_a_test_fails_without_the_effect_and_passes_with_it(option: str, by_line: bool) -> None:
    """Two of them, as `make proofs` runs all."""
    (proof,) = (proof for proof in PROOFS if proof.option == option and bool(proof.file) == by_line)
    assert option_proofs.run([proof.test], proof) == "failed"
    assert option_proofs.run([proof.test]) == "passed"


@pytest.mark.parametrize("option", ["depth", "target_shape", "lr", "nesterov", "resume"])
def test_the_option_that_is_pinned_has_its_default_and_no_other(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"depth": 3, "target_shape": (12, 12, 12), "lr": 0.5, "nesterov": False, "resume": "x"}
    free = TrainConfig(**given)
    expected = {name: getattr(free, name) for name in TrainConfig.model_fields}
    expected[option] = TrainConfig.model_fields[option].default
    monkeypatch.setattr(TrainConfig, pin_option.READ, pin_option.pinned(option))
    config = TrainConfig(**given)  # its checks see what was given: depth 6 would not take this patch
    assert {name: getattr(config, name) for name in TrainConfig.model_fields} == expected
    assert getattr(config.model_copy(update={"seed": 1}), option) == expected[option]
    assert to_dict(config) == to_dict(free)
    with pytest.raises(ValidationError, match="do not fit"):
        TrainConfig(depth=4, target_shape=(12, 12, 12))
