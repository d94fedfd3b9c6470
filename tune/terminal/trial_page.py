"""What `voxtune show` prints of one trial."""

from __future__ import annotations

from trainable.core.brats import REGIONS
from trainable.core.console import duration, make_console, wrap_prose
from trainable.core.logger import logger
from trainable.core.options import format_value, path_options
from tune.analysis.trial_detail import RungResult, TrialDetail
from tune.run.events import EventKind
from tune.run.results import Run
from tune.search.asha import PAUSE, STOP, rung_epochs
from tune.terminal.sparkline import plot
from tune.terminal.sweep_screen import event_line, is_news
from tune.terminal.tables import recipe_table
from tune.terminal.text_lines import as_lines, fit, flow
from tune.terminal.trial_lines import MAX_RUNGS

PLOT_HEIGHT = 6
MAX_PLOT_WIDTH = 100
KEPT = {
    "default": "went on, as the default recipe is protected",
    "audit": "went on, audited instead of stopped",
}


def print_trial(run: Run, detail: TrialDetail) -> None:
    """Print all that is known of a trial of a run, in lines that fit the terminal."""
    console = make_console()
    width = console.width
    title = f"trial {detail.number} of {run.folder.name}: {detail.reason}"
    logger.info(wrap_prose("\n".join([title, *head_lines(detail)])))
    drawn = [*curve_lines(run, detail, min(width, MAX_PLOT_WIDTH)), *rung_lines(detail)]
    for line in as_lines(drawn, width, ascii_only=not console.encoding.startswith("utf")):
        console.print(line)
    if detail.searched:
        console.print()
        console.print(recipe_table(run, run.trial(detail.number)))
    paths = path_options()
    fixed = [f"{name}={format_value(value)}" for name, value in run.config.train.items() if name not in paths]
    events = [event for event in detail.events if is_news(event) or event.kind == EventKind.TRIAL_STARTED]
    lines = flow(["fixed:", *fixed], width, between=" ", indent="    ")
    logger.info("\n".join(["", *lines, *[""] * bool(events), *(fit(event_line(event), width) for event in events)]))
    size = max(map(len, detail.files), default=0) + 1
    logger.info("\n".join(["", *(f"{name + ':':{size}} {path}" for name, path in detail.files.items())]))
    if detail.log:
        logger.info("\n".join(["", "the last lines of its log:", *(fit(line, width) for line in detail.log)]))


def head_lines(detail: TrialDetail) -> list[str]:
    """Return score, time and seed of a trial as lines."""
    lines = []
    if detail.score is not None:
        dice = "  ".join(f"{region} {detail.dice[region]:.4f}" for region in REGIONS if detail.dice)
        lines.append(f"best score {detail.score:.4f} at epoch {detail.best_epoch}: {dice}")
    cost = f", {detail.gpu_hours:.2f} GPU hours" if detail.gpu_hours else ""
    lines.append(f"{duration(detail.seconds)} of training{cost}; seed {detail.seed}")
    return [*lines, *[f"imported from {detail.imported_from}"] * bool(detail.imported_from)]


def curve_lines(run: Run, detail: TrialDetail, width: int) -> list[str]:
    """Return the curve as a plot with a line of its epochs below it; none without a validated epoch."""
    if not detail.curve:
        return []
    rungs = rung_epochs(run.config)
    rungs = rungs if len(rungs) <= MAX_RUNGS else ()
    lines = plot(detail.curve, detail.epochs, width, PLOT_HEIGHT, rungs)
    axis = f"epoch 1{detail.epochs:>{width - 14}}"
    name = f"{run.config.objective.score} by epoch{', with ticks at the rungs' if rungs else ''}"
    return ["", name, *lines, f"{'':7}{axis}"]


def rung_lines(detail: TrialDetail) -> list[str]:
    """Return what was decided at each rung, as lines; none if the trial has reached none."""
    if not detail.rungs:
        return []
    return ["", f"{'rung':>6} {'score':>7} {'needed':>7} {'among':>6}  decision", *map(rung_line, detail.rungs)]


def rung_line(rung: RungResult) -> str:
    """Return what was decided at a rung: the score, what was needed to go on, and among how many trials."""
    needed = "-" if rung.needed is None else f"{rung.needed:.4f}"
    decision = {STOP: "stopped", PAUSE: "paused"}.get(rung.decision) or KEPT.get(rung.kept, "went on")
    return f"{rung.epoch:>6} {rung.value:7.4f} {needed:>7} {rung.among:>6}  {decision}"
