"""A confirmation: which recipes and seeds it trains, what it says, and what it never does with the test cases."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import SPACE, voxtune
from optuna.trial import TrialState

from trainable.core.config import TrainConfig
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.core.option_files import load_options
from trainable.core.options import make_config, to_dict
from trainable.training.case_scores import read_case_scores
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.training_dir import TrainingDir
from tune.analysis.json_output.confirm import ConfirmOutput, confirm_output
from tune.cli.sweeps import confirm_if_asked
from tune.confirm import ConfirmTrainings, confirm, make_plan
from tune.confirmation.export import export_recipe
from tune.confirmation.plan import (
    Arm,
    ConfirmPlan,
    choose_arms,
    default_arm,
    extend_plan,
    load_plan,
    recipe_values,
    save_plan,
    unused_seeds,
)
from tune.confirmation.recipe_arms import read_recipe
from tune.confirmation.report import evaluate_confirmation
from tune.confirmation.scores import ConfirmScores, best_epoch
from tune.confirmation.scores import test_scores as read_test_scores
from tune.confirmation.status import confirmation_line, confirmed_choice, recipe_name
from tune.confirmation.verify import verify_confirmation
from tune.driver.cluster.connection import Cluster
from tune.driver.sweep import launch
from tune.driver.training_set.training_plan import Training, earlier_outcome
from tune.model_bundle import export_model
from tune.retrain import choose_recipe
from tune.run.results import Run, TrialResult, read_run
from tune.run.run_dir import RunDir
from tune.spec.sections import Confirm
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config

PROTOCOL: dict[str, Any] = {"folds": 0, "epochs": 4, "metric": "val_dice_mean", "split": "s", "data": "d"}
PROTOCOL |= {"winner": 1, "top": 1}
WILD = "lr: 1e30\noptimizer: sgd\ngradient_clipping: 0.0\n"  # diverges


def small_config(**study: Any) -> SweepConfig:
    """A sweep over lr, which is not run."""
    return make_sweep_config({"study": {"seed": 3, **study}, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}})


def trial(number: int, score: float | None, lr: float, **changes: Any) -> TrialResult:
    """A trial that has trained to its end."""
    facts: dict[str, Any] = {
        "state": TrialState.COMPLETE, "end_reason": "epochs", "best_epoch": 1, "epoch": 100, "dice": {},
        "values": {"lr": lr}, "seconds": 1.0, "checkpoint": None, "error": "", "seed": 3 + number,
    }  # fmt: skip
    return TrialResult(number=number, score=score, **{**facts, **changes})


def run_of(*trials: TrialResult, **study: Any) -> Run:
    """A run of these trials without a folder."""
    return Run(RunDir(Path("RUN")), small_config(**study), list(trials))


def test_the_default_and_the_best_finished_trials_are_compared_each_recipe_once() -> None:
    run = run_of(
        trial(0, 0.5, 3e-4),  # the default
        trial(1, 0.6, 1e-3),
        trial(2, 0.9, 2e-3, state=TrialState.PRUNED, end_reason=""),  # stopped early: its score is of fewer epochs
        trial(3, 0.7, 4e-3),
        trial(4, 0.65, 4e-3),  # as trial 3
        trial(5, 0.2, 5e-3),
    )
    assert [arm.name for arm in choose_arms(run, 2, [])] == ["default", "trial_0003", "trial_0001"]
    assert [arm.name for arm in choose_arms(run, 9, [])] == ["default", "trial_0003", "trial_0001", "trial_0005"]
    default = default_arm(run)
    assert (default.trial, default.sweep_score) == (0, 0.5)
    with pytest.raises(InputError, match="nothing to confirm"):
        choose_arms(run_of(), 3, [])


def test_the_default_alone_is_not_confirmed_but_compared_with_a_recipe_from_a_file() -> None:
    run = run_of(trial(0, 0.5, 3e-4), trial(1, 0.9, 2e-3, state=TrialState.PRUNED, end_reason=""))
    with pytest.raises(InputError, match="only the default has trained to its end.*such as --recipe nnunet, or add"):
        choose_arms(run, 3, [])
    mine = Arm("mine", recipe_values(run.config.base_config()) | {"lr": 5e-3})
    assert choose_arms(run, 3, [mine]) == (default_arm(run), mine)


def test_a_recipe_from_a_file_competes_under_its_own_name_only_if_it_is_another_one() -> None:
    run, lr = run_of(trial(0, 0.5, 3e-4), trial(1, 0.6, 1e-3)), {"lr": 5e-3}
    base = recipe_values(run.config.base_config())
    assert choose_arms(run, 1, [Arm("mine", base | lr)])[-1] == Arm("mine", base | lr)
    with pytest.raises(InputError, match="there is a recipe named trial_0001 already"):
        choose_arms(run, 1, [Arm("trial_0001", base | lr)])
    with pytest.raises(InputError, match="has the same options as default"):
        choose_arms(run, 1, [Arm("mine", base)])


def test_seeds_follow_from_the_sweep_s_and_none_is_a_trial_s() -> None:
    assert unused_seeds(run_of(trial(0, 0.5, 1e-3)), 3) == (1_000_003, 1_000_004, 1_000_005)
    imported = trial(1, 0.5, 1e-3, seed=1_000_004, imported_from="other trial 7")
    assert unused_seeds(run_of(trial(0, 0.5, 1e-3), imported), 3) == (1_000_003, 1_000_005, 1_000_006)


def test_options_of_the_protocol_in_a_recipe_s_file_are_named_and_not_taken(tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 1e-2\nepochs: 7\nval_freq: 1\n")
    arm = read_recipe(file, small_config().base_config())
    assert arm.name == "mine"
    assert arm.recipe["lr"] == 1e-2
    assert "epochs" not in arm.recipe
    assert f"{file}: the sweep's own values are kept for epochs (100)\n" in capsys.readouterr().out
    file.write_text("lrr: 1\n")
    with pytest.raises(InputError, match="unknown option 'lrr'"):
        read_recipe(file, small_config().base_config())


def test_nnunet_s_recipe_is_shipped_and_keeps_the_sweep_s_network() -> None:
    base = TrainConfig(depth=3, base_channels=4, target_shape=(16, 16, 16), amp="bf16")
    recipe = read_recipe(Path("nnunet"), base).recipe
    expected = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
    expected |= {"gradient_clipping": 12, "scheduler": "poly", "deep_supervision": True, "base_loss": "bce"}
    expected |= {"depth": 3, "base_channels": 4, "target_shape": [16, 16, 16], "amp": "bf16"}
    assert {name: recipe[name] for name in expected} == expected
    with pytest.raises(
        InputError, match=r"--recipe nnunett: no such file \(did you mean nnunet\?\); shipped are nnunet"
    ):
        read_recipe(Path("nnunett"), base)


def test_a_plan_grows_and_never_shrinks_and_its_protocol_stays(tmp_path: Path) -> None:
    a, b, c = (Arm(name, {"lr": lr}) for name, lr in (("default", 1.0), ("trial_0001", 2.0), ("mine", 3.0)))
    begun = ConfirmPlan((a, b), (7, 8), **PROTOCOL)
    assert extend_plan(None, begun, tested=False) == begun
    grown = extend_plan(begun, ConfirmPlan((a, c), (7, 8, 9), **{**PROTOCOL, "winner": 4}), tested=True)
    assert grown == ConfirmPlan((a, b, c), (7, 8, 9), **{**PROTOCOL, "winner": 4}, extended_after_test=True)
    assert extend_plan(grown, replace(begun, arms=(a,), seeds=(7,)), tested=True) == replace(grown, winner=1)
    assert not extend_plan(begun, begun, tested=True).extended_after_test
    assert not extend_plan(begun, replace(begun, seeds=(7, 8, 9)), tested=False).extended_after_test
    for name, value in (("folds", 5), ("epochs", 9), ("metric", "val_dice_ET"), ("split", "x"), ("data", "x")):
        with pytest.raises(InputError, match=f"and it would be {value} now"):
            extend_plan(begun, replace(begun, **{name: value}), tested=False)
    for name, way in (("trial_0001", "give it another name"), ("default", "move RUN/confirm away and start again")):
        with pytest.raises(InputError, match=f"begun with another recipe named {name}; {way}"):
            extend_plan(begun, replace(begun, arms=(Arm(name, {"lr": 5.0}),)), tested=False)
    save_plan(grown, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == grown
    (tmp_path / "plan.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match="expected version 1"):
        load_plan(tmp_path / "plan.json")


def test_a_call_that_asks_for_nothing_new_adds_no_recipe_after_the_ranking_has_changed() -> None:
    before = run_of(trial(0, 0.5, 3e-4), trial(1, 0.6, 1e-3))
    begun = plan_of(before, None, top=1)
    later = run_of(*before.trials, trial(2, 0.7, 2e-3), trial(3, 0.8, 4e-3), trial(4, 0.9, 5e-3))
    changed = extend_plan(begun, plan_of(later, begun), tested=False)
    assert changed.challengers == ("trial_0001", "trial_0004"), "the new winner, and what was begun"
    assert extend_plan(changed, plan_of(later, changed), tested=False) == changed


def plan_of(run: Run, begun: ConfirmPlan | None, top: int | None = None) -> ConfirmPlan:
    """The plan of a call that names no other option."""
    return make_plan(run, begun, [], top=top, seeds=None, folds=None, epochs=None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tops": 1}, "study.confirm.tops is unknown (did you mean top?); expected one of top, seeds, folds, epochs"),
        ({"top": 0}, "study.confirm.top is 0; expected a whole number >= 1"),
        ({"folds": 1}, "study.confirm.folds is 1; expected 0, or a whole number >= 2"),
        (5, "study.confirm is 5; expected keys of a confirmation, such as {top: 3, seeds: 4}"),
    ],
)
def test_wrong_values_of_study_confirm_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        small_config(confirm=value)
    assert message in str(caught.value.problems)


@pytest.mark.parametrize("value", [None, {}, {"top": 2, "seeds": 3, "folds": 5}])
def test_study_confirm_is_kept_in_the_run_s_yaml(tmp_path: Path, value: Any) -> None:
    config = small_config(confirm=value)
    (tmp_path / "a.yaml").write_text(dump(config))
    assert load_sweep_config(tmp_path / "a.yaml").confirm == config.confirm


@pytest.fixture(scope="module")
def swept(cluster: Cluster, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two short trials that ended."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "space.yaml").write_text(SPACE)
    short = ["study.trials=2", "train.epochs=2", "train.patches_per_epoch=8", "early_stopping.type=none"]
    short += ["train.overlap=0"]
    data = [f"train.data_dir={phantoms}", f"train.cache_dir={folder / 'cache'}"]
    launch(load_sweep_config(folder / "space.yaml", [*short, *data]), folder / "run", cluster=cluster)
    return folder / "run"


@pytest.fixture(scope="module")
def confirmed(swept: Path, cluster: Cluster) -> Path:
    """The same with a confirmation of its winner and of a recipe that diverges."""
    run = swept.with_name("confirmed")
    shutil.copytree(swept, run)
    wild = swept.with_name("wild.yaml")
    wild.write_text(WILD)
    confirm(run, top=1, seeds=2, recipes=[wild], cluster=cluster)
    return run


@pytest.fixture
def copy(confirmed: Path, tmp_path: Path) -> Path:
    """A copy of the confirmed run, to be changed."""
    return Path(shutil.copytree(confirmed, tmp_path / "run"))


def rows_of(run: Path) -> list[dict[str, str]]:
    """The rows of scores.csv."""
    with (run / "confirm/scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_confirmation_scores_each_recipe_with_the_same_new_seeds(confirmed: Path) -> None:
    run = read_run(confirmed)
    winner = f"trial_{run.best().number:04d}"
    rows = rows_of(confirmed)
    seeds = {row["seed"] for row in rows}
    assert seeds == {"1000001", "1000002"}
    counted = {(row["arm"], row["seed"], row["part"]) for row in rows}
    assert counted == {(arm, s, part) for arm in ("default", winner) for s in seeds for part in ("val", "test")}
    split = run.split()
    for row in rows:
        paths = run.dir.confirm.training(row["arm"], int(row["seed"]), None)
        assert row["case"] in getattr(split, row["part"])
        if row["part"] == "val":
            scores = read_case_scores(paths.case_scores)[best_epoch(paths)][row["case"]]
        else:
            scores = json.loads(paths.test_scores.with_suffix(".json").read_text())["cases"][row["case"]]
        assert [float(row[name]) for name in ("dice_WT", "dice_mean")] == [scores["dice_WT"], scores["dice_mean"]]
    text = (confirmed / "confirm/verdict.txt").read_text()
    assert "; wild failed: diverged in epoch 1\n" in text
    assert f"validation cases: {recipe_name(winner)} scored " in text
    assert "reported only: nothing was selected by the test cases" in text
    assert "chosen: default; no challenger is shown to be better\n" in text, "one validation case shows nothing"
    assert not any(verify_confirmation(run).values())


def test_the_test_cases_are_scored_after_all_that_is_decided_and_decide_nothing(copy: Path) -> None:
    tested = list(copy.glob("confirm/trainings/*/*/test_scores.json"))
    assert len(tested) == 4
    trained = [path.stat().st_mtime_ns for path in copy.glob("confirm/trainings/*/*/metrics.csv")]
    assert min(path.stat().st_mtime_ns for path in tested) > max(trained)

    run = read_run(copy)
    plan = load_plan(run.dir.confirm.plan)
    assert plan is not None
    errors = {("wild", 0): "diverged in epoch 1"}

    def found() -> Any:
        return evaluate_confirmation(run, plan, ConfirmScores(run.dir.confirm, plan), errors, take_best=False)

    before = found()
    for path in tested:  # planted: what was good is bad now
        content = json.loads(path.read_text())
        for scores in content["cases"].values():
            scores.update({name: 1 - value for name, value in scores.items() if name.startswith("dice_")})
        path.write_text(json.dumps(content))
    after = found()
    assert after.test.comparison.difference == pytest.approx(-before.test.comparison.difference)
    assert (after.val, after.race, after.test.chosen) == (before.val, before.race, "")


def test_the_json_of_a_confirmation_has_the_numbers_of_its_verdicts(confirmed: Path) -> None:
    run = read_run(confirmed)
    plan = load_plan(run.dir.confirm.plan)
    assert plan is not None
    errors = {("wild", 0): "diverged in epoch 1"}
    found = evaluate_confirmation(run, plan, ConfirmScores(run.dir.confirm, plan), errors, take_best=False)
    content = json.loads(confirm_output(run, found).json_text())
    ConfirmOutput.model_validate(content)
    stored = json.loads(run.dir.confirm.result.read_text())
    assert (content["winner"], content["chosen"], content["ended"]) == (run.best().number, "default", stored["ended"])
    for part in ("validation", "test"):
        for score, comparison in stored[part]["comparisons"].items():
            assert content[part]["comparisons"][score] == comparison, (part, score)
        assert [arm["mean"] for arm in content[part]["arms"]] == [arm["mean"] for arm in stored[part]["arms"]]
    assert content["errors"] == ["wild, seed 1000001: diverged in epoch 1"]
    assert content["validation"]["verdict"] == "not shown"
    assert not content["confirmed"]


def test_no_test_is_wanted_before_the_race_has_ended(confirmed: Path) -> None:
    run = read_run(confirmed)
    plan = load_plan(run.dir.confirm.plan)
    assert plan is not None
    begun = ConfirmTrainings(run, replace(plan, seeds=(*plan.seeds, 1_000_009)), run.dir.confirm, _data(run))
    first = begun.wanted({})
    assert len(first) == 3 * 3, "also those that have ended: the process of one may not have returned yet"
    outcomes = {item.name: outcome for item in first if (outcome := earlier_outcome(item)) is not None}
    wanted = begun.wanted(outcomes)
    winner = f"trial_{run.best().number:04d}"
    assert [item.name for item in wanted] == ["default seed_1000009", f"{winner} seed_1000009"]
    assert not any(item.test for item in [*first, *wanted])


def test_test_scores_of_other_weights_count_for_nothing_and_the_cases_are_scored_again(copy: Path) -> None:
    run = read_run(copy)
    paths = run.dir.confirm.training("default", 1_000_001, None)
    item = Training("default", make_config({**load_options(paths.config), "output_dir": paths.path}, ""), test=True)
    assert earlier_outcome(item) is not None
    assert read_test_scores(paths)
    state = load_checkpoint(paths.best)
    state["network"] = {name: tensor + 1 for name, tensor in state["network"].items()}
    save_checkpoint(state, paths.best)
    assert earlier_outcome(item) is None
    assert not read_test_scores(paths)


def _data(run: Run) -> Any:
    """The prepared cases of a run."""
    from trainable.data.prepare import Data

    return Data(Path(str(run.config.record.cache_dir)), run.split())


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_a_larger_one_extends(
    confirmed: Path, copy: Path, cluster: Cluster, capsys
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("confirm/trainings/*/*/metrics.csv")}
    text = (copy / "confirm/verdict.txt").read_text()
    again = confirm(copy, cluster=cluster)
    assert "trainings ended" not in capsys.readouterr().out
    same = text.replace("of confirmed", "of run").replace("/".join(confirmed.parts[1:]), "/".join(copy.parts[1:]))
    assert (copy / "confirm/verdict.txt").read_text() == same
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not again.plan.extended_after_test
    more = confirm(copy, seeds=3, take_best=True, cluster=cluster)
    assert more.val.comparison is not None
    assert more.val.chosen == ("default" if more.val.comparison.difference <= 0 else more.val.winner)
    assert {row["seed"] for row in rows_of(copy)} == {"1000001", "1000002", "1000003"}
    assert "had been scored before this confirmation was extended" in (copy / "confirm/verdict.txt").read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not any(verify_confirmation(read_run(copy)).values())
    with pytest.raises(InputError, match="begun with --folds 0, and it would be 2 now"):
        confirm(copy, folds=2)
    with pytest.raises(InputError, match="begun with --epochs 2, and it would be 9 now"):
        confirm(copy, epochs=9)


def test_the_run_says_whether_its_winner_is_confirmed(swept: Path, copy: Path) -> None:
    before, run = read_run(swept), read_run(copy)
    assert confirmation_line(before) == f"winner not confirmed: `voxtune confirm {swept}`"
    winner = f"trial_{run.best().number:04d}"
    assert confirmation_line(run).startswith(f"winner not confirmed: trial {run.best().number} scored ")
    assert confirmation_line(run).endswith(" the default is chosen")
    export_recipe(run, run.best(), copy.with_name("best.yaml"))
    assert f"# {confirmation_line(run)}\n" in copy.with_name("best.yaml").read_text()
    assert confirmed_choice(run) == ("default", 0)
    assert choose_recipe(run, None, None)[2] == "trial_0000"
    assert choose_recipe(run, run.best().number, None)[2] == winner

    result = run.dir.confirm.result
    content = json.loads(result.read_text())
    result.write_text(json.dumps({**content, "winner": 99}))
    assert "of an earlier ranking, when trial 99 was the winner" in confirmation_line(run)
    assert confirmed_choice(run) is None
    assert choose_recipe(run, None, None)[2] == winner
    nothing = {**content["validation"], "comparisons": {}, "words": "not shown: no score", "winner": ""}
    result.write_text(json.dumps({**content, "validation": nothing}))
    assert choose_recipe(run, None, None)[2] == winner, "the default, which failed, is not chosen"
    result.unlink()
    assert confirmation_line(run) == f"the confirmation has not ended: `voxtune confirm {copy}`"
    result.write_text(json.dumps({**content, "winner": 0}))
    default_won = replace(
        run, trials=[replace(one, score=one.number == 0, late_score=one.number == 0) for one in run.trials]
    )
    assert confirmation_line(default_won).startswith("the winner is the default recipe, and no other is shown")
    better = json.loads(result.read_text())
    better["validation"]["comparisons"]["dice_mean"] |= {"low": 0.01, "high": 0.02}
    better["validation"]["words"] = "better than the default by 0.015 [0.010, 0.020]"
    result.write_text(json.dumps({**better, "chosen_trial": 1}))
    assert confirmation_line(default_won).startswith("another recipe than the winner is confirmed: trial 1 is better")
    result.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        confirmation_line(run)


def test_an_extended_confirmation_says_nothing_until_it_has_ended(copy: Path) -> None:
    run = read_run(copy)
    assert confirmed_choice(run) is not None
    plan = load_plan(run.dir.confirm.plan)
    assert plan is not None
    save_plan(replace(plan, seeds=(*plan.seeds, 1_000_009)), run.dir.confirm.plan)  # then killed
    assert confirmed_choice(run) is None
    assert confirmation_line(run).startswith("the confirmation has not ended; so far: trial ")
    with lock_folder(run.dir.confirm.path):
        assert confirmation_line(run) == "the winner is being confirmed now"


def test_a_sweep_that_ends_by_its_target_is_confirmed_and_one_whose_budget_is_spent_says_how(
    copy: Path, cluster: Cluster, capsys
) -> None:
    run = read_run(copy)
    run.dir.confirm.result.unlink()  # its trainings are there, and need not be trained again
    asked = run.config.model_copy(update={"confirm": Confirm()})
    spent = asked.model_copy(update={"budget": asked.budget.model_copy(update={"trials": 9})})
    confirm_if_asked(replace(run, config=spent), cluster=cluster)
    assert capsys.readouterr().out == (
        f"the winner is not confirmed, since trials are left; confirm it now with: voxtune confirm {run.folder}\n"
    )
    target = spent.budget.model_copy(update={"target": run.best().score})
    confirm_if_asked(replace(run, config=spent.model_copy(update={"budget": target})), cluster=cluster)
    assert "the race ended: " in capsys.readouterr().out


def plant_seed(run: Path) -> None:
    """Give the plan a seed that a trial has had."""
    plan = run / "confirm/plan.json"
    plan.write_text(plan.read_text().replace("1000001", "2"))


def plant_score(run: Path) -> None:
    """Change a score in scores.csv."""
    scores = run / "confirm/scores.csv"
    scores.write_text(scores.read_text().replace(",0.", ",1.", 1))


def plant_verdict(run: Path) -> None:
    """Claim that another recipe was chosen."""
    result = run / "confirm/confirm.json"
    result.write_text(result.read_text().replace('"chosen": "default"', '"chosen": "trial_0001"', 1))


def plant_best_epoch(run: Path) -> None:
    """Put a better score into metrics.csv than the best epoch's."""
    metrics = next(run.glob("confirm/trainings/default/*/metrics.csv"))
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    other = next(row for row in rows if row["epoch"] != rows[-1]["best_epoch"])
    other["val_dice_mean"] = "0.99"
    with metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def plant_case_score(run: Path) -> None:
    """Change the scores of a case."""
    for scores in run.glob("confirm/trainings/default/*/case_scores.csv"):
        scores.write_text(scores.read_text().replace(",0.", ",0.9"))


