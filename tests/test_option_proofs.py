"""The table of proofs is whole, and the page made from it is up to date; `make proofs` runs it."""

from __future__ import annotations

import importlib

import option_proofs
import pytest

from trainable.config import TrainConfig


def test_every_option_has_a_proof() -> None:
    assert {proof.option for proof in option_proofs.PROOFS} == set(TrainConfig.model_fields)


@pytest.mark.parametrize("proof", option_proofs.PROOFS, ids=lambda proof: f"{proof.option}-{proof.file}")
def test_line_of_a_proof_is_there_once_and_its_test_exists(proof: option_proofs.Proof) -> None:
    assert option_proofs.changed(proof) != (option_proofs.ROOT / proof.file).read_text()
    file, test = proof.test.removeprefix("tests/").split(".py::")
    assert callable(getattr(importlib.import_module(file), test))


def test_page_of_options_is_up_to_date() -> None:
    assert option_proofs.PAGE.read_text() == option_proofs.page(), "run `make docs`"


def test_a_test_fails_on_the_changed_line_and_passes_on_the_real_one() -> None:
    """One of them, as `make proofs` runs all."""
    proof = next(proof for proof in option_proofs.PROOFS if proof.option == "poly_power")
    assert option_proofs.run([proof.test], proof) == "failed"
    assert option_proofs.run([proof.test], None) == "passed"
