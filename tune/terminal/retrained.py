"""What is printed at the end of a retraining."""

from __future__ import annotations

import shlex

from trainable.core.console import duration
from trainable.core.counted import counted
from trainable.core.logger import logger
from trainable.data.split import load_split
from trainable.training.training_dir import TrainingDir
from tune.run.results import Run
from tune.run.training_progress import TrainingProgress, read_progress
from tune.terminal.next_steps import print_next


def print_retrained(run: Run, folder: TrainingDir, gpus: int) -> None:
    """Print what a retraining of a run has cost, how it scored, where its model is, and what to type next.

    gpus: that trained it together, on all nodes.
    """
    progress = read_progress(folder.path.name, folder.path, 0)
    lines = [f"retrained {folder.path.name}: {cost_text(run, progress, gpus)}", score_text(run, folder, progress)]
    if folder.test_scores.with_suffix(".csv").exists():
        lines.append(f"test cases: {folder.test_scores.with_suffix('.csv')}")
    logger.info("\n".join(["", *lines, f"model: {folder.best}"]))
    path = shlex.quote(str(folder.path))
    print_next(
        [
            (f"voxtune predict {path} CASE_DIR --out DIR", "segment other cases"),
            (f"voxtune report {path}", "its curve and its cases as one HTML file"),
            (f"voxtune export {path} --bundle DIR", "a bundle to give away"),
        ]
    )


def cost_text(run: Run, progress: TrainingProgress, gpus: int) -> str:
    """Return the epochs and the time of a retraining, over all its attempts, each taken to have had so many GPUs."""
    gpu = run.config.resources.gpu_share > 0
    hours = f", {progress.seconds * gpus / 3600:.2f} GPU hours" if gpu else ""
    return f"{counted(progress.epoch, 'epoch')} in {duration(progress.seconds)}{hours}"


def score_text(run: Run, folder: TrainingDir, progress: TrainingProgress) -> str:
    """Return the best validated score of a retraining, and on how many cases."""
    if progress.best_score is None:
        return "nothing was validated: the model is that of the last epoch"
    cases = counted(len(load_split(folder.split).val), "validation case")
    return f"{run.config.objective.score} {progress.best_score:.4f} at epoch {progress.best_epoch}, on {cases}"
