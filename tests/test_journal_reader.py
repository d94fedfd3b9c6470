"""The reader of journals gives what Optuna's own storage gives, field by field."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from helpers import SWEEP, make_report, report_all, start_journal
from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from synthetic_run import make_synthetic_run

from tune.search.journal import Journal
from tune.search.journal_file import CREATE_STUDY, CREATE_TRIAL, JOURNAL, SET_PARAM
from tune.search.journal_reader import load_trials
from tune.spec.sweep_config import make_sweep_config


def read_with_optuna(path: Path, study: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=study, storage=JournalStorage(JournalFileBackend(str(path)))).trials


def test_a_journal_with_trials_in_every_state_is_read_as_optuna_reads_it(tmp_path: Path) -> None:
    """A deleted study of the same name, enqueued, running, pruned, failed, infeasible and imported trials."""
    config = make_sweep_config(SWEEP)
    Journal(tmp_path, config).ask()
    Journal(tmp_path, config, reset=True)
    journal, scheduler = start_journal(tmp_path, config)
    for _ in range(6):
        journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5), make_report(9, 0.6, end_reason="epochs"))
    report_all(journal, scheduler, 1, make_report(1, 0.1))
    report_all(journal, scheduler, 2, {**make_report(1, 0.2), "end_reason": "oom"})
    report_all(journal, scheduler, 3, {**make_report(1, 0.2), "end_reason": "non_finite"})
    states = [journal.tell(number, failed=number == 4) for number in range(5)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    journal.import_trial(journal.trials()[0], journal.trials()[0].params, {"source": "elsewhere trial 0"})
    journal.study.enqueue_trial({"lr": 1e-3})
    found = load_trials(tmp_path / JOURNAL, "voxtune")
    assert [vars(trial) for trial in found] == [vars(t) for t in read_with_optuna(tmp_path / JOURNAL, "voxtune")]
    assert [trial.state.name for trial in found[5:]] == ["RUNNING", "COMPLETE", "WAITING"]
    assert load_trials(tmp_path / JOURNAL, "another") == []


def test_a_run_of_many_trials_is_read_as_optuna_reads_it(tmp_path: Path) -> None:
    path = make_synthetic_run(tmp_path / "run", trials=60, running=3) / JOURNAL
    found = load_trials(path, "voxtune")
    assert len(found) == 60
    assert [vars(trial) for trial in found] == [vars(trial) for trial in read_with_optuna(path, "voxtune")]


@pytest.mark.parametrize("end", ["", '{"op_code": 8, "worker_id"', '{"op_code": 8, "worker_id"\n'])
def test_what_optuna_leaves_out_is_left_out(tmp_path: Path, end: str) -> None:
    """Half a line at the end, a second study of the same name, a param of another kind than an earlier one's."""
    study = {"op_code": CREATE_STUDY, "worker_id": "w", "study_name": "one", "directions": [2]}
    trial = {"op_code": CREATE_TRIAL, "worker_id": "w", "study_id": 0, "datetime_start": "2026-01-01T00:00:00+00:00"}
    entries = [study, study, trial, trial]
    for number, kind in enumerate([FloatDistribution(0, 1), IntDistribution(0, 1)]):
        param = {"trial_id": number, "param_name": "x", "param_value_internal": 1.0}
        entries.append({"op_code": SET_PARAM, "worker_id": "w", **param, "distribution": distribution_to_json(kind)})
    path = tmp_path / JOURNAL
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end)
    found = load_trials(path, "one")
    assert [trial.params for trial in found] == [{"x": 1.0}, {}]
    assert [vars(trial) for trial in found] == [vars(trial) for trial in read_with_optuna(path, "one")]
