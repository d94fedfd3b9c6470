"""A sweep as runs of MLflow: one for the sweep, and below it one per trial."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from trainable.core.counted import counted
from trainable.core.errors import InputError
from tune.run.results import Run
from tune.viewers.sweep_copy import TrialCopy, copies_of_trials, files_of_sweep, require_package, sweep_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SWEEP, TRIAL, STAMP, EPOCH = "voxtune.sweep", "voxtune.trial", "voxtune.copied", "voxtune.epoch"  # tags
STATUS = {TrialState.FAIL: "FAILED", TrialState.RUNNING: "RUNNING"}  # any other trial is FINISHED
BATCH = 900  # metrics in one request, of which MLflow takes 1000


def export_to_mlflow(run: Run, uri: str | None, project: str) -> str:
    """Copy a sweep to a store of MLflow; what an earlier call has copied is not copied again.

    Args:
        uri: of the store, or a folder; None for MLflow's own default: $MLFLOW_TRACKING_URI, else ./mlflow.db.
        project: the experiment, made if it is missing.

    Returns:
        How many trials were copied, and how to look at them.

    Raises:
        InputError: MLflow is not installed, or cannot use the store.
    """
    require_package("mlflow")
    uri = store_uri(uri)
    if uri is not None and uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # that they make the tables of a new store says nothing to the user
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = MlflowClient(uri)
        experiment = find_experiment(client, uri, project)
        known = dict(copied_before(client, experiment, sweep_id(run)))
        parent = known.get("") or create(client, experiment, run.folder.name, run, None)
        copied = 0
        for trial in copies_of_trials(run):
            before = known.get(str(trial.number))
            if before is not None and before.data.tags.get(STAMP) == trial.stamp:
                continue
            copy_trial(client, run, trial, before or create(client, experiment, trial.name, run, trial, parent))
            copied += 1
        copy_sweep(client, run, parent)
    except MlflowException as error:
        raise InputError(f"MLflow at {uri or 'its default store'}: {str(error).splitlines()[0]}") from None
    where = f" --backend-store-uri {shlex.quote(uri)}" if uri else ""
    return f"{counted(copied, 'trial')} copied to experiment {project}; look at them with: mlflow ui{where}"


def store_uri(uri: str | None) -> str | None:
    """Return the URI of a store; that of a folder if it is none."""
    return uri if uri is None or ":" in uri else Path(uri).resolve().as_uri()


def find_experiment(client: MlflowClient, uri: str | None, project: str) -> str:
    """Return the id of an experiment, made if it is missing; beside a database file its files go to mlartifacts."""
    if (experiment := client.get_experiment_by_name(project)) is not None:
        return str(experiment.experiment_id)
    files = None
    if uri is not None and uri.startswith("sqlite:///"):
        files = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / project).as_uri()
    return str(client.create_experiment(project, artifact_location=files))


def copied_before(client: MlflowClient, experiment: str, sweep: str) -> Iterator[tuple[str, Any]]:
    """Yield what an earlier call has made of this sweep: the number of the trial, "" for the sweep, and the run."""
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{SWEEP}` = '{sweep}'", max_results=1000, page_token=token)
        yield from ((found.data.tags.get(TRIAL, ""), found) for found in page)
        token = page.token
        if not token:
            return


def create(
    client: MlflowClient, experiment: str, name: str, run: Run, trial: TrialCopy | None, parent: Any = None
) -> Any:
    """Return a new run of MLflow for a trial of a sweep, or with trial None for the sweep itself."""
    tags = {SWEEP: sweep_id(run), "mlflow.source.name": "voxtune"}
    if trial is not None:
        tags |= {TRIAL: str(trial.number), "mlflow.parentRunId": parent.info.run_id}
    start = trial.start if trial is not None else None
    return client.create_run(experiment, start_time=milliseconds(start), tags=tags, run_name=name)


def copy_trial(client: MlflowClient, run: Run, trial: TrialCopy, copy: Any) -> None:
    """Write what a run of MLflow lacks of a trial: options once, each epoch once, its score and how it ended."""
    from mlflow.entities import Metric, Param, RunTag

    begun, done = milliseconds(trial.start) or copy.info.start_time, int(copy.data.tags.get(EPOCH, 0))
    metrics, seconds = [], 0.0
    for epoch, values in trial.epochs.items():
        seconds += values.get("time/epoch_s", 0.0) + values.get("time/validation_s", 0.0)
        if epoch > done:
            metrics += [Metric(name, value, begun + int(1000 * seconds), epoch) for name, value in values.items()]
    if trial.score is not None and copy.data.metrics.get("score") != trial.score:
        metrics.append(Metric("score", trial.score, begun + int(1000 * seconds), trial.last_epoch))
    params = [] if done else [Param(name, str(value)) for name, value in trial.options.items()]
    for start in range(0, len(metrics) or 1, BATCH):
        client.log_batch(copy.info.run_id, metrics[start : start + BATCH], params if start == 0 else [])
    tags = trial.tags | {EPOCH: str(max(trial.epochs, default=0)), STAMP: trial.stamp}
    client.log_batch(copy.info.run_id, tags=[RunTag(name, value[:5000]) for name, value in tags.items()])
    finish(client, copy, status_of(trial), milliseconds(trial.end))


def copy_sweep(client: MlflowClient, run: Run, copy: Any) -> None:
    """Write what a sweep as a whole has found, and its files, to its run of MLflow."""
    if run.ranking and copy.data.metrics.get("score") != (score := run.best().score):
        client.log_metric(copy.info.run_id, "score", score)
        client.set_tag(copy.info.run_id, "winner", str(run.best().number))
    for path in files_of_sweep(run):
        client.log_artifact(copy.info.run_id, str(path), "best" if path == run.dir.best_config else None)
    finish(client, copy, "RUNNING" if run.driven else "KILLED" if run.unfinished else "FINISHED", None)


def status_of(trial: TrialCopy) -> str:
    """Return the status of MLflow for a trial; that of an interrupted or paused one is KILLED until it goes on."""
    return "KILLED" if trial.tags["status"] in ("interrupted", "paused") else STATUS.get(trial.state, "FINISHED")


def finish(client: MlflowClient, copy: Any, status: str, end: int | None) -> None:
    """Set how a run of MLflow ended, and when, in ms since 1970."""
    if status == "RUNNING":
        client.update_run(copy.info.run_id, status=status)
    else:
        client.set_terminated(copy.info.run_id, status, end)


def milliseconds(time: datetime | None) -> int | None:
    """Return a time as ms since 1970."""
    return None if time is None else int(1000 * time.timestamp())
