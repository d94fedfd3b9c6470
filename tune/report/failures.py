"""The trials that have no score of a whole training because something went wrong, grouped by the reason."""

from __future__ import annotations

import re

from tune.report.blocks import Block, Code, Note, Section, Table
from tune.report.sweep_data import DASH, SweepData, numbers_text
from tune.run.results import TrialResult

WRONG = ("failed", "not finite", "out of memory", "outside the space")
LOG_LINES = 12  # of the traceback that is shown of each group


def failures_section(data: SweepData) -> Section:
    """Return the section; it says so if nothing went wrong."""
    wrong = [trial for trial in data.run.trials if trial.status in WRONG]
    if not wrong:
        return Section("failures", "Failures", f"None of the {len(data.run.trials)} trials failed.")
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in wrong:
        reason = re.sub(r"\d+(\.\d+)?", "#", trial.error or trial.outside_space)  # numbers differ from trial to trial
        groups.setdefault((trial.status, reason), []).append(trial)
    ordered = sorted(groups.values(), key=len, reverse=True)
    rows, tracebacks = [], list[Block]()
    for trials in ordered:
        first = trials[0]
        reason = data.privacy.text(first.error or first.outside_space) or DASH
        rows.append([first.status, str(len(trials)), reason, numbers_text([trial.number for trial in trials])])
        if text := traceback_of(data, first):
            tracebacks.append(Code(f"Trial {first.number}: the end of its traceback", text, collapsed=True))
    parts = [f"{sum(t.status == status for t in wrong)} {status}" for status in WRONG]
    ends = ", ".join(part for part in parts if not part.startswith("0 "))
    lead = f"{len(wrong)} of {len(data.run.trials)} trials have no usable score: {ends}."
    table = Table(
        "Reasons; of those alike but for numbers, the first", ["end", "count", "reason", "trials"], rows, "lrll"
    )
    note = Note("The sweep went on without them: a trial out of memory tells the sampler to ask for less.")
    return Section("failures", "Failures", lead, [table, note, *tracebacks])


def traceback_of(data: SweepData, trial: TrialResult) -> str:
    """Return the last lines of a failed trial's traceback; "" without one."""
    path = data.run.dir.trial(trial.number).error
    if not path.exists():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    return data.privacy.text("\n".join(lines[-LOG_LINES:]))
