"""Lesion-wise scores against numbers worked out by hand and against a slow version made of lists of voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from trainable.core.brats import Bools
from trainable.evaluation.lesions import lesion_wise, score_lesions
from trainable.evaluation.metrics import WORST_HD95

Voxel = tuple[int, int, int]
Ints = NDArray[np.int64]

SHAPE = (14, 14, 40)
AT = (5, 5, 5)


def block(corner: Voxel, size: Voxel = (4, 4, 4), shape: Voxel = SHAPE) -> Bools:
    """A box of voxels; by default of 64, of which 56 are surface."""
    out = np.zeros(shape, bool)
    out[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))] = True
    assert out.sum() == np.prod(size)
    return out


NOTHING, ONE, FAR = np.zeros(SHAPE, bool), block(AT), block((5, 5, 30))
SMALL, SMALL_PLUS_ONE = block((5, 5, 30), (5, 5, 2)), block((5, 5, 30), (5, 5, 2)) | block((5, 5, 32), (1, 1, 1))


def test_perfect_lesions() -> None:
    assert lesion_wise(ONE, ONE) == (1, 0)
    assert lesion_wise(ONE | FAR, ONE | FAR) == (1, 0)


def test_a_missed_lesion_counts_as_the_worst() -> None:
    assert lesion_wise(ONE, ONE | FAR) == (1 / 2, WORST_HD95 / 2)


def test_every_false_positive_counts_as_the_worst_however_small() -> None:
    speck, another = block((5, 5, 30), (1, 1, 1)), block((0, 0, 38), (1, 1, 1))
    assert lesion_wise(ONE | speck, ONE) == (1 / 2, WORST_HD95 / 2)
    assert lesion_wise(ONE | speck | another, ONE) == pytest.approx((1 / 3, WORST_HD95 * 2 / 3))


def test_predicted_voxels_that_touch_at_a_corner_are_one_false_positive() -> None:
    corner_to_corner = block((5, 5, 30), (1, 1, 1)) | block((6, 6, 31), (1, 1, 1))
    assert lesion_wise(ONE | corner_to_corner, ONE) == (1 / 2, WORST_HD95 / 2)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (9, 9, 1)])
@pytest.mark.parametrize("gap", [2, 6])
def test_near_lesions_are_one(gap: int, spacing: Sequence[float]) -> None:
    # Three steps from either side meet over six voxels. Of the 112 surface voxels of the truth the 16 farthest,
    # on the far face of the second block, are gap + 4 mm away, and place .95 * 111 = 105.45 falls among them.
    truth = ONE | block((5, 5, 5 + 4 + gap))
    assert lesion_wise(ONE, truth, spacing) == pytest.approx((2 * 64 / (64 + 128), gap + 4))


@pytest.mark.parametrize("gap", [7, 20])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 0.9)])
def test_far_lesions_are_two(gap: int, spacing: Sequence[float]) -> None:
    assert lesion_wise(ONE, ONE | block((5, 5, 5 + 4 + gap)), spacing) == (1 / 2, WORST_HD95 / 2)


@pytest.mark.parametrize("step", [(3, 0, 0), (3, 3, 0), (0, 3, 3), (2, 2, 2), (3, 1, 2)])
def test_a_component_within_three_steps_belongs_to_the_lesion(step: Voxel) -> None:
    speck = block((8 + step[0], 8 + step[1], 8 + step[2]), (1, 1, 1))
    score, distance = lesion_wise(ONE | speck, ONE)
    assert score == pytest.approx(2 * 64 / (64 + 65))
    assert distance == 0  # one surface voxel of 57 is off


@pytest.mark.parametrize("step", [(4, 0, 0), (0, 0, 4), (3, 3, 1), (3, 2, 2), (3, 3, 3)])
def test_a_component_beyond_three_steps_is_a_false_positive(step: Voxel) -> None:
    speck = block((8 + step[0], 8 + step[1], 8 + step[2]), (1, 1, 1))
    assert lesion_wise(ONE | speck, ONE) == (1 / 2, WORST_HD95 / 2)


def test_a_component_next_to_a_lesion_belongs_to_it_without_overlap() -> None:
    assert lesion_wise(block((5, 5, 10)), ONE) == (0, 5)  # 16 of 56 surface voxels, each way, are 5 mm from the other


def test_one_component_over_two_far_lesions_serves_both() -> None:
    # A bar of 22 layers of 16 over both blocks: 352 voxels, of which 272 are surface; the 16 of its end are 18 mm
    # from the other block, and place .95 * 271 = 257.45 falls among them. No false positive, no lesion missed.
    truth = ONE | block((5, 5, 23))
    bar = block(AT, (4, 4, 22))
    assert lesion_wise(bar, truth) == pytest.approx((2 * 64 / (64 + 352), 18))


def test_a_small_lesion_counts_neither_missed_nor_found() -> None:
    part_of_it = block((5, 5, 30), (1, 1, 1))
    for predicted in [NOTHING, SMALL, part_of_it]:
        assert lesion_wise(ONE | predicted, ONE | SMALL) == (1, 0)
        assert lesion_wise(predicted, SMALL) == (1, 0)
    assert lesion_wise(ONE, SMALL) == (0, WORST_HD95)  # a false positive all the same
    assert lesion_wise(ONE, ONE | SMALL_PLUS_ONE) == (1 / 2, WORST_HD95 / 2)


def test_small_is_a_volume_in_mm3_of_the_joined_lesion() -> None:
    assert lesion_wise(ONE, ONE | SMALL, (1, 1, 1.01)) == (1 / 2, WORST_HD95 / 2)
    assert lesion_wise(NOTHING, ONE, (1, 1, 0.75)) == (1, 0)  # 48 mm^3
    assert lesion_wise(NOTHING, SMALL | block((5, 5, 34), (1, 1, 1))) == (0, WORST_HD95)  # 50 + 1 voxels


def test_a_component_over_a_lesion_and_a_small_one_counts_for_the_lesion() -> None:
    bar = block(AT, (4, 4, 26))  # its end is next to the small lesion
    score, distance = lesion_wise(bar, ONE | SMALL)
    assert score == pytest.approx(2 * 64 / (64 + 16 * 26))
    assert 0 < distance < WORST_HD95


def test_empty_masks() -> None:
    assert lesion_wise(NOTHING, NOTHING) == (1, 0)
    assert lesion_wise(NOTHING, ONE | FAR) == (0, WORST_HD95)
    assert lesion_wise(ONE | FAR, NOTHING) == (0, WORST_HD95)


@pytest.mark.parametrize(("axis", "expected"), [(0, 2), (1, 1), (2, 3)])
def test_distances_are_in_mm(axis: int, expected: float) -> None:
    # Three layers of four are shared: 48 voxels of 64. The 16 voxels of the layer beyond are one voxel away.
    moved = np.roll(ONE, 1, axis)
    assert lesion_wise(moved, ONE, (2, 1, 3)) == pytest.approx((0.75, expected))


def test_lesions_at_the_border() -> None:
    first, last = block((0, 0, 0)), block((10, 10, 36))
    assert lesion_wise(first | last, first | last) == (1, 0)
    assert lesion_wise(np.roll(first, 1, 2), first) == pytest.approx((0.75, 1))
    assert lesion_wise(np.roll(last, -1, 0), last) == pytest.approx((0.75, 1))
    assert lesion_wise(last, first) == (0, WORST_HD95)  # one missed, one false; nothing wraps around
    assert lesion_wise(first | block((0, 0, 36)), first) == (1 / 2, WORST_HD95 / 2)


def test_the_inputs_stay_as_they_were() -> None:
    prediction, truth = ONE | FAR, ONE | SMALL
    lesion_wise(prediction, truth)
    assert (prediction == (ONE | FAR)).all()
    assert (truth == (ONE | SMALL)).all()


def test_scores_of_a_case_by_region() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[FAR], truth[ONE] = 2, 4
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[FAR], prediction[ONE] = 2, 1
    scores = score_lesions(prediction, truth, spacing=(1, 1, 1))
    assert list(scores.items()) == [
        ("lesion_dice_WT", 1),
        ("lesion_dice_TC", 1),
        ("lesion_dice_ET", 0),
        ("lesion_hd95_WT", 0),
        ("lesion_hd95_TC", 0),
        ("lesion_hd95_ET", WORST_HD95),
    ]
    prediction[0, 0, 20] = 1  # a false positive; were it truth it would be too small to count
    scores = score_lesions(prediction, truth, spacing=(1, 1, 1))
    assert (scores["lesion_dice_WT"], scores["lesion_dice_TC"]) == pytest.approx((2 / 3, 1 / 2))


def test_scores_of_a_case_use_the_spacing() -> None:
    truth, prediction = np.where(ONE, 4, 0), np.where(np.roll(ONE, 1, 2), 4, 0)
    assert score_lesions(prediction, truth, spacing=(1, 1, 3))["lesion_hd95_ET"] == pytest.approx(3)
    assert score_lesions(prediction, truth)["lesion_hd95_ET"] == pytest.approx(1)


def offsets(a: Ints, b: Ints) -> Ints:
    """Absolute steps (A, B, 3) between voxels (A, 3) and voxels (B, 3)."""
    return np.abs(a[:, None] - b[None])


def groups(voxels: Ints, linked: Bools) -> Iterator[Ints]:
    """Voxels (N, 3) flooded along links (N, N), one array (n, 3) a group."""
    left = set(range(len(voxels)))
    while left:
        queue = [left.pop()]
        for one in queue:
            new = left & set(np.flatnonzero(linked[one]).tolist())
            left -= new
            queue += sorted(new)
        yield voxels[queue]


def surface(voxels: Ints) -> Ints:
    """Those voxels (N, 3) that lack one of their six neighbours."""
    there = {tuple(voxel) for voxel in voxels.tolist()}
    steps = [*np.eye(3, dtype=int), *-np.eye(3, dtype=int)]
    return np.array([voxel for voxel in voxels if any(tuple((voxel + step).tolist()) not in there for step in steps)])


def slow_pair(prediction: Ints, truth: Ints, spacing: Sequence[float]) -> tuple[float, float]:
    """Dice and HD95 in mm of two lists of voxels (N, 3)."""
    if not len(prediction):
        return 0, WORST_HD95
    common = {tuple(voxel) for voxel in prediction.tolist()} & {tuple(voxel) for voxel in truth.tolist()}
    distances = np.linalg.norm(offsets(surface(prediction), surface(truth)) * spacing, axis=-1)
    worst = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
    return 2 * len(common) / (len(prediction) + len(truth)), float(worst)


def slow_lesion_wise(prediction: Bools, truth: Bools, spacing: Sequence[float]) -> tuple[float, float]:
    """The rules in terms of steps between pairs of voxels: nothing is dilated or labelled.

    Three steps to faces and edges reach every voxel at most 3 away along each axis and 6 over all. So two truth
    voxels have dilations that touch if they are at most 7 apart along each axis, and at most 12 over all once
    one is spared along each axis.
    """
    predicted, expected = np.argwhere(prediction), np.argwhere(truth)
    parts = list(groups(predicted, offsets(predicted, predicted).max(-1) <= 1))
    apart = offsets(expected, expected)
    lesions = list(groups(expected, (apart.max(-1) <= 7) & (np.maximum(apart - 1, 0).sum(-1) <= 12)))
    claimed: set[int] = set()
    scores = []
    for lesion in lesions:
        steps = [offsets(lesion, part) for part in parts]
        mine = [i for i, step in enumerate(steps) if ((step.max(-1) <= 3) & (step.sum(-1) <= 6)).any()]
        claimed |= set(mine)
        if len(lesion) * spacing[0] * spacing[1] * spacing[2] > 50:
            scores.append(slow_pair(np.concatenate([predicted[:0], *(parts[i] for i in mine)]), lesion, spacing))
    scores += [(0, WORST_HD95)] * (len(parts) - len(claimed))
    dices, distances = zip(*scores, strict=True) if scores else ([1], [0])
    return float(np.mean(dices)), float(np.mean(distances))


def scattered(rng: np.random.Generator, shape: Voxel) -> tuple[Bools, Bools]:
    """Prediction and truth: ellipsoids, of which some are in one only, and the others moved a little."""
    grid = np.moveaxis(np.indices(shape), 0, -1)
    prediction, truth = np.zeros(shape, bool), np.zeros(shape, bool)
    for kind in rng.integers(0, 6, 10):
        centre, radii = rng.uniform(0, shape), rng.uniform(0.8, 3.5, 3)
        if kind != 0:
            truth |= (((grid - centre) / radii) ** 2).sum(-1) < 1
        if kind != 1:
            centre = centre + rng.normal(0, 1.5, 3)
            prediction |= (((grid - centre) / radii) ** 2).sum(-1) < 1
    return prediction, truth


@pytest.mark.parametrize("seed", range(12))
def test_as_the_slow_version_has_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = scattered(rng, (30, 26, 34))
    spacing = (1, 1, 1) if seed % 2 else rng.uniform(0.6, 1.6, 3).tolist()
    scores = lesion_wise(prediction, truth, spacing)
    assert 0 < scores[0] < 1  # the volumes are neither trivial nor hopeless
    assert scores == pytest.approx(slow_lesion_wise(prediction, truth, spacing), abs=1e-9)