def plant_recipe(run: Path) -> None:
    """Let a training have had another lr."""
    config = next(run.glob("confirm/trainings/default/*/training_config.json"))
    config.write_text(config.read_text().replace('"lr": 0.0003', '"lr": 0.5'))


def damaging(pattern: str) -> Callable[[Path], None]:
    """Return a function that replaces each file of a name in the confirmation of a run by what is no text."""

    def plant(run: Path) -> None:
        files = list(run.glob(f"confirm/{pattern}"))
        assert files
        for file in files:
            file.write_bytes(b"\xff\xfe\x00garbage\nmore\n")

    return plant


@pytest.mark.parametrize(
    ("plant", "check", "finding"),
    [
        (damaging("scores.csv"), "verdict", "scores.csv is not what the trainings give"),
        (damaging("trainings/*/*/test_scores.json"), "verdict", "test_scores.json is damaged; restore it, or delete"),
        (damaging("trainings/*/*/metrics.csv"), "best epochs", "metrics.csv is damaged; restore it"),
        (plant_seed, "seeds", "the seeds [2] are those of trials"),
        (plant_score, "verdict", "scores.csv is not what the trainings give"),
        (plant_verdict, "verdict", "confirm.json: chosen is not what the trainings give"),
        (plant_best_epoch, "best epochs", "the best epoch is"),
        (plant_case_score, "best epochs", "is not that in metrics.csv"),
        (plant_recipe, "recipes", "was trained with another recipe than default"),
    ],
)
def test_what_is_planted_in_a_confirmation_is_found(
    copy: Path, plant: Callable[[Path], None], check: str, finding: str
) -> None:
    plant(copy)
    findings = verify_confirmation(read_run(copy))
    (name,) = [name for name in findings if check in name]
    assert any(finding in text for text in findings[name]), findings


