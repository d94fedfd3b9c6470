"""A bundle: that MONAI accepts it and predicts with it as voxtune does, what it says, and how it is checked."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import clean_environment, start, voxtune_here, wait_for
from numpy.typing import NDArray
from threshold_model import LIMITS, threshold_model

from trainable.bundle.configs import label_values
from trainable.bundle.export import export_bundle
from trainable.bundle.recorded_scores import DICE
from trainable.cases.labels import LABELS_2021, LABELS_2023, LABELS_PED2024
from trainable.core.brats import REGIONS, labels_to_regions
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.cross_validation import Fold, cross_validate
from trainable.data.cache import scan_of
from trainable.data.prepare import Data
from trainable.data.split import Split, save_split
from trainable.evaluate import evaluate
from trainable.evaluation.metrics import dice
from trainable.predict import predict_cases
from trainable.training.case_scores import COLUMNS
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.training_dir import EnsembleDir, TrainingDir
from tune.model_bundle import verify_bundle

SCRIPTS = Path(__file__).parents[1] / "trainable" / "bundle" / "scripts"
NAMES = [f"Phantom_{number:05d}" for number in range(8)]
VAL, TEST = (NAMES[1], NAMES[2]), (NAMES[3], NAMES[5])  # the last one has no ET
OPTIONS: dict[str, Any] = {"target_shape": (32, 32, 32), "base_channels": 2, "min_component": 30, "et_threshold": 200}
# What MONAI's schema requires of metadata.json, in a few lines: the schema itself is fetched from the net.
TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
TEXTS = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
    "copyright",
)  # fmt: skip
TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "object", "required": list(TENSOR)}}
SCHEMA = {
    "type": "object",
    "required": [*TEXTS, "required_packages_version", "network_data_format"],
    "properties": {
        **{name: {"type": "string", "minLength": 1} for name in TEXTS},
        "eval_metrics": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object", "required": ["inputs", "outputs"], "properties": {"inputs": TENSORS, "outputs": TENSORS},
        },
    },
}  # fmt: skip
# Its command lines as docs/training.md has them, in the folder of a bundle; a schema that is there is not fetched.
FILES = "--meta_file configs/metadata.json --config_file configs/inference.json"
CHECKS = (
    "verify_metadata --meta_file configs/metadata.json --filepath {schema}", f"verify_net_in_out network {FILES}",
)  # fmt: skip
RUN_BY_MONAI = """
import sys
from monai.bundle import run, verify_metadata, verify_net_in_out
schema, data, *bundles = sys.argv[1:]
for index, bundle in enumerate(bundles):
    files = {"meta_file": f"{bundle}/configs/metadata.json", "config_file": f"{bundle}/configs/inference.json"}
    verify_metadata(meta_file=files["meta_file"], filepath=schema)
    verify_net_in_out("network", **files, bundle_root=bundle)
    if index:
        run(**files, bundle_root=bundle, dataset_dir=data, output_dir=f"{bundle}/eval", logging_file=False)
