"""The report of one training, as a retraining, or of an ensemble of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.option_files import dump_yaml, load_options
from trainable.core.options import OPTIONS, make_config, to_dict
from trainable.data.split import load_split
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.report.blocks import Block, Code, Facts, Figure, Section, Table
from tune.report.case_views import ImageChoice, case_views_of_training
from tune.report.cases_section import cases_section, damaged_section, privacy_text
from tune.report.chart_style import axis
from tune.report.dice_plots import dice_section_of_training
from tune.report.page import Page
from tune.report.privacy import Privacy
from tune.report.sweep_data import score_text, time_text, value_text
from tune.report.training_scores import member_folders, read_test_scores

WORST_HD95 = 373.1287  # as in trainable/evaluation/metrics.py, which imports torch
METRICS = {"dice": "Dice", "hd95": "HD95 (mm)", "sensitivity": "sensitivity", "specificity": "specificity"}
REGION_LINES = {
    "WT": ("var(--region-wt)", "solid"),
    "TC": ("var(--region-tc)", "dash"),
    "ET": ("var(--region-et)", "dot"),
}


def training_page(folder: Path, *, images: ImageChoice, anonymous: bool, quiet: bool) -> Page:
    """Return the report of a training or an ensemble.

    Args:
        folder: of it.
        images, quiet: as for case_views_of_training.
        anonymous: names no case, machine or folder.
    """
    members = member_folders(folder)
    first = members[0] if members else folder
    options = load_options(TrainingDir(first).config)
    privacy = privacy_of_training(folder, options, anonymous=anonymous)
    try:
        dice = dice_section_of_training(folder, anonymous=anonymous)
        views = case_views_of_training(folder, images=images, quiet=quiet)
        cases = cases_section(views, dice, anonymous=anonymous)
    except InputError as error:
        views, cases = [], damaged_section(error, privacy)
    sections = [
        members_section(members) if members else result_section(folder, options.get("metric", "val_dice_mean")),
        test_section(folder, anonymous=anonymous),
        cases,
        recipe_section(options, privacy),
    ]
    return Page(
        title=folder.resolve().name,
        subtitle=f"Ensemble of {len(members)} trainings" if members else "One training",
        facts=Facts(training_facts(folder, options)),
        privacy=privacy_text(views, anonymous=anonymous),
        sections=[section for section in sections if section is not None],
        trials={},
    )


def privacy_of_training(folder: Path, options: dict[str, Any], *, anonymous: bool) -> Privacy:
    """Return what the report may name. options: as in training_config.json."""
    split = TrainingDir(folder).split
    cases = tuple(load_split(split).names) if split.exists() else ()
    known = {str(folder): "FOLDER", str(folder.resolve()): "FOLDER"}
    known |= {str(options.get("data_dir")): "DATA", str(options.get("cache_dir")): "CACHE"}
    return Privacy(anonymous, cases, (), {path: name for path, name in known.items() if path.startswith("/")})


def training_facts(folder: Path, options: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts below the heading."""
    facts = [("seed", str(options.get("seed", "unknown")))]
    if TrainingDir(folder).split.exists():
        split = load_split(TrainingDir(folder).split)
        facts.append(("cases", f"{len(split.train)} training, {len(split.val)} validation, {len(split.test)} test"))
        facts.append(("split", f"hash {split.digest()}"))
    return facts


def result_section(folder: Path, metric: str) -> Section:
    """Return the curves of a training, and its best epoch. metric: what decides on that, a column of metrics.csv."""
    rows = read_rows(TrainingDir(folder).metrics)
    if not rows:
        return Section("result", "Training", "No epoch has ended yet.")
    seconds = sum(float(row.get(kind) or 0) for row in rows for kind in ("epoch_time", "val_time"))
    ends = dict.fromkeys((rows[0]["epoch"], rows[-1]["epoch"]))
    which = f" ({' to '.join(ends)})" if int(rows[0]["epoch"]) > 1 else ""
    lead = f"{counted(len(rows), 'epoch')}{which} in {time_text(seconds)}; {best_sentence(rows, metric)}."
    validated = any(row.get("val_dice_mean") for row in rows)
    return Section("result", "Training", lead, [*[dice_figure(rows)] * validated, loss_figure(rows)])


