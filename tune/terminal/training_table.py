"""A live table of trainings that run at the same time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from rich.console import Group
from rich.text import Text

from trainable.core.console import duration
from trainable.core.logger import logger
from tune.run.training_progress import TrainingProgress
from tune.terminal.live_screen import LiveScreen
from tune.terminal.text_lines import as_lines


class TrainingTable(LiveScreen):
    """Shows trainings while they run: on a terminal a table that is redrawn, elsewhere one line per ended training."""

    def __init__(self) -> None:
        super().__init__()
        self.ended_count = self.failed_count = self.wanted_count = 0
        self.epochs_left = self.epochs_at_start = 0

    def refresh(
        self, running: Sequence[TrainingProgress], *, ended: int, failed: int, waiting_epochs: Sequence[int]
    ) -> None:
        """Count trainings, and draw the running ones; nothing is drawn off a terminal.

        Args:
            ended: number of trainings that have ended, those without a model included.
            failed: number of those without a model.
            waiting_epochs: the epochs of each training that is wanted and does not run.
        """
        self.refreshed = time.monotonic()
        self.ended_count, self.failed_count = ended, failed
        self.wanted_count = ended + len(running) + len(waiting_epochs)
        self.epochs_left = sum(waiting_epochs) + sum(item.epochs - item.epoch for item in running)
        self.epochs_at_start = max(self.epochs_at_start, self.epochs_left)
        if self.live is not None:
            size = self.live.console.size
            lines: list[Text | str] = [self.headline(), *progress_lines(running[: size.height - 3])]
            self.live.update(Group(*as_lines(lines, size.width)), refresh=True)

    def headline(self) -> str:
        """Return the counts, the time elapsed and the time left, "?" until an epoch has ended."""
        elapsed, done = time.monotonic() - self.started, self.epochs_at_start - self.epochs_left
        eta = duration(elapsed / done * self.epochs_left) if done > 0 else "?"
        failed = f", {self.failed_count} without a model" if self.failed_count else ""
        counts = f"{self.ended_count} of {self.wanted_count} trainings ended{failed}"
        return f"{counts}; elapsed {duration(elapsed)}, about {eta} left"

    def ended(self, progress: TrainingProgress, error: str, *, only_test: bool = False) -> None:
        """Print a line on a training that has ended; on a terminal, which has the table, only with an error.

        only_test: it had trained before, and has only scored its test cases now.
        """
        if only_test and not error:
            if self.live is None:
                logger.info(f"{progress.name}: done  |  {self.headline()}")
        elif self.live is None or error:
            score = "no score" if progress.best_score is None else f"best {progress.best_score:.4f}"
            line = f"{progress.name}: {error or 'ended'} at epoch {progress.epoch}/{progress.epochs}, {score}"
            logger.info(f"{line}, {duration(progress.seconds)}  |  {self.headline()}")


def progress_lines(running: Collection[TrainingProgress]) -> list[Text]:
    """Return a line per training: epoch reached, best score so far, time of training, what it does, its name."""
    lines = [Text(f"{'epoch':>9} {'best at':>7} {'score':>7} {'time':>8} state    training", "bold")]
    for item in running:
        score = "" if item.best_score is None else f"{item.best_score:.4f}"
        state = "trained" if item.end_reason else "running" if item.epoch else "starts"
        left = f"{f'{item.epoch}/{item.epochs}':>9} {item.best_epoch or '':>7} {score:>7} {duration(item.seconds):>8} "
        line = Text(f"{left}{state:8} {item.name}")
        line.stylize("green" if item.end_reason else "cyan", len(left), len(left) + len(state))
        lines.append(line)
    return lines