print("voxtune's:", [name for name in sys.modules if name.split(".")[0] in ("trainable", "tune", "voxtune")])
"""


@dataclass(frozen=True)
class Exported:
    """Two models and their bundles, that of one network and that of three, and a folder of cases to predict."""

    models: dict[str, Path]
    bundles: dict[str, Path]
    cases: Path


def make_model(folder: Path, data: Data, phantoms: Path, limits: tuple[float, ...] = LIMITS, **options: Any) -> Path:
    """A model with scores of its validation cases."""
    split = Split(tuple(sorted({*NAMES} - {*VAL, *TEST})), VAL, TEST)
    paths = threshold_model(folder, Data(data.folder, split), limits, data_dir=phantoms, **{**OPTIONS, **options})
    rows = [",".join(COLUMNS), *(f"3,{name},0.1,0.2,0.3,0.2" for name in VAL)]
    paths.case_scores.write_text("\n".join(rows) + "\n")
    return paths.path


def turned(source: Path, target: Path) -> None:
    """Copy a case with the axes of its files turned to right, front and top, its FLAIR in floats with a hot voxel."""
    target.mkdir()
    for file in source.glob("*.nii.gz"):
        image = nib.as_closest_canonical(nib.load(file))
        if "flair" in file.name:
            voxels = np.asarray(image.dataobj) * 0.37
            voxels[tuple(np.argwhere(voxels)[0])] = 5e6
            image = nib.Nifti1Image(voxels, image.affine)
        nib.save(image, target / file.name.replace(source.name, target.name))


def without_voxtune() -> dict[str, str]:
    """The environment of a process of MONAI."""
    environment = {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}
    return environment | {"OMP_NUM_THREADS": "1"}  # as the tests: threads of several processes wait for each other


def monai_command(words: str, bundle: Path) -> subprocess.Popen[str]:
    """Start `python -m monai.bundle` in the folder of a bundle, with its stderr in its stdout."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", *words.split()], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=bundle, env=without_voxtune(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(prepared: Data, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The models are bundled, verified and run by MONAI in processes that have nothing of voxtune.

    The bundle of one network is run by MONAI's command line, that of three by its function.
    """
    root = tmp_path_factory.mktemp("bundles")
    models = {"one": make_model(root / "one", prepared, phantoms, mirror=True), "three": root / "three"}
    for member, limit in (("a", 2.0), ("b", 2.5), ("c", 4.0)):
        make_model(models["three"] / "members" / member, prepared, phantoms, (limit, limit, limit))
    cases = root / "cases"
    cases.mkdir()
    for name in (NAMES[0], NAMES[5]):
        shutil.copytree(phantoms / name, cases / name)
    turned(phantoms / NAMES[2], cases / "Turned")
    bundles = {name: export_bundle(model, root / f"{name}_bundle") for name, model in models.items()}
    (root / "schema.json").write_text(json.dumps(SCHEMA))
    words = [root / "schema.json", cases, *bundles.values()]
    folders = f"--dataset_dir {cases} --output_dir {bundles['one']}/eval"
    running = monai_command(f"run --config_file configs/inference.json {folders}", bundles["one"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_BY_MONAI, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=root, env=without_voxtune(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "voxtune's: []"
    output, _ = running.communicate()
    assert running.returncode == 0, output
    return Exported(models, bundles, cases)


def labels_in(file: Path) -> NDArray[np.uint8]:
    """The voxels of a prediction, which must be stored as uint8."""
    image = nib.load(file)
    assert image.get_data_dtype() == np.uint8
    return np.asarray(image.dataobj)


@pytest.mark.parametrize("name", ["one", "three"])
def test_monai_predicts_with_a_bundle_what_voxtune_predicts_with_the_model(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    predict_cases(exported.models[name], [exported.cases], tmp_path, device="cpu")
    for case in (NAMES[0], NAMES[5], "Turned"):
        files = [folder / f"{case}.nii.gz" for folder in (tmp_path, exported.bundles[name] / "eval")]
        ours, theirs = map(labels_in, files)
        np.testing.assert_allclose(nib.load(files[1]).affine, nib.load(files[0]).affine)
        differing = int((ours != theirs).sum())
        scores = [dice(*pair) for pair in zip(labels_to_regions(ours), labels_to_regions(theirs), strict=True)]
        print(name, case, f"{differing} of {ours.size} voxels differ, Dice", dict(zip(REGIONS, scores, strict=True)))
        assert (ours > 0).sum() > 500
        assert differing <= 2
        assert min(scores) >= 0.999


def test_the_predictions_depend_on_mirroring_the_clean_up_and_each_network(exported: Exported) -> None:
    found = {
        name: json.loads((path / "configs" / "inference.json").read_text()) for name, path in exported.bundles.items()
    }
    assert found["one"]["inferer"]["mirror"] is True
    assert found["three"]["inferer"]["mirror"] is False
    for config in found.values():
        first = config["postprocessing"]["transforms"][0]
        assert (first["min_component"], first["et_threshold"], first["values"]) == (30, 200, [1, 2, 4])
    network = torch.jit.load(exported.bundles["three"] / "models" / "model.ts")
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.inference_mode():
        members = network.member_logits(x).unflatten(1, (3, 3))
        assert torch.allclose(network(x).sigmoid(), members.sigmoid().mean(1), atol=1e-5)
        assert not torch.allclose(members[:, 0], members[:, 2])
    weights = torch.load(exported.bundles["three"] / "models" / "model.pt", weights_only=True)
    assert weights.keys() == network.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", CHECKS)
def test_the_command_lines_of_the_docs_verify_a_bundle(exported: Exported, command: str) -> None:
    docs = (SCRIPTS.parents[2] / "docs" / "training.md").read_text()
    assert f"python -m monai.bundle {command.format(schema='SCHEMA')}" in docs
    schema = exported.cases.parent / "schema.json"
    process = monai_command(command.format(schema=schema), exported.bundles["one"])
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "verified with no error" in output


def test_what_a_bundle_runs_imports_nothing_of_voxtune() -> None:
    for file in SCRIPTS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"trainable", "tune", "voxtune"}


def test_no_case_and_no_path_is_named_unless_asked_for(exported: Exported, tmp_path: Path) -> None:
    named = export_bundle(exported.models["one"], tmp_path / "named", with_case_names=True, authors="A. Nyone")
    for bundle, expected in ((exported.bundles["one"], set()), (named, {"docs/cases.csv", "voxtune.json"})):
        content = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file() and "eval" not in path.parts}
        with_names = {path.relative_to(bundle).as_posix() for path, data in content.items() if b"Phantom" in data}
        assert with_names == expected
        assert not [path for path, data in content.items() if str(exported.cases.parent).encode() in data]
    assert json.loads((named / "configs" / "metadata.json").read_text())["authors"] == "A. Nyone"


def test_the_card_says_data_scores_recipe_and_limits(exported: Exported) -> None:
    card = (exported.bundles["one"] / "docs" / "README.md").read_text()
    assert "| val | 2 | 0.1000 ± 0.0000 | 0.2000 ± 0.0000 | 0.3000 ± 0.0000 | 0.2000 ± 0.0000 |" in card
    assert re.search(r"\| train \| 4 \| `[0-9a-f]{12}` \|\n\| val \| 2 \| `[0-9a-f]{12}` \|", card)
    assert "target_shape:\n- 32\n- 32\n- 32\n" in card
    assert "The model has not been scored on cases that nothing was selected by." in card
    assert "mirrored: yes" in card
    assert "must not be used for diagnosis" in card
    metadata = json.loads((exported.bundles["one"] / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["val_dice_mean"] == pytest.approx(0.2)


def test_the_essence_of_monai_s_schema_refuses_metadata_without_what_it_requires(exported: Exported) -> None:
    metadata = json.loads((exported.bundles["one"] / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    del metadata["network_data_format"]["outputs"]["pred"]["num_channels"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, SCHEMA)


def test_verify_finds_changed_missing_and_added_files(exported: Exported, tmp_path: Path) -> None:
    bundle = shutil.copytree(exported.bundles["one"], tmp_path / "bundle")
    assert verify_bundle(bundle, None) == {"files, those of the export: 10": []}
    with (bundle / "models" / "model.ts").open("ab") as file:
        file.write(b"x")
    (bundle / "docs" / "license.txt").unlink()
    (bundle / "scripts" / "more.py").write_text("")
    done = voxtune_here("verify", bundle)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "WRONG  files, those of the export: 10",
        "         docs/license.txt is missing",
        "         models/model.ts has changed since the export",
        "         scripts/more.py was added after the export",
    ]


def test_verify_scores_the_cases_on_record_again_under_any_name(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", prepared, phantoms)
    paths = TrainingDir(model)
    paths.case_scores.unlink()
    (model / "split.json").write_text(
        json.dumps({"train": [*NAMES[:1], NAMES[4], *NAMES[6:]], "val": VAL, "test": TEST})
    )
    options = {**OPTIONS, "depth": 2, "data_dir": phantoms, "cache_dir": prepared.folder, "device": "cpu"}
    evaluate(TrainConfig(**options, output_dir=model, resume=paths.best, split_file=paths.split))
    bundle = export_bundle(model, tmp_path / "bundle")
    (tmp_path / "data").mkdir()
    turned(phantoms / TEST[0], tmp_path / "data" / "Unlisted")  # its FLAIR is another one, so it is not on record
    shutil.copytree(phantoms / TEST[1], tmp_path / "data" / TEST[1])
    (title,) = [title for title in verify_bundle(bundle, tmp_path / "data") if title.startswith("test")]
    assert title == "test scores of 1 of 2 cases, within 0.02 Dice per case and 0.005 on the mean"
    assert all(findings == [] for findings in verify_bundle(bundle, phantoms).values())
    record = json.loads((bundle / "voxtune.json").read_text())
    record["scores"]["test"]["cases"][0]["dice_WT"] -= 0.1
    (bundle / "voxtune.json").write_text(json.dumps(record))
    ((finding,),) = [found for title, found in verify_bundle(bundle, phantoms).items() if title.startswith("test")]
    assert re.fullmatch(rf"test {TEST[0]}: dice_WT is 0\.\d+ now, 0\.\d+ on record", finding)
    shutil.rmtree(tmp_path / "data" / TEST[1])
    with pytest.raises(InputError, match="none of its 1 cases is on record"):
        verify_bundle(bundle, tmp_path / "data")


def scores_in(bundle: Path) -> dict[str, Any]:
    """The scores on record in a bundle, by part."""
    found: dict[str, Any] = json.loads((bundle / "voxtune.json").read_text())["scores"]
    return found


def test_scores_of_other_weights_at_the_same_epoch_are_not_in_the_card(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    """As after going back by --resume epoch_0001.pth."""
    model = TrainingDir(make_model(tmp_path / "model", prepared, phantoms))
    save_split(Split(tuple(sorted({*NAMES} - {*VAL, *TEST})), VAL, TEST), model.split)
    options = {**OPTIONS, "depth": 2, "data_dir": phantoms, "cache_dir": prepared.folder, "device": "cpu"}
    evaluate(TrainConfig(**options, output_dir=model.path, resume=model.best, split_file=model.split))
    state = load_checkpoint(model.best)
    save_checkpoint({**state, "config": {**state["config"], "min_component": 60}}, model.best)  # the same weights
    assert scores_in(export_bundle(model.path, tmp_path / "same"))["test"]["setting"]["min_component"] == 30
    make_model(model.path, prepared, phantoms, (1.0, 1.0, 1.0))
    bundle = export_bundle(model.path, tmp_path / "other")
    assert scores_in(bundle).keys() == {"val"}
    assert "not been scored on cases that nothing was selected by" in (bundle / "docs" / "README.md").read_text()


def test_cross_validated_scores_of_other_weights_are_not_in_the_card(
    prepared: Data, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [Split(tuple({*NAMES} - {*VAL, *TEST, name}), (name,), TEST) for name in VAL]
    options = {**OPTIONS, "data_dir": phantoms}
    members = [
        threshold_model(tmp_path / "model" / "members" / f"fold_{index}", Data(prepared.folder, split), **options)
        for index, split in enumerate(splits)
    ]
    folds = [Fold(split.val, (member.path,)) for split, member in zip(splits, members, strict=True)]
    scored = cross_validate(folds, ["seed_1"], prepared, torch.device("cpu"))
    scored.save(EnsembleDir(tmp_path / "model").cross_validation, {})
    for member in members:  # as postprocess does
        state = load_checkpoint(member.best)
        save_checkpoint({**state, "config": {**state["config"], "min_component": 60}}, member.best)
    found = scores_in(export_bundle(tmp_path / "model", tmp_path / "same"))["val"]
    assert (found["means"]["dice_mean"], found["setting"]["min_component"]) == (scored.mean()["dice_mean"], 30)
    threshold_model(
        members[0].path, Data(prepared.folder, splits[0]), (1.0, 1.0, 1.0), **{**options, "min_component": 60}
    )
    assert scores_in(export_bundle(tmp_path / "model", tmp_path / "other")) == {}
    assert "has no validation scores, as the folder of the model has none of these weights" in capsys.readouterr().out


def test_a_bundle_replaces_an_earlier_one_and_nothing_else(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other has files that are of no bundle; give --bundle a new folder"):
        export_bundle(exported.models["one"], tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file"):
        export_bundle(exported.models["one"], tmp_path / "file")
    for model in ("three", "one"):
        export_bundle(exported.models[model], tmp_path / "bundle")
    (tmp_path / "bundle" / "eval").mkdir()
    with pytest.raises(InputError, match="is a bundle with 1 file that would be lost: eval is not of the bundle; move"):
        export_bundle(exported.models["one"], tmp_path / "bundle")
    (tmp_path / "bundle" / "eval").rmdir()
    (tmp_path / "bundle" / "docs" / "license.txt").write_text("MIT")
    with pytest.raises(InputError, match="lost: docs/license.txt has changed since the export"):
        export_bundle(exported.models["one"], tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "voxtune.json").read_text())
    assert (record["name"], len(record["checkpoints"])) == ("one", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "file", "bundle"}


def test_a_bundle_may_be_written_into_the_current_folder(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export_bundle(exported.models["one"], Path(".")) == tmp_path / "here"
    assert (tmp_path / "here" / "voxtune.json").is_file()


def test_an_export_after_kill_9_of_another_leaves_one_whole_bundle(exported: Exported, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    process = start("-m", "tune", "export", exported.models["one"], "--bundle", bundle)
    wait_for(process, lambda: (tmp_path / ".bundle.new" / "models").exists())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    assert not bundle.exists()
    export_bundle(exported.models["one"], bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert all(findings == [] for findings in verify_bundle(bundle, None).values())


def test_the_card_says_in_what_the_networks_differ_and_how_little_two_test_cases_tell(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        make_model(tmp_path / "model" / "members" / f"seed_{seed}", prepared, phantoms, seed=seed)
    scores = dict(zip(DICE, (0.3, 0.4, 0.5, 0.4), strict=True))
    content = {
        "cases": {TEST[0]: scores, TEST[1]: {**scores, "dice_mean": 0.42}}, "parts": dict.fromkeys(TEST, "test"),
        "members": [{"epoch": 3}, {"epoch": 3}], "mirror": True, "overlap": 0.5, "min_component": 30,
        "et_threshold": 200,
    }  # fmt: skip
    (tmp_path / "model" / "test_scores.json").write_text(json.dumps(content))
    card = (export_bundle(tmp_path / "model", tmp_path / "bundle") / "docs" / "README.md").read_text()
    assert "Of the first of 2 networks; the others differ in seed.\n" in card
    assert "mirror true, overlap 0.5, min_component 30, et_threshold 200, which is not how this bundle predicts" in card
    assert (
        "- 2 test cases are few: by their deviation, the mean Dice over many cases like them is between 0.28 and"
        in card
    )
    (tmp_path / "model" / "test_scores.json").write_text(json.dumps({**content, "target_shape": [64, 64, 64]}))
    card = (export_bundle(tmp_path / "model", tmp_path / "other") / "docs" / "README.md").read_text()
    assert "| test | 2 | 0.3" not in card  # of windows that the bundle does not have


def test_the_card_says_which_cases_the_pretrained_weights_had_seen(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", prepared, phantoms, pretrained=tmp_path / "weights.pth")
    state = load_checkpoint(TrainingDir(model).best)
    scan = scan_of(state["cases"]["val"][VAL[0]])
    seen = {"trained": [scan], "selected": [], "complete": False}
    save_checkpoint({**state, "seen": seen}, TrainingDir(model).best)
    card = (export_bundle(model, tmp_path / "bundle") / "docs" / "README.md").read_text()
    assert "; the pretrained weights had seen 1 of them; predicted with" in card
    assert "started from the weights in weights.pth, of which it is not known which cases they had seen." in card


def test_networks_that_run_differently_are_refused(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    for member, overlap in (("a", 0.5), ("b", 0.25)):
        make_model(tmp_path / "model" / "members" / member, prepared, phantoms, overlap=overlap)
    with pytest.raises(InputError, match=r"differ in overlap, 0\.5 and 0\.25: one bundle runs all its networks alike"):
        export_bundle(tmp_path / "model", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_labels_are_written_in_the_convention_of_the_training() -> None:
    from trainable.bundle.scripts.brats_case import LabelsFromRegionsd

    assert [label_values(labels) for labels in (LABELS_2021, LABELS_2023, LABELS_PED2024)] == [
        [1, 2, 4], [1, 2, 3], [2, 4, 1],
    ]  # fmt: skip
    probabilities = torch.zeros(3, 8, 8, 8)
    probabilities[0, :4], probabilities[1, :2], probabilities[2, 0, 0] = 0.9, 0.8, 0.7
    probabilities[2, 7, 7, 7] = 0.6  # ET is also TC and WT; an island of one voxel

    def counts(min_component: int, et_threshold: int) -> dict[int, int]:
        clean = LabelsFromRegionsd("pred", [2, 4, 1], min_component, et_threshold)
        values, numbers = clean({"pred": probabilities})["pred"].unique(return_counts=True)
        return dict(zip(values.int().tolist(), numbers.tolist(), strict=True))

    assert counts(0, 0) == {0: 255, 1: 9, 2: 120, 4: 128}
    assert counts(2, 0) == {0: 256, 1: 8, 2: 120, 4: 128}
    assert counts(2, 9) == {0: 256, 2: 128, 4: 128}


def test_images_that_the_network_cannot_predict_are_refused_by_the_bundle_too() -> None:
    from monai.data import MetaTensor

    from trainable.bundle.scripts.brats_case import CheckImagesd

    def checked(change: Any = lambda image: image, background: Any = 0.0, side: float = 1.05) -> Any:
        image = torch.zeros(4, 6, 6, 6)
        image[:, 2:4, 2:4, 2:4] = 7
        meta = MetaTensor(change(image), affine=torch.diag(torch.tensor([side, 1.0, 1.0, 1.0])))
        return CheckImagesd("image", [1, 1, 1], background)({"image": meta})["image"]

    assert checked().max() == 7
    assert checked(lambda image: image - 3, background="auto").unique().tolist() == [0, 7]
    assert checked(lambda image: image - 3, background=-3.0).unique().tolist() == [0, 7]
    for arguments, message in (
        ({"side": 2.0}, r"voxels of \[2.0, 1.0, 1.0\] mm; the network was trained on \[1.0, 1.0, 1.0\] mm"),
        ({"change": lambda image: image + 1}, "outer faces of an image is 1, on 100%; expected .* a background of 0"),
        ({"change": lambda image: image / 0}, "NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            checked(**arguments)
