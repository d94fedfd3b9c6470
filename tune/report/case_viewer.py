"""The section of a report that shows cases: a table of their scores, and a viewer to scroll through their volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainable.core.brats import REGIONS, Labels, labels_to_regions
from trainable.core.counted import counted
from tune.report.case_pictures import PLANES, draw_planes
from tune.report.case_views import CaseImages, CaseView
from tune.report.rendering import render, static_text
from tune.report.volumes import COARSE_MM, EncodedCase, encode_case, webp_uri

MAX_BYTES = 6_000_000  # of all cases of a section together
STILL_CHANNEL = 0  # FLAIR, in which the whole tumour is seen
STILL_QUALITY = 80
MODALITY_TITLES = (("flair", "FLAIR"), ("t1", "T1"), ("t1ce", "T1ce"), ("t2", "T2"))
REGION_NAMES = (("WT", "whole tumour"), ("TC", "tumour core"), ("ET", "enhancing tumour"))


def case_section(views: Sequence[CaseView], *, anonymous: bool, name: str = "case_viewer") -> str:
    """Return HTML that shows cases: scores, and for those with images a viewer and, in print, still pictures.

    Style and script are part of it; nothing else is fetched. It has no heading.

    Args:
        views: as case_views returns them.
        anonymous: no name of a case, and no message that may have one, is in the HTML.
        name: of the element in the page, unique there.
    """
    if not views:
        return "<p>No case has been scored yet.</p>"
    shown = [view for view in views if view.images is not None]
    encoded = [encode_case(view.images, MAX_BYTES // len(shown)) for view in shown if view.images is not None]
    return render(
        "case_viewer.html.j2",
        name=name,
        lead=lead_of(views),
        cases=[row_of(view, shown, anonymous=anonymous) for view in views],
        notes=notes_of(views, anonymous=anonymous),
        shown=bool(shown),
        regions=REGIONS,
        region_names=REGION_NAMES,
        modalities=MODALITY_TITLES,
        planes=[{"name": plane, "sides": PLANES[plane].sides} for plane in PLANES],
        caption=caption_of(encoded),
        data=[asdict(one) for one in encoded],
        css=static_text("case_viewer.css"),
        script=static_text("case_slices.js") + static_text("case_viewer.js"),
    )


def lead_of(views: Sequence[CaseView]) -> str:
    """Return what the cases are, in a sentence per part."""
    sentences = []
    for part in dict.fromkeys(view.part for view in views):
        first = next(view for view in views if view.part == part)
        ranked = {"only": "the only one"}.get(first.rank, f"ranked by mean Dice among {counted(first.count, 'case')}")
        sentences.append(f"{part.capitalize()} cases of {first.model}: {ranked}.")
    return " ".join(sentences)


def title_of(view: CaseView, *, anonymous: bool) -> str:
    """Return what a case is called: "validation case, worst of 20"; with its name unless anonymous."""
    rank = "the only one" if view.rank == "only" else f"{view.rank} of {view.count}"
    return f"{view.part} case, {rank}" + ("" if anonymous else f" ({view.name})")


def row_of(view: CaseView, shown: Sequence[CaseView], *, anonymous: bool) -> dict[str, Any]:
    """Return a case as the template reads it; shown: those with images, in the order of the viewer's data."""
    title = title_of(view, anonymous=anonymous)
    regions = [{"dice": f"{view.dice[f'dice_{region}']:.3f}", "volume": ""} for region in REGIONS]
    row = {"title": title, "mean": f"{view.dice['dice_mean']:.3f}", "regions": regions, "shown": view in shown}
    if view.images is None:
        return row
    volumes = zip(
        region_ml(view.images.truth, view.images), region_ml(view.images.prediction, view.images), strict=True
    )
    for region, (truth, prediction) in zip(regions, volumes, strict=True):
        region["volume"] = f"{truth:.1f}, {prediction:.1f}"
    picture = draw_planes(view.images, STILL_CHANNEL)
    dice = ", ".join(f"{region} {view.dice[f'dice_{region}']:.2f}" for region in REGIONS)
    return row | {
        "index": shown.index(view),
        "picture": webp_uri(picture, quality=STILL_QUALITY),
        "height": picture.shape[0],
        "width": picture.shape[1],
        "alt": f"Three planes of the {title}, truth and prediction outlined. Dice: {dice}",
    }


def region_ml(label: Labels, images: CaseImages) -> list[float]:
    """Return the volume of WT, TC and ET in a label map, in mL."""
    voxel = images.mm[0] * images.mm[1] * images.mm[2] / 1000
    return [float(mask.sum()) * voxel for mask in labels_to_regions(label)]


def notes_of(views: Sequence[CaseView], *, anonymous: bool) -> list[str]:
    """Return what the reader must know: why images are missing, and whether a prediction is not the recorded one."""
    reasons: dict[str, list[CaseView]] = {}
    for view in views:
        if view.reason:
            reasons.setdefault(view.reason, []).append(view)
    notes = []
    for reason, missing in reasons.items():
        which = (
            "" if len(missing) == len(views) else f" of the {', the '.join(f'{v.rank} {v.part} case' for v in missing)}"
        )
        detail = "" if anonymous or not missing[0].detail else f" ({missing[0].detail})"
        notes.append(f"No images{which}: {reason}{detail}.")
    return notes + [f"{title_of(view, anonymous=anonymous).capitalize()}: {view.note}" for view in views if view.note]


def caption_of(encoded: Sequence[EncodedCase]) -> str:
    """Return how the pictures are to be read."""
    sizes = dict.fromkeys(" x ".join(f"{mm:.3g}" for mm in one.mm) for one in encoded)
    coarse = any(one.is_coarse for one in encoded)
    return (
        "Radiological convention: the patient's right (R) is on the left of a picture, A is anterior, S superior. "
        "In mm, as in the case's files, x grows to the patient's right, y forwards, z upwards. "
        f"Voxels of {' or '.join(sizes)} mm"
        + (f", made coarser, about {COARSE_MM:g} mm, to keep this file small" if coarse else "")
        + ", cropped to the brain; all planes are at one scale. Grey levels from the 1st to the 99.5th percentile of "
        "each modality, compressed with loss; the labels are exact."
    )
