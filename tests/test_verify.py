"""verify finds what is lost, duplicated or decided wrongly, from the files in a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SWEEP, make_report, with_case_scores

from trainable.core.errors import InputError
from trainable.data.split import Split, save_split
from trainable.training.training_log import TrainingLog
from tune.driver.recording.recorder import metrics_of
from tune.driver.scheduling.rung_scheduler import RungScheduler
from tune.run.results import read_run
from tune.run.verify import verify
from tune.search.journal import Journal
from tune.search.journal_file import JOURNAL
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five trials, reported in turns: some stopped by ASHA, one running."""
    study = make_sweep_config({**SWEEP, "study": {"trials": 5, "seed": 3}, "train": {"epochs": 4, "val_cases": 2}})
    split = Split(("a", "b"), ("c", "d", "e"), ())
    save_split(split, tmp_path / "split.json")
    (tmp_path / "study.yaml").write_text(dump(study.with_record(split=split.digest())))
    journal = Journal(tmp_path, study)
    logs = [TrainingLog(tmp_path / "trials" / f"{number:04d}") for number in range(5)]
    scheduler = RungScheduler(journal, study, lambda *_: None)
    running = {journal.ask()[0] for _ in logs}
    for epoch in range(1, 5):
        for number in sorted(running):
            if number == 4 and epoch > 2:
                continue
            score = round(0.1 * epoch + 0.07 * (number * 2 % 5), 6)
            report = make_report(epoch, score, end_reason="epochs" if epoch == 4 else "")
            report = with_case_scores(report, ["c", "d"])
            logs[number].write(metrics_of(report), case_rows=report["case_scores"])
            journal.record(number, report)
            if scheduler.decide(number, report) == "STOP" or epoch == 4:
                journal.tell(number)
                running.discard(number)
    return tmp_path


def wrong(run: Path) -> list[str]:
    """The names of the checks that find something, but for those that need checkpoints."""
    return [name.split(",")[0] for name, findings in verify(read_run(run)).items() if findings]


def edit(run: Path, change: Any) -> None:
    """Change the entries of the journal."""
    entries = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    (run / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in change(entries)))


def test_a_run_as_it_should_be(run: Path):
    states = {trial.state.name for trial in read_run(run).trials}
    assert states == {"COMPLETE", "PRUNED", "RUNNING"}
    assert wrong(run) == []


@pytest.mark.parametrize("to", [0, 1])
def test_a_trial_that_goes_back_to_an_earlier_checkpoint(run: Path, to: int):
    """Its scores may differ then, as on a GPU; the decisions stay."""
    study = read_run(run).config
    journal = Journal(run, study)
    [(number, _)] = journal.reattach()
    log, scheduler = TrainingLog(run / "trials" / f"{number:04d}"), RungScheduler(journal, study, lambda *_: None)
    rungs = journal.attrs(number)["rungs"]
    assert journal.progress(number).epoch == 2
    for epoch, score in list({0: 0.0, 1: 0.31, 2: 0.42, 3: 0.43}.items())[to:]:
        report = with_case_scores(make_report(epoch, score), ["c", "d"])
        if epoch == to:
            report = {**(report if to else {"epoch": 0, "end_reason": ""}), "went_back": "damaged"}
        if epoch:
            log.write(metrics_of(report), case_rows=report["case_scores"])
        journal.record(number, report)
        scheduler.decide(number, report)
        assert journal.progress(number).epoch == epoch
        assert wrong(run) == []
    assert journal.progress(number).best_score == journal.trials()[number].intermediate_values[3] == 0.43
    assert {**journal.attrs(number)["rungs"], **rungs} == journal.attrs(number)["rungs"]


def test_a_lost_row_of_metrics(run: Path):
    path = run / "trials" / "0004" / "metrics.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert wrong(run) == ["epochs", "scores per case"]


@pytest.mark.parametrize("damage", [b"\xe9\n", bytes(200)])
def test_a_damaged_file_is_a_finding(run: Path, damage: bytes):
    """As of a disk that lost power; of the journal Optuna itself ignores a last line that is not JSON."""
    with (run / "trials" / "0004" / "metrics.csv").open("ab") as file:
        file.write(damage)
    with (run / JOURNAL).open("ab") as file:
        file.write(damage.strip() + b"\n")
    assert wrong(run) == ["epochs", "scores per case"]
    assert "metrics.csv is damaged; restore it" in verify(read_run(run))["epochs, none lost or duplicated"][0]


