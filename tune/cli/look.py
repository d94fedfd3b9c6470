"""The verbs that look at a sweep: status, show."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from trainable.core.errors import InputError
from trainable.core.logger import logger
from tune.analysis.json_output.show import show_output
from tune.analysis.json_output.status import status_output
from tune.cli.command import RunFolder, app
from tune.cli.json_flag import Json, print_json
from tune.run.results import read_run


@app.command(epilog="Example: voxtune status RUN --watch")
def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="On a terminal: one screen, until the sweep ends.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="With --watch: read RUN again this often.")] = 2.0,
    show_all: Annotated[bool, typer.Option("--all", help="Each trial, also of a large sweep.")] = False,
    json_: Json = False,
) -> None:
    """Show how far a sweep is, running or not, from any machine that sees RUN."""
    from tune.terminal.status import print_status
    from tune.terminal.status import watch as watch_run

    if not every >= 0.1:  # also for nan
        raise InputError(f"--every {every:g}: expected at least 0.1 seconds")
    result = read_run(run)
    if json_:
        print_json(status_output(result))
        return
    if watch:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            result = watch_run(result, every)
        except KeyboardInterrupt:
            logger.info("no longer watched; the sweep itself is not affected")
            raise typer.Exit(130) from None
    print_status(result, show_all=show_all)


@app.command(epilog="Example: voxtune show RUN 3")
def show(
    run: RunFolder,
    number: Annotated[int, typer.Argument(metavar="N", help="Number of the trial.")],
    json_: Json = False,
) -> None:
    """Show a trial: why it ended, its scores at the rungs, its curve, its recipe, its files, the end of its log."""
    from tune.analysis.trial_detail import trial_detail
    from tune.terminal.trial_page import print_trial

    result = read_run(run)
    detail = trial_detail(result, number)
    if json_:
        print_json(show_output(result, detail))
    else:
        print_trial(result, detail)