def test_trainings_over_other_epochs_must_have_the_planned_recipe_too(copy: Path) -> None:
    run = read_run(copy)
    plan = load_plan(run.dir.confirm.plan)
    assert plan is not None
    save_plan(replace(plan, epochs=4), run.dir.confirm.plan)
    for path in copy.glob("confirm/trainings/*/*/training_config.json"):
        path.write_text(json.dumps(to_dict(scale_to_epochs(make_config(load_options(path)), 4)), indent=2))
    (check,) = [name for name in verify_confirmation(run) if "recipes" in name]
    assert verify_confirmation(run)[check] == []
    plant_recipe(copy)
    (finding,) = verify_confirmation(run)[check]
    assert finding.endswith("was trained with another recipe than default")


def test_a_confirmation_that_has_not_ended_is_not_wrong_for_what_it_has_trained_since(copy: Path) -> None:
    result = copy / "confirm/confirm.json"
    content = json.loads(result.read_text())
    result.write_text(json.dumps({**content, "ended": "", "test": None}))  # as after --budget, and a kill later
    assert not any(verify_confirmation(read_run(copy)).values())


def test_a_verdict_that_another_version_worded_is_no_finding(copy: Path) -> None:
    result = copy / "confirm/confirm.json"
    content = json.loads(result.read_text())
    content["validation"]["words"] = "not shown, as version 0 said it"
    result.write_text(json.dumps(content))
    assert not any(verify_confirmation(read_run(copy)).values())


