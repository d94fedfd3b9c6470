"""The folder of a run: the name of each file in it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from trainable.training.training_dir import BEST, CASE_SCORES, METRICS, SPLIT
from tune.run.confirm_dir import ConfirmDir
from tune.search.journal_file import JOURNAL
from tune.spec.sweep_file import RUN_CONFIG


@dataclass(frozen=True)
class RunDir:
    """Paths in a run's folder; nothing is read or created. RunDir(Path()) gives the names relative to any run."""

    path: Path

    @property
    def config(self) -> Path:
        """The sweep's config, study.yaml, in which its launch and resumes also record what they resolved."""
        return self.path / RUN_CONFIG

    @property
    def journal(self) -> Path:
        """The journal of the run's Optuna studies, the first and one per changed space or searcher.

        It is the one source of truth on trials.
        """
        return self.path / JOURNAL

    @property
    def split(self) -> Path:
        """The case names of train, val and test."""
        return self.path / SPLIT

    @property
    def contents(self) -> Path:
        """A hash of images and label of each case of the split, by name, as they were when the run began."""
        return self.path / "cases.json"

    @property
    def worker_lock(self) -> Path:
        """The file on which each process that runs trials holds a shared lock until it ends."""
        return self.path / ".workers"

    @property
    def ray(self) -> Path:
        """The folder in which Ray keeps the checkpoints if the sweep has no --storage."""
        return self.path / "ray"

    @property
    def trials(self) -> Path:
        """The folder of the trials' folders."""
        return self.path / "trials"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files: one folder per trial, named by its recipe; the pictures of the winner."""
        return self.path / "tensorboard"

    @property
    def artifacts(self) -> Path:
        """The files that optuna-dashboard shows beside a trial: `--artifact-dir`."""
        return self.path / "artifacts"

    def trial(self, number: int) -> TrialDir:
        """Return the paths in the folder of trial `number`."""
        return TrialDir(self.trials / f"{number:04d}")

    @property
    def best(self) -> Path:
        """The folder with copies of the winner's recipe and checkpoint."""
        return self.path / "best"

    @property
    def best_config(self) -> Path:
        """The winner's options that differ from the defaults, as `voxtune train --config` reads them."""
        return self.best / "config.yaml"

    @property
    def best_model(self) -> Path:
        """The copy of the winner's checkpoint of its best epoch."""
        return self.best / BEST

    @property
    def events(self) -> Path:
        """What happened in the sweep and when, one line per event."""
        return self.path / "events.jsonl"

    @property
    def live(self) -> Path:
        """What the running trials are doing, rewritten every few seconds."""
        return self.path / "live.json"

    @property
    def suggestions(self) -> Path:
        """The folder of suggested recipes that the driver has not enqueued yet."""
        return self.path / "suggestions"

    @property
    def report(self) -> Path:
        """The report as one HTML file, kept up to date while the sweep runs."""
        return self.path / "report.html"

    @property
    def retrain(self) -> Path:
        """The folder of the retrainings: one output folder of a training per name."""
        return self.path / "retrain"

    @property
    def confirm(self) -> ConfirmDir:
        """The paths in the folder of the confirmation."""
        return ConfirmDir(self.path / "confirm")


@dataclass(frozen=True)
class TrialDir:
    """Paths in a trial's folder, which the driver fills from the trial's reports; nothing is read or created here."""

    path: Path

    @property
    def config(self) -> Path:
        """The trial's recipe, with all options."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per reported epoch."""
        return self.path / METRICS

    @property
    def case_scores(self) -> Path:
        """One row per validated epoch and validation case."""
        return self.path / CASE_SCORES

    @property
    def stdout(self) -> Path:
        """What the trial has printed, over all attempts, and its stacks if it hung."""
        return self.path / "stdout.log"

    @property
    def pictures(self) -> Path:
        """Pictures of the first validation cases at the trial's best epoch, CASE.png, written by its own process."""
        return self.path / "pictures"

    def drawn(self) -> list[Path]:
        """Return the files in `pictures`, which is read; none if the trial has drawn none."""
        return sorted(self.pictures.glob("*.png"))

    @property
    def error(self) -> Path:
        """The traceback of a failed trial; missing for any other trial."""
        return self.path / "error.txt"


def resume_command(run_dir: Path, *, notify: bool = False) -> str:
    """Return the command that goes on with a sweep; notify: with `--notify URL`, whose URL is to be filled in."""
    return f"voxtune resume {shlex.quote(str(run_dir))}{' --notify URL' * notify}"


def confirm_command(run_dir: Path, *, take_best: bool = False, address: str | None = None) -> str:
    """Return the command that confirms a sweep's winner, or goes on with that; the options are those of the verb."""
    options = [*["--take_best"] * take_best, *(["--address", address] if address is not None else [])]
    return shlex.join(["voxtune", "confirm", str(run_dir), *options])
