"""The folds of a cross-validation that divides the train and val cases of a split anew."""

from __future__ import annotations

import pytest

from trainable.core.errors import InputError
from trainable.data.split import Split, fold_splits

SPLIT = Split(tuple(f"case_{n:02d}" for n in range(9)), ("case_09", "case_10"), ("case_11", "case_12"))


@pytest.mark.parametrize("folds", [2, 3, 5, 11])
def test_each_train_and_val_case_is_in_one_fold_and_test_stays(folds: int) -> None:
    splits = fold_splits(SPLIT, folds, seed=4)
    assert sorted(name for split in splits for name in split.val) == sorted(SPLIT.train + SPLIT.val)
    sizes = [len(split.val) for split in splits]
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1
    for split in splits:
        assert split.test == SPLIT.test
        assert sorted(split.train + split.val) == sorted(SPLIT.train + SPLIT.val)
        assert split.val == tuple(sorted(split.val))


def test_folds_follow_from_the_seed_and_not_from_the_part_that_a_case_was_in() -> None:
    other = Split(SPLIT.val, SPLIT.train, SPLIT.test)
    assert fold_splits(SPLIT, 3, seed=1) == fold_splits(other, 3, seed=1)
    assert fold_splits(SPLIT, 3, seed=1) != fold_splits(SPLIT, 3, seed=2)


def test_all_cases_of_a_patient_are_in_one_fold() -> None:
    patients = {name: f"patient_{int(name[-2:]) // 3}" for name in SPLIT.names}
    splits = fold_splits(SPLIT, 3, seed=0, patients=patients)
    for split in splits:
        assert not {patients[name] for name in split.train} & {patients[name] for name in split.val}
    assert sum(len(split.val) for split in splits) == 11


@pytest.mark.parametrize("folds", [0, 1, 12])
def test_folds_that_cannot_be_made_are_refused_with_the_number_of_patients(folds: int) -> None:
    with pytest.raises(InputError, match=f"--folds is {folds}; expected 2 to 11, the number of patients"):
        fold_splits(SPLIT, folds, seed=0)
