"""Which searched options matter, with what certainty, and where good values lie."""

from __future__ import annotations

from collections.abc import Sequence

from trainable.core.counted import counted
from tune.analysis.importance import MIN_TRIALS, Importances, OptionImportance
from tune.analysis.option_range import Edge
from tune.report.blocks import Block, Figure, Note, Section, Table
from tune.report.chart_style import axis
from tune.report.sweep_data import DASH, share_text, value_text

MAX_BARS = 10  # the table has all options


def importance_section(found: Importances, *, has_winner: bool) -> Section:
    """Return the section. has_winner: a trial has trained to its end."""
    blocks: list[Block] = []
    if options := [option for option in found.options if option.verdict != "too few trials"][:MAX_BARS]:
        blocks.append(importance_figure(options, found.confidence))
    blocks.append(importance_table(found, has_winner=has_winner))
    if edges := [option for option in found.options if option.edge]:
        texts = [edge_text(option.name, option.edge) for option in edges if option.edge]
        blocks.append(Note(f"At an end of a range, beyond which better values may lie: {'; '.join(texts)}."))
    never = [f"{option.name}: {', '.join(option.never_tried)}" for option in found.options if option.never_tried]
    if never:
        blocks.append(Note(f"Never tried: {'; '.join(never)}."))
    return Section("importance", "Which options matter", importance_sentence(found), blocks)


def edge_text(name: str, edge: Edge) -> str:
    """Return what is at an end of an option's range, in words."""
    winner = "" if edge.value is None else f"the winner ({value_text(edge.value)})"
    best = f"many of the best trials ({' to '.join(map(value_text, edge.piled))})" if edge.piled else ""
    return f"{name}, the {edge.side} end: {' and '.join(filter(None, [winner, best]))}"


def importance_sentence(found: Importances) -> str:
    """Return which options matter, in a sentence."""
    if not found.enough:
        return f"{found.trials} trials are too few to tell which options matter; it takes {MIN_TRIALS}."
    matter = [
        f"{option.name} ({share_text(option.share or 0)})" for option in found.options if option.verdict == "matters"
    ]
    rest = sum(option.verdict == "too few trials" for option in found.options)
    open_ones = f"; for {counted(rest, 'option')} {found.trials} trials are too few to tell" if rest else ""
    if not matter:
        return f"No option is shown to matter{open_ones}."
    return f"What explains most of the differences between trials: {', '.join(matter)}{open_ones}."


def importance_figure(options: Sequence[OptionImportance], confidence: float) -> Figure:
    """Return a bar per option with its interval, the first at the top. confidence: of the intervals."""
    names = [option.name for option in options]
    shares = [round(100 * (option.share or 0), 1) for option in options]
    up = [round(100 * ((option.high or 0) - (option.share or 0)), 1) for option in options]
    down = [round(100 * ((option.share or 0) - (option.low or 0)), 1) for option in options]
    solid = ["" if option.verdict == "matters" else "/" for option in options]
    bar = {
        **{"type": "bar", "orientation": "h", "x": shares, "y": names, "hovertemplate": "%{y}: %{x} %<extra></extra>"},
        "error_x": {"type": "data", "array": up, "arrayminus": down, "color": "var(--fg)", "thickness": 1, "width": 4},
        "marker": {
            "color": ["var(--accent)" if option.verdict == "matters" else "var(--muted)" for option in options],
            "pattern": {"shape": solid, "size": 5, "solidity": 0.3, "fgcolor": "var(--bg)"},
        },
    }
    layout = {
        "xaxis": axis("share, %", rangemode="tozero"),
        "yaxis": {"autorange": "reversed", "automargin": True, "ticks": ""},
        "showlegend": False,
    }
    title = f"Importance, with {share_text(confidence)} intervals; hatched: hardly matters"
    listed = ", ".join(f"{name} {share} %" for name, share in zip(names, shares, strict=True))
    return Figure(
        "importance_chart", title, f"Bars: {listed}.", {"data": [bar], "layout": layout}, 110 + 22 * len(options)
    )


def importance_table(found: Importances, *, has_winner: bool) -> Table:
    """Return a row per option: its share, how often its values were tried, where good ones and the winner are."""
    rows = [option_row(option, has_winner=has_winner) for option in found.options]
    left_out = ", ".join(f"{count} {status}" for status, count in found.left_out.items())
    caption = f"By the {found.trials} trials that can be compared" + (f"; left out: {left_out}" if left_out else "")
    columns = ["option", "share", "interval", "verdict", "trials per value or third of the range", "good", "winner"]
    return Table(caption, columns, rows, "lrrllll")


def option_row(option: OptionImportance, *, has_winner: bool) -> list[str]:
    """Return an option's row; of one for which there are too few trials to tell, no number that was estimated."""
    told = option.verdict != "too few trials"
    known = told and option.low is not None and option.high is not None
    interval = f"{share_text(option.low or 0)} to {share_text(option.high or 0)}" if known else DASH
    tries = ", ".join(f"{item.label}: {item.tries}" for item in option.tries)
    good = " to ".join(value_text(value) for value in option.good) if told and option.good else DASH
    share = share_text(option.share) if told and option.share is not None else DASH
    winner = ("inactive" if has_winner else DASH) if option.winner is None else value_text(option.winner)
    name = f"{option.name} ({option.when})" if option.when else option.name
    return [name, share, interval, option.verdict.replace(" ", "\N{NO-BREAK SPACE}"), tries, good, winner]