def test_another_score_in_metrics(run: Path):
    path = run / "trials" / "0004" / "metrics.csv"
    path.write_text(path.read_text().replace("0.41", "0.42"))
    assert wrong(run) == ["epochs", "scores per case"]


def of_cases(run: Path) -> list[str]:
    return verify(read_run(run))["scores per case, whose means are those of metrics.csv"]


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("2,c,0.41,0.41", "2,c,0.41,0.42", "epoch 2: the mean of dice_TC is 0.415, in metrics.csv it is 0.41"),
        ("2,d,", "2,e,", "epoch 2: scores of 2 cases, expected the 2 that are validated, differing in e, d"),
        (
            "2,d,0.41,0.41,0.41,0.41\n",
            "",
            "epoch 2: scores of 1 cases, expected the 2 that are validated, " + "differing in d",
        ),
        ("2,", "3,", "has no scores of epochs [2]"),
    ],
)
def test_scores_of_cases_that_are_not_those_of_the_epoch(run: Path, old: str, new: str, finding: str):
    path = run / "trials" / "0004" / "case_scores.csv"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    assert wrong(run) == ["scores per case"]
    assert of_cases(run)[0] == f"trial 4: case_scores.csv {finding}"


def test_scores_of_cases_that_are_lost_or_damaged(run: Path):
    (run / "trials" / "0004" / "case_scores.csv").unlink()
    assert of_cases(run) == ["trial 4: case_scores.csv has no scores of epochs [1, 2]"]
    (run / "trials" / "0004" / "case_scores.csv").write_text("epoch,case\n")
    assert "line 1 is damaged" in of_cases(run)[0]


def test_a_kill_may_leave_scores_per_case_of_an_epoch_that_nothing_else_has(run: Path):
    """They are written before metrics.csv, and that before the journal; the trial then repeats the epoch."""
    running = next(trial for trial in read_run(run).trials if trial.status == "interrupted")
    path = run / "trials" / f"{running.number:04d}" / "case_scores.csv"
    path.write_text(path.read_text() + f"{running.epoch + 1},c,0.1,0.2,0.3,0.2\n")
    assert wrong(run) == []


