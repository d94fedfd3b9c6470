"""The report of a confirmation alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from tune.confirmation.plan import ConfirmPlan, load_plan
from tune.confirmation.status import load_result, sentence
from tune.confirmation.verdict import Verdict
from tune.report.blocks import Block, Code, Facts, Figure, Section, Table
from tune.report.cases_section import cases_section, privacy_text, range_sentence
from tune.report.chart_style import axis, chart_text
from tune.report.confirm_scores import CaseRow, arm_names, mean_scores, read_case_rows
from tune.report.dice_plots import dice_section_of_confirmation
from tune.report.overview import run_name, verdict_table
from tune.report.page import Page
from tune.report.sweep_data import SweepData, read_sweep, time_text, value_text
from tune.run.results import Run
from tune.run.run_dir import confirm_command

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def confirm_page(run: Run, *, anonymous: bool) -> Page:
    """Return the report of a run's confirmation.

    Raises:
        InputError: if it has no verdict yet, or a file of it is damaged.
    """
    folder = run.dir.confirm
    content, plan = load_result(folder), load_plan(folder.plan)
    if content is None or plan is None:
        raise InputError(f"{folder.path}: no verdict there yet; go on with: {confirm_command(run.folder)}")
    data = read_sweep(run, anonymous=anonymous)
    return Page(
        title=f"Confirmation of {run_name(run.folder)}",
        subtitle="Trainings with new seeds",
        facts=Facts([(name, data.privacy.text(text)) for name, text in confirm_facts(content, plan)]),
        privacy=privacy_text([], anonymous=anonymous),
        sections=confirm_sections(data, content, plan),
        trials={},
    )


def confirm_facts(content: dict[str, Any], plan: ConfirmPlan) -> list[tuple[str, str]]:
    """Return the facts below the heading."""
    on = f"{plan.folds} folds of the training and validation cases" if plan.folds else "the sweep's validation cases"
    failed = f"; {len(content['errors'])} failed" if content["errors"] else ""
    return [
        ("compared", f"{counted(len(plan.arms), 'recipe')}, up to {counted(len(plan.seeds), 'seed')} each"),
        ("trained", f"{counted(content['trainings'], 'training')} of {plan.epochs} epochs{failed}"),
        ("scored on", on),
        ("training time", time_text(content["seconds"])),
        ("state", f"ended: {content['ended']}" if content["ended"] else "not ended: what follows may change"),
    ]


def confirm_sections(data: SweepData, content: dict[str, Any], plan: ConfirmPlan) -> list[Section]:
    """Return the verdicts, the scores of each training, and the recipes."""
    parts = {name: Verdict.from_json(content[name]) for name in ("validation", "test") if content.get(name)}
    lead = " ".join(f"{name.capitalize()} cases: {arm_names(sentence(verdict))}." for name, verdict in parts.items())
    lead += f" Chosen: {arm_names(content['chosen'])}; {parts['validation'].reason}."
    tables: list[Block] = [verdict_table(name, verdict, data.privacy) for name, verdict in parts.items()]
    sections = [Section("verdict", "Verdict", data.privacy.text(lead), tables)]
    rows = read_case_rows(data.run.dir.confirm.scores)
    for part, title in (("val", "validation"), ("test", "test")):
        if of_part := [row for row in rows if row.part == part]:
            text = f"Each mark is the mean over the {title} cases of one training: the spread is that between seeds."
            sections.append(Section(f"seeds_{part}", f"Trainings, {title} cases", text, [seed_figure(of_part, part)]))
    cache, anonymous = Path(data.run.config.record.cache_dir or ""), data.privacy.anonymous
    dice = dice_section_of_confirmation(data.run.dir.confirm.path, cache=cache, anonymous=anonymous)
    lead = case_range(rows, content["chosen"])
    if (cases := cases_section([], dice, anonymous=anonymous, lead=lead)) is not None:
        sections.append(cases)
    sections.append(
        Section("recipes", "Recipes", "Where the recipes differ from each other.", recipe_blocks(data, plan))
    )
    return sections


def case_range(rows: Sequence[CaseRow], arm: str) -> str:
    """Return in what range the mean Dice of a case is, over the trainings of a recipe."""
    sentences = []
    for part, title in (("val", "validation"), ("test", "test")):
        if dice := [scores["dice_mean"] for scores in mean_scores(rows, part).get(arm, {}).values()]:
            sentences.append(range_sentence(title, len(dice), min(dice), max(dice)))
    return " ".join([*sentences, f"This is over the trainings of the chosen recipe, {arm_names(arm)}."])


def seed_figure(rows: Sequence[CaseRow], part: str) -> Figure:
    """Return the mean Dice of each training, by region, with a symbol per recipe."""
    columns = [f"dice_{name}" for name in (*REGIONS, "mean")]
    by_training: dict[tuple[str, str], list[CaseRow]] = {}
    for row in rows:
        by_training.setdefault((row.arm, row.seed), []).append(row)
    arms = list(dict.fromkeys(arm for arm, _ in by_training))
    traces = []
    for place, arm in enumerate(arms):
        x, y = [], []
        for (of, _), scored in by_training.items():
            if of == arm:
                x += [index + 0.5 * ((place + 0.5) / len(arms) - 0.5) for index in range(len(columns))]
                y += [round(sum(row.dice[column] for row in scored) / len(scored), 4) for column in columns]
        colour = ("var(--muted)", "var(--winner)", "var(--complete)", "var(--accent)", "var(--stopped)")[place % 5]
        marker = {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 9, "color": colour, "opacity": 0.8}
        traces.append(
            {"type": "scatter", "mode": "markers", "name": chart_text(arm_names(arm)), "x": x, "y": y, "marker": marker}
        )
    names = [*REGIONS, "mean"]
    layout = {
        "xaxis": {"tickvals": list(range(len(names))), "ticktext": names},
        "yaxis": axis("Dice", range=[-0.03, 1.03]),
        "showlegend": True,
    }
    summary = f"Dice by region of {counted(len(by_training), 'training')} of {counted(len(arms), 'recipe')}."
    return Figure(f"seeds_{part}_chart", "Dice of each training", summary, {"data": traces, "layout": layout})


def recipe_blocks(data: SweepData, plan: ConfirmPlan) -> list[Block]:
    """Return the options in which the recipes differ, and the chosen recipe as YAML."""
    base = data.run.config.base_config()
    recipes = [to_dict(arm.config(base)) for arm in plan.arms]
    rows = [
        [name, *(value_text(recipe[name]) for recipe in recipes)]
        for name in plan.arms[0].recipe
        if any(recipe[name] != recipes[0][name] for recipe in recipes)
    ]
    columns = ["option", *(arm_names(arm.name) for arm in plan.arms)]
    blocks: list[Block] = [Table("Options that differ", columns, rows, "l" + "r" * len(plan.arms))]
    chosen = data.run.dir.confirm.chosen
    if chosen.exists():
        text = data.privacy.text(chosen.read_text())
        blocks.append(Code("The chosen recipe, for `voxtune train --config`", text, collapsed=True))
    return blocks
