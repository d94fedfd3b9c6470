"""A sweep as offline runs of Weights & Biases, one per trial, in one group."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from trainable.core.counted import counted
from trainable.core.files import atomic_write_text
from tune.run.results import Run
from tune.viewers.sweep_copy import TrialCopy, copies_of_trials, files_of_sweep, require_package, sweep_id

COPIED = "voxtune.json"  # beside the runs: the stamp of each trial that was copied, by the id of its run
SUMMARY = "sweep"  # in the id of the run that has the sweep's files


def export_to_wandb(run: Run, folder: Path, project: str) -> str:
    """Write a sweep as runs of wandb below a folder; what an earlier call has written is not written again.

    They are offline, so that nothing leaves this machine until `wandb sync`, unless $WANDB_MODE says otherwise.

    Returns:
        How many trials were written, and how to upload them.

    Raises:
        InputError: wandb is not installed.
    """
    require_package("wandb")
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "wandb" / COPIED
    copied: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    trials = copies_of_trials(run)
    changed = [trial for trial in trials if copied.get(run_id(run, str(trial.number))) != trial.stamp]
    for trial in changed:
        copy_trial(run, trial, folder, project)
        copied[run_id(run, str(trial.number))] = trial.stamp
        atomic_write_text(record, json.dumps(copied), fsync=False)
    if changed:
        copy_sweep(run, folder, project)
    runs = folder / "wandb"
    command = f"wandb sync {shlex.quote(str(runs))}/offline-run-*"
    return f"{counted(len(changed), 'trial')} written to {runs}; upload them with: {command}"


def run_id(run: Run, part: str) -> str:
    """Return the id of the run of a trial: the same at each call, so that it is uploaded once."""
    return sha256(f"{sweep_id(run)}/{part}".encode()).hexdigest()[:12]


def begin(run: Run, folder: Path, project: str, part: str, **facts: Any) -> Any:
    """Return a new run of wandb, in place of one that an earlier call has written for the same part of the sweep."""
    import wandb

    for earlier in (folder / "wandb").glob(f"offline-run-*-{run_id(run, part)}"):
        shutil.rmtree(earlier)
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    return wandb.init(
        dir=folder,
        project=project,
        group=run.folder.name,
        id=run_id(run, part),
        settings=settings,
        reinit="finish_previous",
        **facts,
    )


def copy_trial(run: Run, trial: TrialCopy, folder: Path, project: str) -> None:
    """Write a trial as a run of wandb: options, each epoch, its score and how it ended."""
    copy = begin(
        run, folder, project, str(trial.number), name=trial.name, config=trial.options, tags=[trial.tags["status"]],
        job_type="trial", notes=trial.tags.get("reason", ""),
    )  # fmt: skip
    for epoch, values in trial.epochs.items():
        copy.log(values, step=epoch)
    copy.summary.update(trial.tags | {"score": trial.score})
    copy.finish(exit_code=int(trial.state == TrialState.FAIL))


def copy_sweep(run: Run, folder: Path, project: str) -> None:
    """Write the sweep's files and its best score as a run of wandb."""
    copy = begin(run, folder, project, SUMMARY, name=run.folder.name, job_type="sweep")
    if run.ranking:
        copy.summary.update({"score": run.best().score, "winner": run.best().number})
    for path in files_of_sweep(run):
        copy.save(str(path), base_path=str(run.folder), policy="now")
    copy.finish()
