"""Trials imported into a changed space and into a new sweep, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import make_report, make_warm_start, report_all, start_journal
from optuna.trial import TrialState

from trainable.core.errors import InputError
from tune import demo
from tune.report.blocks import Table
from tune.report.overview import result_sentence
from tune.report.rungs import rungs_section
from tune.report.sweep_data import read_sweep
from tune.run.effort import measure_effort
from tune.run.import_trials import change_space, checkpoint_if_present, warm_start
from tune.run.results import read_run
from tune.search.asha import RungDecision
from tune.search.enqueue import enqueue_start
from tune.search.journal import Journal, read_trials
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config
from tune.terminal import outcome

SPACE: dict[str, Any] = {
    "lr": {"loguniform": [1e-4, 1e-2]},
    "optimizer": {"choice": ["adam", "sgd"]},
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
}
RECIPES = [
    {"lr": 3e-4, "optimizer": "adam"},
    {"lr": 5e-3, "optimizer": "adam"},
    {"lr": 2e-3, "optimizer": "sgd", "momentum": 0.92},
    {"lr": 1e-3, "optimizer": "sgd", "momentum": 0.95},
]
RECORD = {"data": "d1", "split": "s1", "attempts": [], "cache_dir": "/cache"}


DROPOUT = {**SPACE, "dropout": {"choice": [0.0, 0.2]}}


def study_values(space: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    values = {
        "study": {"trials": 8},
        "early_stopping": {"grace_period": 1, "reduction_factor": 3},
        "train": {"epochs": 4},
        "searcher": {"startup_trials": 2},
        "resources": {},
        "space": space,
    }
    return {name: {**section, **sections.get(name, {})} for name, section in values.items()}


def study_of(space: dict[str, Any], record: dict[str, Any] = RECORD, **sections: dict[str, Any]) -> SweepConfig:
    return make_sweep_config(study_values(space, **sections)).with_record(**record)


def row(epoch: int, score: float, end_reason: str = "") -> dict[str, Any]:
    dice = {f"val_dice_{name}": score for name in ("mean", "WT", "TC", "ET")}
    best = {"best_score": score, "best_epoch": epoch, "end_reason": end_reason}
    return {"epoch": epoch, **dice, **best, "time_this_iter_s": 2.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Trials 0 complete, 1 stopped early, 2 out of memory, 3 running."""
    folder = tmp_path / "run"
    folder.mkdir()
    study = study_of(SPACE)
    (folder / "study.yaml").write_text(dump(study))
    journal = Journal(folder, study)
    journal.enqueue_first(RECIPES)
    for _ in RECIPES:
        journal.ask()
    journal.record(0, row(4, 0.5, "epochs"), "run-1/0000/checkpoint_000003")
    journal.record(1, row(1, 0.2))
    journal.record_rung(1, 1, RungDecision(0.2, "STOP"))
    journal.record(2, {"epoch": 0, "end_reason": "oom"})
    journal.record(3, row(1, 0.3))
    for number in range(3):
        journal.tell(number)
    return folder


def written(path: Path, space: dict[str, Any], **sections: dict[str, Any]) -> str:
    path.write_text(dump(study_of(space, {}, **sections)))
    return str(path)


def test_a_changed_space_imports_what_is_in_it_under_the_same_numbers(run: Path, tmp_path: Path, capsys):
    space = {**SPACE, "lr": {"loguniform": [1e-4, 3e-3]}, "dropout": {"choice": [0.0, 0.2]}}
    changed = change_space(read_run(run), written(tmp_path / "new.yaml", space), [])
    (run / "study.yaml").write_text(dump(changed))
    assert "imports 3 of 4 trials\n  not trial 1: lr is 0.005, not of 0.0001 to 0.003" in capsys.readouterr().out
    result = read_run(run)
    assert [trial.state.name for trial in result.trials] == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    assert [trial.status for trial in result.trials] == [
        "complete",
        "outside the space",
        "out of memory",
        "interrupted",
    ]
    assert result.trials[0].values == {"lr": 3e-4, "optimizer": "adam", "dropout": 0.0}
    assert (result.trials[0].score, result.trials[0].checkpoint) == (0.5, "run-1/0000/checkpoint_000003")
    frozen = read_trials(run, "voxtune-2")
    assert frozen[2].constraints == {"gpu_memory": 1.0}
    assert frozen[0].intermediate_values == {4: 0.5}
    assert frozen[0].distributions["lr"].high == 3e-3
    journal = Journal(run, changed)
    assert journal.reattach() == [(3, {"lr": 1e-3, "optimizer": "sgd", "momentum": 0.95, "dropout": 0.0})]
    number, values = journal.ask()
    assert number == 4
    assert values["lr"] <= 3e-3


