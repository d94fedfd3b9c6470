"""The folder of a confirmation, RUN/confirm: the name of each file in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainable.training.training_dir import TrainingDir


@dataclass(frozen=True)
class ConfirmDir:
    """Paths in the folder of a confirmation; nothing is read or created."""

    path: Path

    @property
    def plan(self) -> Path:
        """What is compared: recipes, seeds, folds, epochs; by it a confirmation goes on."""
        return self.path / "plan.json"

    @property
    def splits(self) -> Path:
        """The folder of the splits of the folds."""
        return self.path / "splits"

    def fold_split(self, fold: int) -> Path:
        """The split of a fold, from 0, whose cases are its val part."""
        return self.splits / f"fold_{fold}.json"

    @property
    def trainings(self) -> Path:
        """The folder of the trainings: one folder per recipe, in it one per seed and fold."""
        return self.path / "trainings"

    def training(self, arm: str, seed: int, fold: int | None) -> TrainingDir:
        """The folder of a recipe's training with a seed; fold: from 0, None without folds."""
        return TrainingDir(self.trainings / arm / f"seed_{seed}{'' if fold is None else f'_fold_{fold}'}")

    @property
    def scores(self) -> Path:
        """One row per recipe, seed, fold, part and case that counts for the verdict, with the Dice of each region."""
        return self.path / "scores.csv"

    @property
    def result(self) -> Path:
        """The verdict and all that it is made of, as JSON."""
        return self.path / "confirm.json"

    @property
    def text(self) -> Path:
        """The verdict as it was printed."""
        return self.path / "verdict.txt"

    @property
    def chosen(self) -> Path:
        """The recipe that was chosen, for `voxtune retrain RUN --config`."""
        return self.path / "chosen.yaml"
