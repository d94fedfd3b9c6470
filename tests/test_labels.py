"""What the values of seg files mean: by year, by task, by a user's file; and that predictions keep it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from trainable import cli
from trainable.cases.case_files import NAMES_2021, NAMES_2023, Case, Naming, find_case
from trainable.cases.labels import (
    CONVENTIONS,
    LABELS_2021,
    LABELS_2021_ET3,
    LABELS_2023,
    LABELS_GLI2024,
    LABELS_PED2024,
    LabelConvention,
    choose_labels,
    find_labels,
    from_plain,
    guess_labels,
    labels_of_checkpoint,
    parse_labels,
)
from trainable.core.brats import REGIONS, labels_to_regions
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.cache import CacheError, open_case
from trainable.data.prepare import Data, prepare_data
from trainable.data.spacing import split_on_one_grid
from trainable.evaluate import evaluate
from trainable.evaluation.metrics import Scores
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.train import train
from trainable.training.checkpoint import save_checkpoint
from trainable.training.state import TrainingState
from tune.cli.cases import prepare as prepare_verb
from tune.driver.sweep import with_absolute_paths
from tune.run.provenance import provenance
from tune.spec.sweep_config import make_sweep_config

SMALL: dict[str, Any] = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "device": "cpu"}
SHAPE = (20, 18, 16)
OWN = LabelConvention("own.yaml", wt=(7, 9, 11, 13), tc=(9, 13), et=(13,), background=(2,))
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes cases below tmp_path/data whose seg has these values, each in a box of its own; returns that folder."""

    def write_cases(*names: str, values: tuple[int, ...] = (1, 2, 4), naming: Naming = NAMES_2021) -> Path:
        for name in names:
            folder = tmp_path / "data" / name
            folder.mkdir(parents=True)
            rng = np.random.default_rng(zlib.crc32(name.encode()))  # each case is another scan
            seg = np.zeros(SHAPE, np.uint8)
            for index, value in enumerate(values):
                seg[4 + 3 * index : 7 + 3 * index, 4:14, 4:12] = value
            for word in naming.images:
                image = np.zeros(SHAPE, np.int16)
                image[2:18, 2:16, 2:14] = rng.integers(100, 900, (16, 14, 12))
                nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}{naming.separator}{word}.nii.gz")
            nib.save(nib.Nifti1Image(seg, np.eye(4)), folder / f"{name}{naming.separator}seg.nii.gz")
        return tmp_path / "data"

    return write_cases


def checkpoint_of(labels: LabelConvention | None, path: Path, **more: Any) -> Path:
    """Write a checkpoint, trained on cases with these labels, that predicts some of each region."""
    config = TrainConfig(**SMALL)
    torch.manual_seed(3)
    state = {"config": to_dict(config), "network": build_network(config).state_dict(), **more}
    save_checkpoint(state if labels is None else {**state, "labels": labels.plain()}, path)
    return path