def test_a_kill_before_study_yaml_is_written_changes_nothing(run: Path, tmp_path: Path):
    space = {**SPACE, "lr": {"loguniform": [1e-5, 1e-1]}}
    before = [trial.params for trial in read_trials(run)]
    for _ in range(2):
        changed = change_space(read_run(run), written(tmp_path / "new.yaml", space), [])
    assert [trial.params for trial in read_run(run).trials and read_trials(run)] == before
    assert len(read_trials(run, changed.record.study)) == 4


def test_the_same_space_goes_on_with_the_same_study(run: Path, tmp_path: Path, capsys):
    changed = change_space(read_run(run), written(tmp_path / "new.yaml", SPACE), ["study.trials=20"])
    assert changed.budget.trials == 20
    assert changed.record.study == "voxtune"
    assert "the space is that of" in capsys.readouterr().out


def test_the_same_study_keeps_the_rule_of_its_decisions(run: Path, tmp_path: Path, capsys: Any):
    before = read_run(run).config.early_stopping
    rule = ["early_stopping.value=recent", "early_stopping.min_trials=9", "early_stopping.margin=0.1"]
    rule.append("early_stopping.audit=0.5")
    changed = change_space(read_run(run), written(tmp_path / "new.yaml", SPACE), rule)
    assert changed.early_stopping == before
    assert "early_stopping.audit stays 0.0, by which trials were decided so far, not 0.5" in capsys.readouterr().out
    space = {**SPACE, "lr": {"loguniform": [1e-5, 1e-1]}}
    other = change_space(read_run(run), written(tmp_path / "other.yaml", space), rule).early_stopping
    assert (other.value, other.min_trials, other.margin, other.audit) == ("recent", 9, 0.1, 0.5)


def test_the_same_study_keeps_what_names_its_winner_and_protects_its_default(run: Path, tmp_path: Path):
    old = ["study.rank_by=best", "study.protect_default=false"]
    (run / "study.yaml").write_text(dump(load_sweep_config(str(run / "study.yaml"), old)))
    changed = change_space(read_run(run), written(tmp_path / "new.yaml", SPACE), [])
    assert (changed.objective.rank_by, changed.protect_default) == ("best", False)
    space = {**SPACE, "lr": {"loguniform": [1e-5, 1e-1]}}
    other = change_space(read_run(run), written(tmp_path / "other.yaml", space), [])
    assert (other.objective.rank_by, other.protect_default) == ("late", True)


def test_imported_trials_are_compared_by_the_values_of_the_new_sweep(tmp_path: Path):
    config = study_of(SPACE, early_stopping={"grace_period": 2, "min_trials": 1}, train={"epochs": 6})
    for name in ("run", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "study.yaml").write_text(dump(config))
    journal = Journal(tmp_path / "run", config)
    journal.ask()
    journal.record(0, row(1, 0.5))
    journal.record(0, {**row(2, 0.3), "best_score": 0.5, "best_epoch": 1})
    journal.record_rung(0, 2, RungDecision(0.5, "STOP", "", 0.6, 3))
    journal.tell(0)
    for value, expected in (("recent", RungDecision(0.4, "STOP")), ("best", RungDecision(0.5, "STOP"))):
        new = study_of(SPACE, early_stopping={"grace_period": 2, "value": value}, train={"epochs": 6})
        folder = tmp_path / "new" / value
        folder.mkdir()
        (folder / "study.yaml").write_text(dump(new))
        warm_start(Journal(folder, new), [tmp_path / "run"])
        (imported,) = read_run(folder).trials
        assert imported.rungs == {2: expected}
        assert imported.rungs[2].needed == (None if value == "recent" else 0.6)