def test_epochs_that_an_older_version_reported_have_no_scores_of_cases(run: Path):
    """Trial 4 went on with this version after its first epoch; the others were there before."""

    def older(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            if "progress" in entry.get("user_attr", {}):
                count = entry["user_attr"]["progress"].pop("case_scores")
                if entry["trial_id"] == 4 and count == 2:
                    entry["user_attr"]["progress"]["case_scores"] = 1
        return entries

    edit(run, older)
    for number in range(4):
        (run / "trials" / f"{number:04d}" / "case_scores.csv").unlink()
    path = run / "trials" / "0004" / "case_scores.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[3:]]))
    assert wrong(run) == []
    path.unlink()
    assert of_cases(run) == ["trial 4: case_scores.csv has no scores of epochs [2]"]


def test_a_lost_score_in_the_journal(run: Path):
    def without_one(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        last = max(index for index, entry in enumerate(entries) if entry["op_code"] == 7 and entry["trial_id"] == 4)
        return entries[:last] + entries[last + 1 :]

    edit(run, without_one)
    assert "epochs" in wrong(run)


def test_a_trial_that_took_less_than_no_time(run: Path):
    """As of a clock that was set back while it ran, by a version that read it."""

    def earlier(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            if (progress := entry.get("user_attr", {}).get("progress")) and entry["trial_id"] == 0:
                progress["seconds"] = -86394.0
        return entries

    edit(run, earlier)
    assert wrong(run) == ["states and scores"]


@pytest.mark.parametrize(("old", "new"), [("STOP", "CONTINUE"), ("CONTINUE", "STOP")])
def test_a_decision_that_the_rung_does_not_explain(run: Path, old: str, new: str):
    def turned(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            for record in entry.get("user_attr", {}).get("rungs", {}).values():
                record["decision"] = {old: new}.get(record["decision"], record["decision"])
        return entries

    edit(run, turned)
    assert "decisions" in wrong(run)


@pytest.mark.parametrize("planted", ["audit", "default"])
def test_a_stop_that_was_not_carried_out_for_no_reason(run: Path, planted: str):
    """Neither is it the default recipe, nor does the audit draw it, as its share is 0."""

    def kept(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            for record in entry.get("user_attr", {}).get("rungs", {}).values():
                if record["decision"] == "STOP":
                    record.update(decision="CONTINUE", kept=planted)
        return entries

    edit(run, kept)
    findings = verify(read_run(run))["decisions, right for the scores at each rung"]
    assert any(f"CONTINUE (kept: {planted})" in finding and "not STOP" in finding for finding in findings)


def test_an_audit_that_the_sweep_did_not_have(run: Path):
    """Its stops would not all have been carried out."""
    text = (run / "study.yaml").read_text()
    (run / "study.yaml").write_text(text.replace("audit: 0.0", "audit: 1.0"))
    assert read_run(run).config.early_stopping.audit == 1.0
    findings = verify(read_run(run))["decisions, right for the scores at each rung"]
    assert "STOP with " in findings[0]
    assert "not CONTINUE (kept: audit)" in findings[0]


def test_a_rung_that_was_passed_undecided(run: Path):
    def without(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            entry for entry in entries if not (entry.get("trial_id") == 0 and "rungs" in entry.get("user_attr", {}))
        ]

    edit(run, without)
    assert "decisions" in wrong(run)


def test_a_stopped_trial_that_is_reported_complete(run: Path):
    def complete(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            if entry["op_code"] == 6 and entry["state"] == 2:
                entry.update(state=1)
        return entries

    edit(run, complete)
    assert "states and scores" in wrong(run)


def test_more_trials_than_requested_and_a_trial_reported_twice(run: Path):
    text = (run / "study.yaml").read_text()
    (run / "study.yaml").write_text(text.replace("trials: 5", "trials: 4"))
    edit(run, lambda entries: [*entries, next(e for e in entries if e["op_code"] == 6 and e["state"] in (1, 2))])
    findings = verify(read_run(run))["trials, none lost or duplicated"]
    assert "5 trials, but study.trials is 4" in findings[0]
    assert "reported to Optuna as ended twice" in findings[1]


def test_a_journal_that_is_missing(run: Path):
    (run / JOURNAL).unlink()
    with pytest.raises(InputError, match="journal.log is missing; restore"):
        verify(read_run(run))
    assert not (run / JOURNAL).exists()


def test_another_split_and_a_journal_that_was_cut(run: Path):
    save_split(Split(("a", "c"), ("b",), ()), run / "split.json")
    edit(run, lambda entries: entries[:1])
    findings = verify(read_run(run))
    assert (
        "is not the split that the sweep began with" in findings["split.json, the split that the sweep began with"][0]
    )
    (lost,) = findings["trials, none lost or duplicated"]
    assert lost == "the journal has no trial for trials/0000, trials/0001, trials/0002, trials/0003, trials/0004"


def test_a_finished_trial_that_is_reported_failed(run: Path):
    def failed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            if entry["op_code"] == 6 and entry["state"] == 1:
                entry.update(state=3, values=None)
        return entries

    edit(run, failed)
    assert "states and scores" in wrong(run)


def test_a_checkpoint_that_is_missing(run: Path):
    def placed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries:
            if "progress" in entry.get("user_attr", {}):
                entry["user_attr"]["progress"]["checkpoint"] = "run-1/nothing"
        return entries

    edit(run, placed)
    assert wrong(run) == ["checkpoints"]


def test_a_trial_that_was_scored_on_other_cases(run: Path):
    config = read_run(run).config
    (run / "study.yaml").write_text(dump(config.with_record(data="0123456789ab")))

    def scored_on(data: str) -> Any:
        def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            for entry in entries:
                if "progress" in entry.get("user_attr", {}) and entry["trial_id"] == 2:
                    entry["user_attr"]["progress"]["data"] = data
            return entries

        return change

    edit(run, scored_on("0123456789ab"))
    assert wrong(run) == []
    edit(run, scored_on("ba9876543210"))
    findings = verify(read_run(run))["cases, those that the sweep began with in every trial"]
    assert findings == ["trial 2 was scored on cases with the hash ba9876543210, expected 0123456789ab"]
