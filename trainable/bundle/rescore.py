"""Score the cases on record in a bundle again, with the bundle's own network, and compare with what its card says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainable.bundle.contents import SCRIPT, read_record
from trainable.bundle.network import load_network
from trainable.bundle.recorded_scores import DICE
from trainable.case_arguments import find_all
from trainable.cases.case_reader import LoadedCase, load_case
from trainable.cases.grid import same_spacing, three
from trainable.cases.labels import from_plain
from trainable.cases.resample import resample_case
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, with_usable_precision
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.core.progress_bar import progress_bar
from trainable.data.scan_hash import scan_hash
from trainable.evaluation.averaging import Predictor, predict_case_averaged
from trainable.evaluation.metrics import Scores, dice_scores, voxel_spacing
from trainable.evaluation.prediction_setting import PredictionSetting

# Of another device, precision or version of torch: Dice of one case, and of the mean over cases.
CASE_TOLERANCE, MEAN_TOLERANCE = 0.02, 0.005


class TracedMember(nn.Module):
    """One network of a bundle, with the interface of UNet3D."""

    def __init__(self, member: nn.Module) -> None:
        super().__init__()
        self.member = member

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a list of logits, (N, 4, D, H, W) -> [(N, 3, D, H, W)]."""
        logits = self.member(x)
        return [logits] if isinstance(logits, Tensor) else list(logits)


@dataclass(frozen=True)
class BundleModel:
    """The networks of a bundle and how they predict.

    Attributes:
        members: the networks.
        config: of their training.
        grid: voxel size of the cases that they were trained on, and whether other cases were resampled to it.
    """

    members: list[TracedMember]
    config: TrainConfig
    grid: Mapping[str, Any]

    def score(self, case: LoadedCase, recorded: Mapping[str, Any], setting: PredictionSetting) -> Scores:
        """Return the Dice of a case, predicted as it was when it was put on record."""
        if self.grid["resample"] and not same_spacing(voxel_spacing(case.affine), self.grid["spacing"]):
            case = resample_case(case, three(self.grid["spacing"]))
        config = setting.apply(self.config)
        predictors = [Predictor(f"network {index}", self.members[index], config) for index in recorded["members"]]
        label = predict_case_averaged(predictors, case).label
        return dice_scores(torch.from_numpy(label), torch.from_numpy(np.array(case.label)))


def check_scores(folder: Path, data_dir: Path) -> dict[str, list[str]]:
    """Return what differs in the scores of each part on record, by a line on what was compared; [] if nothing does.

    A case is recognised by its images, under any name.

    Args:
        folder: of the bundle.
        data_dir: folder with one sub-folder per case.

    Raises:
        InputError: if the bundle has no scores, or no case on record is in data_dir.
    """
    record = read_record(folder)
    if not record["scores"]:
        raise InputError(f"{folder} has no scores on record; leave --data out")
    labels = from_plain(record["labels"])
    config = make_config(record["recipe"], str(folder), begun=True)
    device = choose_device(config)
    script = load_network(folder / SCRIPT, device)
    members = [TracedMember(member).eval() for member in script.members.children()]
    model = BundleModel(members, with_usable_precision(config, device), record["grid"])
    found: dict[str, dict[str, tuple[Scores, Mapping[str, Any]]]] = {part: {} for part in record["scores"]}
    cases = find_all([data_dir]).cases
    with progress_bar("scoring", len(cases)) as advance:
        for case in cases:
            if case.seg is not None:
                loaded = load_case(case, labels, config.background)
                for part, scores, recorded in _on_record(record, scan_hash(loaded.image)):
                    setting = PredictionSetting(**scores["setting"])
                    found[part][case.name] = (model.score(loaded, recorded, setting), recorded)
            advance()
    if not any(found.values()):
        raise InputError(f"{data_dir}: none of its {len(cases)} cases is on record in {folder}; give the cases it had")
    return {_title(part, record, pairs): list(_differences(record, part, pairs)) for part, pairs in found.items()}


def _on_record(record: Mapping[str, Any], scan: str) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the part, the scores of that part and the record of a case, for each part that has a scan."""
    for part, scores in record["scores"].items():
        yield from ((part, scores, recorded) for recorded in scores["cases"] if recorded["scan"] == scan)


def _title(part: str, record: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return what was compared, in words."""
    return (
        f"{part} scores of {len(found)} of {len(record['scores'][part]['cases'])} cases, within {CASE_TOLERANCE:g} "
        f"Dice per case and {MEAN_TOLERANCE:g} on the mean"
    )


def _differences(
    record: Mapping[str, Any], part: str, found: Mapping[str, tuple[Scores, Mapping[str, Any]]]
) -> Iterator[str]:
    """Yield the scores that differ from those on record, and cards whose means are not those of their cases."""
    for name, (now, recorded) in found.items():
        for key in DICE:
            if abs(now[key] - recorded[key]) > CASE_TOLERANCE:
                yield f"{part} {name}: {key} is {now[key]:.4f} now, {recorded[key]:.4f} on record"
    if len(found) == len(record["scores"][part]["cases"]):
        for key, mean in record["scores"][part]["means"].items():
            again = float(np.mean([now[key] for now, _ in found.values()]))
            if abs(again - mean) > MEAN_TOLERANCE:
                yield f"{part}: mean {key} is {again:.4f} now, {mean:.4f} on record"