def test_what_a_score_means_cannot_change_with_the_space(run: Path, tmp_path: Path):
    file = written(tmp_path / "new.yaml", SPACE, train={"epochs": 8}, early_stopping={"grace_period": 2})
    with pytest.raises(InputError, match=r"grace_period is 2 there, 1 here; train.epochs is 8 there, 4 here"):
        change_space(read_run(run), file, [])


def test_a_warm_start_begins_with_the_ended_trials_of_earlier_runs(run: Path, tmp_path: Path, capsys):
    model = run / "ray" / "run-1" / "0000" / "checkpoint_000003" / "best_model.pth"
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    folder = tmp_path / "new"
    folder.mkdir()
    space = {name: SPACE[name] for name in ("lr", "optimizer")}  # momentum is fixed at its default, 0.9
    study = study_of(space, study={"seed": 7, "trials": 3})
    (folder / "study.yaml").write_text(dump(study))
    journal = Journal(folder, study, reset=True)
    warm_start(journal, [run])
    assert f"warm start from {run}: imports 2 of 3 trials" in capsys.readouterr().out
    result = read_run(folder)
    assert [trial.imported_from for trial in result.trials] == [f"{run} trial 0", f"{run} trial 1"]
    assert (result.best().score, result.best().checkpoint) == (0.5, str(model.parent))
    assert result.recipe(result.best()).seed == 0
    assert result.own_trials == []
    journal.enqueue_first(({"lr": 1e-3, "optimizer": "adam"},))
    assert journal.ask() == (2, {"lr": 1e-3, "optimizer": "adam"})
    assert read_trials(folder)[1].state == TrialState.PRUNED


def test_imported_trials_are_what_the_own_ones_are_compared_with(tmp_path: Path):
    folder = make_warm_start(tmp_path)
    before, config = read_run(tmp_path / "earlier"), read_run(folder).config
    default, winner = before.default_trial, before.best()
    assert default is not None
    journal, scheduler = start_journal(folder, config)
    journal.enqueue_first([config.space.default_params()])
    number, values = journal.ask()
    assert values != config.space.default_values()  # it has been tried
    report_all(journal, scheduler, number, make_report(5, 0.4))
    run = read_run(folder)
    data = read_sweep(run, anonymous=True)
    assert result_sentence(data) == (
        f"Of 1 trial and 12 imported, trial {winner.number} is the best: mean Dice {winner.score:.4f} on the "
        f"validation cases at epoch {winner.best_epoch} of 100; the default recipe reached {default.score:.4f}."
    )
    lines = outcome.found_lines(run, 80)
    assert lines[2].split()[:4] == ["default", "0", f"{default.best_epoch}/100", f"{default.score:.4f}"]
    assert demo.found_lines(run, 40, 0.5, 3)[0].endswith(f"the default recipe {default.score:.4f} (13 trials)")
    section, bar = rungs_section(data), scheduler.rungs.decide(number + 1, 5, 0.0).needed
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [row[:2] + row[6:7] for row in table.rows] == [["epoch\N{NO-BREAK SPACE}5", "1", f"{bar:.4f}"]]


def test_the_own_trial_of_the_default_recipe_counts_before_an_imported_one(tmp_path: Path):
    folder = make_warm_start(tmp_path)
    journal = Journal(folder, read_run(folder).config)
    journal.study.enqueue_trial(journal.config.space.default_params())  # a sampler may draw it too
    number, _ = journal.ask()
    default = read_run(folder).default_trial
    assert default is not None
    assert default.number == number == 12


