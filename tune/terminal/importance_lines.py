"""What `voxtune importance` prints: bars with intervals, tries per value, and where to search on. Fits 80 columns."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from trainable.core.counted import counted
from tune.analysis.importance import LITTLE, MIN_TRIALS, Importances, OptionImportance
from tune.analysis.option_range import value_label
from tune.run.results import Run
from tune.run.run_dir import resume_command
from tune.terminal.text_lines import progress_bar

WIDTH, BAR = 80, 20


def importance_lines(run: Run, found: Importances) -> list[str]:
    """Return what the trials of a run tell of its options, as lines."""
    left_out = ", ".join(f"{count} {status}" for status, count in found.left_out.items())
    head = f"{counted(len(found.options), 'option')}, {counted(found.trials, 'trial')} compared"
    lines = [head + (f"; left out: {left_out}" if left_out else "")]
    if not found.enough:
        lines += [f"too few trials to tell what matters: at least {MIN_TRIALS} are needed; stopped ones count"]
        if not run.trials:
            return lines
    else:
        lines += ["", *share_lines(found)]
        lines += ["", "where the best quarter of the trials lies:", *good_lines(found)]
    lines += ["", "trials per value, or per third of the range, and the mean share of the other"]
    lines += ["trials that these beat:", *tries_lines(found)]
    never = [f"{option.name} {label}" for option in found.options for label in option.never_tried]
    return [*lines, "", *listed("never tried: ", never or ["nothing"]), *edge_lines(run, found)]


def share_lines(found: Importances) -> Iterator[str]:
    """Yield a bar per option that matters, and the names of those that hardly do and of those nothing is known of.

    If none matters, where the best trials lie is yielded of each number.
    """
    by_verdict: dict[str, list[OptionImportance]] = {"matters": [], "hardly matters": [], "too few trials": []}
    for option in found.options:
        by_verdict[option.verdict].append(option)
    yield f"share of the differences between trials that an option explains, {found.confidence:.0%} interval:"
    width = max((len(option.name) for option in by_verdict["matters"]), default=0)
    for option in by_verdict["matters"]:
        share = option.share or 0.0
        interval = f"{share:.2f} [{option.low:.2f}, {option.high:.2f}]"
        yield f"  {option.name:{width}} {progress_bar(share, BAR)} {interval}"
        if option.when:
            yield f"  {'':{width}} of the {option.trials} trials with {option.when}"
    if not by_verdict["matters"]:
        yield "  none can be told from chance"
        ranges = [option for option in found.options if option.good and len(option.good) > 1]
        if ranges:
            yield "where most of the best quarter of the trials lies:"
        width = max((len(option.name) for option in ranges), default=0)
        yield from (f"  {option.name:{width}} {good_text(option.good)}" for option in ranges if option.good)
    yield from listed(f"hardly matter (at most {LITTLE:g}): ", [option.name for option in by_verdict["hardly matters"]])
    yield from listed("too few trials to tell: ", [option.name for option in by_verdict["too few trials"]])


def good_lines(found: Importances) -> Iterator[str]:
    """Yield where the best quarter of the trials lies, an option per line; also of those that chance may explain."""
    known = [option for option in found.options if option.good]
    width = max((len(option.name) for option in known), default=0)
    for option in known:
        yield f"  {option.name:{width}}  {good_text(option.good or ())}"


def tries_lines(found: Importances) -> Iterator[str]:
    """Yield how often each value or third of a range was tried, an option per line or two."""
    width = max((len(option.name) for option in found.options), default=0)
    for option in found.options:
        parts = [
            f"{part.label}: {part.tries}x" + ("" if part.standing is None else f" {part.standing:.0%}")
            for part in option.tries
        ]
        head = f"  {option.name:{width}}  "
        yield from listed(head, parts, indent=len(head))


def edge_lines(run: Run, found: Importances) -> Iterator[str]:
    """Yield the options with good values at an end of the range, and the command that goes on beyond it.

    Those that hardly matter are left out.
    """
    edges = [(option, option.edge) for option in found.options if option.edge and option.verdict != "hardly matters"]
    if not edges:
        return
    yield "\ngood trials are at an end of a range, beyond which better values may lie:"
    for option, edge in edges:
        if edge.value is not None:
            yield f"  {option.name}: the winner, {value_label(edge.value)}, is at the {edge.side} end"
        if edge.piled:
            yield f"  {option.name}: the best trials pile up at the {edge.side} end, {good_text(edge.piled)}"
    trials = run.config.budget.trials
    yield f"{resume_command(run.folder)} --trials {trials + max(trials // 2, 1)} \\"
    yield f"  --space {shlex.quote(str(run.dir.config))} \\"
    sets = [shlex.quote(f"space.{option.name}={yaml_text(edge.wider)}") for option, edge in edges]
    yield " \\\n".join(f"  --set {text}" for text in sets)


def yaml_text(section: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Return an entry of `space:` as one line of YAML."""
    return json.dumps(section).replace('"', "")


def good_text(good: Sequence[Any]) -> str:
    """Return where good trials lie, in words."""
    return " to ".join(map(value_label, good))


def listed(head: str, items: Sequence[str], *, indent: int = 2) -> list[str]:
    """Return a heading with its items in lines of at most WIDTH columns; none without items.

    indent: of the lines after the first.
    """
    lines = [head] if items else []
    for place, item in enumerate(items):
        text = item + "," * (place < len(items) - 1)
        if len(lines[-1]) + len(text) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += text + " "
    return [line.rstrip() for line in lines]
