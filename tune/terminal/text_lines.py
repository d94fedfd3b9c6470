"""Lines of text that never wrap: cut or flowed to a width, and drawn without Unicode if a terminal has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

ELLIPSIS = "…"
BLOCKS = "▁▂▃▄▅▆▇█"  # of a sparkline, by height
LEFT_BLOCKS = " ▏▎▍▌▋▊▉█"  # of a bar, by eighths
TICK = "┊"
ASCII = str.maketrans(BLOCKS + LEFT_BLOCKS[1:-1] + TICK + ELLIPSIS, "_.,-=+*#" + "...==##" + "|~")


def fit(text: str, width: int) -> str:
    """Return a text in one line, cut to a width with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: max(0, width - 1)] + ELLIPSIS


def flow(parts: Iterable[str], width: int, *, between: str = "   ", indent: str = "  ") -> list[str]:
    """Return parts joined into as few lines as fit a width; a part is never split, and cut only if it is too long.

    indent: of the lines after the first.
    """
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1] + between + part) <= width:
            lines[-1] += between + part
        else:
            lines.append(fit(part, width) if not lines else indent + fit(part, width - len(indent)))
    return lines


def as_lines(lines: Sequence[Text | str], width: int, *, ascii_only: bool = False) -> list[Text]:
    """Return lines as rich draws them in exactly one row each, at most `width` columns wide.

    ascii_only: replace the characters of this module by ASCII ones.
    """
    drawn = []
    for line in lines:
        text = Text(line) if isinstance(line, str) else line.copy()
        text.truncate(width, overflow="ellipsis")
        text.no_wrap, text.overflow = True, "crop"
        if ascii_only:
            text.plain = text.plain.translate(ASCII)
        drawn.append(text)
    return drawn


def progress_bar(share: float, width: int) -> str:
    """Return a bar of `width` columns, filled to a share from 0 to 1 in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + LEFT_BLOCKS[rest] * bool(rest)).ljust(width)
