"""The section with Dice by case and the viewer of cases."""

from __future__ import annotations

from collections.abc import Sequence

from trainable.core.counted import counted
from trainable.core.errors import InputError
from tune.report.blocks import Block, Fragment, Section
from tune.report.case_viewer import case_section
from tune.report.case_views import CaseView
from tune.report.privacy import Privacy


def cases_section(views: Sequence[CaseView], dice: str, *, anonymous: bool, lead: str = "") -> Section | None:
    """Return the section; None before any case was scored.

    dice: HTML of the Dice by region and case, "" for none. lead: what it says, if no views tell.
    """
    if not views and not dice:
        return None
    blocks: list[Block] = [Fragment(dice)] if dice else []
    if views:
        blocks.append(Fragment(case_section(views, anonymous=anonymous, name="case_viewer")))
    return Section("cases", "Cases", cases_sentence(views) or lead, blocks)


def damaged_section(error: InputError, privacy: Privacy) -> Section:
    """Return what stands in place of the section if a file of scores is damaged."""
    return Section("cases", "Cases", privacy.text(f"Left out, as a file is damaged: {error}."))


def cases_sentence(views: Sequence[CaseView]) -> str:
    """Return what the worst and the best case score; "" without them."""
    sentences = []
    for part in dict.fromkeys(view.part for view in views):
        by_rank = {view.rank: view for view in views if view.part == part}
        if "worst" in by_rank and "best" in by_rank:
            low, high = (by_rank[rank].dice["dice_mean"] for rank in ("worst", "best"))
            count = by_rank["worst"].count
            sentences.append(range_sentence(part, count, low, high))
    return " ".join(sentences)


def range_sentence(part: str, count: int, low: float, high: float) -> str:
    """Return in what range the mean Dice of cases is. part: "validation" or "test"."""
    return f"Among {count} {part} cases the mean Dice of a case is {low:.3f} to {high:.3f}."


def privacy_text(views: Sequence[CaseView], *, anonymous: bool) -> str:
    """Return what of patients and machines the file has. views: of the cases that are in it."""
    shown = sum(view.images is not None for view in views)
    images = f"the images of {counted(shown, 'case')}" if shown else "no images"
    holds = f"This file has scores and {images}."
    if anonymous:
        still = " A person may be recognised from images of the head." * bool(shown)
        return f"{holds} Names of cases, machines and folders are left out; cases are numbered.{still}"
    return f"{holds} Names of cases, machines and folders are shown: check before you pass it on."
