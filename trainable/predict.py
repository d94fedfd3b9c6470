"""Segments folders of cases with a checkpoint: NIfTI on the original grid, scores where there is a truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.data.cases import Case, CaseError, find_case, find_cases, load_case
from trainable.evaluation.inference import predict_case, save_label
from trainable.evaluation.metrics import Scores, score_case, spacing_of
from trainable.evaluation.pictures import picture
from trainable.training.checkpoint import load_network


class BadCases(InputError):
    """Some cases could not be predicted; scores: those of the others."""

    def __init__(self, text: str, scores: dict[str, Scores]) -> None:
        self.scores = scores
        super().__init__(text)


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> dict[str, Scores]:
    """Write OUT/<case>.nii.gz (uint8, labels 0, 1, 2, 4) for each case; returns the scores of those with a seg file.

    Raises:
        BadCases: at the end, for cases that cannot be used, where others were predicted.
        InputError: where none was; for two cases of one name, before any is predicted.
    """
    cases, bad = find_all(folders)
    total = len(cases) + len(bad)
    place = choose_device(make_config({"device": device}, "voxtune predict"))
    network, config = load_network(checkpoint, place)
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    scores: dict[str, Scores] = {}
    for index, case in enumerate(cases, 1):
        print(f"{index}/{len(cases)} {case.name}", flush=True)
        try:
            loaded = load_case(case)
        except CaseError as error:
            print(f"{case.name} cannot be used", flush=True)
            bad.append(error)
            continue
        label = predict_case(network, loaded, config)
        save_label(label, loaded.affine, out / f"{case.name}.nii.gz")
        if loaded.label is not None:
            spacing = spacing_of(loaded.affine)
            scores[case.name] = score_case(label, loaded.label, spacing=spacing)
        if pictures:
            Image.fromarray(picture(loaded.image, loaded.label, label)).save(out / f"{case.name}.png")
    said, listing = f"{len(bad)} of {total} cases cannot be used", "".join(f"\n  {error}" for error in bad)
    if len(bad) == total:
        raise InputError(f"{said}:{listing}")
    if bad:
        raise BadCases(f"{said}, the others are predicted:{listing}", scores)
    return scores


def find_all(folders: Sequence[Path]) -> tuple[list[Case], list[CaseError]]:
    """The cases in these folders, each name once, and the errors of those that lack a file."""
    found: dict[str, Case] = {}
    bad: list[CaseError] = []
    for folder in folders:
        cases, errors = cases_in(folder)
        bad += errors
        for case in cases:
            if case.name in found:
                places = " and ".join(str(each.images[0].parent) for each in (found[case.name], case))
                raise InputError(
                    f"the name {case.name} is given twice, {places}, and one prediction would overwrite the other; "
                    "expected each name once: leave one out, or predict it into another --out"
                )
            found[case.name] = case
    return list(found.values()), bad


def cases_in(folder: Path) -> tuple[list[Case], list[CaseError]]:
    """The case that a folder is, or the cases that it holds, and the errors of those that lack a file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a case's folder or a folder of cases")
    if any(folder.glob("*.nii")) or any(folder.glob("*.nii.gz")):
        try:
            return [find_case(folder, need_seg=False)], []
        except CaseError as error:
            return [], [error]
    return find_cases(folder, need_seg=False)