def test_a_training_that_was_killed_before_it_wrote_its_split_is_no_finding(copy: Path) -> None:
    begun = next(copy.glob("confirm/trainings/wild/*/"))
    for file in ("metrics.csv", "split.json"):
        (begun / file).unlink()
    assert not any(verify_confirmation(read_run(copy)).values())


def test_a_budget_leaves_a_confirmation_to_go_on_later(swept: Path, cluster: Cluster, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    found = confirm(run, top=1, seeds=2, budget=0.01, cluster=cluster)
    assert found.race.ended == ""
    output = capsys.readouterr().out
    assert f"stopped by the time budget of 0:00; go on with: voxtune confirm {run}\n" in output
    assert "the race has not ended: what follows may change\n" in output
    assert "chosen so far: default; " in output
    assert output.endswith(f"next: voxtune confirm {run}\n")
    assert "the confirmation has not ended" in confirmation_line(read_run(run))
    assert confirmed_choice(read_run(run)) is None


def test_a_sweep_that_runs_or_whose_cases_have_changed_is_not_confirmed(swept: Path, tmp_path: Path) -> None:
    with lock_folder(swept), pytest.raises(InputError, match="its sweep runs now"):
        confirm(swept)
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    split = run / "split.json"
    content = json.loads(split.read_text())
    content["train"], content["test"] = content["train"][:-1], [content["train"][-1]]
    split.write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the split that the sweep began with"):
        confirm(run)


@pytest.mark.slow
def test_with_folds_each_case_of_train_and_val_is_scored_by_models_that_have_not_seen_it(
    swept: Path, cluster: Cluster, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    confirm(run, top=1, seeds=2, folds=2, epochs=1, cluster=cluster)
    split = read_run(run).split()
    rows = [row for row in rows_of(run) if row["part"] == "val"]
    for arm in {row["arm"] for row in rows}:
        for seed in ("1000001", "1000002"):
            cases = [row["case"] for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
            assert sorted(cases) == sorted(split.train + split.val)
    for row in rows:
        paths = TrainingDir(run / f"confirm/trainings/{row['arm']}/seed_{row['seed']}_fold_{row['fold']}")
        assert row["case"] not in json.loads(paths.split.read_text())["train"]
    assert len([row for row in rows_of(run) if row["part"] == "test"]) == 2 * 2 * 2 * len(split.test)
    assert "curse" not in (run / "confirm/verdict.txt").read_text(), "the sweep's scores are of other cases"
    assert not any(verify_confirmation(read_run(run)).values())


def test_the_card_of_a_bundle_says_what_the_confirmation_says_of_its_recipe(copy: Path, tmp_path: Path) -> None:
    run = read_run(copy)
    arm = f"trial_{run.best().number:04d}"
    training = run.dir.confirm.training(arm, 1000001, None).path
    assert "**Confirmation of the recipe:** none on record" in card_of(
        training, tmp_path / "alone"
    )  # of no RUN/retrain/NAME
    shutil.copytree(training, run.dir.retrain / "final")
    words = json.loads(run.dir.confirm.result.read_text())["validation"]["words"]
    card = card_of(run.dir.retrain / "final", tmp_path / "final")
    about = (
        f"the recipe {arm} of the sweep, compared by trainings of 2 epochs with new seeds. On the validation cases: "
    )
    assert f"**Confirmation of the recipe:** {about}" in card
    assert words in card
    assert re.search(r"; dice_mean 0\.\d{4} by \d+ trainings? of this recipe", card)
    other = load_plan(run.dir.confirm.plan)
    assert other is not None
    save_plan(replace(other, arms=tuple(one for one in other.arms if one.name != arm)), run.dir.confirm.plan)
    assert "**Confirmation of the recipe:** none" in card_of(run.dir.retrain / "final", tmp_path / "final")


def card_of(model: Path, bundle: Path) -> str:
    """Export a model as a bundle, and return its model card."""
    return (export_model(model, bundle) / "docs" / "README.md").read_text()


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """The YAML of a small sweep that asks for a confirmation."""
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("study: {", "study: {confirm: {top: 1, seeds: 2, epochs: 1}, "))
    return path


@pytest.mark.slow
def test_a_sweep_that_asks_for_it_ends_with_a_confirmation(space: Path, phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ["--set", "study.trials=2", "--set", "train.epochs=2"]
    done = voxtune("launch", space, "--data", phantoms, "--out", run, *short)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chosen: default" in done.stdout
    for verb in ("status", "best"):
        assert "winner not confirmed: trial 1 scored" in voxtune(verb, run).stdout
    again = voxtune("resume", run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "trainings ended" not in again.stdout
    verified = voxtune("verify", run)
    assert verified.returncode == 0, verified.stdout
    assert "ok     confirm, scores.csv and the verdict by the trainings" in verified.stdout
