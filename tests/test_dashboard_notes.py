"""What optuna-dashboard shows of a sweep, read by its own code from RUN/journal.log."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import optuna_dashboard
import pytest
from helpers import SWEEP
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna_dashboard._note import get_note_from_system_attrs
from optuna_dashboard.artifact._backend import list_trial_artifacts
from PIL import Image
from synthetic_run import make_synthetic_run

from tune.run.results import Run, read_run
from tune.run.verify import verify
from tune.search.journal import Journal
from tune.search.optuna_compat import set_study_attr, study_attrs
from tune.spec.sweep_config import make_sweep_config
from tune.viewers.dashboard_notes import trial_ids
from tune.viewers.sweep_viewers import begin_viewers, finish_viewers


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A sweep of which some trials have ended in each way, and two run; its best two have drawn a picture."""
    run = read_run(make_synthetic_run(tmp_path / "a run", trials=16, running=2, failed_every=8, cases=2, gpus=2))
    for place, trial in enumerate(run.ranking[:2]):
        run.dir.trial(trial.number).pictures.mkdir(parents=True)
        rgb = np.full((20, 30, 3), 50 + place, np.uint8)
        Image.fromarray(rgb).save(run.dir.trial(trial.number).pictures / f"case_{place}.png")
    return run


def opened(run: Run) -> optuna.Study:
    """The study as the dashboard opens it."""
    storage = JournalStorage(JournalFileBackend(str(run.dir.journal)))
    return optuna.load_study(study_name=run.config.record.study, storage=storage)


def notes(run: Run) -> list[str]:
    """The note of each trial; "" without one."""
    study = opened(run)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return [get_note_from_system_attrs(attrs, trial._trial_id)["body"] for trial in study.trials]


def pictures(run: Run) -> dict[int, list[tuple[str, bytes]]]:
    """Name and content of the artifacts of each trial that has some."""
    study, store = opened(run), FileSystemArtifactStore(run.dir.artifacts)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    found = {}
    for trial in study.trials:
        if listed := list_trial_artifacts(attrs, {}, trial):
            found[trial.number] = [(meta["filename"], store.open_reader(meta["artifact_id"]).read()) for meta in listed]
    return found


def test_each_ended_trial_says_how_it_ended_and_where_its_recipe_differs(run: Run) -> None:
    journal = Journal(run.folder, run.config)
    begin_viewers(journal, run)
    finish_viewers(journal, run)
    for trial, note in zip(run.trials, notes(run), strict=True):
        if not trial.state.is_finished():
            assert note == ""
            continue
        assert note.startswith(f"**{trial.status}** at epoch {trial.epoch} of 100")
        assert f"voxtune show '{run.folder}' {trial.number}" in note
        assert ("The default recipe." in note) == (trial.number == 0)
        if trial.status == "failed":
            assert trial.error in note
        if trial.status == "stopped early":
            decided = trial.rungs[trial.stop_epoch]
            assert f"of 100: {decided.value:.4f}, {decided.needed:.4f} was needed" in note
        if trial.values.get("optimizer", "adam") != "adam":
            assert f"| optimizer | {trial.values['optimizer']} | adam |" in note
    assert {trial.status for trial in run.trials} >= {"failed", "stopped early", "complete", "interrupted"}
    assert verify(read_run(run.folder)) == verify(run)


def test_nothing_is_written_twice_and_a_note_that_a_user_edits_stays(run: Run) -> None:
    journal = Journal(run.folder, run.config)
    finish_viewers(journal, run)
    size = run.dir.journal.stat().st_size
    finish_viewers(journal, read_run(run.folder))
    assert run.dir.journal.stat().st_size == size
    first = trial_ids(journal)[0]
    set_study_attr(journal.study, f"dashboard:{first}:note_str:0", "mine")
    set_study_attr(journal.study, f"dashboard:{first}:note_ver", 2)
    finish_viewers(Journal(run.folder, run.config), read_run(run.folder))
    assert notes(run)[0] == "mine"


def test_notes_add_little_to_a_journal(run: Run) -> None:
    before, ended = run.dir.journal.stat().st_size, sum(trial.state.is_finished() for trial in run.trials)
    finish_viewers(Journal(run.folder, run.config), run)
    assert run.dir.journal.stat().st_size - before < 1500 * ended


def test_the_winner_alone_has_its_pictures_and_uploads_stay(run: Run) -> None:
    first, second = run.ranking[:2]
    finish_viewers(Journal(run.folder, run.config), run)
    path = run.dir.trial(first.number).pictures / "case_0.png"
    assert pictures(run) == {first.number: [("case_0.png", path.read_bytes())]}
    uploaded = (
        f"dashboard:artifacts:study:{uuid.uuid4()}",
        f"artifacts:{uuid.uuid4()}",
        "artifacts:of another tool",
    )
    for key in uploaded:
        set_study_attr(Journal(run.folder, run.config).study, key, "{}")
    others = Run(run.dir, run.config, [trial for trial in run.trials if trial.number != first.number])
    finish_viewers(Journal(run.folder, run.config), others)
    path = run.dir.trial(second.number).pictures / "case_1.png"
    assert pictures(run) == {second.number: [("case_1.png", path.read_bytes())]}
    assert len(list(run.dir.artifacts.iterdir())) == 1
    attrs = study_attrs(opened(run))
    assert [attrs[key] for key in uploaded] == ["{}"] * 3


@pytest.mark.parametrize(
    ("metric", "names"),
    [("val_dice_WT", ["val_dice_WT"]), (["val_dice_mean", "seconds"], ["val_dice_mean", "seconds"])],
)
def test_the_objectives_have_their_names_once(tmp_path: Path, metric: object, names: list[str]) -> None:
    config = make_sweep_config({**SWEEP, "study": {"metric": metric}})
    for _ in range(2):
        assert Journal(tmp_path, config).study.metric_names == names
    lines = (tmp_path / "journal.log").read_text().splitlines()
    assert sum("study:metric_names" in json.dumps(json.loads(line)) for line in lines) == 1


def test_the_dashboards_own_server_gives_names_notes_and_pictures(run: Run) -> None:
    journal = Journal(run.folder, run.config)
    begin_viewers(journal, run)
    finish_viewers(journal, run)
    app = optuna_dashboard.wsgi(
        JournalStorage(JournalFileBackend(str(run.dir.journal))),
        artifact_store=FileSystemArtifactStore(run.dir.artifacts),
    )
    study = json.loads(response(app, "/api/studies/0"))
    assert study["objective_names"] == ["val_dice_mean"]
    assert study["note"]["body"].startswith("A sweep of voxtune")
    winner = study["trials"][run.best().number]
    assert winner["note"]["body"].startswith("**complete**")
    [picture] = winner["artifacts"]
    path = run.dir.trial(run.best().number).pictures / picture["filename"]
    assert response(app, f"/artifacts/0/{winner['trial_id']}/{picture['artifact_id']}") == path.read_bytes()


def response(app: Any, path: str) -> bytes:
    """What a web application answers to a GET."""
    environment: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environment)
    return b"".join(app(environment, lambda status, headers, error=None: None))
