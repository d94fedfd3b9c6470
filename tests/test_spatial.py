"""Patches that are rotated or zoomed: they come from their case, not from themselves."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from trainable.core.brats import labels_to_regions
from trainable.core.config import TrainConfig
from trainable.data.batches import prepare_batch
from trainable.data.cache import CachedCase, open_case
from trainable.data.normalise import normalise
from trainable.data.patches import PatchReader
from trainable.data.prepare import Data
from trainable.data.spatial import augmentation_generator, draw_transform, source_block, transform_matrix

SHAPE = (16, 12, 20)
OTHERS = ("flip", "scale", "shift", "gamma", "noise", "blur")


def config_of(**options: Any) -> TrainConfig:
    base: dict[str, Any] = {"depth": 3, "target_shape": SHAPE, "num_workers": 0, "tumour_share": 0}
    return TrainConfig(**base | {f"{kind}_prob": 0.0 for kind in OTHERS} | options)


def is_moved(config: TrainConfig, index: int) -> bool:
    return draw_transform(augmentation_generator(config, 0, index), config) is not None


def indices(config: TrainConfig, *, moved: bool, number: int) -> list[int]:
    """The first patches of epoch 0 that are moved, or are not."""
    return list(islice((index for index in count() if is_moved(config, index) == moved), number))


def moved_volume(volume: NDArray[Any], config: TrainConfig, index: int, start: NDArray[Any], order: int) -> Any:
    """A patch of a volume (D, H, W) that is moved as a whole, by scipy."""
    matrix = draw_transform(augmentation_generator(config, 0, index), config)
    assert matrix is not None
    half = (np.array(config.target_shape) - 1) / 2
    offset = start + half - matrix @ half
    return ndimage.affine_transform(
        volume.astype(float), matrix, offset, output_shape=config.target_shape, order=order, mode="grid-constant"
    )


def start_in_case(case: CachedCase, config: TrainConfig, index: int) -> NDArray[np.int64]:
    """Where a patch would be without its transform; where that is does not depend on the augmentation."""
    still = config.model_copy(update={"augment": False})
    reader = PatchReader(case.image.filename.parent.parent, [case.name], still)  # type: ignore[union-attr]
    patch = reader.read([(0, index)])["image"][0][0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(case.image[0]), patch.shape)
    places = np.argwhere((windows == patch).all((3, 4, 5)))
    assert len(places) == 1
    return np.asarray(places[0])


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_a_moved_patch_is_the_crop_of_the_whole_case_moved(prepared: Data, strength: float) -> None:
    config = config_of(rotate_prob=0.5, zoom_prob=0.5, augment_strength=strength)
    case = open_case(prepared.folder, prepared.split.train[0])
    reader = PatchReader(prepared.folder, [case.name], config)
    volume = normalise(torch.from_numpy(np.array(case.image)), *map(torch.from_numpy, (case.mean, case.std))).numpy()
    for index in indices(config, moved=True, number=4):
        batch = reader.read([(0, index)])
        x, y = prepare_batch(batch, config, torch.device("cpu"), 0)
        start = start_in_case(case, config, index)
        for result, channel in zip(x[0].numpy(), volume, strict=True):
            np.testing.assert_allclose(result, moved_volume(channel, config, index, start, 1), atol=2e-4)
        label = moved_volume(case.label, config, index, start, 0)
        assert (y[0].numpy() != labels_to_regions(label.astype(np.uint8))).mean() < 0.002  # ties between two voxels


def test_a_moved_patch_loses_no_voxel_inside_the_brain_s_box(prepared: Data) -> None:
    """Before, 17 % of the volume of a moved patch were zeros from outside the patch, up to 76 % at strength 2."""
    config = config_of(rotate_prob=1, zoom_prob=0.5, augment_strength=2.0)
    case = open_case(prepared.folder, prepared.split.train[0])
    inside = np.ones(case.label.shape)
    reader = PatchReader(prepared.folder, [case.name], config)
    for index in range(8):
        batch = reader.read([(0, index)])
        batch["image"][0].fill_(1000)  # as large as it was read: the whole block is brain
        batch["mean"].zero_()
        batch["std"].fill_(1)
        x, _ = prepare_batch(batch, config, torch.device("cpu"), 0)
        expected = moved_volume(inside, config, index, start_in_case(case, config, index), 0) > 0
        border = moved_volume(inside, config, index, start_in_case(case, config, index), 1)
        lost = (x[0, 0].numpy() == 0) & expected & (border > 0.5 + 1e-3)
        assert lost.mean() == 0


def test_a_patch_that_is_not_moved_is_read_as_without_augmentation(prepared: Data) -> None:
    config = config_of(rotate_prob=0.2, zoom_prob=0.2)
    readers = [
        PatchReader(prepared.folder, prepared.split.train, config.model_copy(update={"augment": augment}))
        for augment in (True, False)
    ]
    keys = [(0, index) for index in indices(config, moved=False, number=12)]
    one, other = (reader.read(keys) for reader in readers)
    assert one["start"] == [(0, 0, 0)] * 12
    for name in ("image", "label"):
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))  # type: ignore[literal-required]
    moved = readers[0].read([(0, indices(config, moved=True, number=1)[0])])
    assert tuple(moved["label"][0].shape) != SHAPE


def test_a_block_has_what_the_patch_needs_and_is_no_larger_than_the_case() -> None:
    size = (140, 170, 150)
    still = transform_matrix(np.zeros(3), 1.0)
    assert source_block(still, (3, 4, 5), SHAPE, size) == ((3, 4, 5), SHAPE)
    smaller = transform_matrix(np.zeros(3), 2.0)  # magnified: half of the patch
    assert source_block(smaller, (10, 10, 10), (9, 9, 9), size) == ((12, 12, 12), (5, 5, 5))
    larger = transform_matrix(np.zeros(3), 0.5)
    assert source_block(larger, (10, 10, 10), (9, 9, 9), size) == ((6, 6, 6), (17, 17, 17))
    assert source_block(larger, (0, 100, 0), (128, 64, 128), size) == ((0, 68, 0), (140, 102, 150))
    outside = source_block(smaller, (-8, -8, -8), (8, 8, 8), size)  # half of a patch may lie beyond the case
    assert outside == ((0, 0, 0), (1, 1, 1))


def test_a_quarter_turn_turns_the_sides_of_the_block() -> None:
    turn = transform_matrix(np.array([np.pi / 2, 0, 0]), 1.0)
    first, shape = source_block(turn, (60, 60, 60), (9, 9, 21), (140, 170, 150))
    assert np.abs(np.array(first) - (60, 54, 66)).max() <= 1  # an angle in floating point may need one voxel more
    assert np.abs(np.array(shape) - (9, 21, 9)).max() <= 2
