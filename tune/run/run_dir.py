"""The folder of a run: the name of each file in it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from trainable.training.training_dir import BEST, METRICS, SPLIT
from tune.search.journal_file import JOURNAL


@dataclass(frozen=True)
class RunDir:
    """Paths in a run's folder; nothing is read or created. RunDir(Path()) gives the names relative to any run."""

    path: Path

    @property
    def config(self) -> Path:
        """The sweep's config, with what the launch recorded of itself."""
        return self.path / "study.yaml"

    @property
    def journal(self) -> Path:
        """The Optuna study: the one source of truth on trials."""
        return self.path / JOURNAL

    @property
    def split(self) -> Path:
        """The case names of train, val and test."""
        return self.path / SPLIT

    @property
    def worker_lock(self) -> Path:
        """The file on which every process of a trial holds a shared lock."""
        return self.path / ".workers"

    @property
    def ray(self) -> Path:
        """Ray's own storage, with the checkpoints, unless --storage names another."""
        return self.path / "ray"

    @property
    def trials(self) -> Path:
        """The folder of the trials' folders."""
        return self.path / "trials"

    def trial(self, number: int) -> TrialDir:
        """Return the folder of a trial."""
        return TrialDir(self.trials / f"{number:04d}")

    @property
    def best(self) -> Path:
        """The folder of a copy of the winner."""
        return self.path / "best"

    @property
    def best_config(self) -> Path:
        """The winner's recipe."""
        return self.best / "config.yaml"

    @property
    def best_model(self) -> Path:
        """The winner's checkpoint of its best epoch."""
        return self.best / BEST

    @property
    def retrain(self) -> Path:
        """The folder of the retrained winners, each the folder of a training."""
        return self.path / "retrain"


@dataclass(frozen=True)
class TrialDir:
    """Paths in a trial's folder, which the driver writes from the trial's reports; nothing is read or created."""

    path: Path

    @property
    def config(self) -> Path:
        """The recipe."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per reported epoch."""
        return self.path / METRICS

    @property
    def stdout(self) -> Path:
        """What the trial printed."""
        return self.path / "stdout.log"

    @property
    def error(self) -> Path:
        """The traceback of a failed trial."""
        return self.path / "error.txt"


def resume_command(run_dir: Path) -> str:
    """Return the command that goes on with a sweep."""
    return f"voxtune resume {shlex.quote(str(run_dir))}"
