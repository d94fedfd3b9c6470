"""What early stopping decided at each rung, and how often it was wrong."""

from __future__ import annotations

import math

from tune.analysis.stop_audit import audit_lines, audit_stops
from tune.report.blocks import Block, Note, Section, Table
from tune.report.sweep_data import DASH, SweepData, numbers_text, score_text
from tune.search.asha import Rungs, cutoff, rung_epochs
from tune.spec.sections import EarlyStopping

WRONG_STOPS = (
    "No stopped trial was trained on, so how many stops were wrong is unknown. `early_stopping.audit: 0.1` trains a "
    "tenth of them to the end, to measure it."
)


def rungs_section(data: SweepData) -> Section | None:
    """Return the section; None without early stopping, or before any decision."""
    reached = [trial for trial in data.run.own_trials if trial.rungs]
    epochs = [epoch for epoch in rung_epochs(data.run.config) if any(epoch in trial.rungs for trial in reached)]
    if not epochs:
        return None
    lines = audit_lines(data.run)
    blocks: list[Block] = [rung_table(data, epochs)]
    blocks += [Note(line[0].upper() + line[1:] + ".") for line in lines]
    if not audit_stops(data.run).audited:
        blocks.append(Note(WRONG_STOPS))
    return Section("rungs", "Early stopping", rule_text(data.run.config.early_stopping), blocks)


def rule_text(stopping: EarlyStopping) -> str:
    """Return how trials are compared, in a few sentences."""
    best = f"the best 1 in {stopping.reduction_factor} goes on"
    by = " by the mean of their last scores" if stopping.value == "recent" else ""
    if stopping.type == "promote":
        return f"Trials pause at the rung until all are there; {best}{by}."
    rule = (best if stopping.type == "asha" else "the better half goes on") + by
    text = f"A trial that reaches a rung is compared with those that reached it earlier: {rule}."
    if stopping.min_trials > 1:
        text += f" The first {stopping.min_trials} at each rung go on."
    if stopping.margin:
        margin = "half the noise of the scores" if stopping.margin == "auto" else f"{stopping.margin:g}"
        text += f" A trial is stopped only if it lies below the others by more than {margin}."
    return text


def rung_table(data: SweepData, epochs: list[int]) -> Table:
    """Return a row per rung: who came, went on and was stopped, the bar at the end, and what early scores say."""
    config, audit = data.run.config, audit_stops(data.run)
    rungs = Rungs(config)
    for trial in data.run.trials:  # imported ones count at the rungs too
        for epoch in sorted(trial.rungs):
            rungs.add(trial.number, epoch, trial.rungs[epoch])
    rows = []
    for epoch in epochs:
        decisions = [(t.number, t.rungs[epoch]) for t in data.run.own_trials if epoch in t.rungs]
        stopped = [number for number, decided in decisions if decided.decision == "STOP"]
        kept = [number for number, decided in decisions if decided.kept]
        paused = sum(decided.decision == "PAUSE" for _, decided in decisions)
        margin = next((decided.margin for _, decided in reversed(decisions) if decided.margin), 0.0)
        bars = [decided.needed for _, decided in decisions if decided.needed is not None]
        bar = cutoff(list(rungs.values[epoch].values()), config.early_stopping) - margin
        correlation = audit.correlations.get(epoch, math.nan)
        rows.append(
            [
                f"epoch\N{NO-BREAK SPACE}{epoch}",
                str(len(decisions)),
                str(len(decisions) - len(stopped) - len(kept) - paused),
                str(len(stopped)),
            ]
            + [numbers_text(kept, 6) or DASH]
            + [f"{min(bars):.4f} to {max(bars):.4f}" if bars else DASH]
            + [score_text(bar if math.isfinite(bar) else None)]
            + [DASH if math.isnan(correlation) else f"{correlation:.2f}"]
        )
    columns = ["rung", "came", "went on", "stopped", "kept", "bar while it ran", "bar now", "rank correlation"]
    caption = (
        f"The bar is the {data.score_name} needed to go on; kept: trials below it that went on; rank correlation: of"
    )
    caption += " the scores at the rung with those at the end, 1 is the same order"
    if any(trial.rungs for trial in data.run.trials if trial.imported_from):
        caption += "; imported trials count for the bar only"
    return Table(caption, columns, rows, "lrrrrrrr")
