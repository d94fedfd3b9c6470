"""What `voxtune doctor` prints: a table with a column per node, and below it what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.text import Text

from trainable.core.console import make_console
from trainable.core.counted import counted
from tune.nodes.cells import Cell, Level
from tune.nodes.report import NodeColumn, NodesReport
from tune.terminal.text_lines import as_lines, fit

MARKS = {Level.WRONG: "✗ ", Level.WARNING: "! ", Level.OK: ""}
COLOURS = {Level.WRONG: "red", Level.WARNING: "yellow", Level.OK: ""}
ASCII_MARK = "X "  # for ✗ on a terminal without it
NARROWEST = 16  # columns of a node
WIDEST = 30
MEANING = {Level.WRONG: "a launch is refused until it is repaired", Level.WARNING: "a sweep runs all the same"}


def print_nodes(report: NodesReport) -> None:
    """Print the table of the nodes and what is to be done; on a terminal in colours."""
    console = make_console()
    ascii_only = not console.encoding.startswith("utf")
    for line in as_lines(node_lines(report, console.width), console.width, ascii_only=ascii_only):
        if ascii_only:
            line.plain = line.plain.replace(MARKS[Level.WRONG], ASCII_MARK)
        console.print(line)


def node_lines(report: NodesReport, width: int) -> list[Text]:
    """Return the check of a cluster as lines of at most `width` columns.

    If not all nodes fit side by side, those with which nothing is wrong share a column.
    """
    where = f"the Ray cluster at {report.address}" if report.address else "Ray on this machine"
    lines = [Text(f"{counted(len(report.columns), 'node')} of {where}", "bold"), Text("")]
    label = max(map(len, report.rows)) + 2
    at_once = max(1, (width - label) // NARROWEST)
    columns: Sequence[NodeColumn] = report.columns
    together: Sequence[NodeColumn] = ()
    if len(columns) > at_once and len(report.healthy()) > 1:
        together = report.healthy()
        columns = [merged(together), *(column for column in columns if column.level != Level.OK)]
    for start in range(0, len(columns), at_once):
        lines += [*table(columns[start : start + at_once], report.rows, label, width), Text("")]
    if together:
        lines += [*prose(f"all well: {', '.join(column.name for column in together)}", width), Text("")]
    return lines + findings_lines(report, width)


def table(columns: Sequence[NodeColumn], rows: Sequence[str], label: int, width: int) -> list[Text]:
    """Return a line per row with the cells of these nodes side by side; label: columns of the titles."""
    longest = max(len(text) + 2 for column in columns for text in [column.name, *map(marked, column.cells.values())])
    size = min(longest, WIDEST, (width - label) // len(columns))
    heads = [Text("".ljust(label)), Text("address".ljust(label))]
    for column in columns:
        heads[0].append(fit(column.name, size - 2).ljust(size), "bold")
        heads[1].append(fit(column.address, size - 2).ljust(size))
    lines = heads
    for title in rows:
        line = Text(title.ljust(label))
        for column in columns:
            cell = column.cells.get(title, Cell(""))
            line.append(fit(marked(cell), size - 2).ljust(size), COLOURS[cell.level])
        lines.append(line)
    for line in lines:
        line.rstrip()
    return lines


def marked(cell: Cell) -> str:
    """Return a cell's text, after a mark if it is not ok."""
    return MARKS[cell.level] + cell.text


def merged(columns: Sequence[NodeColumn]) -> NodeColumn:
    """Return nodes as one column, with what they have in common."""
    cells = {}
    for title in columns[0].cells:
        texts = {column.cells[title].text for column in columns if title in column.cells}
        cells[title] = Cell(texts.pop() if len(texts) == 1 else "differ, all well")
    return NodeColumn(f"{len(columns)} nodes", "", cells)


def findings_lines(report: NodesReport, width: int) -> list[Text]:
    """Return what is wrong and what to do, a paragraph each, the notes, and a last line that sums it up."""
    findings, lines = report.findings(), list[Text]()
    for finding in findings:
        mark = MARKS[finding.level]
        lines += prose(mark + finding.line(), width, COLOURS[finding.level], indent=" " * len(mark))
    for note in report.notes:
        lines += prose(note, width)
    if not findings:
        return [*lines, Text("ok: all nodes are well")]
    legend = [f"{MARKS[level]}{MEANING[level]}" for level in MEANING if any(f.level == level for f in findings)]
    return [*lines, Text(""), *prose("; ".join(legend), width)]


def prose(text: str, width: int, style: str = "", indent: str = "  ") -> list[Text]:
    """Return a text as lines of at most `width` columns, broken between words."""
    broken = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [Text(line, style) for line in broken]