def best_sentence(rows: Sequence[dict[str, str]], metric: str) -> str:
    """Return which epoch of a training is the best, and its scores, which may be older than the rows of metrics.csv.

    metric: what decides, a column of metrics.csv.
    """
    epoch = int(rows[-1].get("best_epoch") or 0)
    if not epoch:
        since = " since it was resumed" * any(row.get("val_dice_mean") for row in rows)
        return f"none was validated{since}"
    best = next((row for row in rows if int(row["epoch"]) == epoch), None)
    if best is None:
        score = score_text(float(rows[-1]["best_score"]))
        old = "is of the folder that it was resumed from, as are its cases"
        return f"the best, epoch {epoch} with {metric} {score}, {old}"
    dice = ", ".join(f"{region} {score_text(float(best[f'val_dice_{region}']))}" for region in REGIONS)
    mean = score_text(float(best["val_dice_mean"]))
    return f"the best is epoch {epoch}: mean Dice {mean} on the validation cases ({dice})"


def dice_figure(rows: Sequence[dict[str, str]]) -> Figure:
    """Return the validation Dice of each region over epochs."""
    validated = [row for row in rows if row.get("val_dice_mean")]
    epochs = [int(row["epoch"]) for row in validated]
    traces: list[dict[str, Any]] = []
    for name, (colour, dash) in {**REGION_LINES, "mean": ("var(--fg)", "solid")}.items():
        scores = [round(float(row[f"val_dice_{name}"]), 4) for row in validated]
        line = {"color": colour, "dash": dash, "width": 2.5 if name == "mean" else 1.5}
        traces.append({"type": "scatter", "mode": "lines", "name": name, "x": epochs, "y": scores, "line": line})
    layout = {"xaxis": axis("epoch"), "yaxis": axis("Dice (validation)"), "showlegend": True}
    summary = f"Lines of the validation Dice of WT, TC, ET and their mean over {len(epochs)} validated epochs."
    return Figure("dice_chart", "Validation Dice by region", summary, {"data": traces, "layout": layout})


def loss_figure(rows: Sequence[dict[str, str]]) -> Figure:
    """Return the training loss and the learning rate over epochs."""
    epochs = [int(row["epoch"]) for row in rows]
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": epochs}
    loss = {**line, "name": "loss", "y": [finite(row["avg_total_loss"]) for row in rows]}
    rate = {**line, "name": "learning rate", "y": [float(f"{float(row['lr']):.4g}") for row in rows], "yaxis": "y2"}
    loss["line"], rate["line"] = {"color": "var(--accent)"}, {"color": "var(--muted)", "dash": "dot"}
    right = axis(
        "learning rate", overlaying="y", side="right", showgrid=False, exponentformat="e", nticks=5, tickmode="auto"
    )
    layout: dict[str, Any] = {
        "xaxis": axis("epoch"),
        "yaxis": axis("training loss"),
        "yaxis2": right,
        "showlegend": True,
    }
    summary = f"Lines of training loss and learning rate over {len(epochs)} epochs."
    return Figure(
        "loss_chart", "Training loss and learning rate", summary, {"data": [loss, rate], "layout": layout}, 260
    )


def finite(text: str) -> float | None:
    """Return a number of metrics.csv to four digits; None, which leaves a gap in a line, if it is not finite."""
    value = float(text)
    return round(value, 4) if math.isfinite(value) else None


