"""Ensembles: checkpoints whose models predict together; a single one is an ensemble of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trainable.cases.grid import same_spacing, spacing_text
from trainable.cases.labels import labels_of_checkpoint
from trainable.core.config import TrainConfig
from trainable.core.device import with_usable_precision
from trainable.core.errors import InputError
from trainable.core.files import file_digest, join_digests
from trainable.core.logger import logger
from trainable.data.split import PARTS
from trainable.evaluation.averaging import Predictor
from trainable.training.checkpoint import build_from_state, find_checkpoint, load_checkpoint
from trainable.training.scored_models import identity_of
from trainable.training.seen_cases import NEW, UNKNOWN, History, parts_of
from trainable.training.training_dir import BEST, MEMBERS, TrainingDir
from trainable.training.training_log import read_rows

WEIGHTS = ("network", "ema", "optimizer")  # of a checkpoint's state: not kept, as the networks have them
POST_PROCESSING = ("min_component", "et_threshold")
# What a case is to an ensemble: the first of these that it is to a member.
WORST_FIRST = (PARTS[0], PARTS[1], UNKNOWN, PARTS[2], NEW)


@dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
        checkpoint: its file.
        digest: 12 hex digits of the file's SHA-256.
        identity: its epoch and the hash of its weights, by which scores on record are known to be its, see identity_of.
        state: the checkpoint's, without WEIGHTS.
        predictor: its network; the config is that of its training with what a call changes.
    """

    checkpoint: Path
    digest: str
    identity: Mapping[str, Any]
    state: Mapping[str, Any]
    predictor: Predictor

    @property
    def config(self) -> TrainConfig:
        """The options that it predicts with."""
        return self.predictor.config


