"""The head of a sweep's report: what was found, whether it is confirmed, what it cost; the winner's recipe."""

from __future__ import annotations

import math
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from trainable.core.brats import REGIONS
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.options import option_info
from tune.analysis.outlook import outlook_lines
from tune.confirmation.export import recipe_text
from tune.confirmation.status import confirmation_text, load_result
from tune.confirmation.verdict import Verdict
from tune.report.blocks import Block, Code, Facts, Note, Section, Table
from tune.report.confirm_scores import arm_names
from tune.report.privacy import Privacy
from tune.report.sweep_data import DASH, SweepData, score_text, share_text, time_text, value_text
from tune.run.results import TrialResult

if TYPE_CHECKING:
    from trainable.evaluation.comparison import Comparison


def verdict_section(data: SweepData) -> Section:
    """Return the section that says what the sweep has found."""
    blocks: list[Block] = []
    if text := confirmed_text(data):
        blocks.append(Note(text, strong=True))
    blocks += score_tables(data)
    blocks.append(Facts(cost_facts(data)))
    blocks += [Note(f"{line[0].upper()}{line[1:]}.") for line in outlook_lines(data.run)]
    return Section("verdict", "Result", result_sentence(data), blocks)


def result_sentence(data: SweepData) -> str:
    """Return what the best trial reached, next to the default recipe, in a sentence."""
    winner, default, trials = data.winner, data.run.default_trial, len(data.run.own_trials)
    budget = data.run.config.budget.trials
    started = f"{trials} of {counted(budget, 'trial')} {'has' if trials == 1 else 'have'} started"
    if winner is None:
        if not data.run.ranking:
            return f"No trial has a score yet; {started}."
        best = data.run.ranking[0]
        so_far = f"so far trial {best.number} has a {data.score_name} of {score_text(best.score)} at epoch"
        return f"No trial has trained to its end yet; {so_far} {best.best_epoch} of {data.epochs}."
    going = f"{started}; trial {winner.number} is the best so far"
    imported = len(data.run.trials) - trials
    among = counted(trials, "trial") + (f" and {imported} imported" if imported else "")
    found = going if data.state == "running" else f"Of {among}, trial {winner.number} is the best"
    found += f": {data.score_name} {score_text(winner.score)} on the"
    found += f" validation cases at epoch {winner.best_epoch} of {data.epochs}"
    if default is None:
        return f"{found}; the default recipe was not tried."
    if default.number == winner.number:
        return f"{found}. It is the default recipe."
    ending = "" if default.finished else f" ({default.status}, {default.epoch} of {data.epochs} epochs)"
    return f"{found}; the default recipe reached {score_text(default.score)}{ending}."


def confirmed_text(data: SweepData) -> str:
    """Return whether trainings with new seeds confirm the winner; "" while there is none."""
    try:
        text, tells = confirmation_text(data.run)
    except InputError as error:
        return data.privacy.text(f"The confirmation cannot be read: {error}")
    if not text:
        return ""
    text = arm_names(data.privacy.text(text))
    missing = "" if tells else " One seed and one split may be luck: `voxtune confirm RUN` trains it again."
    return f"{text[0].upper()}{text[1:]}.{missing}"


def score_tables(data: SweepData) -> list[Block]:
    """Return the winner's scores next to the default recipe's: those of the sweep, and confirmed ones by part."""
    trials = [t for t in (data.winner or next(iter(data.run.ranking), None), data.run.default_trial) if t is not None]
    unique = list({trial.number: trial for trial in trials}.values())
    if not unique:
        return []
    blocks: list[Block] = [sweep_table(data, unique)]
    try:
        content = load_result(data.run.dir.confirm)
    except InputError:
        return blocks
    if content:
        parts = [(name, content[name]) for name in ("validation", "test") if content.get(name)]
        blocks += [verdict_table(name, Verdict.from_json(part), data.privacy) for name, part in parts]
    return blocks


def sweep_table(data: SweepData, trials: list[TrialResult]) -> Table:
    """Return the scores that trials had in the sweep."""
    rows = []
    for trial in trials:
        name = f"trial {trial.number}" + (" (default recipe)" if trial is data.run.default_trial else "")
        dice = [score_text(trial.dice.get(region)) for region in REGIONS]
        rows.append([name, *dice, score_text(trial.score), f"{trial.best_epoch}/{data.epochs}", trial.status])
    columns = ["recipe", *(f"Dice {region}" for region in REGIONS), data.score_name, "best epoch", "ended"]
    return Table("In the sweep: one training each, validation cases", columns, rows, "lrrrrrl")


