"""The folder of a training: the name of each file in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_FORMAT = 4  # of the state in a checkpoint; another one cannot be resumed
LATEST, BEST = "latest.pth", "best_model.pth"
CHECKPOINTS = "checkpoints"
MEMBERS = "members"  # the folder in an ensemble's folder that has one folder of a training per model
METRICS = "metrics.csv"
CASE_SCORES = "case_scores.csv"
SPLIT = "split.json"
TEST_SCORES = "test_scores"
# Key of a checkpoint into which `voxtune postprocess` has written options: those that the training had in their place.
TRAINED_OPTIONS = "trained_options"


@dataclass(frozen=True)
class TrainingDir:
    """Paths in the output folder of a training; nothing is read or made."""

    path: Path

    @classmethod
    def of_checkpoint(cls, file: Path) -> TrainingDir:
        """Return the folder that contains the checkpoint's folder `checkpoints`.

        If the checkpoint is in a folder of another name, as after a move, that folder counts as the training's.
        """
        return cls(file.parent.parent if file.parent.name == CHECKPOINTS else file.parent)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def latest(self) -> Path:
        """The checkpoint to resume from: that of the last saved epoch."""
        return self.checkpoints / LATEST

    @property
    def best(self) -> Path:
        """The checkpoint of the best validated epoch; without validation cases, of the last epoch."""
        return self.checkpoints / BEST

    def numbered(self, epoch: int) -> Path:
        """The checkpoint that save_freq keeps of an epoch."""
        return self.checkpoints / f"epoch_{epoch:04d}.pth"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / METRICS

    @property
    def case_scores(self) -> Path:
        """One row per validated epoch and validation case."""
        return self.path / CASE_SCORES

    @property
    def config(self) -> Path:
        """The options of the training, with which another can be started."""
        return self.path / "training_config.json"

    @property
    def split(self) -> Path:
        """The case names of train, val and test."""
        return self.path / SPLIT

    @property
    def skipped_cases(self) -> Path:
        """The bad cases that were left out, one line with the reason per case; empty if there are none."""
        return self.path / "skipped_cases.txt"

    @property
    def predictions(self) -> Path:
        """The folder of the predictions of the test cases."""
        return self.path / "predictions"

    @property
    def test_scores(self) -> Path:
        """The path of the test scores without its ending: .json and .csv are added."""
        return self.path / TEST_SCORES


@dataclass(frozen=True)
class EnsembleDir:
    """Paths in the folder of an ensemble; nothing is read or made."""

    path: Path

    @property
    def members(self) -> Path:
        """The folder that has one folder of a training per member."""
        return self.path / MEMBERS

    def member(self, name: str) -> TrainingDir:
        """The folder of the training of a member."""
        return TrainingDir(self.members / name)

    @property
    def split(self) -> Path:
        """The case names of train, val and test, as they were before train and val were divided into folds."""
        return self.path / SPLIT

    @property
    def cross_validation(self) -> Path:
        """The path of the out-of-fold scores of all cases without its ending: .json and .csv are added."""
        return self.path / "cross_validation"

    @property
    def test_scores(self) -> Path:
        """The path of the test scores of the members together without its ending: .json and .csv are added."""
        return self.path / TEST_SCORES
