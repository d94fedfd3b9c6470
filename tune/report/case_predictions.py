"""Predictions of the cases that a report shows: made once per model, and kept as NIfTI files next to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainable.core.brats import Labels
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, file_digest, join_digests
from trainable.core.locks import lock_folder
from trainable.core.options import make_config, to_dict
from trainable.core.progress_bar import progress_bar
from trainable.data.cache import CachedCase, require_same

if TYPE_CHECKING:  # torch takes seconds to import, and a report of kept predictions does without it
    import torch

    from trainable.core.config import TrainConfig
    from trainable.evaluation.metrics import Scores
    from trainable.training.ensemble import Ensemble

INDEX = "predictions.json"


@dataclass(frozen=True)
class ShownModel:
    """A model whose cases are shown.

    files: its checkpoint, or those of an ensemble's members. label: what it is, part of its files' names: "trial 12,
    epoch 9". cache: folder of the preprocessed cases. folder: where its predictions are kept. options: of the
    prediction, in which it differed from the training when the cases were scored.
    """

    files: Sequence[Path]
    label: str
    cache: Path
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return 12 hex digits that tell the model."""
        return join_digests([file_digest(file) for file in self.files])


@dataclass(frozen=True)
class KeptPrediction:
    """An entry of the index: the file in its folder, the case's content_of when it was predicted, and the Dice."""

    file: str
    content: str
    dice: Scores


def read_kept(model: ShownModel) -> dict[str, KeptPrediction]:
    """Return the predictions kept of a model, by case; {} if they are of another model, or cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((model.folder / INDEX).read_text())
        if (index["model"], index["label"]) == (model.digest(), model.label):
            kept = {name: KeptPrediction(**entry) for name, entry in index["cases"].items()}
            return {name: entry for name, entry in kept.items() if (model.folder / entry.file).is_file()}
    return {}


def load_prediction(model: ShownModel, kept: KeptPrediction, case: CachedCase) -> Labels:
    """Return a kept prediction of a cached case, uint8 (D, H, W) as its label.

    Raises:
        InputError: if the case has changed since, or the file is missing or damaged.
    """
    import nibabel as nib

    require_same({case.name: case.content}, {case.name: kept.content})
    path = model.folder / kept.file
    box = tuple(slice(first, first + size) for first, size in zip(case.offset, case.label.shape, strict=True))
    try:
        label = np.asarray(nib.load(path).dataobj)[box].astype(np.uint8)
        if label.shape != case.label.shape:
            raise ValueError(f"its shape in the crop is {label.shape}, not {case.label.shape}")
    except Exception as error:  # nibabel and zlib raise many types for damaged files
        raise InputError(f"{path}: cannot be read ({error}); delete {model.folder}") from None
    return label


def make_predictions(model: ShownModel, names: Sequence[str], *, quiet: bool = False) -> dict[str, KeptPrediction]:
    """Predict the cases of which no prediction is kept, keep them, and return all kept ones, by case.

    Predictions of another model are deleted. A bar shows the progress, unless quiet.

    Raises:
        InputError: if a checkpoint cannot be used, a case is not in the cache or has changed since the training.
        NonFiniteLogitsError, RuntimeError, OSError: if a case cannot be predicted, as for lack of memory, or written.
    """
    kept = read_kept(model)
    missing = [name for name in names if name not in kept]
    if missing:
        with lock_folder(model.folder):
            digest = model.digest()  # before: if a sweep replaces the model meanwhile, these are not of the new one
            kept |= _predict(model, missing, quiet=quiet)
            index = {"model": digest, "label": model.label, "cases": {n: asdict(k) for n, k in kept.items()}}
            atomic_write_text(model.folder / INDEX, json.dumps(index, indent=2) + "\n")
            current = {entry.file for entry in kept.values()}
            for file in model.folder.glob("*.nii.gz"):
                if file.name not in current:
                    file.unlink()
    return kept


def _predict(model: ShownModel, names: Sequence[str], *, quiet: bool) -> dict[str, KeptPrediction]:
    """Predict cases and write each; return the entries of the index."""
    from trainable.core.device import kernel_selection
    from trainable.evaluation.averaging import predict_averaged
    from trainable.evaluation.inference import on_full_grid, save_label
    from trainable.evaluation.validate import score_cases
    from trainable.training.ensemble import load_ensemble

    device = idle_device()
    ensemble = load_ensemble(model.files, device, lambda config: with_options(config, model.options))
    begun, kept = contents_of(ensemble), dict[str, KeptPrediction]()
    with kernel_selection(ensemble.first.config), progress_bar("predicting cases", len(names), quiet=quiet) as advance:

        def predict(case: CachedCase) -> Labels:
            require_same({case.name: case.content}, begun)
            return predict_averaged(ensemble.predictors, case.image, case.mean, case.std).label

        def keep(case: CachedCase, prediction: Labels) -> None:
            file = f"{case.name}_{model.label.replace(',', '').replace(' ', '_')}.nii.gz"
            save_label(on_full_grid(prediction, case), case.affine, model.folder / file)
            kept[case.name] = KeptPrediction(file, case.content, {})
            advance()

        scores = score_cases(predict, model.cache, names, device=device, on_case=keep)
    return {name: KeptPrediction(entry.file, entry.content, scores[name]) for name, entry in kept.items()}


def with_options(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """Return a config with some options, given as plain values, changed."""
    return make_config({**to_dict(config), **options}, "the scored options", begun=True)


def contents_of(ensemble: Ensemble) -> dict[str, str]:
    """Return content_of each case as it was for the first model; {} if its checkpoint, an older one, does not say."""
    parts: dict[str, dict[str, str]] = ensemble.first.state.get("cases", {})
    return {name: content for cases in parts.values() for name, content in cases.items()}


def idle_device() -> torch.device:
    """Return the GPU if no other process is on it, so that no training is disturbed, else the CPU."""
    import torch

    from trainable.core.gpu_memory import CUDA_CONTEXT_BYTES, bytes_taken_by_others

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        if not bytes_taken_by_others(free=free, own=CUDA_CONTEXT_BYTES, total=total, share=1.0):
            return torch.device("cuda")
    return torch.device("cpu")