def verdict_table(cases: str, verdict: Verdict, privacy: Privacy) -> Table:
    """Return the scores of a confirmation: mean and deviation over seeds, and the winner's difference."""
    names = [f"dice_{name}" for name in ("mean", *REGIONS)]  # the one that decides must not be cut off
    columns = ["recipe", f"{verdict.unit}s", "mean Dice", *(f"Dice {region}" for region in REGIONS)]
    rows = []
    for arm in verdict.arms:
        means = [plus_minus(arm.mean.get(name), arm.sd.get(name)) for name in names]
        rows.append([arm_names(arm.name), str(arm.trainings), *means])
    if verdict.comparisons:
        found = [verdict.comparisons[name] for name in names]
        rows.append([f"{arm_names(verdict.winner)} minus default", "", *(f"{of.difference:+.3f}" for of in found)])
        rows.append([f"its {share_text(found[0].confidence)} interval", "", *map(interval_text, found)])
        rows.append(["likely to be better", "", *map(probability_text, found)])
    align = "l" + "r" * (len(columns) - 1)
    if any(arm.dropped for arm in verdict.arms):
        columns, align = [*columns, "dropped"], align + "l"
        reasons = [privacy.text(arm.dropped) for arm in verdict.arms]
        rows = [[*row, reason] for row, reason in zip_longest(rows, reasons, fillvalue="")]
    caption = f"Confirmed: mean \N{PLUS-MINUS SIGN} deviation over seeds, {cases} cases"
    if cases == "test":
        caption += "; nothing was selected by these"
    return Table(caption, columns, rows, align)


def plus_minus(mean: float | None, deviation: float | None) -> str:
    """Return a mean with its deviation, which may be NaN."""
    if mean is None:
        return DASH
    known = deviation is not None and deviation == deviation
    return f"{mean:.3f}" + (f" \N{PLUS-MINUS SIGN} {deviation:.3f}" if known else "")


def interval_text(comparison: Comparison) -> str:
    """Return the interval of a difference; a dash if it cannot be estimated."""
    return DASH if math.isnan(comparison.low) else f"{comparison.dice_low:+.3f} to {comparison.dice_high:+.3f}"


def probability_text(comparison: Comparison) -> str:
    """Return how likely the difference is above 0; a dash if it cannot be estimated."""
    return DASH if math.isnan(comparison.probability) else share_text(comparison.probability)


def cost_facts(data: SweepData) -> list[tuple[str, str]]:
    """Return what the sweep has cost so far, and what early stopping saved."""
    effort = data.effort
    facts = [("elapsed", time_text(effort.elapsed))] if effort.elapsed else []
    if effort.gpu_hours:
        facts.append(("GPU time", f"{effort.gpu_hours:,.2f} GPU hours"))
    else:
        facts.append(("training time", f"{time_text(effort.trial_seconds)} summed over trials, on the CPU"))
    facts.append(("epochs trained", f"{effort.epochs:,}"))
    if effort.saved_epochs:
        facts.append(
            ("epochs saved", f"{effort.saved_epochs:,} epochs ({share_text(effort.saved_share)}) by early stopping")
        )
    return facts


def recipe_section(data: SweepData) -> Section | None:
    """Return the winner's recipe: where it differs from the default one, and all of it as YAML; None without one."""
    if not data.run.ranking:
        return None
    best, default = data.run.ranking[0], data.default_recipe
    recipe = dict(best.values)
    changed = [name for name, value in recipe.items() if value != default[name]]
    same = [name for name in recipe if name not in changed]
    rows = [[name, value_text(recipe[name]), value_text(default[name]), option_info(name).group] for name in changed]
    lead = f"Trial {best.number} differs from the default recipe in {counted(len(changed), 'option')}"
    lead += f" of the {len(recipe)} that were searched and act in it."
    blocks: list[Block] = []
    if rows:
        columns = ["option", f"trial {best.number}", "default", "group"]
        blocks.append(Table("Options that differ from the default recipe", columns, rows, "lrrl"))
    if same:
        blocks.append(Note(f"As in the default recipe: {', '.join(f'{n}={value_text(recipe[n])}' for n in same)}."))
    text = data.privacy.text(recipe_text(data.run, best, "split.json"))
    blocks.append(Code("The whole recipe, for `voxtune train --config`", text, collapsed=True))
    return Section("recipe", "Winning recipe" if data.winner else "Best recipe so far", lead, blocks)


def run_name(folder: Path) -> str:
    """Return the name of a run's folder."""
    return folder.resolve().name
