"""Posts to a URL when a sweep ends, when its budget is spent and when a trial has failed: `--notify`."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Literal, Self

from trainable.core.logger import logger
from tune.driver.launch.launch_arguments import check_notify
from tune.driver.scheduling.sweep_stopper import SweepStopper
from tune.run.events import Event, EventKind
from tune.run.results import Run

TIMEOUT_SECONDS = 10.0  # of one post
STOPPED_BY_ERROR = "stopped by an error, see its output"
Kind = Literal["sweep_ended", "trial_failed", "budget_spent"]


class Notifier:
    """Posts one JSON per notice, in the background, as a context of an attempt; that it fails is said once.

    The URL may carry a secret: it stays in this process. What is posted leaves the machine: no case, no path, no error.

    Args:
        url: None to post nothing.
        run: the sweep's name in the notices.
    """

    def __init__(self, url: str | None, run: str) -> None:
        """Check the URL.

        Raises:
            InputError: if it is not one of http or https.
        """
        check_notify(url)
        self.url, self.run = url, run
        self.notices: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.thread: threading.Thread | None = None
        self.warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Post if an error ends the context, and wait until all is posted."""
        if error is not None:
            self.post("sweep_ended", STOPPED_BY_ERROR, None)
        if self.thread is not None:
            self.notices.put(None)
            self.thread.join(2 * TIMEOUT_SECONDS)

    def event(self, event: Event) -> None:
        """Post if an event is a trial that has failed for good. A listener of EventLog."""
        if event.kind == EventKind.TRIAL_ENDED and event.status == "failed":
            self.post("trial_failed", f"trial {event.trial} has failed", None)

    def sweep_ended(self, run: Run, stopper: SweepStopper) -> None:
        """Post that an attempt has ended, and before that if its budget is spent.

        run: as it is at the end.
        """
        if run.unfinished and not (stopper.signal or stopper.error) and (spent := stopper.spent_budget()):
            self.post("budget_spent", spent, run)
        self.post("sweep_ended", STOPPED_BY_ERROR if stopper.error else stopper.why_ended(run), run)

    def post(self, kind: Kind, text: str, run: Run | None) -> None:
        """Post one notice, in the background.

        Args:
            kind, text: what has happened.
            run: for its best trial; None to leave that out.
        """
        if self.url is None:
            return
        best = best_trial(run) if run is not None else None
        self.notices.put({"event": kind, "run": self.run, "text": text, "best": best, "time": time.time()})
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, args=(self.url,), name="notify", daemon=True)
            self.thread.start()

    def work(self, url: str) -> None:
        """Post the notices one after the other, until None."""
        while (notice := self.notices.get()) is not None:
            request = urllib.request.Request(
                url, json.dumps(notice).encode(), {"Content-Type": "application/json", "User-Agent": "voxtune"}
            )
            try:
                urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
            except Exception as error:  # also of http.client; the sweep does not depend on it
                self.warn(error)

    def warn(self, error: Exception) -> None:
        """Print once that a post has failed, without the URL, which the text of an error may have."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else type(error).__name__
        status = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else reason
        if not self.warned:
            logger.warning(f"--notify: the post has failed ({status}); the sweep goes on")
        self.warned = True


def best_trial(run: Run) -> dict[str, Any] | None:
    """Return the number, score and epoch of the winner; None as long as no trial has a score."""
    if not run.ranking:
        return None
    best = run.best()
    return {"trial": best.number, run.config.objective.score: best.score, "epoch": best.best_epoch}
