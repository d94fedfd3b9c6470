"""`voxtune retrain --folds --seeds`: the members of an ensemble, their cross-validated scores, the test cases once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rows, start_voxtune, voxtune, wait_for

from trainable.cli import main as train_verb
from trainable.core.errors import InputError
from trainable.data.cache import open_case
from trainable.data.prepare import Data
from trainable.data.split import Split, load_split
from trainable.evaluation.averaging import predict_averaged
from trainable.evaluation.metrics import dice_scores
from trainable.training.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from trainable.training.ensemble import find_models, load_ensemble
from trainable.training.training_dir import EnsembleDir, TrainingDir
from tune.cli.models import retrain as retrain_verb
from tune.driver.cluster.connection import Cluster
from tune.driver.sweep import launch
from tune.ensemble_retrain import EnsembleRequest, retrain_ensemble
from tune.retrain import retrain
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config

CPU = torch.device("cpu")
SMALL = {
    "epochs": 2, "depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "patches_per_epoch": 8,
    "overlap": 0, "num_workers": 0, "device": "cpu",
}  # fmt: skip
FOUR = EnsembleRequest(folds=2, seeds=2, name="four")


@pytest.fixture(scope="module")
def sweep(phantoms: Path, prepared: Data, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one trial."""
    folder = tmp_path_factory.mktemp("sweeps") / "run"
    config = make_sweep_config(
        {
            "study": {"trials": 1, "seed": 5},
            "resources": {"gpu": 0, "cpu": 1},
            "train": {**SMALL, "data_dir": str(phantoms), "cache_dir": str(prepared.folder)},
            "space": {"lr": {"loguniform": [1e-3, 1e-2]}},
        }
    )
    launch(config, folder, cluster=cluster)
    return folder


@pytest.fixture(scope="module")
def four(sweep: Path, cluster: Cluster) -> EnsembleDir:
    """The ensemble of two folds and two seeds."""
    return EnsembleDir(retrain_ensemble(sweep, FOUR, cluster=cluster))


def split_of(sweep: Path) -> Split:
    """The split of a sweep."""
    return load_split(RunDir(sweep).split)


def content(stem: Path) -> dict[str, Any]:
    """What is in STEM.json."""
    found: dict[str, Any] = json.loads(stem.with_suffix(".json").read_text())
    return found


def test_each_train_and_val_case_is_in_one_fold_and_no_seed_is_one_of_the_sweep(four: EnsembleDir, sweep: Path) -> None:
    names = sorted(path.name for path in four.members.iterdir() if path.is_dir())
    assert names == [f"fold_{fold}_seed_{seed}" for fold in (0, 1) for seed in (2000005, 2000006)]
    used = {trial.seed for trial in read_run(sweep).trials}
    for seed in (2000005, 2000006):
        splits = [load_split(four.member(f"fold_{fold}_seed_{seed}").split) for fold in (0, 1)]
        assert sorted(splits[0].val + splits[1].val) == sorted(split_of(sweep).train + split_of(sweep).val)
        assert splits[0].train == splits[1].val
        assert seed not in used
        for fold, split in enumerate(splits):
            state = load_checkpoint(four.member(f"fold_{fold}_seed_{seed}").best)
            assert {part: tuple(state["cases"][part]) for part in ("train", "val", "test")} == vars(split)
            assert state["config"]["seed"] == seed


def test_cross_validated_scores_are_those_of_the_models_that_were_not_trained_on_the_case(
    four: EnsembleDir, sweep: Path, prepared: Data
) -> None:
    found = content(four.cross_validation)
    assert sorted(found["cases"]) == sorted(split_of(sweep).train + split_of(sweep).val)
    for name, scores in found["cases"].items():
        members = [path for path in find_models([four.path]) if f"fold_{found['folds'][name]}_" in str(path)]
        ensemble = load_ensemble(members, CPU)
        assert all(name in member.state["cases"]["val"] for member in ensemble.members)
        case = open_case(prepared.folder, name)
        label, of_members = predict_averaged(ensemble.predictors, case.image, case.mean, case.std)
        truth = torch.from_numpy(np.array(case.label))
        expected = dice_scores(torch.from_numpy(label), truth)
        assert {key: scores[key] for key in expected} == expected
        alone = [dice_scores(torch.from_numpy(own), truth) for own in of_members]
        assert [found["member_scores"][f"seed_{seed}"][name] for seed in found["seeds"]] == alone
    dice = [scores["dice_ET"] for scores in found["cases"].values()]
    assert found["mean"]["dice_ET"] == pytest.approx(np.mean(dice))
    assert found["sd"]["dice_ET"] == pytest.approx(np.std(dice, ddof=1))
    table = list(csv.DictReader(four.cross_validation.with_suffix(".csv").open()))
    assert {row["case"]: (int(row["fold"]), float(row["hd95_WT"])) for row in table} == {
        name: (found["folds"][name], scores["hd95_WT"]) for name, scores in found["cases"].items()
    }