def members_section(members: Sequence[Path]) -> Section:
    """Return a row per training of an ensemble."""
    rows = []
    for member in members:
        metrics = read_rows(TrainingDir(member).metrics)
        last = metrics[-1] if metrics else {}
        score = score_text(float(last["best_score"])) if last.get("best_score") else "\N{EN DASH}"
        rows.append([member.name, str(len(metrics)), last.get("best_epoch", ""), score])
    table = Table(
        "Trainings, each with its own validation cases", ["training", "epochs", "best epoch", "score"], rows, "lrrr"
    )
    return Section(
        "result", "Trainings", f"{len(members)} networks predict together, by the mean of their outputs.", [table]
    )


def test_section(folder: Path, *, anonymous: bool) -> Section | None:
    """Return the scores of the test cases, worst first, or that they are of other weights; None without scores."""
    test = read_test_scores(folder)
    if test.of_other_weights:
        command = "voxtune train --resume FOLDER --test_only"
        lead = "test_scores.json has scores of other weights than the model has now, so they are not shown. To score "
        return Section("test", "Test scores", f"{lead}the test cases again: {command}")
    scores = test.scores
    if not scores:
        return None
    means = {
        (metric, region): statistics.fmean(of_case[f"{metric}_{region}"] for of_case in scores.values())
        for metric in METRICS
        for region in REGIONS
        if all(f"{metric}_{region}" in of_case for of_case in scores.values())
    }
    metrics = list(dict.fromkeys(metric for metric, _ in means))
    rows = [[region, *(number(metric, means[metric, region]) for metric in metrics)] for region in REGIONS]
    summary = Table(
        "Means over the test cases", ["region", *(METRICS[m] for m in metrics)], rows, "l" + "r" * len(metrics)
    )
    order = sorted(scores, key=lambda name: (scores[name]["dice_mean"], name))
    shown = [(metric, region) for metric in ("dice", "hd95") for region in REGIONS if (metric, region) in means]
    cases = [
        [f"case {place}" + ("" if anonymous else f", {name}"), number("dice", scores[name]["dice_mean"])]
        + [number(metric, scores[name][f"{metric}_{region}"]) for metric, region in shown]
        for place, name in enumerate(order, 1)  # numbered as in dice_plots.py
    ]
    columns = ["case", "mean Dice", *(f"{METRICS[metric]} {region}" for metric, region in shown)]
    table = Table("Each test case, worst first", columns, cases, "l" + "r" * (1 + len(shown)))
    mean = statistics.fmean(of_case["dice_mean"] for of_case in scores.values())
    low, high = scores[order[0]]["dice_mean"], scores[order[-1]]["dice_mean"]
    lead = f"{counted(len(scores), 'test case')}, which nothing was selected by: mean Dice {mean:.4f}"
    lead += f", {low:.4f} to {high:.4f} by case."
    if any(of_case.get(f"hd95_{region}") == WORST_HD95 for of_case in scores.values() for region in REGIONS):
        lead += f" An HD95 of {WORST_HD95:.2f} mm means that one of truth and prediction is empty."
    return Section("test", "Test scores", lead, [summary, table])


def number(metric: str, value: float) -> str:
    """Return a score as text."""
    return f"{value:.2f}" if metric == "hd95" else f"{value:.4f}"


def recipe_section(options: dict[str, Any], privacy: Privacy) -> Section:
    """Return the options that differ from the documented defaults, and all of the recipe as YAML."""
    config = make_config(options, "training_config.json", begun=True)
    changed = to_dict(config, changed_only=True)
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    rows = [
        [name, privacy.text(value_text(value)), value_text(defaults[name]), OPTIONS[name].group]
        for name, value in changed.items()
        if OPTIONS[name].role != "run"
    ]
    every = {name: value for name, value in to_dict(config).items() if OPTIONS[name].role != "run"}
    blocks: list[Block] = [
        Table("Options that differ from their defaults", ["option", "value", "default", "group"], rows, "lrrl"),
        Code("The whole recipe, for `voxtune train --config`", privacy.text(dump_yaml(every)), collapsed=True),
    ]
    return Section("recipe", "Recipe", f"{counted(len(rows), 'option')} differ from the defaults.", blocks)
