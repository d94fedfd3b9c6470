"""What `voxtune status` prints: how far a sweep is, and its trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from optuna.trial import TrialState
from rich.text import Text

from trainable.core.console import make_console, wrap_prose
from trainable.core.locks import is_locked
from trainable.core.logger import logger
from tune.analysis.outlook import outlook_lines
from tune.analysis.stop_audit import audit_lines
from tune.confirmation.status import confirmation_text
from tune.run.events import Event, read_events, waits_for
from tune.run.expected_gain import ended_as_asked
from tune.run.live_state import LiveState, read_live_state
from tune.run.results import Run, TrialResult, read_run
from tune.run.run_dir import resume_command
from tune.terminal.live_screen import LiveScreen
from tune.terminal.next_steps import print_next, sweep_steps
from tune.terminal.sweep_header import header_lines
from tune.terminal.sweep_screen import ended_recently, sweep_screen
from tune.terminal.text_lines import as_lines
from tune.terminal.trial_lines import TrialLines

MAX_TRIALS = 50  # of a run whose trials are all shown
SHOWN = 15  # of the best and of the last ones of a larger run


def print_status(run: Run, *, show_all: bool = False) -> None:
    """Print how far a sweep is, its trials, how often early stopping is wrong, and what to type next.

    show_all: print all trials, also of a run of more than MAX_TRIALS.
    """
    console = make_console()
    live, events = read_live_state(run.dir.live) if run.driven else None, read_events(run.dir.events)
    head = header_lines(run, live, events, console.width, time.time())
    trials = trial_table(run, live, events, console.width, show_all=show_all)
    for line in as_lines([*head, *trials], console.width, ascii_only=not console.encoding.startswith("utf")):
        console.print(line)
    waits = waits_for(events) if run.driven else ""
    confirmed = "" if run.unfinished and not ended_as_asked(run) else confirmation_text(run)[0]
    prose = filter(None, [waits, run.seen_line(), confirmed, *audit_lines(run), *outlook_lines(run)])
    logger.info(wrap_prose("\n".join(["", *prose])))
    if run.unfinished and not run.driven:
        command = resume_command(run.folder, notify=run.config.record.notify)
        logger.info(f"no process drives it now; go on with: {command}")
    elif not run.unfinished:
        print_next(sweep_steps(run))


def trial_table(
    run: Run, live: LiveState | None, events: Sequence[Event], width: int, *, show_all: bool
) -> list[Text | str]:
    """Return the trials that are shown as lines, the first one empty; none before the first trial."""
    if not run.trials:
        return []
    lines = TrialLines(run, live, width)
    if show_all or len(run.trials) <= MAX_TRIALS:
        return ["", lines.heading(), *lines.draw(run.trials)]
    drawn: list[Text | str] = []
    for title, trials in chosen_trials(run, events).items():
        drawn += ["", Text(title, "italic"), lines.heading(), *lines.draw(trials)]
    return [*drawn, "", f"{len(run.trials)} trials in all: --all shows each"]


def chosen_trials(run: Run, events: Sequence[Event]) -> dict[str, list[TrialResult]]:
    """Return the trials of a large run that are shown, by title: running and waiting, paused, the best, the last."""
    going = [trial for trial in run.trials if trial.state == TrialState.RUNNING and not trial.paused]
    paused = [trial for trial in run.ranking if trial.paused]
    ended = [trial for trial in run.ranking if trial.state != TrialState.RUNNING]
    last = ended_recently(run, events)[:SHOWN]
    parts = {
        ", ".join(f"{status} ({count})" for status, count in Counter(trial.status for trial in going).items()): going,
        f"the best {min(SHOWN, len(paused))} of {len(paused)} that are paused": paused[:SHOWN],
        f"the best {min(SHOWN, len(ended))} of {len(ended)} that have ended with a score": ended[:SHOWN],
        f"the last {len(last)} that have ended": last,
    }
    return {title: trials for title, trials in parts.items() if trials}


def watch(run: Run, seconds: float) -> Run:
    """Show a sweep's screen on a terminal until nothing drives it any more; return the run as it is then.

    Off a terminal nothing is shown meanwhile.

    Args:
        seconds: between two looks at RUN; the journal is read again only if it has grown.
    """
    size = journal_size(run)
    with LiveScreen() as screen:
        while True:
            if screen.live is not None:
                console = screen.live.console
                live, events = read_live_state(run.dir.live), read_events(run.dir.events)
                ascii_only, height = not console.encoding.startswith("utf"), console.size.height - 1
                drawn = sweep_screen(run, live, events, console.size.width, height, ascii_only=ascii_only)
                screen.live.update(drawn, refresh=True)
            if not run.driven:
                return run
            time.sleep(seconds)
            if journal_size(run) != size or not is_locked(run.folder):
                size, run = journal_size(run), read_run(run.folder)


def journal_size(run: Run) -> int:
    """Return the size of a run's journal in bytes, 0 if it is missing; a sweep only appends to it."""
    return run.dir.journal.stat().st_size if run.dir.journal.exists() else 0
