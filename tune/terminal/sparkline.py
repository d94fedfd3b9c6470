"""Learning curves as a row or a few rows of block characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tune.terminal.text_lines import BLOCKS, TICK


def sparkline(
    curve: Mapping[int, float], epochs: int, width: int, scale: tuple[float, float], rungs: Sequence[int] = ()
) -> str:
    """Return a curve in one row, with a tick at each rung that it has not reached.

    Args:
        curve: score by epoch.
        epochs: of a whole training, which fills the width.
        width: number of columns.
        scale: the scores that are drawn lowest and highest.
        rungs: epochs at which trials are compared.
    """
    scores = column_scores(curve, epochs, width)
    ticks = {column_of(epoch, epochs, width) for epoch in rungs if epoch > max(curve, default=0)}
    cells = [block(score, scale, len(BLOCKS)) for score in scores]
    return "".join(
        BLOCKS[cell] if cell is not None else TICK if column in ticks else " " for column, cell in enumerate(cells)
    )


def plot(curve: Mapping[int, float], epochs: int, width: int, height: int, rungs: Sequence[int] = ()) -> list[str]:
    """Return a curve as rows, the highest first: straight between its epochs, its scale on the left, ticks at rungs.

    Args:
        curve: score by epoch; not empty.
        epochs: of a whole training, which fills the width.
        width, height: columns, the scale's included, and rows.
        rungs: epochs at which trials are compared.
    """
    scale, columns = scale_of([curve]), max(2, width - 7)
    epoch_at = [1 + column * (epochs - 1) / (columns - 1) for column in range(columns)]
    cells = [block(interpolate(curve, epoch), scale, height * len(BLOCKS)) for epoch in epoch_at]
    ticks = {round((epoch - 1) * (columns - 1) / max(1, epochs - 1)) for epoch in rungs}
    lines = []
    for row in reversed(range(height)):
        label = {height - 1: f"{scale[1]:.4f}", 0: f"{scale[0]:.4f}"}.get(row, "")
        line = "".join(cell_in_row(cell, row, tick=column in ticks) for column, cell in enumerate(cells))
        lines.append(f"{label:>6} {line}".rstrip())
    return lines


def interpolate(curve: Mapping[int, float], epoch: float) -> float | None:
    """Return the score at a place between the epochs of a curve: the first one's before it, None after the last one."""
    before = max((known for known in curve if known <= epoch), default=min(curve))
    after = min((known for known in curve if known >= epoch), default=None)
    if after is None:
        return None
    share = (epoch - before) / (after - before) if after > before else 0.0
    return curve[before] + max(share, 0.0) * (curve[after] - curve[before])


def cell_in_row(cell: int | None, row: int, *, tick: bool) -> str:
    """Return what a column of a plot shows in a row: a block, a full one below it, above it a tick or nothing."""
    level = -1 if cell is None else min(cell - row * len(BLOCKS), len(BLOCKS) - 1)
    return BLOCKS[level] if level >= 0 else TICK if tick else " "


def column_of(epoch: int, epochs: int, width: int) -> int:
    """Return the column of an epoch, from 1 to epochs."""
    return min(width - 1, (epoch - 1) * width // epochs)


def column_scores(curve: Mapping[int, float], epochs: int, width: int) -> list[float | None]:
    """Return the best score of the epochs of each column, as in the column before if it has none; None past the end."""
    by_column: dict[int, float] = {}
    for epoch, score in sorted(curve.items()):
        column = column_of(epoch, epochs, width)
        by_column[column] = max(score, by_column.get(column, score))
    if not by_column:
        return [None] * width
    scores = list[float | None]()
    last = by_column[min(by_column)]
    for column in range(width):
        last = by_column.get(column, last)
        scores.append(last if column <= max(by_column) else None)
    return scores


def block(score: float | None, scale: tuple[float, float], levels: int) -> int | None:
    """Return the height of a score in a scale, from 0 to levels - 1; None for None."""
    if score is None:
        return None
    low, high = scale
    share = (score - low) / (high - low) if high > low else 0.5
    return min(levels - 1, int(min(max(share, 0.0), 1.0) * levels))


def scale_of(curves: Iterable[Mapping[int, float]]) -> tuple[float, float]:
    """Return the lowest and the highest score of curves; 0 and 1 without one."""
    scores = [score for curve in curves for score in curve.values()]
    return (min(scores), max(scores)) if scores else (0.0, 1.0)
