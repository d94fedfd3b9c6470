"""Whole-volume prediction with a Gaussian sliding window, and its export as NIfTI on the original grid."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from trainable.cases.case_reader import LoadedCase
from trainable.cases.grid import FileGrid
from trainable.cases.orientation import from_lps, lps_shape
from trainable.cases.resample import resample_label
from trainable.core.brats import Labels, regions_to_labels
from trainable.core.config import TrainConfig
from trainable.core.device import autocast, to_network_format
from trainable.core.files import atomic_write
from trainable.data.cache import CachedCase
from trainable.data.normalise import brain_box, channel_stats, normalise
from trainable.evaluation.sliding_window import sliding_window

MIRRORS = [axes for count in range(4) for axes in combinations((2, 3, 4), count)]


class NonFiniteLogitsError(ArithmeticError):
    """A network's logits of a volume are not finite, so the labels that follow from them would mean nothing."""


@torch.inference_mode()
def predict_logits(network: nn.Module, image: Tensor, config: TrainConfig) -> Tensor:
    """Return the logits of a volume: float32 (1, 4, D, H, W), normalised -> float32 (1, 3, D, H, W).

    A window has the size of a patch and batch_size windows are predicted at once, so that validation fits into memory
    if training does. Volumes smaller than the window are padded. With `mirror`, the logits are the mean over the 8
    mirrorings of the volume, itself included. The network is left in eval mode.

    Args:
        network: returns a list of logits, full resolution first; on the image's device.
    """
    network.eval()
    predictor: Callable[[Tensor], Tensor] = lambda window: network(to_network_format(window, config))[0].float()  # noqa: E731
    total = torch.zeros((), device=image.device)
    for axes in MIRRORS if config.mirror else MIRRORS[:1]:
        with autocast(config, image.device):
            logits = sliding_window(image.flip(axes), config.target_shape, config.batch_size, predictor, config.overlap)
        total = total + logits.flip(axes)
    return total / (len(MIRRORS) if config.mirror else 1)


def predict_label(
    network: nn.Module,
    image: NDArray[np.int16],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    config: TrainConfig,
) -> Labels:
    """Return the label map, uint8 (D, H, W) of 0, 1, 2, 4, that is predicted for a volume, after `postprocess`.

    Args:
        network: is left in eval mode.
        image: int16 (4, D, H, W), not normalised.
        mean, std: of the non-zero voxels of each channel, float32 (4,).

    Raises:
        NonFiniteLogitsError: if a logit is not finite.
    """
    x = normalised_input(image, mean, std, next(network.parameters()).device)
    return label_of(finite_logits(network, x, config) > 0, config)


def normalised_input(
    image: NDArray[np.int16], mean: NDArray[np.float32], std: NDArray[np.float32], device: torch.device
) -> Tensor:
    """Return the input of predict_logits, float32 (1, 4, D, H, W) on a device; the arguments are predict_label's."""
    raw = torch.from_numpy(np.array(image))[None].to(device)
    return normalise(raw, torch.from_numpy(mean)[None].to(device), torch.from_numpy(std)[None].to(device))


def finite_logits(network: nn.Module, x: Tensor, config: TrainConfig) -> Tensor:
    """Return the logits of a volume, float32 (3, D, H, W), see predict_logits; NonFiniteLogitsError if one is not."""
    logits = predict_logits(network, x, config)[0]
    if not logits.isfinite().all():  # of the whole volume at once, since this waits for a GPU
        raise NonFiniteLogitsError(describe_non_finite(network, logits))
    return logits


def label_of(regions: Tensor, config: TrainConfig) -> Labels:
    """Return the label map (D, H, W) of predicted regions, bool (3, D, H, W), after `postprocess`."""
    return postprocess(regions_to_labels(regions).cpu().numpy(), config)


def describe_non_finite(network: nn.Module, logits: Tensor) -> str:
    """Return how many of a volume's logits are not finite, and whether the network's weights are the cause."""
    count = logits.numel() - int(logits.isfinite().sum())
    weights = sum(parameter.numel() - int(parameter.isfinite().sum()) for parameter in network.parameters())
    cause = (
        f"and {weights} of the network's weights are not either"
        if weights
        else "though all of its weights are: the case's intensities are too large, or the precision, amp, is too low"
    )
    return f"{count} of {logits.numel()} logits are not finite, {cause}"


def postprocess(label: Labels, config: TrainConfig) -> Labels:
    """Return a label map (D, H, W) without tumours below min_component voxels, then without ET below et_threshold.

    Tumours are components of WT, voxels being connected by faces, edges and corners. If fewer than et_threshold voxels
    in all are ET, they become label 1, necrosis, as in Isensee et al. 2020 (arXiv 2011.00848), winners of the BraTS
    challenge. An option of 0 switches its step off.
    """
    if config.min_component:
        components, _ = ndimage.label(label, np.ones((3, 3, 3)))
        small = np.bincount(components.ravel()) < config.min_component
        small[0] = False
        label = np.where(small[components], np.uint8(0), label)
    if config.et_threshold and np.count_nonzero(label == 4) < config.et_threshold:
        label = np.where(label == 4, np.uint8(1), label)
    return label


def predict_case(network: nn.Module, case: LoadedCase, config: TrainConfig) -> Labels:
    """Return the label map predicted for a case, uint8 of its volume's full shape (X, Y, Z); 0 outside the brain.

    Raises:
        NonFiniteLogitsError: if a logit is not finite.
    """
    box = brain_box(case.image)
    mean, std = channel_stats(case.image)
    return fill_box(predict_label(network, case.image[(slice(None), *box)], mean, std, config), box, case)


def fill_box(label: Labels, box: tuple[slice, ...], case: LoadedCase) -> Labels:
    """Return the label map of a case's full volume, given the one of a box of it; 0 around the box."""
    full = np.zeros(case.image.shape[1:], np.uint8)
    full[box] = label
    return full


def on_full_grid(label: Labels, case: CachedCase) -> Labels:
    """Return the label map of a cached case's full volume, given the one of its crop (D, H, W); 0 around the crop."""
    full = np.zeros(case.full_shape, np.uint8)
    full[tuple(slice(first, first + size) for first, size in zip(case.offset, label.shape, strict=True))] = label
    return full


def on_file_grid(label: Labels, grid: FileGrid) -> Labels:
    """Return the label map of a full volume in LPS, uint8 (D, H, W), on the grid of the case's files.

    Its axes are permuted and flipped; only if the case was resampled is the label map resampled too.
    """
    shape = lps_shape(grid)
    return from_lps(label if label.shape == shape else resample_label(label, shape), grid)


def save_label(label: Labels, affine: NDArray[np.float64], path: Path) -> None:
    """Write a label map (X, Y, Z) as NAME.nii.gz: uint8, in mm, with its case's affine (4, 4); make the folder."""
    image = nib.Nifti1Image(label, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: file.write(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)))
