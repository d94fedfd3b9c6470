"""Segment cases in BraTS's layout with the network of this bundle: what MONAI's own transforms do not have.

A bundle has a copy of this file, so it imports nothing of voxtune; configs/inference.json names what is used here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from monai.transforms import MapTransform
from scipy import ndimage

NAMINGS = (("_", ("flair", "t1", "t1ce", "t2")), ("-", ("t2f", "t1n", "t1c", "t2w")))  # BraTS until 2021, since 2023
ENDINGS = (".nii.gz", ".nii")
AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}
MIRRORS = [axes for count in range(4) for axes in combinations((2, 3, 4), count)]
SPACING_TOLERANCE = 0.1  # as a share of the voxel size along an axis
BACKGROUND_SHARE = 0.25  # of the volume's outer faces that the background has at least
HOT_FACTOR, HOT_PERCENTILE = 4.0, 99.9  # values beyond this multiple of this percentile are clipped
INT16_MAX = 32767


def find_cases(folder: str) -> list[dict[str, list[str]]]:
    """Return {"image": paths of FLAIR, T1, T1ce, T2} for each case of a folder, sorted by name.

    A case is a sub-folder CASE with CASE_flair.nii.gz, ... or CASE-t2f.nii.gz, ...; the folder itself may be one.

    Raises:
        FileNotFoundError: if there is none.
    """
    root = Path(folder).resolve()
    found = [_images(path) for path in (root, *sorted(path for path in root.glob("*") if path.is_dir()))]
    cases = [{"image": images} for images in found if images]
    if not cases:
        raise FileNotFoundError(f"{root}: no case; expected CASE/CASE_{{flair,t1,t1ce,t2}}.nii.gz, see dataset_dir")
    return cases


def _images(folder: Path) -> list[str]:
    """Return the paths of a case's four images; none if it lacks one."""
    for separator, words in NAMINGS:
        stems = [folder / f"{folder.name}{separator}{word}" for word in words]
        files = [next((f"{stem}{end}" for end in ENDINGS if os.path.isfile(f"{stem}{end}")), "") for stem in stems]
        if all(files):
            return files
    return []


def case_file_name(meta: Mapping[str, Any], _: object) -> dict[str, Any]:
    """Return the name of a case's prediction for MONAI's SaveImage: that of the case's folder."""
    return {"subject": os.path.basename(os.path.dirname(meta["filename_or_obj"])), "idx": None}


class CheckImagesd(MapTransform):
    """Refuse images (4, X, Y, Z) that the network cannot predict, make their background 0, and clip hot voxels.

    Args:
        keys: of the images.
        spacing: voxel size that the network was trained with, in mm, along the image's axes.
        background: value of the background, which is subtracted; "auto": the most frequent value on the outer faces of
            each image.

    Raises:
        ValueError: for values that are not finite, another voxel size or another background.
    """

    def __init__(self, keys: Any, spacing: Sequence[float], background: float | str) -> None:
        super().__init__(keys)
        self.spacing, self.background = np.asarray(spacing, float), background

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        changed: dict[Any, Any] = dict(data)
        for key in self.key_iterator(changed):
            changed[key] = self._check(changed[key])
        return changed

    def _check(self, image: MetaTensor) -> MetaTensor:
        """Return an image whose background is 0, without values far beyond the others."""
        name = image.meta.get("filename_or_obj", "image")
        if not image.isfinite().all():
            raise ValueError(f"{name}: NaN or inf in an image of the case; expected finite numbers")
        spacing = np.asarray(image.pixdim, float)
        if np.any(np.abs(spacing / self.spacing - 1) > SPACING_TOLERANCE + 1e-6):
            raise ValueError(
                f"{name}: voxels of {spacing.tolist()} mm; the network was trained on {self.spacing.tolist()} mm; "
                "resample the case to that size"
            )
        for channel in range(len(image)):
            value, share = self._outer_value(image[channel])
            taken = value if self.background == "auto" else float(np.float32(self.background))
            if share < BACKGROUND_SHARE or value != taken:
                raise ValueError(
                    f"{name}: the most frequent value on the outer faces of an image is {value:g}, on {share:.0%}; "
                    f"expected a brain without skull on a background of {taken:g}"
                )
            image[channel] -= taken
            limit = self._limit(np.asarray(image[channel]))
            image[channel] = image[channel].clip(-limit, limit)
        return image

    @staticmethod
    def _limit(voxels: np.ndarray[Any, Any]) -> float:
        """Return the magnitude beyond which a volume's values are clipped, as in training; inf for one of int16."""
        if np.all(np.rint(voxels) == voxels) and voxels.min() >= -INT16_MAX - 1 and voxels.max() <= INT16_MAX:
            return np.inf
        magnitudes = np.abs(voxels[voxels != 0])
        return HOT_FACTOR * float(np.percentile(magnitudes, HOT_PERCENTILE, method="lower"))

    @staticmethod
    def _outer_value(channel: torch.Tensor) -> tuple[float, float]:
        """Return the most frequent value on the six outer faces of a volume (X, Y, Z), and its share of them."""
        volume = torch.as_tensor(channel.as_tensor() if isinstance(channel, MetaTensor) else channel)
        faces = [volume.movedim(axis, 0)[end].flatten() for axis in range(3) for end in (0, -1)]
        values, counts = torch.cat(faces).unique(return_counts=True)
        return float(values[counts.argmax()]), float(counts.max() / counts.sum())


