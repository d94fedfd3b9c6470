"""The verbs that analyse a sweep: which options matter, how trials and sweeps differ, and tables for other programs."""

from __future__ import annotations

from trainable.core.logger import logger
from tune.cli.command import RunFolder, app
from tune.run.importance import importances
from tune.run.results import read_run
from tune.terminal.importance_lines import importance_lines


@app.command(epilog="Example: voxtune importance RUN")
def importance(run: RunFolder) -> None:
    """Show which options explain how well trials did, how sure that is, and what was tried how often."""
    result = read_run(run)
    logger.info("\n".join(importance_lines(result, importances(result))))
