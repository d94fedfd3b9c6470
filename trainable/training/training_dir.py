"""The folder of a training: the name of each file in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_FORMAT = 4  # of the state in a checkpoint; another one cannot be resumed
LATEST, BEST = "latest.pth", "best_model.pth"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.csv"
SPLIT = "split.json"


@dataclass(frozen=True)
class TrainingDir:
    """Paths in the output folder of a training; nothing is read or made."""

    path: Path

    @classmethod
    def of_checkpoint(cls, file: Path) -> TrainingDir:
        """Return the folder of the training that wrote a checkpoint, also one that was moved out of `checkpoints`."""
        return cls(file.parent.parent if file.parent.name == CHECKPOINTS else file.parent)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def latest(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints / LATEST

    @property
    def best(self) -> Path:
        """The checkpoint of the best validated epoch."""
        return self.checkpoints / BEST

    def numbered(self, epoch: int) -> Path:
        """The checkpoint that save_freq keeps of an epoch."""
        return self.checkpoints / f"epoch_{epoch:04d}.pth"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / METRICS

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
        """The bad cases that were left out, with the reasons."""
        return self.path / "skipped_cases.txt"

    @property
    def predictions(self) -> Path:
        """The predictions of the test cases."""
        return self.path / "predictions"

    @property
    def test_scores(self) -> Path:
        """The scores of the test cases, without the ending .json or .csv."""
        return self.path / "test_scores"