@dataclass(frozen=True)
class Ensemble:
    """Models that predict together, one or several, in the order of find_models."""

    members: tuple[Member, ...]

    @property
    def first(self) -> Member:
        """The first member, whose config, labels and voxel size are those of all, see check_agreement."""
        return self.members[0]

    @cached_property
    def predictors(self) -> list[Predictor]:
        """The networks, for predict_averaged."""
        return [member.predictor for member in self.members]

    @property
    def names(self) -> list[str]:
        """The name of each member: that of its training's folder, or its path if two are named alike."""
        return [member.predictor.name for member in self.members]

    @property
    def grid(self) -> dict[str, Any] | None:
        """What the checkpoints say of the voxel size, see TrainingState.state; None if none does, of older versions."""
        return next((member.state["grid"] for member in self.members if "grid" in member.state), None)

    @property
    def digest(self) -> str:
        """12 hex digits that tell the ensemble, whatever the order of its members; the file's if there is one."""
        return join_digests([member.digest for member in self.members])

    def parts_of(self, scans: Mapping[str, str]) -> dict[str, str]:
        """Return what each case was to the members, see seen_cases.parts_of, where that differs the worst of it.

        A case that a member was trained on is "train", whatever it was to the others; see WORST_FIRST.

        scans: scan_hash of each case, by its name here.
        """
        of_each = [parts_of(member.state, scans) for member in self.members]
        return {name: min((parts[name] for parts in of_each), key=WORST_FIRST.index) for name in scans}

    def seen_before(self, cases: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """Return the cases that the weights had seen from which a member started, see History.seen_of."""
        seen = [History.before(member.state).seen_of(cases) for member in self.members]
        found = {part: sorted({name for one in seen for name in one.get(part, [])}) for part in cases}
        return {part: names for part, names in found.items() if names}


def find_models(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the checkpoint files of models that predict together, sorted, so that their order has no effect.

    Args:
        paths: each a checkpoint, which is taken as it is; the folder of a training, of which best_model.pth is taken,
            or latest.pth if there is none; or the folder of an ensemble, with a training in each members/NAME.

    Raises:
        InputError: if there is no checkpoint, a member of an ensemble has no best_model.pth yet, or a file is given
            twice.
    """
    files = [file.resolve() if len(paths) > 1 else file for path in paths for file in _models_in(path)]
    if repeated := [file for file, count in Counter(files).items() if count > 1]:
        raise InputError(f"{repeated[0]} is given twice, and would count twice in the mean; name each model once")
    return tuple(sorted(files))


def is_ensemble(path: Path) -> bool:
    """Return whether a path is the folder of an ensemble."""
    return (path / MEMBERS).is_dir()


def _models_in(path: Path) -> list[Path]:
    """Return the checkpoint files that a path names, see find_models."""
    if not is_ensemble(path):
        return [find_checkpoint(path, wanted=BEST)]
    folders = sorted(folder for folder in (path / MEMBERS).iterdir() if folder.is_dir())
    if not folders:
        raise InputError(f"{path / MEMBERS} is empty; expected one folder of a training per member")
    files = [TrainingDir(folder).best for folder in folders]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"{path}: {len(missing)} of {len(files)} members have no model yet, such as {missing[0]}; go on with the "
            "command that began the ensemble, or name the checkpoints that are to predict"
        )
    if running := [folder.name for folder in folders if not has_ended(TrainingDir(folder))]:
        logger.warning(
            f"{path}: {len(running)} of {len(files)} members are not trained to their end, such as {running[0]}; their "
            "best model so far is used"
        )
    return files


def has_ended(training: TrainingDir) -> bool:
    """Return whether a training has ended, by the last row of its metrics.csv; True without one, as in a copy."""
    rows = read_rows(training.metrics)
    return not rows or bool(rows[-1]["end_reason"])


def load_ensemble(
    files: Sequence[Path], device: torch.device, change: Callable[[TrainConfig], TrainConfig] = lambda config: config
) -> Ensemble:
    """Return the models of checkpoint files, ready to predict on a device.

    Args:
        files: as find_models returns them.
        device: of all networks.
        change: returns the config that a member predicts with, given the one of its training.

    Raises:
        InputError: if a file is no checkpoint, or the members cannot predict together, see check_agreement.
    """
    members = []
    for file, name in zip(files, _names(files), strict=True):
        state = load_checkpoint(file)
        network, config = build_from_state(state, device)
        predictor = Predictor(name, network, with_usable_precision(change(config), device))
        kept = {key: value for key, value in state.items() if key not in WEIGHTS}
        members.append(Member(file, file_digest(file), identity_of(state), kept, predictor))
    for member in members[1:]:
        check_agreement(members[0], member)
    return Ensemble(tuple(members))


def _names(files: Sequence[Path]) -> list[str]:
    """Return the name of each model: that of its training's folder if these differ, else the file's path."""
    names = [TrainingDir.of_checkpoint(file).path.name for file in files]
    return names if len(set(names)) == len(names) else list(map(str, files))


def check_agreement(first: Member, other: Member) -> None:
    """Raise InputError if two models cannot predict together.

    They must read labels and images alike (labels, voxel size, resampling, background), and clean up a prediction alike
    (min_component, et_threshold). How they predict, with which patches, overlap, mirroring and precision, may differ.
    A checkpoint of an older version that does not say its voxel size is not compared in that.
    """
    pairs = [
        (name, getattr(first.config, name), getattr(other.config, name)) for name in ("background", *POST_PROCESSING)
    ]
    labels, others = labels_of_checkpoint(first.state), labels_of_checkpoint(other.state)
    if others not in labels.variants:
        pairs.append(("labels", labels, others))
    grid, other_grid = first.state.get("grid"), other.state.get("grid")
    if grid and other_grid:
        pairs.append(("resample", grid["resample"], other_grid["resample"]))
        if not same_spacing(other_grid["spacing"], grid["spacing"]):
            pairs.append(("voxel size", spacing_text(grid["spacing"]), spacing_text(other_grid["spacing"])))
    for name, one, two in pairs:
        if one != two:
            raise InputError(
                f"{first.checkpoint} and {other.checkpoint} cannot predict together: {name} is {one} for the first "
                f"and {two} for the second; name models that agree in it"
            )