def test_the_test_cases_are_scored_once_by_all_members_with_the_gain(
    four: EnsembleDir, sweep: Path, cluster: Cluster
) -> None:
    found = content(four.test_scores)
    assert found["parts"] == dict.fromkeys(split_of(sweep).test, "test")
    assert [member["checkpoint"] for member in found["members"]] == list(map(str, find_models([four.path])))
    assert set(found["gain_over_members"]["test"]) == {"dice_WT", "dice_TC", "dice_ET", "dice_mean"}
    with pytest.raises(InputError, match=r"retrain/four is done; use it, or take another --name"):
        retrain_ensemble(sweep, FOUR, cluster=cluster)


@pytest.mark.slow
def test_what_an_interrupted_call_lacks_is_done_by_the_next_with_the_same_result(
    four: EnsembleDir, sweep: Path, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill in the middle of a member, and in the middle of the scores."""
    before = {stem: content(stem) for stem in (four.cross_validation, four.test_scores)}
    weights = load_checkpoint(four.member("fold_1_seed_2000006").best)["network"]
    for stem in before:
        stem.with_suffix(".json").unlink()
    kept = four.member("fold_0_seed_2000005")
    stamp = kept.best.stat().st_mtime_ns
    missing = four.member("fold_1_seed_2000006")
    for path in (missing.best, missing.latest, missing.metrics, missing.config):
        path.unlink()
    with pytest.raises(InputError, match="1 of 4 members have no model yet, such as .*fold_1_seed_2000006"):
        find_models([four.path])
    capsys.readouterr()
    retrain_ensemble(sweep, FOUR, cluster=cluster)
    said = capsys.readouterr().out
    assert kept.best.stat().st_mtime_ns == stamp
    again = load_checkpoint(missing.best)["network"]
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    for stem, earlier in before.items():
        now = content(stem)
        assert {**now, "members": None} == {**earlier, "members": None}
    assert "cross-validated: 7 cases, each by models that were not trained on it\n" in said
    assert "the ensemble of 2 against its members: Dice mean " in said
    assert "the ensemble of 4 against its members: Dice mean " in said


def test_test_cases_that_are_scored_after_post_processing_was_chosen_are_scored_with_it(
    four: EnsembleDir, sweep: Path, cluster: Cluster
) -> None:
    before = {file: file.read_bytes() for file in find_models([four.path])}
    scores = four.test_scores.with_suffix(".json")
    earlier = scores.read_bytes()
    for file in before:
        state = load_checkpoint(file)
        save_checkpoint({**state, "config": {**state["config"], "et_threshold": 50}}, file)
    scores.unlink()
    retrain_ensemble(sweep, FOUR, cluster=cluster)
    assert content(four.test_scores)["et_threshold"] == 50
    for file, data in {**before, scores: earlier}.items():
        file.write_bytes(data)


def test_cross_validated_scores_of_fewer_seeds_are_replaced(four: EnsembleDir, sweep: Path, cluster: Cluster) -> None:
    """As those of an earlier call with --seeds 1 that was killed before it scored the test cases."""
    whole = content(four.cross_validation)
    earlier = {**whole, "seeds": whole["seeds"][:1]}
    four.cross_validation.with_suffix(".json").write_text(json.dumps(earlier))
    four.test_scores.with_suffix(".json").unlink()
    retrain_ensemble(sweep, FOUR, cluster=cluster)
    assert content(four.cross_validation) == whole


def test_an_ensemble_is_scored_again_after_a_member_was_trained_on(
    four: EnsembleDir, sweep: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = EnsembleDir(Path(shutil.copytree(four.path, sweep / "retrain" / "resumed")))
    before = {stem: content(stem) for stem in (copy.cross_validation, copy.test_scores)}
    member = copy.member("fold_0_seed_2000005")
    assert train_verb(["--resume", str(member.path), "--epochs", "3"]) == 0
    shutil.copy(member.latest, member.best)  # whether or not it is better by chance
    retrain_ensemble(sweep, replace(FOUR, name="resumed"), cluster=cluster)
    assert "resumed were trained on since they were scored: they are scored again" in capsys.readouterr().out
    now = sorted(weights_hash(load_checkpoint(file)) for file in find_models([copy.path]))
    for stem, earlier in before.items():
        found = content(stem)
        assert sorted(member["weights_hash"] for member in found["members"]) == now
        assert found["cases"] != earlier["cases"]
    with pytest.raises(InputError, match=r"resumed is done; use it, or take another --name"):
        retrain_ensemble(sweep, replace(FOUR, name="resumed"), cluster=cluster)


def test_a_retraining_is_done_if_its_test_scores_are_of_its_weights(sweep: Path) -> None:
    output = TrainingDir(retrain(sweep, epochs=1, name="single"))
    with pytest.raises(InputError, match="single is done, 1 epochs; use it"):
        retrain(sweep, epochs=1, name="single")
    state = load_checkpoint(output.best)
    state["network"] = {name: tensor * 2 for name, tensor in state["network"].items()}
    save_checkpoint(state, output.best)
    retrain(sweep, epochs=1, name="single")
    assert content(output.test_scores)["weights_hash"] == weights_hash(state)


@pytest.mark.slow
def test_seeds_without_folds_train_on_the_split_of_the_sweep_also_with_val(sweep: Path, cluster: Cluster) -> None:
    request = EnsembleRequest(folds=0, seeds=2, epochs=1, with_val=True)
    folder = EnsembleDir(retrain_ensemble(sweep, request, cluster=cluster))
    assert folder.path.name == "trial_0000_1_epochs_with_val_2_seeds"
    for seed in (2000005, 2000006):
        split = load_split(folder.member(f"seed_{seed}").split)
        assert split.train == tuple(sorted(split_of(sweep).train + split_of(sweep).val))
        assert split.val == ()
    assert not folder.cross_validation.with_suffix(".json").exists()
    assert len(content(folder.test_scores)["members"]) == 2


def test_another_ensemble_of_the_same_name_is_refused_before_anything_is_trained(
    four: EnsembleDir, sweep: Path, cluster: Cluster
) -> None:
    copy = EnsembleDir(sweep / "retrain" / "copy")
    shutil.copytree(four.path, copy.path)
    copy.test_scores.with_suffix(".json").unlink()
    for folds, seeds in ((3, 2), (2, 1), (0, 2)):
        with pytest.raises(InputError, match="copy was begun with other folds or seeds: fold_0_seed_2000005, fold_0"):
            retrain_ensemble(sweep, EnsembleRequest(folds, seeds, name="copy"), cluster=cluster)
    with pytest.raises(InputError, match="was begun with (epochs|plateau_patience) .*: move the folder away"):
        retrain_ensemble(sweep, EnsembleRequest(2, 2, epochs=3, name="copy"), cluster=cluster)
    with pytest.raises(InputError, match=r"--folds is 8; expected 2 to 7"):
        retrain_ensemble(sweep, EnsembleRequest(8, 1, name="eight"), cluster=cluster)
    assert not (sweep / "retrain" / "eight").exists()


@pytest.mark.slow
def test_members_that_diverge_are_named_at_the_end(sweep: Path, cluster: Cluster, tmp_path: Path) -> None:
    recipe = tmp_path / "steep.yaml"
    recipe.write_text(json.dumps({**SMALL, "lr": 1e30, "max_skipped_steps": 1, "optimizer": "sgd"}))
    with pytest.raises(InputError) as caught:
        retrain_ensemble(sweep, EnsembleRequest(2, 1, config_file=recipe), cluster=cluster)
    first, *members, last = str(caught.value).splitlines()
    assert first == f"2 of 2 members of {sweep / 'retrain' / 'steep_2_epochs_2_folds_1_seeds'} have no model:"
    assert members == [f"  fold_{fold}_seed_2000005: diverged in epoch 1" for fold in (0, 1)]
    assert last.endswith(f"go on with: voxtune retrain {sweep} --folds 2 --seeds 1 --config {recipe}")


def test_flags_that_exclude_each_other_are_refused(sweep: Path, four: EnsembleDir) -> None:
    with pytest.raises(InputError, match="each fold of --folds is validated by the others: drop one"):
        retrain_verb(sweep, folds=3, with_val=True)
    with pytest.raises(InputError, match="--address is of --nodes, --folds and --seeds"):
        retrain_verb(sweep, address="auto")
    with pytest.raises(InputError, match="four is an ensemble; go on with its --folds and --seeds"):
        retrain_verb(sweep, name=four.path.name)


@pytest.mark.slow
def test_a_retraining_whose_driver_is_killed_goes_on_and_ends_as_one_that_was_not(
    four: EnsembleDir, sweep: Path
) -> None:
    words = ("retrain", sweep, "--folds", 2, "--seeds", 1, "--epochs", 12, "--name")
    whole, killed = (EnsembleDir(sweep / "retrain" / name) for name in ("whole", "killed"))
    assert voxtune(*words, "whole").returncode == 0

    def finished_epochs() -> int:
        return sum(len(rows(path)) for path in killed.members.glob("fold_*"))

    for epochs in (2, 14):
        process = start_voxtune(*words, "killed")
        wait_for(process, lambda least=epochs: finished_epochs() > least)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = voxtune(*words, "killed")
    assert done.returncode == 0, done.stdout + done.stderr
    for path in sorted(whole.members.glob("fold_*")):
        other = TrainingDir(killed.members / path.name)
        assert [row["val_dice_mean"] for row in rows(path)] == [row["val_dice_mean"] for row in rows(other.path)]
        one, two = (load_checkpoint(file)["network"] for file in (TrainingDir(path).best, other.best))
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert content(whole.cross_validation) == content(killed.cross_validation)
    assert content(whole.test_scores)["cases"] == content(killed.test_scores)["cases"]
