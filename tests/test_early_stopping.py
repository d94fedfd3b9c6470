"""The journal and ASHA without Ray: what is told to Optuna, and decisions that outlive a crash."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from trainable.core.errors import InputError
from tune.driver.scheduler import RungScheduler
from tune.driver.searcher import OptunaSearcher
from tune.run.results import Run, read_run
from tune.search.asha import cutoff
from tune.search.journal import CONTINUE, STOP, Journal, read_trials
from tune.search.journal_file import JOURNAL, truncate_partial_line
from tune.spec.sweep_config import EarlyStopping, SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump

STUDY = {
    "study": {"trials": 20, "seed": 3},
    "early_stopping": {"type": "asha", "grace_period": 1, "reduction_factor": 3},
    "searcher": {"startup_trials": 3},
    "train": {"epochs": 9},
    "space": {
        "lr": {"loguniform": [1e-5, 1e-2]},
        "optimizer": {"choice": ["adam", "sgd"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    },
}


@pytest.fixture
def study() -> SweepConfig:
    return make_sweep_config(STUDY)


def row(epoch: int, score: float, best: float | None = None, end_reason: str = "") -> dict[str, Any]:
    """A report as a trial makes it."""
    best = score if best is None else best
    dice = {f"val_dice_{name}": score for name in ("mean", "WT", "TC", "ET")}
    return {
        "epoch": epoch, **dice, "best_score": best, "best_epoch": epoch if best == score else 1,
        "end_reason": end_reason,
    }  # fmt: skip


def start(run: Path, study: SweepConfig) -> tuple[Journal, RungScheduler]:
    journal = Journal(run, study)
    return journal, RungScheduler(journal, study, lambda *_: None)


def report(journal: Journal, asha: RungScheduler, number: int, *rows: dict[str, Any]) -> str:
    decision = CONTINUE
    for each in rows:
        journal.record(number, each)
        decision = asha.decide(number, each)
        if decision == STOP:
            break
    return decision


def test_cutoff_is_the_quantile_that_the_best_third_passes():
    third, half = EarlyStopping(reduction_factor=3), EarlyStopping(reduction_factor=2)
    assert cutoff([], third) == -np.inf
    assert cutoff([0.5], third) == 0.5
    assert cutoff([0.0, 0.3], third) == pytest.approx(0.2)
    assert cutoff([0.1, 0.2, 0.3, 0.4], half) == pytest.approx(0.25)


def test_the_median_rule_compares_at_each_validated_epoch_once_three_were_there(tmp_path: Path):
    values = {**STUDY, "early_stopping": {"type": "median", "grace_period": 4}, "train": {"epochs": 9, "val_freq": 2}}
    study = make_sweep_config(values)
    assert study.rungs == (4, 6, 8)
    assert cutoff([0.1, 0.9], study.early_stopping) == -np.inf
    assert cutoff([0.1, 0.9, 0.3], study.early_stopping) == pytest.approx(0.3)


def test_rungs_are_below_the_last_epoch(study: SweepConfig):
    assert study.rungs == (1, 3)


def test_the_first_at_a_rung_goes_on_and_a_worse_one_is_stopped(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    for _ in range(3):
        journal.ask()
    assert report(journal, asha, 0, row(1, 0.5)) == CONTINUE
    assert report(journal, asha, 1, row(1, 0.4)) == STOP
    assert report(journal, asha, 2, row(1, 0.6), row(2, 0.1, 0.6), row(3, 0.2, 0.6)) == CONTINUE
    assert asha.rungs == {1: {0: 0.5, 1: 0.4, 2: 0.6}, 3: {2: 0.6}}  # the best score up to the rung


def test_a_trial_that_reaches_its_last_epoch_is_not_compared(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    assert report(journal, asha, 0, row(3, 0.1, end_reason="patience")) == CONTINUE
    assert asha.rungs[3] == {}


def test_stopped_is_pruned_with_its_last_value_at_its_epoch(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    journal.ask()
    report(journal, asha, 0, row(1, 0.5), row(2, 0.7), row(3, 0.6, 0.7))
    assert report(journal, asha, 1, row(1, 0.9), row(2, 0.2, 0.9), row(3, 0.1, 0.3)) == STOP
    assert journal.tell(1) == TrialState.PRUNED
    told = read_trials(tmp_path)[1]
    assert (told.value, told.last_step, told.intermediate_values) == (0.1, 3, {1: 0.9, 2: 0.2, 3: 0.1})


def test_ended_by_itself_is_complete_with_its_best_score(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    report(journal, asha, 0, row(1, 0.5), row(2, 0.4, 0.5), row(9, 0.3, 0.5, "epochs"))
    assert journal.tell(0) == TrialState.COMPLETE
    told = read_trials(tmp_path)[0]
    assert told.value == 0.5
    assert told.user_attrs["progress"]["best"]["epoch"] == 1
    assert told.user_attrs["progress"]["end_reason"] == "epochs"


def test_not_finite_is_pruned_and_an_error_is_fail(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    journal.ask()
    report(journal, asha, 0, row(1, 0.5), {"epoch": 2, "best_score": 0.5, "best_epoch": 1, "end_reason": "non_finite"})
    assert journal.tell(0) == TrialState.PRUNED
    journal.record_error(1, "Traceback ...\nValueError: boom\n")
    assert journal.tell(1, failed=True) == TrialState.FAIL
    assert read_trials(tmp_path)[1].user_attrs["error"] == "ValueError: boom"


def test_out_of_memory_is_complete_and_infeasible(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    assert report(journal, asha, 0, {"epoch": 0, "end_reason": "oom"}) == CONTINUE
    assert journal.tell(0) == TrialState.COMPLETE
    told = read_trials(tmp_path)[0]
    assert told.value == 0.0
    assert any("gpu_memory" in name and value > 0 for name, value in told.system_attrs.items())


def test_interrupted_stays_running_and_is_handed_out_again(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    number, values = journal.ask()
    report(journal, asha, number, row(1, 0.5))
    journal.record(number, row(2, 0.6), "run-1/0000/checkpoint_000001")
    assert journal.tell(number) is None
    again, asha = start(tmp_path, study)
    assert again.reattach() == [(number, values)]
    assert again.progress(number)["checkpoint"] == "run-1/0000/checkpoint_000001"
    assert asha.rungs[1] == {0: 0.5}


def test_a_decision_that_was_not_told_yet_is_told_on_reattaching(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    journal.ask()
    journal.ask()
    report(journal, asha, 0, row(1, 0.5))
    assert report(journal, asha, 1, row(1, 0.1)) == STOP
    report(journal, asha, 2, row(9, 0.5, end_reason="epochs"))
    again, _ = start(tmp_path, study)
    assert [number for number, _ in again.reattach()] == [0]
    states = [trial.state for trial in read_trials(tmp_path)]
    assert states == [TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]


def test_a_repeated_report_changes_nothing_and_gets_its_decision_again(tmp_path: Path, study: SweepConfig):
    journal, asha = start(tmp_path, study)
    journal.ask()
    journal.ask()
    report(journal, asha, 0, row(1, 0.5), row(2, 0.6))
    report(journal, asha, 1, row(1, 0.1))
    before = (tmp_path / JOURNAL).read_bytes()
    assert report(journal, asha, 0, row(2, 0.6)) == CONTINUE
    assert report(journal, asha, 1, row(1, 0.1)) == STOP
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert asha.rungs[1] == {0: 0.5, 1: 0.1}


def test_a_report_recorded_without_its_decision_is_decided_when_repeated(tmp_path: Path, study: SweepConfig):
    """Killed between the two: the restored trial repeats its epoch, and the rung is not skipped."""
    journal, asha = start(tmp_path, study)
    journal.ask()
    journal.ask()
    report(journal, asha, 0, row(1, 0.5))
    journal.record(1, row(1, 0.4))
    again, asha = start(tmp_path, study)
    again.reattach()
    assert report(again, asha, 1, row(1, 0.4)) == STOP


def sweep(run: Path, study: SweepConfig, *, interrupt: tuple[int, ...] = ()) -> list[tuple[Any, ...]]:
    """One trial at a time on a toy objective; the journal is closed and opened again at these trials."""
    journal, asha = start(run, study)
    for index in range(study.budget.trials):
        number, values = journal.ask()
        if index in interrupt:
            journal, asha = start(run, study)
            [(number, values)] = journal.reattach()
        peak = 1 / (1 + abs(np.log10(values["lr"]) + 3)) + 0.1 * values.get("momentum", 0)
        rows = [row(epoch, peak * epoch / 9, end_reason="epochs" if epoch == 9 else "") for epoch in range(1, 10)]
        report(journal, asha, number, *rows)
        journal.tell(number)
    return [(trial.params, trial.state, trial.last_step) for trial in read_trials(run)]


def test_proposals_and_stops_do_not_depend_on_interruptions(tmp_path: Path, study: SweepConfig):
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    whole = sweep(tmp_path / "whole", study)
    assert sweep(tmp_path / "parts", study, interrupt=(0, 4, 5, 11, 19)) == whole
    assert {state for _, state, _ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}
    other = make_sweep_config({**STUDY, "study": {"trials": 20, "seed": 4}})
    assert sweep(tmp_path / "other", other) != whole


def test_half_a_line_is_cut_and_the_journal_goes_on(tmp_path: Path, study: SweepConfig, capsys):
    journal, asha = start(tmp_path, study)
    journal.ask()
    report(journal, asha, 0, row(1, 0.5))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 8, "worker_id"')
    (tmp_path / f"{JOURNAL}.lock").symlink_to("nothing")  # Optuna's own, that something else left
    again, _ = start(tmp_path, study)
    assert "cut half a line (26 bytes)" in capsys.readouterr().out
    assert len(again.reattach()) == 1
    again.ask()
    assert len(read_trials(tmp_path)) == 2
    assert truncate_partial_line(tmp_path / JOURNAL) == 0


@pytest.mark.parametrize("searcher", ["tpe", "random", "gp", "cmaes"])
def test_each_searcher_learns_over_journals_that_are_opened_anew(tmp_path: Path, searcher: str):
    """Proposals do not depend on interruptions: the journal opened anew before each gives the same ones."""
    study = make_sweep_config(
        {
            "study": {"trials": 9, "seed": 3},
            "searcher": {"type": searcher, "startup_trials": 3},
            "space": {"lr": {"loguniform": [1e-5, 1e-2]}, "weight_decay": {"loguniform": [1e-6, 1e-2]}},
        }
    )
    proposals: list[list[Any]] = []
    for again in (False, True):
        (folder := tmp_path / str(again)).mkdir()
        journal, found = Journal(folder, study), []
        for _ in range(9):
            journal = Journal(folder, study) if again else journal
            number, values = journal.ask()
            found.append(values)
            journal.record(number, row(1, 1 - abs(values["lr"] - 3e-3) * 100, end_reason="epochs"))
            journal.tell(number)
        proposals.append(found)
    assert proposals[0] == proposals[1]
    assert len({values["lr"] for values in proposals[0]}) == 9


@pytest.mark.parametrize("searcher", ["tpe", "gp", "cmaes"])
@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
def test_each_searcher_goes_on_after_a_trial_out_of_memory(tmp_path: Path, searcher: str):
    study = make_sweep_config(
        {
            "searcher": {"type": searcher, "startup_trials": 2},
            "space": {"lr": {"loguniform": [1e-5, 1e-2]}, "weight_decay": {"loguniform": [1e-6, 1e-2]}},
        }
    )
    journal = Journal(tmp_path, study)
    for index in range(6):
        number, _ = journal.ask()
        lost = index in (1, 4)
        journal.record(number, {"epoch": 0, "end_reason": "oom"} if lost else row(1, index / 10, end_reason="epochs"))
        journal.tell(number)
    infeasible = [trial.number for trial in read_trials(tmp_path) if any(trial.constraints.values())]
    assert infeasible == [1, 4]


def test_an_epoch_that_a_kill_had_trained_anew_has_its_new_score(tmp_path: Path, study: SweepConfig):
    journal = Journal(tmp_path, study)
    number, _ = journal.ask()
    journal.record(number, row(1, 0.4))
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    assert "progress" in lines[-1]
    (tmp_path / JOURNAL).write_text("".join(lines[:-1]))  # killed between the two
    again = Journal(tmp_path, study)
    again.reattach()
    again.record(number, row(1, 0.45))
    (trial,) = read_trials(tmp_path)
    assert trial.intermediate_values == {1: 0.45}
    assert trial.user_attrs["progress"]["best"]["score"] == 0.45


@pytest.mark.parametrize("hung", [False, True])
def test_a_trial_whose_end_is_on_record_is_finished_though_its_process_dies(tmp_path, study, hung):
    journal = Journal(tmp_path, study)
    number, _ = journal.ask()
    journal.record(number, row(4, 0.4, end_reason="epochs"))
    if hung:
        journal.record_hung(number, "no report")
    assert journal.tell(number, failed=True) == TrialState.COMPLETE


def test_a_journal_that_is_damaged_is_named(tmp_path: Path, study: SweepConfig):
    Journal(tmp_path, study).ask()
    text = (tmp_path / JOURNAL).read_text()
    for damaged in ("#" + text[1:], text.replace("op_code", "code", 1)):
        (tmp_path / JOURNAL).write_text(damaged)
        with pytest.raises(InputError, match="journal.log is damaged"):
            read_trials(tmp_path)


def test_a_score_and_a_cost_are_told_together_and_stopped_trials_stay_pruned(tmp_path: Path):
    study = make_sweep_config(
        {**STUDY, "study": {"trials": 20, "metric": ["val_dice_mean", "seconds"]}, "train": {"epochs": 2}}
    )
    (tmp_path / "study.yaml").write_text(dump(study))
    journal, scheduler = start(tmp_path, study)
    for number, (score, seconds) in enumerate([(0.5, 10.0), (0.4, 30.0), (0.6, 30.0), (0.45, 5.0), (0.1, 1.0)]):
        journal.ask()
        reports = [row(1, score), row(2, score, end_reason="epochs")]
        if report(journal, scheduler, number, {**reports[0], "time_this_iter_s": seconds}) != STOP or number in (1, 3):
            journal.record(number, reports[1])
            journal._running[number].set_user_attr("rungs", {})  # those that are to end by themselves
        journal.tell(number)
    trials = read_trials(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4 + [TrialState.PRUNED]
    assert trials[0].values == [0.5, 10.0]
    assert [trial.number for trial in read_run(tmp_path).pareto_front()] == [3, 0, 2]
    for _ in range(12):
        number, _ = journal.ask()
        journal.record(number, {**row(2, 0.5, end_reason="epochs"), "time_this_iter_s": 7.0})
        journal.tell(number)


def test_trials_beyond_the_startup_wait_for_its_end_where_that_is_asked_for(tmp_path: Path, study: SweepConfig):
    values = {**STUDY, "searcher": {"startup_trials": 3, "wait_for_startup": True}}
    waiting = make_sweep_config(values).model_copy(update={"record": {"cache_dir": "/cache", "attempts": []}})

    class Many:
        def count(self) -> int:
            return 100

    journal = Journal(tmp_path, waiting)
    searcher = OptunaSearcher(journal, Run(tmp_path, waiting, []), Many())  # type: ignore[arg-type]
    handed = [searcher.suggest(str(index)) for index in range(5)]
    assert [spec and spec["number"] for spec in handed] == [0, 1, 2, None, None]
    assert handed[0]["recipe"]["device"] == "cpu"  # resources.gpu is 0
    for index in range(3):
        journal.record(index, row(9, 0.5, end_reason="epochs"))
        searcher.on_trial_complete(str(index))
    assert searcher.suggest("later")["number"] == 3


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, study: SweepConfig, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(tmp_path, study)
    journal.ask()
    before = (tmp_path / JOURNAL).read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.record(0, row(1, 0.5))
    assert (tmp_path / JOURNAL).read_bytes() == before
    journal.record(0, row(1, 0.5))
    assert read_trials(tmp_path)[0].intermediate_values == {1: 0.5}
