"""The report of one sweep."""

from __future__ import annotations

import time

from optuna.trial import TrialState

from trainable.core.counted import counted
from trainable.core.errors import InputError
from tune.analysis.importance import importances
from tune.report.blocks import Facts, Section
from tune.report.case_views import ImageChoice, case_views
from tune.report.cases_section import cases_section, damaged_section, privacy_text
from tune.report.dice_plots import dice_section
from tune.report.effort_section import effort_section
from tune.report.failures import failures_section
from tune.report.history import history_section
from tune.report.importance_section import importance_section
from tune.report.overview import recipe_section, run_name, verdict_section
from tune.report.page import Page
from tune.report.provenance_section import provenance_section
from tune.report.rungs import rungs_section
from tune.report.search_space import space_section
from tune.report.sweep_data import SweepData, read_sweep
from tune.report.timeline import timeline_section
from tune.report.trials import trial_data, trials_section
from tune.run.results import Run

STATES = {
    "running": "running; this file is what was known when it was made",
    "ended": "ended",
    "ended early": "ended before all trials were tried, as a budget was spent or it was stopped",
    "interrupted": "interrupted; continue with: `voxtune resume RUN`",
}


def sweep_page(run: Run, *, images: ImageChoice, anonymous: bool, quiet: bool) -> Page:
    """Return the report of a sweep.

    Args:
        images: as for case_views.
        anonymous: names no case, machine or folder.
        quiet: no progress bar while cases are predicted.
    """
    data = read_sweep(run, anonymous=anonymous)
    try:
        dice = dice_section(run, anonymous=anonymous)
        views = case_views(run, images=images, quiet=quiet)
        cases = cases_section(views, dice, anonymous=anonymous)
    except InputError as error:
        views, cases = [], damaged_section(error, data.privacy)
    return Page(
        title=run_name(run.folder),
        subtitle="Search for a training recipe",
        facts=Facts(sweep_facts(data)),
        privacy=privacy_text(views, anonymous=anonymous),
        sections=sweep_sections(data, cases),
        trials=trial_data(data),
    )


def sweep_sections(data: SweepData, cases: Section | None) -> list[Section]:
    """Return the sections that have something to show. cases: the one about single cases."""
    found = importances(data.run)
    sections = [
        verdict_section(data),
        recipe_section(data),
        history_section(data),
        trials_section(data),
        rungs_section(data),
        importance_section(found, has_winner=data.winner is not None) if found.trials else None,
        space_section(data, found),
        cases,
        timeline_section(data),
        effort_section(data),
        failures_section(data),
        provenance_section(data),
    ]
    return [section for section in sections if section is not None]


def sweep_facts(data: SweepData) -> list[tuple[str, str]]:
    """Return the facts below the heading."""
    config, run = data.run.config, data.run
    started = len(run.own_trials)
    paused = sum(trial.paused for trial in run.own_trials)
    going = sum(trial.state == TrialState.RUNNING for trial in run.own_trials) - paused
    trials = f"{started} of {config.budget.trials} started"
    trials += f", {going} {'running' if data.state == 'running' else 'not ended'}" if going else ""
    trials += f", {paused} paused" if paused else ""
    facts = [("state", STATES[data.state])]
    if note := config.record.to_dict().get("note"):
        facts.insert(0, ("note", data.privacy.text(note)))
    if data.events:
        facts.append(("begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(data.events[0].time))))
    stopping = config.early_stopping.type
    facts.append(
        ("trials", f"{trials}; {counted(len(config.space.parameters), 'option')} searched by {config.searcher.type}")
    )
    facts.append(("training", f"up to {data.epochs} epochs; early stopping: {stopping}; maximised: {data.score_name}"))
    return facts
