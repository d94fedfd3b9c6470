"""voxtune from Python: what `import voxtune` offers, and the script in docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import SWEEP, make_report, with_case_scores
from optuna.trial import TrialState
from pandas import DataFrame

import voxtune as vt
from trainable.data.prepare import Data
from trainable.training.epoch_result import row_columns
from trainable.training.training_log import TrainingLog
from tune.driver.recording.recorder import metrics_of
from tune.run.events import Event, EventKind, append_event
from tune.run.run_dir import RunDir
from tune.search.journal import Journal
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config
from voxtune.actions import override_text

SPACE = """
study: {trials: 5, seed: 1}
resources: {gpu: 0, cpu: 1}
early_stopping: {grace_period: 1}
train: {epochs: 1, depth: 3, base_channels: 4, target_shape: [16, 16, 16], patches_per_epoch: 4, num_workers: 0,
        device: cpu, cache_dir: %s}
space:
  lr: {loguniform: [1e-5, 3e-2]}
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two trials: one complete after two epochs, one running in its second."""
    paths = RunDir(tmp_path_factory.mktemp("api") / "run")
    paths.path.mkdir()
    config = make_sweep_config({**SWEEP, "study": {"trials": 2}, "train": {"epochs": 2}})
    paths.config.write_text(dump(config))
    journal = Journal(paths.path, config)
    for number in (0, 1):
        journal.ask()
        log = TrainingLog(paths.trial(number).path)
        for epoch in (1, 2) if number == 0 else (1,):
            report = make_report(epoch, 0.1 * epoch + 0.2, end_reason="epochs" if epoch == 2 else "")
            report = with_case_scores(report, ["a", "b"])
            log.write(metrics_of(report), case_rows=report["case_scores"])
            journal.record(number, report)
    journal.tell(0)
    return paths.path


def test_a_run_is_read_as_tables(run_dir: Path) -> None:
    run = vt.open(str(run_dir))
    trials = run.trials()
    assert list(trials["number"]) == [0, 1]
    assert list(trials["state"]) == ["COMPLETE", "RUNNING"]
    assert list(trials["score"]) == pytest.approx([0.4, 0.3])
    assert list(trials["dice_WT"]) == pytest.approx([0.4, 0.3])
    assert trials["params_lr"][0] == run.best().values["lr"]
    curves = run.curves()
    assert list(curves["trial"]) == [0, 0, 1]
    assert list(curves["epoch"]) == [1, 2, 1]
    assert list(curves["val_dice_mean"]) == pytest.approx([0.3, 0.4, 0.3])
    assert list(curves["end_reason"]) == ["", "epochs", ""]


def test_scores_of_cases_are_read_as_a_table(run_dir: Path, tmp_path: Path) -> None:
    run = vt.open(run_dir)
    scores = run.case_scores(0)
    assert list(scores["epoch"]) == [1, 1, 2, 2]
    assert list(scores["case"]) == ["a", "b", "a", "b"]
    assert list(scores["dice_mean"]) == pytest.approx([0.3, 0.3, 0.4, 0.4])
    with pytest.raises(vt.InputError, match="has no trial 2"):
        run.case_scores(2)
    (tmp_path / "study.yaml").write_text((run_dir / "study.yaml").read_text())
    Journal(tmp_path, run.config).ask()
    empty = vt.open(tmp_path).case_scores(0)
    assert (len(empty), list(empty.columns)) == (0, list(scores.columns))


def test_the_columns_of_trials_depend_neither_on_trials_nor_on_scores(run_dir: Path, tmp_path: Path) -> None:
    """A run that has not trained yet, and then one whose trial has no score."""
    full = vt.open(run_dir).trials()
    paths = RunDir(tmp_path)
    paths.config.write_text((run_dir / paths.config.name).read_text())
    journal = Journal(tmp_path, vt.open(run_dir).config)
    empty = vt.open(tmp_path).trials()
    assert (len(empty), list(empty.columns)) == (0, list(full.columns))
    assert {"score", "dice_WT", "dice_TC", "dice_ET", "params_lr"} <= set(empty.columns)
    assert list(vt.open(tmp_path).curves().columns) == ["trial", *row_columns()]
    journal.ask()
    unscored = vt.open(tmp_path).trials()
    assert list(unscored.columns) == list(full.columns)
    assert unscored[["score", "dice_WT"]].isna().all(axis=None)


def test_a_run_has_a_winner_a_recipe_and_a_config(run_dir: Path) -> None:
    run = vt.open(run_dir)
    best = run.best()
    assert (best.number, best.best_epoch, best.state) == (0, 2, TrialState.COMPLETE)
    assert run.recipe().lr == best.values["lr"]
    assert run.recipe(1) != run.recipe(0)
    assert run.config.budget.trials == 2
    assert run.folder == run_dir


def test_a_notebook_shows_the_best_trials_of_a_run_with_their_curves(run_dir: Path) -> None:
    run = vt.open(run_dir)
    html = run._repr_html_()
    page = ElementTree.fromstring(html.replace("<br>", "<br/>"))
    (head,) = page.iter("thead")
    assert [cell.text for cell in head.iter("th")][:3] == ["trial", "val_dice_mean", "curve"]
    (body,) = page.iter("tbody")
    rows = [[cell.text for cell in row] for row in body]
    assert [row[:2] for row in rows] == [["0", "0.4000"], ["1", "0.3000"]]
    assert [row[4] for row in rows] == ["complete at epoch 2 of 2", "interrupted; epoch 1 of 2 is reported"]
    curves = [line.attrib["points"] for line in body.iter("polyline")]
    assert [len(points.split()) for points in curves] == [2, 1]
    assert curves[0].split()[1].endswith(",2.0")  # the highest score is at the top
    assert "1 interrupted, 1 complete" in html
    assert (
        repr(run)
        == f"<run {run_dir}: 2 of 2 trials started: 1 interrupted, 1 complete; 3 epochs; best 0.4000 (trial 0)>"
    )


def test_a_run_tells_its_importances_its_cost_and_its_events(run_dir: Path) -> None:
    run = vt.open(run_dir)
    assert not run.importances().enough
    assert [option.name for option in run.importances().options] == ["lr", "optimizer", "momentum"]
    assert run.effort().epochs == 3
    assert run.events() == []
    append_event(RunDir(run_dir).events, Event(1.5, EventKind.TRIAL_STARTED, "started", 0, gpus=(1,)))
    try:
        assert DataFrame(run.events())[["kind", "trial"]].to_dict("records") == [{"kind": "trial_started", "trial": 0}]
        assert vt.open(run_dir).trials()["started"][0] == "1970-01-01T00:00:01Z"
    finally:
        RunDir(run_dir).events.unlink()


def test_what_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(vt.InputError, match=r"no study.yaml there; expected the folder that `voxtune launch --out`"):
        vt.open(tmp_path)
    with pytest.raises(vt.InputError, match="no checkpoint there"):
        vt.load_model(tmp_path)


def test_wrong_values_are_input_errors_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(vt.InputError, match="overrides: train.lr is <object .*>; expected None, text, a path"):
        vt.launch("demo", data=tmp_path, out=tmp_path / "run", overrides={"train.lr": object()})
    with pytest.raises(vt.InputError, match="hours is 'a'; expected a number of hours above 0"):
        vt.launch("demo", data=tmp_path, out=tmp_path / "run", hours="a")  # type: ignore[arg-type]
    with pytest.raises(vt.InputError, match="device is 'gpu', which torch cannot use here: Expected one of cpu, cuda"):
        vt.load_model(tmp_path, device="gpu")


def test_overrides_may_be_paths_and_numbers_of_numpy() -> None:
    values = {"train.epochs": np.int64(3), "train.labels": Path("/a.yaml")}
    values |= {"space.loss_weights": None, "train.loss_weights": np.array([1.0, 2.0])}
    config = load_sweep_config("demo", [override_text(key, value) for key, value in values.items()])
    assert config.fixed("epochs") == 3
    assert config.fixed("loss_weights") == [1.0, 2.0]
    assert str(config.fixed("labels")) == "/a.yaml"


def test_without_installed_metadata_the_version_is_unknown(tmp_path: Path) -> None:
    root = Path(vt.__file__).parents[1]
    for name in ("voxtune", "tune", "trainable", "search_spaces"):
        (tmp_path / name).symlink_to(root / name)  # without voxtune.egg-info beside them
    hide = "import importlib.metadata as m; found = m.Distribution.from_name\nm.Distribution.from_name = classmethod("
    hide += "lambda cls, name: found(name if name != 'voxtune' else 'no-such-package'))\n"
    script = f"{hide}import voxtune, tune.cli.command as c; print(voxtune.__version__, c.version('numpy') != 'unknown')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("unknown True\n", 0), done.stderr


READ = """
import sys
sys.modules["pandas"] = None  # as if it were not installed
import voxtune as vt
run = vt.open({run!r})
trials, curves = run.trials(), run.curves()
print([type(trial).__name__ for trial in trials], run.best().number, run.recipe().epochs)
print([(row["trial"], row["epoch"], type(row["val_dice_WT"]).__name__) for row in curves])
print([name for name in ("ray", "torch", "pandas") if sys.modules.get(name)], file=sys.stderr)
"""


def test_reading_imports_neither_ray_nor_torch_and_works_without_pandas(run_dir: Path) -> None:
    code = READ.format(run=str(run_dir))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['TrialResult', 'TrialResult'] 0 2",
        "[(0, 1, 'float'), (0, 2, 'float'), (1, 1, 'float')]",
    ]
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_the_script_in_the_docs_runs(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    """It launches a sweep, reads it and loads its winner; as a library, voxtune prints nothing by itself."""
    page = (Path(__file__).parents[1] / "docs/python.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "space.yaml").write_text(SPACE % prepared.folder)
    for name, value in (("brats", tmp_path / "space.yaml"), ("DATA", phantoms), ("RUN", tmp_path / "run")):
        assert f'"{name}' in code
        code = code.replace(f'"{name}', f'"{value}')
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "val_dice_mean 2"
    assert lines[-1] == f"torch.Size([1, 3, 16, 16, 16]) {vt.__version__}"
    assert "trials:" not in done.stdout  # the table and the lines of `voxtune launch`
    run = vt.open(tmp_path / "run")
    assert [trial.finished for trial in run._run.trials] == [True, True]
    assert run.config.resources.cpu == 2
    network, config = vt.load_model(tmp_path / "run" / "best")
    assert not network.training
    assert config.lr == run.best().values["lr"]
    assert next(network.parameters()).device == torch.device("cpu")
