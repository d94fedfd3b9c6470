"""What optuna-dashboard shows besides the trials: a note per trial and on the sweep, and the winner's pictures.

The dashboard reads them from attributes of the study. They are written without it, since it need not be installed where
the sweep runs: https://github.com/optuna/optuna-dashboard, optuna_dashboard/_note.py and artifact/_backend.py.
"""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from trainable.core.files import atomic_copy
from trainable.core.options import format_value
from tune.analysis.trial_detail import reason
from tune.run.results import Run, TrialResult
from tune.search.journal import Journal
from tune.search.optuna_compat import set_study_attr, study_attrs, trial_id

ARTIFACTS = "dashboard:artifacts:"  # begins an attribute that attaches a file to a trial
MAX_NOTE = 2045  # characters in one attribute; the dashboard joins several, which no note here needs


def write_notes(journal: Journal, run: Run, trials: Iterable[TrialResult]) -> None:
    """Write the note of each of these trials that has ended and has none; a note that a user has edited stays."""
    known, attrs = trial_ids(journal), study_attrs(journal.study)
    for trial in trials:
        key = f"dashboard:{known[trial.number]}"
        if trial.state.is_finished() and f"{key}:note_ver" not in attrs:
            set_study_attr(journal.study, f"{key}:note_str:0", note(run, trial)[:MAX_NOTE])
            set_study_attr(journal.study, f"{key}:note_ver", 1)


def trial_ids(journal: Journal) -> dict[int, int]:
    """Return the id of each trial in Optuna's storage, which the dashboard's keys have, by its number."""
    return {frozen.number: trial_id(frozen) for frozen in journal.trials()}


def note(run: Run, trial: TrialResult) -> str:
    """Return how a trial ended and where its recipe differs from the default one, in Markdown."""
    lines = [f"**{trial.status}**{reason(run, trial).removeprefix(trial.status)}"]
    if trial.score is not None:
        dice = ", ".join(f"{region} {value:.4f}" for region, value in trial.dice.items())
        lines.append(f"{run.config.objective.score} {trial.score:.4f} at epoch {trial.best_epoch} ({dice})")
    default = run.config.space.default_values()
    changed = {name: value for name, value in trial.values.items() if value != default.get(name)}
    rows = [f"| {name} | {format_value(value)} | {default_text(name, default)} |" for name, value in changed.items()]
    table = "\n".join(["| option | here | default |", "| --- | --- | --- |", *rows])
    lines.append(table if rows else "The default recipe.")
    lines.append(f"Look closer: `voxtune show {shlex.quote(str(run.folder))} {trial.number}`")
    return "\n\n".join(lines)


def default_text(name: str, default: dict[str, object]) -> str:
    """Return the default of an option, as text; "inactive" if it does not act in the default recipe."""
    return format_value(default[name]) if name in default else "inactive"


def attach_pictures(journal: Journal, run: Run, trial: TrialResult) -> None:
    """Copy a trial's pictures to RUN/artifacts and attach them to it; those attached before, to any, are removed.

    What a user has uploaded stays.
    """
    wanted = {}
    prefix = f"{ARTIFACTS}{trial_ids(journal)[trial.number]}:"
    for path in run.dir.trial(trial.number).drawn():
        artifact = picture_id(path)
        wanted[f"{prefix}{artifact}"] = (path, artifact)
    attached = {key for key, text in study_attrs(journal.study).items() if is_picture(key) and text != "null"}
    for key in attached - wanted.keys():
        (run.dir.artifacts / key.rpartition(":")[2]).unlink(missing_ok=True)
        set_study_attr(journal.study, key, "null")
    for key in wanted.keys() - attached:
        path, artifact = wanted[key]
        run.dir.artifacts.mkdir(exist_ok=True)  # of a sweep that an older version began
        atomic_copy(path, run.dir.artifacts / artifact, fsync=False)
        meta = {"artifact_id": artifact, "filename": path.name, "mimetype": "image/png", "encoding": None}
        set_study_attr(journal.study, key, json.dumps(meta))


def picture_id(path: Path) -> str:
    """Return the id of a picture as an artifact, by its content; a UUID of version 5, uploads have one of version 4."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, sha256(path.read_bytes()).hexdigest()))


def is_picture(key: str) -> bool:
    """Return whether an attribute of the study attaches a picture of picture_id."""
    try:
        return key.startswith(ARTIFACTS) and uuid.UUID(key.rpartition(":")[2]).version == 5
    except ValueError:
        return False


def describe_study(journal: Journal, run: Run) -> None:
    """Write the note on the sweep, unless it has one."""
    if "dashboard:note_ver" in study_attrs(journal.study):
        return
    folder = shlex.quote(str(run.folder))
    text = (
        f"A sweep of voxtune: {len(run.config.space.parameters)} options searched, {run.config.budget.trials} trials "
        f"of up to {run.config.fixed('epochs')} epochs. Trials that ran out of memory count with 0.\n\n"
        f"Look closer: `voxtune status {folder}`, `voxtune report {folder}`"
    )
    set_study_attr(journal.study, "dashboard:note_str:0", text)
    set_study_attr(journal.study, "dashboard:note_ver", 1)