def voxels_of(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


def dice_by_values(prediction: Any, truth: Any, values: tuple[int, ...]) -> float:
    """Dice as anybody computes it who knows the convention of the truth, but not voxtune."""
    a, b = np.isin(prediction, values), np.isin(truth, values)
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0


@pytest.mark.parametrize("labels", [*CONVENTIONS.values(), LABELS_2021_ET3, OWN], ids=str)
def test_regions_are_those_of_the_convention_and_survive_being_written(labels: LabelConvention) -> None:
    values = np.array(labels.values, np.uint8)
    regions = [np.isin(values, region) for region in (labels.wt, labels.tc, labels.et)]
    canonical = labels.to_canonical(values)
    assert set(canonical) <= {0, 1, 2, 4}
    np.testing.assert_array_equal(labels_to_regions(canonical), regions)
    written = labels.from_canonical(canonical)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal([np.isin(written, region) for region in (labels.wt, labels.tc, labels.et)], regions)


def test_each_value_has_the_meaning_that_its_year_gave_it() -> None:
    meaning = {
        name: labels.to_canonical(np.arange(5)).tolist() for name, labels in CONVENTIONS.items() if name != "2021"
    }
    assert meaning == {"2023": [0, 1, 2, 4, 0], "ped2024": [0, 4, 1, 1, 2], "gli2024": [0, 1, 2, 4, 0]}
    assert LABELS_2021.to_canonical(np.array([0, 1, 2, 4])).tolist() == [0, 1, 2, 4]
    assert LABELS_PED2024.from_canonical(np.array([0, 1, 2, 4], np.uint8)).tolist() == [0, 2, 4, 1]
    assert LABELS_GLI2024.background == (4,)


@pytest.mark.parametrize(
    ("name", "naming", "labels"),
    [
        ("BraTS2021_00001", NAMES_2021, LABELS_2021),
        ("anything", NAMES_2021, LABELS_2021),
        ("BraTS-GLI-00001-000", NAMES_2021, LABELS_2021),
        ("BraTS-PED-00001-000", NAMES_2021, None),
        ("BraTS-GLI-00001-100", NAMES_2021, None),
        ("BraTS-GLI-00001-001", NAMES_2023, LABELS_2023),
        ("BraTS-MET-00001-000", NAMES_2023, LABELS_2023),
        ("BraTS-SSA-00001-000", NAMES_2023, LABELS_2023),
        ("BraTS-MEN-00001-000", NAMES_2023, LABELS_2023),
        ("BraTS-GLI-02143-102", NAMES_2023, LABELS_GLI2024),
        ("BraTS-GLI-02143-200", NAMES_2023, None),
        ("BraTS-PED-00001-000", NAMES_2023, None),
        ("BraTS-MEN-RT-0001-1", NAMES_2023, None),
        ("my-case", NAMES_2023, None),
    ],
)
def test_names_tell_the_labels_only_where_that_is_certain(
    name: str, naming: Naming, labels: LabelConvention | None
) -> None:
    case = Case(name, (), None, naming)
    assert guess_labels(case) == labels
    if labels is None:
        with pytest.raises(InputError, match=rf"1 of 1 cases, such as {name}: the names do not tell .*2021.*or a YAML"):
            choose_labels([case], None)
        assert choose_labels([case], "ped2024") == LABELS_PED2024


def test_two_kinds_of_labels_in_a_folder_are_refused_with_an_example_of_each_unless_one_is_chosen(
    write: Write, tmp_path: Path
) -> None:
    write("BraTS-GLI-00001-000", values=(1, 2, 3), naming=NAMES_2023)
    data = write("Old_1")
    config = TrainConfig(data_dir=data, cache_dir=tmp_path / "cache", val_fraction=0, test_fraction=0)
    message = r"2023 \(ET 3\) by the name of BraTS-GLI-00001-000, 2021 \(ET 4\) by the name of Old_1; .*--labels 2021"
    with pytest.raises(InputError, match=message):
        prepare_data(config, quiet=True)
    chosen = prepare_data(config.model_copy(update={"labels": "2021"}), quiet=True)
    new, old = (open_case(chosen.folder, name) for name in chosen.split.train)
    assert (new.et_value, old.et_value) == (3, 4)
    assert np.unique(new.label).tolist() == np.unique(old.label).tolist() == [0, 1, 2, 4]


def test_3_without_4_under_the_names_of_2021_is_et_and_said_once(write: Write, tmp_path: Path, capsys) -> None:
    write("A", "B", values=(1, 2, 3))
    data = write("C", values=(1, 2))
    config = TrainConfig(data_dir=data, cache_dir=tmp_path / "cache")
    prepared = prepare_data(config)
    line = "labels: 2021 (ET 3); 2 of 3 cases, such as A, have 3 and no 4: 3 is read as ET\n"
    assert capsys.readouterr().err.count(line) == 1
    assert prepared.labels == LABELS_2021_ET3  # also for C, which has no ET
    assert np.unique(open_case(prepared.folder, "A").label).tolist() == [0, 1, 2, 4]
    write("D", values=(1, 2, 4))
    prepare_data(config)
    assert "labels: 2021 (ET 4); 2 of 4 cases, such as A, have 3" in capsys.readouterr().err
    write("E", values=(1, 2, 3, 4))
    with pytest.raises(
        InputError, match=r"E_seg\.nii\.gz has labels \[0, 1, 2, 3, 4\]; expected \[0, 1, 2, 4\].*gli2024"
    ):
        prepare_data(config, quiet=True)


def test_labels_of_the_option_decide_and_a_change_of_them_prepares_anew(write: Write, tmp_path: Path, capsys) -> None:
    data = write("BraTS-PED-00001-000", "BraTS-PED-00002-000", values=(1, 2, 3), naming=NAMES_2023)
    config = TrainConfig(data_dir=data, cache_dir=tmp_path / "cache", val_fraction=0, test_fraction=0)
    with pytest.raises(InputError, match=r"2 of 2 cases, such as BraTS-PED-00001-000.* differ between 2023 and 2024"):
        prepare_data(config)
    counts = {}
    for labels in ("ped2024", "2023", "2023", "ped2024"):
        prepared = prepare_data(config.model_copy(update={"labels": labels}))
        said = capsys.readouterr().err
        assert f"labels: {CONVENTIONS[labels]}\n" in said
        regions = labels_to_regions(open_case(prepared.folder, "BraTS-PED-00001-000").label).reshape(3, -1)
        counts.setdefault(labels, []).append((*regions.sum(1).tolist(), int(re.findall(r"prepared (\d)", said)[0])))
    assert counts == {"ped2024": [(720, 720, 240, 2)] * 2, "2023": [(720, 480, 240, 2), (720, 480, 240, 0)]}


def test_cases_that_another_process_reads_otherwise_are_not_taken_over(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write("One", "Two", "Three", "Four", values=(1, 2, 3))
    (tmp_path / "own.yaml").write_text("{WT: [1, 2, 3], TC: [1, 2], ET: [1]}")
    config = TrainConfig(**SMALL, data_dir=data, cache_dir=tmp_path / "cache", output_dir=tmp_path / "out", epochs=1)

    def prepare_otherwise() -> None:
        prepare_data(config.model_copy(update={"labels": str(tmp_path / "own.yaml")}), quiet=True)

    prepared = prepare_data(config, quiet=True)
    prepare_otherwise()
    for use in (lambda: train(config, prepared), lambda: provenance(prepared)):
        with pytest.raises(CacheError, match=r"cases have changed since the training began: \w+ \(label\)"):
            use()

    def splits_meanwhile(*words: Any, **options: Any) -> Any:
        found = split_on_one_grid(*words, **options)
        monkeypatch.undo()
        prepare_otherwise()
        return found

    monkeypatch.setattr("trainable.data.prepare.split_on_one_grid", splits_meanwhile)
    with pytest.raises(InputError, match=r"another process has prepared \w+ otherwise just now, with other --labels"):
        prepare_data(config, quiet=True)


@pytest.mark.parametrize("labels", [LABELS_2021, LABELS_2021_ET3, LABELS_2023, LABELS_PED2024, LABELS_GLI2024], ids=str)
def test_scores_of_a_written_prediction_by_the_values_of_its_truth_are_those_that_are_said(
    labels: LabelConvention, write: Write, tmp_path: Path, capsys
) -> None:
    """Without a line of voxtune's own code on labels; both of predict and of --test_only."""
    names = {"2023": "BraTS-GLI-{}-000", "gli2024": "BraTS-GLI-{}-100", "ped2024": "BraTS-PED-{}-000"}
    cases = [names.get(labels.name, "Case_{}").format(f"{number:05}") for number in range(3)]
    data = write(*cases, values=tuple(labels.values[1:]), naming=NAMES_2023 if labels.name in names else NAMES_2021)
    wanted = labels.name if labels == LABELS_PED2024 else None
    options = {
        **SMALL,
        "data_dir": data,
        "cache_dir": tmp_path / "cache",
        "output_dir": tmp_path / "out",
        "labels": wanted,
    }
    config = TrainConfig(**options, val_fraction=0, test_fraction=0.5, save_predictions=True)
    prepared = prepare_data(config, quiet=True)
    assert prepared.labels == labels
    more = {"split": prepared.split.digest(), "epoch": 1}
    model = checkpoint_of(prepared.labels, tmp_path / "model.pth", **more)
    predicted = predict_cases(model, [data], tmp_path / "predicted", labels=wanted).scores
    evaluate(config.model_copy(update={"resume": model}), prepared)
    assert capsys.readouterr().out.count(f"labels written: {labels}\n") == 2
    for folder in (tmp_path / "predicted", tmp_path / "out" / "predictions"):
        files = sorted(folder.glob("*.nii.gz"))
        assert len(files) == (3 if folder.name == "predicted" else 2)
        for file in files:
            name = file.name.removesuffix(".nii.gz")
            check_scores(labels, voxels_of(file), voxels_of(next((data / name).glob("*seg*"))), predicted[name])


def check_scores(labels: LabelConvention, prediction: Any, truth: Any, scores: Scores) -> None:
    """Check the Dice of each region, by the values that the convention gives it."""
    assert set(np.unique(prediction)) <= set(labels.values) - set(labels.background)
    for region, values in zip(REGIONS, (labels.wt, labels.tc, labels.et), strict=True):
        assert dice_by_values(prediction, truth, values) == pytest.approx(scores[f"dice_{region}"])
        assert scores[f"dice_{region}"] > 0


def test_a_case_without_seg_is_written_as_its_names_tell_else_as_the_training_was(
    write: Write, tmp_path: Path, capsys
) -> None:
    for name, naming in (("Old", NAMES_2021), ("BraTS-GLI-00001-000", NAMES_2023), ("my-case", NAMES_2023)):
        data = write(name, naming=naming)
    for seg in data.glob("*/*seg*"):
        seg.unlink()

    def values(labels: LabelConvention | None, out: str, wanted: str | None = None) -> dict[str, list[int]]:
        model = checkpoint_of(labels, tmp_path / "model.pth")
        predict_cases(model, [data], tmp_path / out, labels=wanted)
        return {name: np.unique(voxels_of(tmp_path / out / f"{name}.nii.gz")).tolist() for name in names}

    names = ["Old", "BraTS-GLI-00001-000", "my-case"]
    of_2021, of_2023 = [0, 1, 2, 4], [0, 1, 2, 3]
    assert list(values(OWN, "a").values()) == [of_2021, of_2023, [0, 7, 9, 13]]
    line = "labels written: 2023 (ET 3) in 1 cases, 2021 (ET 4) in 1 cases, own.yaml (ET 13) in 1 cases\n"
    assert line in capsys.readouterr().out
    assert list(values(LABELS_2021_ET3, "b").values()) == [of_2023, of_2023, of_2023]
    assert list(values(LABELS_2023, "c").values()) == [of_2021, of_2023, of_2023]
    assert list(values(None, "d").values()) == [of_2021, of_2023, of_2021]  # older code kept no labels
    assert list(values(None, "e", "2023").values()) == [of_2023] * 3


def test_a_truth_whose_labels_the_names_do_not_tell_is_said_and_its_case_predicted_without_scores(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("my-case", naming=NAMES_2023)
    data = write("Old")
    model = checkpoint_of(LABELS_2021, tmp_path / "model.pth")
    result = predict_cases(model, [data], tmp_path / "out")
    assert not result.failed
    reason = "my-case: the names do not tell the meaning of the labels in seg; choose it: --labels"
    printed = capsys.readouterr().out
    assert f"my-case is predicted without scores, as its truth cannot be used: {reason}" in printed
    assert list(result.scores) == ["Old"]
    assert len(predict_cases(model, [data], tmp_path / "all", labels="2021").scores) == 2


def test_a_truth_that_its_names_read_otherwise_than_the_training_was_told_is_not_scored_by_the_names(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write("Old", values=(1, 2, 3))
    (tmp_path / "own.yaml").write_text("{WT: [1, 2, 3], TC: [1, 2], ET: [1]}")
    own = find_labels(tmp_path / "own.yaml")

    def dice(trained: LabelConvention, chosen: str | None, out: str, wanted: str | None = None) -> float | None:
        config = to_dict(TrainConfig(**SMALL, labels=chosen))
        model = checkpoint_of(trained, tmp_path / "model.pth", config=config)
        return predict_cases(model, [data], tmp_path / out, labels=wanted).scores.get("Old", {}).get("dice_ET")

    file = str(tmp_path / "own.yaml")
    assert dice(own, file, "a") is None
    printed = capsys.readouterr().out
    assert "Old is predicted without scores: its names tell the labels 2021 (ET 4), and the training had" in printed
    assert f" --labels {file}, which reads otherwise; choose one: --labels 2021 or --labels {file}\n" in printed
    assert (tmp_path / "a" / "Old.nii.gz").exists()
    assert dice(LABELS_GLI2024, "gli2024", "b") is None  # 4 is ET by the names, and a cavity to the training
    by_file, by_names = dice(own, file, "c", file), dice(own, file, "d", "2021")
    assert None not in (by_file, by_names)
    assert by_file != by_names
    assert dice(LABELS_2023, "2023", "e") == by_names  # they agree in all values that both have
    assert dice(LABELS_GLI2024, None, "f") == by_names  # the training read its cases by names too


def test_a_file_gives_a_convention_of_one_s_own(tmp_path: Path, write: Write) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("WT: [7, 9, 11, 13]\nTC: [9, 13]\nET: [13]\nbackground: [2]\n")
    assert find_labels(file) == OWN
    assert from_plain(OWN.plain()) == OWN
    file.write_text("WT: [1, 2, 3]\nTC: [1, 3]\nET: [3]\n")
    assert find_labels(str(file)) == LABELS_2023
    case = find_case(write("A", values=(2, 7, 9)) / "A", need_seg=True)
    assert choose_labels([case], "2023") == LABELS_2023


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WT: [1, 2]\nTC: [1]\n", "ET is missing"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [3]\nED: [2]\n", "ED is unknown"),
        ("WT: [1, 2, 3]\nTC: [1, 4]\nET: [4]\n", "TC has 4 and WT has not, but TC is part of WT"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [2]\n", "ET has 2 and TC has not, but ET is part of TC"),
        ("WT: [1, 2]\nTC: [1]\nET: [1]\n", r"ET is \[1\] and TC \[1\]; TC needs a value that ET lacks"),
        ("WT: [1, 2]\nTC: [1]\nET: []\n", r"ET is \[\] and TC \[1\]"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [3.5]\n", "ET has 3.5; values are whole numbers from 1 to 255"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [true]\n", "ET has True; values are whole numbers"),
        ("WT: [0, 1, 2, 3]\nTC: [1, 3]\nET: [3]\n", "WT has 0; values are whole numbers from 1 to 255"),
        ("WT: [1, 2, 3, 2]\nTC: [1, 3]\nET: [3]\n", "WT has 2 twice"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [3]\nbackground: [2]\n", "2 is in background and in WT"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: [3]\nWT: [1, 2, 3, 4]\n", "WT is given twice"),
        ("WT: [1, 2, 3]\nTC: [1, 3]\nET: 3\n", "ET is 3; it must be a list of values"),
        ("- 1\n- 2\n", "is no mapping"),
        ("", "is no mapping"),
        ("WT: [1, 2\n", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_of_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"own\.yaml: {message}") as caught:
        find_labels(tmp_path / "own.yaml")
    assert "WT: [1, 2, 3], TC: [1, 3]" in str(caught.value)


def test_a_word_that_is_neither_a_kind_nor_a_file_is_refused_with_the_choices() -> None:
    with pytest.raises(
        InputError, match=r"--labels gli2023: no such file \(did you mean gli2024\?\); expected --labels 2021"
    ):
        find_labels("gli2023")
    with pytest.raises(ValueError, match="ET has 2 and TC has not"):
        parse_labels({"WT": [1, 2, 3], "TC": [1, 3], "ET": [2]}, "x")


def test_a_checkpoint_keeps_the_labels_of_its_cases_and_no_others_resume_it(
    write: Write, prepared: Data, tmp_path: Path
) -> None:
    data = write("BraTS-GLI-00001-000", values=(1, 2, 3), naming=NAMES_2023)
    config = TrainConfig(**SMALL, data_dir=data, cache_dir=tmp_path / "cache", val_fraction=0, test_fraction=0)
    begun = prepare_data(config, quiet=True)
    training = TrainingState(config)
    state = training.state(begun, {})
    assert labels_of_checkpoint(state) == LABELS_2023
    training.load_state(state, begun)
    chosen = config.model_copy(update={"labels": "gli2024"})
    message = r"--resume: the labels are read as gli2024 \(ET 3\), by the checkpoint as 2023 \(ET 3\); see --labels"
    with pytest.raises(InputError, match=message):
        training.load_state(state, prepare_data(chosen, quiet=True))
    del state["labels"]  # as in checkpoints of older code
    training.load_state(state, begun)
    assert labels_of_checkpoint(state) == LABELS_2021
    assert labels_of_checkpoint(training.state(prepared, {})) == LABELS_2021


def test_the_path_of_a_file_of_labels_is_made_whole_and_a_kind_stays_a_word(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = {"lr": {"uniform": [0.1, 0.2]}}
    for given, kept in (("own.yaml", str(tmp_path / "own.yaml")), ("2023", "2023"), (2023, "2023"), (None, None)):
        study = with_absolute_paths(make_sweep_config({"train": {"labels": given}, "space": space}))
        assert study.train == {"labels": kept}
        assert to_dict(cli.resolve({"labels": given}))["labels"] == kept
        assert to_dict(make_config(study.train))["labels"] == kept


def test_prepare_says_which_labels_it_reads(write: Write, capsys) -> None:
    data = write("BraTS-GLI-00001-100", values=(1, 2, 3, 4), naming=NAMES_2023)
    prepare_verb(data)
    assert "\nlabels: gli2024 (ET 3)\n" in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"has labels \[0, 1, 2, 3, 4\]; expected \[0, 1, 2, 3\], as in 2023 .* ped2024"
    ):
        prepare_verb(data, labels="2023")
