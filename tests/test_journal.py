"""The journal: what it keeps of each report, and what is reported to Optuna."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import SWEEP, make_report, report_all, start_journal
from optuna.storages.journal import _storage as optuna_journal
from optuna.trial import TrialState

from trainable.core.errors import InputError
from trainable.training.epoch_result import EndReason
from tune.search import journal_file
from tune.search.asha import CONTINUE, RungDecision
from tune.search.journal import Journal, read_trials
from tune.search.journal_file import JOURNAL, truncate_partial_line
from tune.search.trial_progress import BestEpoch, Progress, rung_decisions, stopped_at
from tune.spec.sweep_config import SweepConfig, make_sweep_config


@pytest.fixture
def config() -> SweepConfig:
    return make_sweep_config(SWEEP)


def test_ended_by_itself_is_complete_with_its_best_score(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5), make_report(2, 0.4, 0.5), make_report(9, 0.3, 0.5, "epochs"))
    assert journal.tell(0) == TrialState.COMPLETE
    trial = read_trials(tmp_path)[0]
    assert trial.value == 0.5
    assert trial.user_attrs["progress"]["best"]["epoch"] == 1
    assert trial.user_attrs["progress"]["end_reason"] == "epochs"


def test_not_finite_is_pruned_and_an_error_is_fail(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    journal.ask()
    report_all(
        journal,
        scheduler,
        0,
        make_report(1, 0.5),
        {"epoch": 2, "best_score": 0.5, "best_epoch": 1, "end_reason": "non_finite"},
    )
    assert journal.tell(0) == TrialState.PRUNED
    journal.record_error(1, "Traceback ...\nValueError: boom\n")
    assert journal.tell(1, failed=True) == TrialState.FAIL
    assert read_trials(tmp_path)[1].user_attrs["error"] == "ValueError: boom"


def test_out_of_memory_is_complete_and_infeasible(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    assert report_all(journal, scheduler, 0, {"epoch": 0, "end_reason": "oom"}) == CONTINUE
    assert journal.tell(0) == TrialState.COMPLETE
    trial = read_trials(tmp_path)[0]
    assert trial.value == 0.0
    assert any("gpu_memory" in name and value > 0 for name, value in trial.system_attrs.items())


def test_half_a_line_is_cut_and_the_journal_goes_on(tmp_path: Path, config: SweepConfig, capsys):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 8, "worker_id"')
    (tmp_path / f"{JOURNAL}.lock").symlink_to("nothing")  # Optuna's own lock, left by another program
    again, _ = start_journal(tmp_path, config)
    assert "cut half a line (26 bytes)" in capsys.readouterr().out
    assert len(again.reattach()) == 1
    again.ask()
    assert len(read_trials(tmp_path)) == 2
    assert truncate_partial_line(tmp_path / JOURNAL) == 0


@pytest.mark.parametrize("searcher", ["tpe", "random", "gp", "cmaes"])
def test_each_searcher_learns_over_journals_that_are_reopened(tmp_path: Path, searcher: str):
    """Proposals do not depend on interruptions: the journal reopened before each gives the same ones."""
    config = make_sweep_config(
        {
            "study": {"trials": 9, "seed": 3},
            "searcher": {"type": searcher, "startup_trials": 3},
            "space": {"lr": {"loguniform": [1e-5, 1e-2]}, "weight_decay": {"loguniform": [1e-6, 1e-2]}},
        }
    )
    proposals: list[list[Any]] = []
    for again in (False, True):
        (folder := tmp_path / str(again)).mkdir()
        journal, found = Journal(folder, config), []
        for _ in range(9):
            journal = Journal(folder, config) if again else journal
            number, values = journal.ask()
            found.append(values)
            journal.record(number, make_report(1, 1 - abs(values["lr"] - 3e-3) * 100, end_reason="epochs"))
            journal.tell(number)
        proposals.append(found)
    assert proposals[0] == proposals[1]
    assert len({values["lr"] for values in proposals[0]}) == 9


@pytest.mark.parametrize("searcher", ["tpe", "gp", "cmaes"])
@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
def test_each_searcher_goes_on_after_a_trial_out_of_memory(tmp_path: Path, searcher: str):
    config = make_sweep_config(
        {
            "searcher": {"type": searcher, "startup_trials": 2},
            "space": {"lr": {"loguniform": [1e-5, 1e-2]}, "weight_decay": {"loguniform": [1e-6, 1e-2]}},
        }
    )
    journal = Journal(tmp_path, config)
    for index in range(6):
        number, _ = journal.ask()
        lost = index in (1, 4)
        journal.record(
            number, {"epoch": 0, "end_reason": "oom"} if lost else make_report(1, index / 10, end_reason="epochs")
        )
        journal.tell(number)
    infeasible = [trial.number for trial in read_trials(tmp_path) if any(trial.constraints.values())]
    assert infeasible == [1, 4]


def test_an_epoch_that_is_trained_again_after_a_kill_has_its_new_score(tmp_path: Path, config: SweepConfig):
    journal = Journal(tmp_path, config)
    number, _ = journal.ask()
    journal.record(number, make_report(1, 0.4))
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    assert "progress" in lines[-1]
    (tmp_path / JOURNAL).write_text("".join(lines[:-1]))  # killed between the two
    again = Journal(tmp_path, config)
    again.reattach()
    again.record(number, make_report(1, 0.45))
    (trial,) = read_trials(tmp_path)
    assert trial.intermediate_values == {1: 0.45}
    assert trial.user_attrs["progress"]["best"]["score"] == 0.45


@pytest.mark.parametrize("hung", [False, True])
def test_a_trial_whose_end_is_in_the_journal_is_finished_though_its_process_dies(tmp_path, config, hung):
    journal = Journal(tmp_path, config)
    number, _ = journal.ask()
    journal.record(number, make_report(4, 0.4, end_reason="epochs"))
    if hung:
        journal.record_hung(number, "no report")
    assert journal.tell(number, failed=True) == TrialState.COMPLETE


def test_a_journal_that_is_damaged_is_named(tmp_path: Path, config: SweepConfig):
    Journal(tmp_path, config).ask()
    text = (tmp_path / JOURNAL).read_text()
    for damaged in ("#" + text[1:], text.replace("op_code", "code", 1)):
        (tmp_path / JOURNAL).write_text(damaged)
        with pytest.raises(InputError, match="journal.log is damaged"):
            read_trials(tmp_path)


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(tmp_path, config)
    journal.ask()
    before = read_trials(tmp_path)[0].user_attrs

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.record(0, make_report(1, 0.5))
    assert read_trials(tmp_path)[0].user_attrs == before  # that the epoch is recorded comes last
    journal.record(0, make_report(1, 0.5))
    assert read_trials(tmp_path)[0].intermediate_values == {1: 0.5}
    assert read_trials(tmp_path)[0].user_attrs["progress"]["epoch"] == 1


@pytest.mark.parametrize(
    "name",
    ["CREATE_STUDY", "DELETE_STUDY", "CREATE_TRIAL", "SET_PARAM", "SET_STATE", "SET_INTERMEDIATE_VALUE"]
    + ["SET_USER_ATTR", "SET_SYSTEM_ATTR"],
)
def test_op_codes_are_optunas(name: str):
    optunas = {
        "SET_PARAM": "SET_TRIAL_PARAM",
        "SET_STATE": "SET_TRIAL_STATE_VALUES",
        "SET_INTERMEDIATE_VALUE": "SET_TRIAL_INTERMEDIATE_VALUE",
        "SET_USER_ATTR": "SET_TRIAL_USER_ATTR",
        "SET_SYSTEM_ATTR": "SET_TRIAL_SYSTEM_ATTR",
    }
    assert getattr(journal_file, name) == getattr(optuna_journal.JournalOperation, optunas.get(name, name))


STORED = {
    "epoch": 3, "seconds": 4.5, "end_reason": "patience", "checkpoint": "run-1/0000/checkpoint_000002",
    "best": {"epoch": 2, "score": 0.5, "dice": {"WT": 0.5, "TC": 0.25, "ET": 0.75}}, "device": "cpu",
}  # fmt: skip


def test_progress_is_read_and_written_in_the_same_form():
    """Also the order of the keys, and what another version has added."""
    progress = Progress.from_attrs({"progress": {**STORED, "later": [1]}})
    assert progress.best == BestEpoch(2, 0.5, {"WT": 0.5, "TC": 0.25, "ET": 0.75})
    assert (progress.end_reason, progress.best_score, progress.device) == (EndReason.PATIENCE, 0.5, "cpu")
    assert list(progress.to_attrs().items()) == list({**STORED, "later": [1]}.items())
    assert json.dumps(progress.to_attrs()) == json.dumps({**STORED, "later": [1]})


def test_a_trial_that_has_not_reported_has_no_progress():
    assert Progress.from_attrs({}) == Progress()
    out_of_memory = {"epoch": 0, "seconds": 1.0, "end_reason": "oom", "checkpoint": None, "best": {}}
    assert Progress.from_attrs({"progress": out_of_memory}).to_attrs() == out_of_memory


def test_the_rung_at_which_a_trial_was_stopped():
    attrs = {"rungs": {"1": {"value": 0.5, "decision": "CONTINUE"}, "3": {"value": 0.4, "decision": "STOP"}}}
    assert rung_decisions(attrs) == {1: RungDecision(0.5, "CONTINUE"), 3: RungDecision(0.4, "STOP")}
    assert (stopped_at(attrs), stopped_at({})) == (3, None)


def test_a_space_that_the_trials_exhaust_is_tried_once_each_also_after_an_interruption(tmp_path: Path):
    space = {"depth": {"choice": [3, 4]}, "batch_size": {"randint": [1, 2]}}
    config = make_sweep_config({"study": {"trials": 12}, "searcher": {"type": "random"}, "space": space})
    tried = []
    for number in range(4):
        journal = Journal(tmp_path, config)  # as after each trial of a sweep that is resumed
        journal.enqueue_first([config.space.default_params()])
        handed_out, values = journal.ask()
        assert handed_out == number
        tried.append(values)
        journal.record(number, make_report(9, 0.5, end_reason="epochs"))
        journal.tell(number)
    assert tried[0] == config.space.default_values()
    assert sorted(map(str, tried)) == sorted(map(str, config.space.recipes or []))
    assert config.trials_left(4, Journal(tmp_path, config).tried(read_trials(tmp_path))) == 0