def test_a_trial_outside_the_space_keeps_its_recipe_and_comes_back_with_its_score(run: Path, tmp_path: Path, capsys):
    before = read_run(run)
    narrow = {**SPACE, "lr": {"loguniform": [1e-4, 4e-4]}}
    for space in (narrow, narrow | {"dropout": {"choice": [0.0, 0.2]}}, SPACE):
        changed = change_space(read_run(run), written(tmp_path / "new.yaml", space), [])
        (run / "study.yaml").write_text(dump(changed))
        result = read_run(run)
        assert [result.recipe(trial) for trial in result.trials] == [before.recipe(trial) for trial in before.trials]
        if space is not SPACE:
            assert [trial.status for trial in result.trials] == ["complete", *["outside the space"] * 3]
    assert "voxtune-4 imports 4 of 4 trials" in capsys.readouterr().out
    assert [trial.status for trial in result.trials] == [trial.status for trial in before.trials]
    assert [trial.score for trial in result.trials] == [trial.score for trial in before.trials]
    frozen = read_trials(run, "voxtune-4")
    assert [trial.values for trial in frozen] == [[0.5], None, [0.0], None]
    assert [trial.constraints for trial in frozen] == [{}, {}, {"gpu_memory": 1.0}, {}]
    assert Journal(run, changed).reattach() == [(3, RECIPES[3])]


def test_another_searcher_gets_all_trials_reported_in_its_own_way(run: Path, tmp_path: Path, capsys):
    file = written(tmp_path / "new.yaml", SPACE, searcher={"type": "gp", "startup_trials": 1})
    changed = change_space(read_run(run), file, [])
    assert "the searcher has changed: the new study voxtune-2 imports 4 of 4" in capsys.readouterr().out
    constraints = [trial.constraints for trial in read_trials(run, "voxtune-2")]
    assert constraints == [{"gpu_memory": 0.0}, {}, {"gpu_memory": 1.0}, {}]
    journal = Journal(run, changed)
    assert journal.ask()[0] == 4  # GPSampler's own proposal


def test_what_ran_out_of_memory_on_a_share_of_a_gpu_may_fit_on_a_larger_one(run: Path, tmp_path: Path, capsys):
    for gpu, imported in ((0.25, 4), (0.5, 4), (1, 3)):
        old = make_sweep_config(study_values(SPACE, resources={"gpu": 0.5})).with_record(**RECORD)
        (run / "study.yaml").write_text(dump(old))
        change_space(read_run(run), written(tmp_path / "new.yaml", DROPOUT, resources={"gpu": gpu}), [])
        output = capsys.readouterr().out
        assert f"imports {imported} of 4 trials" in output
    assert "not trial 2: it ran out of memory with 0.5 of a GPU, here it would have 1" in output


def test_a_share_that_was_measured_at_launch_stays_in_another_space(run: Path, tmp_path: Path, capsys):
    cost = {"metric": ["val_dice_mean", "gpu_seconds"]}
    old = make_sweep_config(study_values(SPACE, resources={"gpu": 0.5}, study=cost)).with_record(**RECORD)
    (run / "study.yaml").write_text(dump(old))
    file = written(tmp_path / "new.yaml", DROPOUT, resources={"gpu": "auto"}, study=cost)
    changed = change_space(read_run(run), file, [])
    assert changed.resources.gpu == 0.5
    assert "resources.gpu: auto stays 0.5" in capsys.readouterr().out
    assert read_trials(run, "voxtune-2")[0].values == [0.5, 1.0]  # 2 seconds of half a GPU


def test_trials_keep_their_gpu_seconds_where_later_ones_take_another_number_of_gpus(run: Path, tmp_path: Path, capsys):
    """Also in the cost that Optuna gets; a trial that goes on has the seconds of both."""
    cost = {"metric": ["val_dice_mean", "gpu_seconds"]}
    old = make_sweep_config(study_values(SPACE, resources={"gpu": 1}, study=cost)).with_record(**RECORD)
    (run / "study.yaml").write_text(dump(old))
    for gpu in (0.5, 0.25):
        file = written(tmp_path / "new.yaml", SPACE, resources={"gpu": gpu}, study=cost)
        changed = change_space(read_run(run), file, [])
        (run / "study.yaml").write_text(dump(changed))
    assert "the number of GPUs per trial has changed: the new study voxtune-3 imports 4 of 4" in capsys.readouterr().out
    assert read_trials(run, "voxtune-3")[0].values == [0.5, 2.0]
    journal = Journal(run, changed)
    journal.reattach()
    journal.record(3, row(2, 0.4))
    result = read_run(run)
    assert [trial.gpu_seconds for trial in result.trials] == [2.0, 2.0, 0.0, 2.5]
    assert measure_effort(result).gpu_hours * 3600 == pytest.approx(6.5)
    assert [trial.cost for trial in result.trials] == [2.0, 2.0, 0.0, 2.5]


