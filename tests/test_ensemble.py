"""Several models predict together by the mean of their probabilities; what that gains is told."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainable import cli
from trainable.cases.case_files import case_of
from trainable.cases.case_reader import load_case
from trainable.cases.folder_listing import list_folder
from trainable.core.brats import Labels, regions_to_labels
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from trainable.data.cache import CachedCase, open_case
from trainable.data.prepare import Data
from trainable.data.split import Split, save_split
from trainable.evaluate import evaluate
from trainable.evaluation.averaging import predict_averaged
from trainable.evaluation.inference import normalised_input, postprocess, predict_case, predict_label, predict_logits
from trainable.evaluation.metrics import dice_scores
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.train import train
from trainable.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from trainable.training.ensemble import Ensemble, find_models, load_ensemble
from trainable.training.training_dir import TrainingDir
from tune.cli.models import predict

CPU = torch.device("cpu")
# Three ways to predict that differ in all that may differ.
OPTIONS: list[dict[str, Any]] = [
    {"target_shape": (32, 32, 32)},
    {"target_shape": (32, 32, 16), "overlap": 0.25},
    {"target_shape": (32, 32, 32), "overlap": 0.0},
]


def save_model(path: Path, seed: int, state: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write the checkpoint of a network that has learnt nothing, whose logits are spread around 0."""
    config = TrainConfig(**{"depth": 2, "base_channels": 2, **OPTIONS[seed % len(OPTIONS)], **options})
    torch.manual_seed(seed)
    network = build_network(config)
    save_checkpoint({"config": to_dict(config), "network": network.state_dict(), **(state or {})}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of three."""
    root = tmp_path_factory.mktemp("ensemble") / "three"
    for seed in range(3):
        save_model(TrainingDir(root / "members" / f"seed_{seed}").best, seed)
    return root


def by_hand(ensemble: Ensemble, case: CachedCase) -> tuple[Labels, NDArray[np.bool_]]:
    """The label map of the mean of the members' probabilities by numpy, and where that mean is 0.5 up to rounding."""
    x = normalised_input(case.image, case.mean, case.std, CPU)
    logits = [predict_logits(one.network, x, one.config)[0].numpy().astype(np.float64) for one in ensemble.predictors]
    mean = np.mean([1 / (1 + np.exp(-values)) for values in logits], axis=0)
    label = postprocess(regions_to_labels(torch.from_numpy(mean > 0.5)).numpy(), ensemble.first.config)
    return label, (np.abs(mean - 0.5) < 1e-6).any(axis=0)


def test_an_ensemble_predicts_by_the_mean_of_the_probabilities_of_its_members(
    folder: Path, prepared: Data, tmp_path: Path
) -> None:
    mirrored = save_model(tmp_path / "mirrored.pth", 3, mirror=True)
    ensemble = load_ensemble(find_models([folder, mirrored]), CPU)
    assert sorted(one.config.mirror for one in ensemble.predictors) == [False, False, False, True]
    case = open_case(prepared.folder, prepared.split.train[0])
    label, of_members = predict_averaged(ensemble.predictors, case.image, case.mean, case.std)
    expected, unclear = by_hand(ensemble, case)
    assert np.count_nonzero(unclear) < 10
    assert np.array_equal(np.where(unclear, 0, label), np.where(unclear, 0, expected))
    for one, own in zip(ensemble.predictors, of_members, strict=True):
        assert np.array_equal(own, predict_label(one.network, case.image, case.mean, case.std, one.config))
        assert np.count_nonzero(own != label) > 10


def test_the_mean_is_cleaned_up_as_the_members_clean_up(prepared: Data, tmp_path: Path) -> None:
    files = [save_model(tmp_path / f"{seed}.pth", seed, et_threshold=10**9) for seed in range(2)]
    case = open_case(prepared.folder, prepared.split.train[0])
    cleaned = predict_averaged(load_ensemble(files, CPU).predictors, case.image, case.mean, case.std)
    files = [save_model(tmp_path / f"{seed}.pth", seed) for seed in range(2)]
    label, of_members = predict_averaged(load_ensemble(files, CPU).predictors, case.image, case.mean, case.std)
    for plain, clean in zip((label, *of_members), (cleaned.label, *cleaned.of_members), strict=True):
        assert np.count_nonzero(plain == 4) > 0
        assert np.array_equal(np.where(plain == 4, 1, plain), clean)


def test_a_single_model_predicts_bit_for_bit_as_its_network_does(
    phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    file = save_model(tmp_path / "model.pth", 1)
    network, config = load_network(file, CPU)
    case = open_case(prepared.folder, prepared.split.train[0])
    labels = predict_averaged(load_ensemble([file], CPU).predictors, case.image, case.mean, case.std)
    assert np.array_equal(labels.label, predict_label(network, case.image, case.mean, case.std, config))
    assert labels.of_members == ()
    source = phantoms / "Phantom_00000"
    predict_cases(file, [source], tmp_path / "out", device="cpu")
    written = np.asarray(nib.load(tmp_path / "out" / "Phantom_00000.nii.gz").dataobj)
    loaded = load_case(case_of(source, list_folder(source), need_seg=True), None)
    assert np.array_equal(written, predict_case(network, loaded, config))
    assert "members" not in json.loads((tmp_path / "out" / "scores.json").read_text())


def test_the_order_of_the_models_has_no_effect(folder: Path, phantoms: Path, tmp_path: Path) -> None:
    files = list(find_models([folder]))
    results = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        first, *others = (files[index] for index in order)
        out = tmp_path / str(number)
        predict_cases(first, [phantoms / "Phantom_00003"], out, members=others, device="cpu")
        scores = json.loads((out / "scores.json").read_text())
        results.append([(out / "Phantom_00003.nii.gz").read_bytes(), scores["checkpoint_hash"], scores["members"]])
    assert results[0] == results[1]


def test_predictions_of_an_ensemble_tell_each_members_scores_and_the_gain_paired_by_case(
    folder: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "out", [f"Phantom_0000{number}" for number in range(3)]
    predict(folder, [phantoms / name for name in names], out, device="cpu")
    said = capsys.readouterr().out
    content = json.loads((out / "scores.json").read_text())
    assert content["checkpoint"] == str(folder)
    assert [member["name"] for member in content["members"]] == ["seed_0", "seed_1", "seed_2"]
    assert [Path(member["checkpoint"]) for member in content["members"]] == list(find_models([folder]))
    differences = []
    for name in names:
        alone = []
        for seed in range(3):
            one = folder / "members" / f"seed_{seed}"
            predict_cases(one, [phantoms / name], tmp_path / "alone" / name / str(seed), device="cpu")
            maps = (tmp_path / "alone" / name / str(seed) / f"{name}.nii.gz", phantoms / name / f"{name}_seg.nii.gz")
            labels = (torch.from_numpy(np.asarray(nib.load(path).dataobj).astype(np.uint8)) for path in maps)
            alone.append(dice_scores(*labels))
            assert content["member_scores"][f"seed_{seed}"][name] == alone[-1]
        differences.append(content["cases"][name]["dice_mean"] - np.mean([one["dice_mean"] for one in alone]))
    gain = content["gain_over_members"]["unknown"]["dice_mean"]
    assert gain["difference"] == pytest.approx(np.mean(differences))
    assert gain["low"] < gain["difference"] < gain["high"]
    line = f"the ensemble of 3 against its members: Dice mean {gain['difference']:+.3f} [{gain['low']:+.3f}, "
    assert line in said
    assert f"better with probability {gain['probability']:.2f}; ET " in said


def test_scores_of_the_members_are_kept_with_those_of_earlier_calls(
    folder: Path, phantoms: Path, tmp_path: Path
) -> None:
    for out, calls in (("one", [[0], [1, 2]]), ("all", [[0, 1, 2]])):
        for numbers in calls:
            predict_cases(folder, [phantoms / f"Phantom_0000{n}" for n in numbers], tmp_path / out, device="cpu")
    one, all_ = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("one", "all"))
    assert list(one["member_scores"]["seed_1"]) == [f"Phantom_0000{n}" for n in range(3)]
    assert one == all_


def test_a_member_that_is_not_trained_yet_and_a_model_given_twice_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    TrainingDir(copy / "members" / "seed_1").best.unlink()
    with pytest.raises(InputError, match=r"1 of 3 members have no model yet, such as .*seed_1/checkpoints/best_model"):
        find_models([copy])
    with pytest.raises(InputError, match="seed_2/checkpoints/best_model.pth is given twice"):
        find_models([folder, folder / "members" / "seed_2"])
    (tmp_path / "empty" / "members").mkdir(parents=True)
    with pytest.raises(InputError, match="members is empty; expected one folder of a training per member"):
        find_models([tmp_path / "empty"])


def test_a_damaged_member_is_named_before_any_case_is_predicted(folder: Path, phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damaged = TrainingDir(copy / "members" / "seed_1").best
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"seed_1/checkpoints/best_model\.pth: damaged or not a checkpoint"):
        predict_cases(copy, [phantoms / "Phantom_00000"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_members_that_were_trained_on_other_devices_and_by_older_versions_predict_here(
    folder: Path, phantoms: Path, tmp_path: Path
) -> None:
    on_gpu = save_model(tmp_path / "gpu.pth", 3)
    state = torch.load(on_gpu, weights_only=True)
    torch.save({**state, "config": {**state["config"], "device": "cuda", "amp": "bf16"}}, on_gpu)
    predicted = predict_cases(folder, [phantoms / "Phantom_00000"], tmp_path / "out", members=[on_gpu], device="cpu")
    assert "the ensemble of 4 against its members" in predicted.members
    old = Path(__file__).parent / "begun_by_4cc44e8"
    members = [old / "run" / "best" / "best_model.pth"]
    predicted = predict_cases(
        old / "training", [phantoms / "Phantom_00000"], tmp_path / "old", members=members, device="cpu"
    )
    assert "the ensemble of 2 against its members" in predicted.members


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"et_threshold": 5}, "et_threshold is 0 for the first and 5 for the second"),
        ({"min_component": 7}, "min_component is 0 for the first and 7 for the second"),
        ({"background": -1.0}, "background is 0.0 for the first and -1.0 for the second"),
        ({"state": {"labels": None}}, "labels is .* for the first and .* for the second"),
        ({"state": {"grid": [1, 1, 2]}}, "voxel size is 1 x 1 x 1 mm for the first and 1 x 1 x 2 mm for the second"),
    ],
)
def test_models_that_cannot_predict_together_are_refused(
    difference: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from trainable.cases.labels import CONVENTIONS

    grid = {"orientation": "LPS", "spacing": [1, 1, 1], "resample": False}
    states: list[dict[str, Any]] = [{"labels": CONVENTIONS["2021"].plain(), "grid": grid} for _ in range(2)]
    changed = difference.pop("state", {})
    if "grid" in changed:
        states[1]["grid"] = {**grid, "spacing": changed["grid"]}
    if "labels" in changed:
        states[1]["labels"] = CONVENTIONS["ped2024"].plain()
    files = [save_model(tmp_path / "0.pth", 0, states[0]), save_model(tmp_path / "1.pth", 1, states[1], **difference)]
    with pytest.raises(InputError, match=rf"0\.pth and .*1\.pth cannot predict together: {message}; name models"):
        load_ensemble(files, CPU)


def test_a_member_whose_logits_are_not_finite_is_named(folder: Path, phantoms: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = TrainingDir(copy / "members" / "seed_1").best
    state = torch.load(path, weights_only=True)
    next(iter(state["network"].values()))[0] = torch.nan
    torch.save(state, path)
    with pytest.raises(InputError, match=r"Phantom_00000: .*copy cannot predict it: seed_1: \d+ of \d+ logits are not"):
        predict_cases(copy, [phantoms / "Phantom_00000"], tmp_path / "out", device="cpu")


@pytest.fixture(scope="module")
def trained(prepared: Data, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of two trainings, whose train and val cases differ, and its split.json."""
    root = tmp_path_factory.mktemp("trained") / "two"
    first, *rest = sorted(prepared.split.train + prepared.split.val)
    for seed, split in enumerate((prepared.split, Split(tuple(rest), (first,), prepared.split.test))):
        output = root / "members" / f"seed_{seed}"
        config = TrainConfig(
            output_dir=output, data_dir=phantoms, cache_dir=prepared.folder.parent, device="cpu", epochs=1, depth=2,
            base_channels=2, target_shape=(16, 16, 16), patches_per_epoch=2, num_workers=0, seed=seed,
        )  # fmt: skip
        train(config, Data(prepared.folder, split))
    save_split(prepared.split, root / "split.json")
    return root


def test_test_only_scores_an_ensemble_with_its_members_and_the_gain(
    trained: Path, prepared: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(f"--resume {trained} --test_only --min_component 1".split()) == 0
    said = capsys.readouterr().out
    (test,) = prepared.split.test
    content = json.loads((trained / "test_scores.json").read_text())
    assert content["parts"] == {test: "test"}
    assert [member["name"] for member in content["members"]] == ["seed_0", "seed_1"]
    assert content["min_component"] == 1  # for all members, although their trainings had another
    ensemble = load_ensemble(find_models([trained]), CPU)
    case = open_case(prepared.folder, test)
    truth = torch.from_numpy(np.array(case.label))
    expected = dice_scores(torch.from_numpy(by_hand(ensemble, case)[0]), truth)
    assert {name: content["cases"][test][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    alone = content["member_scores"]
    difference = content["cases"][test]["dice_mean"] - np.mean(
        [alone[name][test]["dice_mean"] for name in ("seed_0", "seed_1")]
    )
    gain = content["gain_over_members"]["test"]["dice_mean"]
    assert gain["difference"] == pytest.approx(difference, abs=1e-12)
    assert gain["low"] is None  # one case tells no interval
    assert "the ensemble of 2 against its members: Dice mean " in said


def test_a_member_whose_training_goes_on_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "two")
    assert len(find_models([tmp_path / "two"])) == 2
    assert capsys.readouterr().out == ""
    metrics = TrainingDir(tmp_path / "two" / "members" / "seed_1").metrics
    rows = list(csv.DictReader(metrics.open()))
    metrics.write_text(f"{','.join(rows[0])}\n{','.join({**rows[0], 'end_reason': ''}.values())}\n")
    assert len(find_models([tmp_path / "two"])) == 2
    said = "".join(capsys.readouterr())
    assert "1 of 2 members are not trained to their end, such as seed_1; their best model so far is used" in said


def test_members_named_with_test_only_are_averaged_with_the_resumed_one(trained: Path, tmp_path: Path) -> None:
    one, two = (trained / "members" / f"seed_{seed}" for seed in range(2))
    words = f"--resume {one} --test_only --output_dir {tmp_path / 'out'} --members {two}"
    assert cli.main(words.split()) == 0
    content = json.loads((tmp_path / "out" / "test_scores.json").read_text())
    assert [member["name"] for member in content["members"]] == ["seed_0", "seed_1"]
    saved = json.loads((one / "training_config.json").read_text())
    paths = {"output_dir": tmp_path / "same", "resume": trained, "split_file": trained / "split.json"}
    evaluate(TrainConfig(**{**saved, **paths}))
    same = json.loads((tmp_path / "same" / "test_scores.json").read_text())
    assert same["cases"] == content["cases"]


def test_an_option_given_with_test_only_acts_on_all_members_also_if_it_is_that_of_the_first(
    trained: Path, tmp_path: Path
) -> None:
    one, two = (trained / "members" / f"seed_{seed}" for seed in range(2))
    state = load_checkpoint(TrainingDir(two).best)
    assert state["config"]["overlap"] == 0.5
    other = TrainingDir(tmp_path / "seed_1")
    save_checkpoint({**state, "config": {**state["config"], "overlap": 0.0}}, other.best)

    def member_scores(member: Path, *words: str) -> Any:
        out = tmp_path / "_".join(["out", member.parent.name, *words])
        given = ["--resume", str(one), "--test_only", "--output_dir", str(out), "--members", str(member), *words]
        assert cli.main(given) == 0
        return json.loads((out / "test_scores.json").read_text())["member_scores"]

    same = member_scores(two)
    assert member_scores(other.path) != same
    assert member_scores(other.path, "--overlap", "0.5") == same


def test_a_test_case_that_a_member_was_trained_on_is_marked(trained: Path, prepared: Data, tmp_path: Path) -> None:
    val = prepared.split.val  # seed_0 was selected by it, seed_1 trained on it
    split = Split(tuple(sorted(set(prepared.split.train))), prepared.split.test, val)
    saved = json.loads((trained / "members" / "seed_0" / "training_config.json").read_text())
    config = TrainConfig(**{**saved, "output_dir": tmp_path / "out", "resume": trained})
    assert evaluate(config, Data(prepared.folder, split)) == {}
    content = json.loads((tmp_path / "out" / "test_scores.json").read_text())
    assert content["parts"] == {val[0]: "train"}


def test_an_ensemble_cannot_be_trained_further(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--resume", str(trained)]) == 2
    assert f"{trained} is an ensemble; score its test cases with --test_only" in capsys.readouterr().err
    assert cli.main([*f"--resume {trained}/members/seed_0 --test_only --members".split(), "/nowhere"]) == 2
    assert "/nowhere: no checkpoint there" in capsys.readouterr().err
