"""Which trial ran where and when, and how long GPUs were idle, by events.jsonl."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainable.core.counted import counted
from tune.report.blocks import Block, Figure, Note, Section
from tune.report.chart_style import MARKS, axis, bar_style, group_of
from tune.report.sweep_data import SweepData, share_text, time_text
from tune.run.events import Event, EventKind

ENDS = {EventKind.TRIAL_ENDED, EventKind.TRIAL_RETRIED, EventKind.TRIAL_PAUSED}
MAX_LANES = 64  # that are drawn


@dataclass(frozen=True)
class Span:
    """A stretch of time in which a trial ran at one place. start, end: seconds since 1970 (UTC)."""

    trial: int
    start: float
    end: float
    host: str
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Lane:
    """What ran on one GPU, or on one share of it, one trial after the other. place: its name."""

    place: str
    spans: tuple[Span, ...]


def timeline_section(data: SweepData) -> Section | None:
    """Return the section; None for a run without events, as one of an older version."""
    spans = trial_spans(data.events)
    if not spans:
        return None
    lanes = make_lanes(data, spans)
    attempts = attempt_times(data.events)
    note = "Time between two attempts, in which nothing was running, is not counted as idle."
    blocks: list[Block] = [timeline_figure(data, lanes), *[Note(note)] * (len(attempts) > 1)]
    return Section("timeline", "Timeline", timeline_sentence(spans, attempts), blocks)


def trial_spans(events: Iterable[Event]) -> list[Span]:
    """Return the stretches in which trials ran; one that has not ended lasts until the last event of its attempt."""
    spans, running, last = list[Span](), dict[int, Event](), 0.0

    def end(number: int, when: float) -> None:
        if (start := running.pop(number, None)) is not None:
            spans.append(Span(number, start.time, when, start.host, start.gpus))

    for event in events:
        if event.kind in (EventKind.SWEEP_STARTED, EventKind.SWEEP_ENDED):
            when = last if event.kind == EventKind.SWEEP_STARTED else event.time
            for number in list(running):
                end(number, when)
        elif event.trial is not None and event.kind == EventKind.TRIAL_STARTED:
            end(event.trial, event.time)
            running[event.trial] = event
        elif event.trial is not None and event.kind in ENDS:
            end(event.trial, event.time)
        last = event.time
    for number in list(running):
        end(number, last)
    return sorted(spans, key=lambda span: (span.start, span.trial))


def attempt_times(events: Iterable[Event]) -> list[tuple[float, float]]:
    """Return start and end of each attempt: its first and its last event."""
    times: list[tuple[float, float]] = []
    for event in events:
        if event.kind == EventKind.SWEEP_STARTED or not times:
            times.append((event.time, event.time))
        times[-1] = (times[-1][0], event.time)
    return times


def make_lanes(data: SweepData, spans: Sequence[Span]) -> list[Lane]:
    """Return the spans by place; trials that ran on one GPU at the same time are in several lanes."""
    free: dict[tuple[str, tuple[int, ...]], list[list[Span]]] = {}
    for span in spans:
        lanes = free.setdefault((span.host, span.gpus), [])
        lane = next((lane for lane in lanes if lane[-1].end <= span.start), None)
        if lane is None:
            lanes.append([span])
        else:
            lane.append(span)
    found = []
    for (host, gpus), lanes in sorted(free.items()):
        device = f"GPU {', '.join(map(str, gpus))}" if gpus else "CPU"
        where = f"{data.privacy.host(host)}, {device}" if host else device
        several = len(lanes) > 1
        found += [
            Lane(f"{where} ({number})" if several else where, tuple(lane)) for number, lane in enumerate(lanes, 1)
        ]
    return found


def most_at_once(spans: Iterable[Span]) -> int:
    """Return how many of the spans overlap at most; one may begin when another ends."""
    ends = list[float]()  # a heap: of the last span at each place
    for span in sorted(spans, key=lambda span: span.start):
        if ends and ends[0] <= span.start:
            heapq.heapreplace(ends, span.end)
        else:
            heapq.heappush(ends, span.end)
    return len(ends)


def idle_share(spans: Sequence[Span], attempts: Sequence[tuple[float, float]]) -> float:
    """Return which share of the time, while a driver was running, no trial ran at a place.

    An attempt has as many places as it had trials at once at most, on whatever machines and GPUs these were.
    """
    places = [most_at_once(span for span in spans if start <= span.start <= end) for start, end in attempts]
    whole = sum(count * (end - start) for count, (start, end) in zip(places, attempts, strict=True))
    busy = sum(span.end - span.start for span in spans)
    return max(0.0, 1 - busy / whole) if whole else 0.0


def timeline_sentence(spans: Sequence[Span], attempts: Sequence[tuple[float, float]]) -> str:
    """Return how many trials ran at once, for how long, and how much of that was idle."""
    elapsed = sum(end - start for start, end in attempts)
    runs = f" in {counted(len(attempts), 'attempt')}" if len(attempts) > 1 else ""
    at_once = f"{counted(most_at_once(spans), 'trial')} at once at most"
    idle = share_text(idle_share(spans, attempts))
    return f"{at_once}, over {time_text(elapsed)}{runs}; places for trials were idle {idle} of that time."


def timeline_figure(data: SweepData, lanes: Sequence[Lane]) -> Figure:
    """Return a bar per span, in a row per lane, by how the trial ended."""
    first = min(span.start for lane in lanes for span in lane.spans)
    unit, seconds = (
        ("hours", 3600) if max(s.end for lane in lanes for s in lane.spans) - first > 7200 else ("minutes", 60)
    )
    group = {trial.number: group_of(trial) for trial in data.run.trials}
    traces: list[dict[str, Any]] = []
    for name, mark in MARKS.items():
        shown = [
            (lane, span)
            for lane in lanes[:MAX_LANES]
            for span in lane.spans
            if group.get(span.trial, "running") == name
        ]
        if not shown:
            continue
        bars = {
            "y": [lane.place for lane, _ in shown],
            "base": [round((span.start - first) / seconds, 4) for _, span in shown],
            "x": [round((span.end - span.start) / seconds, 4) for _, span in shown],
            "trials": [span.trial for _, span in shown],
        }
        traces.append({"type": "bar", "orientation": "h", "name": mark.name, "marker": bar_style(name), **bars})
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(first))
    rows = {"autorange": "reversed", "type": "category", "automargin": True, "ticks": ""}
    rows |= {"categoryorder": "array", "categoryarray": [lane.place for lane in lanes[:MAX_LANES]]}
    layout = {"barmode": "overlay", "bargap": 0.25, "xaxis": axis(f"{unit} since {began}"), "yaxis": rows}
    hidden = f"; {len(lanes) - MAX_LANES} more are not drawn" if len(lanes) > MAX_LANES else ""
    summary = (
        f"Bars over time: {sum(len(lane.spans) for lane in lanes)} stretches of training in {len(lanes)} rows{hidden}."
    )
    height = 130 + 22 * min(len(lanes), MAX_LANES)
    return Figure(
        "timeline_chart",
        "Trials over time",
        summary,
        {"data": traces, "layout": {**layout, "showlegend": True}},
        height,
    )
