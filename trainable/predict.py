"""Segments folders of cases with a checkpoint: NIfTI on the original grid, scores where there is a truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainable.cases import Case, find_case, find_cases, load_case
from trainable.checkpoint import load_network
from trainable.config import InputError
from trainable.inference import predict_case, save_label
from trainable.logs import picture
from trainable.metrics import Scores, score_case, spacing_of
from trainable.options import make_config
from trainable.training import choose_device


def predict_cases(
    checkpoint: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    mirror: bool = False,
    pictures: bool = False,
    device: str = "auto",
) -> dict[str, Scores]:
    """Write OUT/<case>.nii.gz (uint8, labels 0, 1, 2, 4) for each case; returns the scores of those with a seg file."""
    cases = [case for folder in folders for case in cases_in(folder)]
    place = choose_device(make_config({"device": device}, "voxtune predict"))
    network, config = load_network(checkpoint, place)
    config = config.model_copy(update={"mirror": mirror or config.mirror})
    scores: dict[str, Scores] = {}
    for index, case in enumerate(cases, 1):
        print(f"{index}/{len(cases)} {case.name}", flush=True)
        loaded = load_case(case)
        label = predict_case(network, loaded, config)
        save_label(label, loaded.affine, out / f"{case.name}.nii.gz")
        if loaded.label is not None:
            spacing = spacing_of(loaded.affine)
            scores[case.name] = score_case(label, loaded.label, spacing=spacing)
        if pictures:
            Image.fromarray(picture(loaded.image, loaded.label, label)).save(out / f"{case.name}.png")
    return scores


def cases_in(folder: Path) -> list[Case]:
    """The case that a folder is, or the cases that it holds."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a case's folder or a folder of cases")
    if any(folder.glob("*.nii")) or any(folder.glob("*.nii.gz")):
        return [find_case(folder, need_seg=False)]
    cases, bad = find_cases(folder, need_seg=False)
    if bad:
        raise bad[0]
    return cases