class CaseInferer(Inferer):
    """Predict whole volumes as the network was validated: windows blended by a Gaussian, networks averaged.

    Args:
        roi_size: of a window, in voxels: that of a training patch.
        sw_batch_size: windows at once.
        overlap: share of a window that the next one overlaps.
        mirror: average the logits of the 8 mirrorings of the volume.
        amp: "off", "fp16" or "bf16", on a GPU only.
    """

    def __init__(self, roi_size: Sequence[int], sw_batch_size: int, overlap: float, mirror: bool, amp: str) -> None:
        super().__init__()
        self.roi_size, self.sw_batch_size, self.overlap = tuple(roi_size), sw_batch_size, overlap
        self.axes, self.amp = MIRRORS if mirror else MIRRORS[:1], amp

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the probabilities of WT, TC and ET, float32 (1, 3, X, Y, Z), of a normalised image (1, 4, X, Y, Z).

        Raises:
            ValueError: if a logit is not finite.
        """
        predict = getattr(network, "member_logits", network)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        dtype, device = AMP.get(self.amp), image.device.type
        total = torch.zeros((), device=image.device)
        for axes in self.axes:
            with torch.autocast(device, dtype, enabled=dtype is not None and device == "cuda"):
                logits = sliding_window_inference(
                    image.flip(axes), self.roi_size, self.sw_batch_size, predict, self.overlap, mode="gaussian"
                )
            assert isinstance(logits, torch.Tensor)
            total = total + logits.flip(axes)
        if not total.isfinite().all():
            raise ValueError("logits are not finite: the intensities of the case are too large")
        members = (total / len(self.axes)).unflatten(1, (-1, 3))
        return members.sigmoid().mean(1)


class LabelsFromRegionsd(MapTransform):
    """Turn probabilities of WT, TC and ET (3, X, Y, Z) into a label map (1, X, Y, Z), cleaned up.

    Args:
        keys: of the probabilities.
        values: in the label map of TC without ET, of WT without TC, and of ET.
        min_component: tumours of fewer voxels, connected by faces, edges and corners, are removed; 0 keeps all.
        et_threshold: if fewer voxels in all are ET, they become TC without ET; 0 keeps them.
    """

    def __init__(self, keys: Any, values: Sequence[int], min_component: int, et_threshold: int) -> None:
        super().__init__(keys)
        self.values, self.min_component, self.et_threshold = tuple(values), min_component, et_threshold

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        changed: dict[Any, Any] = dict(data)
        for key in self.key_iterator(changed):
            label = self._label(np.asarray(torch.as_tensor(changed[key]).cpu() > 0.5))
            changed[key] = MetaTensor(torch.from_numpy(label[None].astype(np.float32)))  # Invertd takes no other
        return changed

    def _label(self, regions: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the label map of nested regions, bool (3, X, Y, Z); one of ET is also TC and WT."""
        wt, tc, et = regions
        tc, wt = tc | et, wt | tc | et
        if self.min_component:
            parts, _ = ndimage.label(wt, np.ones((3, 3, 3)))
            large = np.bincount(parts.ravel()) >= self.min_component
            large[0] = False
            wt = large[parts]
            tc, et = tc & wt, et & wt
        if self.et_threshold and np.count_nonzero(et) < self.et_threshold:
            et = np.zeros_like(et)
        core, around, enhancing = (np.uint8(value) for value in self.values)
        return np.select([et, tc, wt], [enhancing, core, around], np.uint8(0))


class CaseRunner:
    """Run the network over all cases and save each prediction; what the configs call the evaluator.

    Args:
        dataset: returns the preprocessed case under "image" for each index.
        network, inferer: as MONAI's evaluators have them.
        postprocessing: saves what is under "pred".
        device: of the network.
    """

    def __init__(self, dataset: Any, network: Any, inferer: Inferer, postprocessing: Any, device: Any) -> None:
        self.dataset, self.network, self.inferer = dataset, network, inferer
        self.postprocessing, self.device = postprocessing, torch.device(device)

    def run(self) -> None:
        """Predict and save each case, one after the other."""
        network = self.network.to(self.device).eval()
        for index in range(len(self.dataset)):
            case = dict(self.dataset[index])
            case["pred"] = self.inferer(case["image"][None].to(self.device), network)[0].cpu()
            self.postprocessing(case)