def test_a_warm_start_imports_each_trial_once(run: Path, tmp_path: Path, capsys):
    second, third = tmp_path / "second", tmp_path / "third"
    for folder, earlier in ((second, [run]), (third, [run, second, run])):
        folder.mkdir()
        study = study_of(SPACE)
        (folder / "study.yaml").write_text(dump(study))
        warm_start(Journal(folder, study, reset=True), earlier)
    assert [trial.imported_from for trial in read_run(third).trials] == [f"{run} trial {number}" for number in range(3)]
    output = capsys.readouterr().out
    assert f"warm start from {second}: imports 0 of 3 trials\n  not trial 0: it is there already" in output


def test_a_warm_start_from_other_data_is_refused(run: Path, tmp_path: Path):
    study = study_of(SPACE, {**RECORD, "data": "d2"})
    with pytest.raises(InputError, match=r"record.data is d1 there, d2 here: its scores cannot be compared"):
        warm_start(Journal(tmp_path, study), [run])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lr": 1.0}, "lr is 1.0, not of 0.0001 to 0.01"),
        ({"momentum": 0.5}, "momentum is 0.5, always 0.9 here"),  # adam: not searched
        ({"optimizer": "sgd", "momentum": 0.5}, "momentum is 0.5, not of 0.8 to 0.99"),
        ({"depth": 3}, "depth is 3, always 6 here"),
    ],
)
def test_a_recipe_outside_the_space_is_named(change: dict[str, Any], reason: str):
    study = study_of(SPACE)
    recipe = {**study.base_config().model_dump(mode="json"), **change}
    with pytest.raises(ValueError, match=reason):
        study.space.encode_recipe(recipe)


def test_a_trial_without_a_checkpoint_has_none_in_any_folder(run: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "best_model.pth").write_text("another training's")
    monkeypatch.chdir(tmp_path)
    read = read_run(run)
    numbers = [trial.number for trial in read.trials if trial.checkpoint is None]
    assert numbers
    assert [checkpoint_if_present(read, number) for number in numbers] == [None] * len(numbers)


def test_other_priors_and_start_recipes_go_on_with_the_same_study(run: Path, tmp_path: Path, capsys: Any) -> None:
    """They change no range. The recipes of `start:` that no trial has are tried next."""
    space = {**SPACE, "lr": {"loguniform": [1e-4, 1e-2], "prior": {"at": 1e-3}}}
    values = study_values(space) | {"start": [{"lr": 5e-3}, {"optimizer": "sgd", "lr": 7e-3}]}
    (tmp_path / "new.yaml").write_text(dump(make_sweep_config(values)))
    changed = change_space(read_run(run), str(tmp_path / "new.yaml"), [])
    assert "goes on with the same study" in capsys.readouterr().out
    assert changed.record.study == "voxtune"
    assert changed.space.has_prior
    journal = Journal(run, changed)
    enqueue_start(journal.study, changed)
    assert journal.ask() == (4, {"lr": 7e-3, "optimizer": "sgd", "momentum": 0.9})  # trial 1 has the other one


def test_ranges_per_optimizer_import_what_lies_in_them_under_one_name(run: Path, tmp_path: Path, capsys: Any) -> None:
    ranges = [
        {"when": {"optimizer": "sgd"}, "loguniform": [1e-3, 1e-1]},
        {"when": {"optimizer": "adam"}, "loguniform": [1e-5, 1e-3]},
    ]
    changed = change_space(read_run(run), written(tmp_path / "new.yaml", {**SPACE, "lr": ranges}), [])
    (run / "study.yaml").write_text(dump(changed))
    expected = "imports 3 of 4 trials\n  not trial 1: lr is 0.005, not of 1e-05 to 0.001 if optimizer = adam"
    assert expected in capsys.readouterr().out
    assert [trial.values.get("lr") for trial in read_run(run).trials] == [3e-4, None, 2e-3, 1e-3]
    number, values = Journal(run, changed).ask()
    assert number == 4
    low, high = ranges[values["optimizer"] == "adam"]["loguniform"]
    assert low <= values["lr"] <= high
