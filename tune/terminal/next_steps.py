"""What to type next, after a sweep or a retraining."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trainable.core.console import make_console
from trainable.core.logger import logger
from tune.confirmation.status import confirmation_text, confirmed_choice, recipe_name
from tune.run.expected_gain import ended_as_asked
from tune.run.results import Run
from tune.run.run_dir import confirm_command, resume_command


def sweep_steps(run: Run) -> list[tuple[str, str]]:
    """Return up to three commands, each with what it does, for someone who has seen how far a sweep is."""
    folder = shlex.quote(str(run.folder))
    go_on = resume_command(run.folder, notify=run.config.record.notify)
    steps = [(go_on, "go on with the sweep")] * (run.unfinished and not ended_as_asked(run))
    if not run.ranking:
        return [*steps, (f"voxtune show {folder} 0", "why a trial has ended, and the last lines of its log")]
    steps.append((f"voxtune report {folder}", "all of it in one HTML file"))
    default = run.config.space.default_values()
    if not any(trial.finished and trial.values != default for trial in run.ranking):
        return [*steps, (f"voxtune best {folder}", "the best trials, and their recipes")]
    if not confirmation_text(run)[1]:
        steps.append((confirm_command(run.folder), "better than the default, or lucky?"))
    choice = confirmed_choice(run)
    recipe = "it" if choice is None else f"the chosen recipe ({recipe_name(choice[0])})"
    steps.append((f"voxtune retrain {folder}", f"train {recipe} again, score the test cases"))
    return steps[:3]


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print commands below each other, each with what it does behind it, or above it if that does not fit.

    The commands are not broken, so that they can be copied.
    """
    width = max((len(command) for command, _ in steps), default=0)
    lines = [f"  {command:{width}}  {purpose}" for command, purpose in steps]
    if max(map(len, lines), default=0) > make_console().width:
        lines = [line for command, purpose in steps for line in (f"  # {purpose}", f"  {command}")]
    logger.info("\n".join(["next:", *lines]))
