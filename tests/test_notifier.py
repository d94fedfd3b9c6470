"""`--notify`: one JSON per notice, posted to a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import SWEEP, notices_at

from trainable.core.errors import InputError
from tune.driver.recording.notifier import Notifier
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.driver.scheduling.sweep_stopper import SweepStopper
from tune.run.events import Event, EventKind
from tune.run.results import Run
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config


@pytest.fixture
def stopper(tmp_path: Path) -> SweepStopper:
    """That of a sweep whose budget is spent."""
    config = make_sweep_config({**SWEEP, "study": {"trials": 20, "time_budget": "1h"}})
    stopper = SweepStopper(Run(RunDir(tmp_path), config, []), StorageWatch("s3://nowhere"))
    stopper.started -= 4000
    return stopper


def test_a_spent_budget_is_posted_before_the_end_and_only_the_failure_of_a_trial_is(stopper: SweepStopper) -> None:
    with notices_at("/x") as (url, notices):
        with Notifier(url, "mine") as notifier:
            for status in ("complete", "out of memory", "failed"):
                notifier.event(Event(1.0, EventKind.TRIAL_ENDED, "ended: /home/me/case_1", 3, status=status))
            notifier.sweep_ended(stopper.run, stopper)
        assert [(n["event"], n["text"], n["run"], n["best"]) for n in notices] == [
            ("trial_failed", "trial 3 has failed", "mine", None),
            ("budget_spent", "study.time_budget, which is over", "mine", None),
            ("sweep_ended", "stopped by study.time_budget, which is over", "mine", None),
        ]


def test_an_error_is_posted_without_its_text_which_may_name_cases(stopper: SweepStopper) -> None:
    with notices_at("/x") as (url, notices):
        with pytest.raises(KeyError), Notifier(url, "mine"):
            raise KeyError("BraTS2021_00001")
        stopper.error = "the cache of BraTS2021_00001"
        with Notifier(url, "mine") as notifier:
            notifier.sweep_ended(stopper.run, stopper)
        assert [(n["event"], n["text"]) for n in notices] == [
            ("sweep_ended", "stopped by an error, see its output")
        ] * 2


@pytest.mark.parametrize(("status", "why"), [(404, "HTTP 404"), (None, "refused")])
def test_a_post_that_fails_is_said_once_without_the_url(
    status: int | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with notices_at("/secret", status or 200) as (url, notices):
        with Notifier(url if status else "http://127.0.0.1:9/secret", "mine") as notifier:
            for number in (1, 2):
                notifier.event(Event(1.0, EventKind.TRIAL_ENDED, "", number, status="failed"))
        assert len(notices) == (2 if status else 0)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "--notify: the post has failed" in printed
    assert why in printed
    assert "secret" not in printed


@pytest.mark.parametrize("url", ["", "hooks.example.org/x", "file:///etc/passwd", "https://", "http://host:port/x"])
def test_what_is_no_web_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match=r"--notify: expected a URL such as https://HOST/PATH") as error:
        Notifier(url, "mine")
    assert not url or url not in str(error.value).replace("https://HOST", "")
