"""Scores against numbers worked out by hand, the BraTS conventions, and MONAI."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage

from trainable.core.brats import Bools, labels_to_regions, regions_to_labels
from trainable.evaluation.metrics import WORST_HD95, dice, hd95, mean_scores, score_case, sensitivity, specificity

Voxel = tuple[int, int, int]


def mask(*voxels: Voxel, shape: Voxel = (9, 9, 9)) -> Bools:
    out = np.zeros(shape, bool)
    for voxel in voxels:
        out[voxel] = True
    return out


def blob(rng: np.random.Generator, shape: Voxel = (22, 18, 20)) -> Bools:
    """An irregular shape, which often touches the border."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    return noise > np.quantile(noise, rng.uniform(0.5, 0.95))


NOTHING, ONE = mask(), mask((4, 4, 4))


def test_dice_by_hand() -> None:
    a, b = mask((0, 0, 0), (0, 0, 1), (0, 0, 2)), mask((0, 0, 1), (0, 0, 2), (5, 5, 5), (6, 6, 6), (7, 7, 7))
    assert dice(a, b) == 2 * 2 / (3 + 5)
    assert dice(a, a) == 1
    assert dice(a, ONE) == 0


def test_empty_masks_score_as_the_challenge_does() -> None:
    assert dice(NOTHING, NOTHING) == 1
    assert hd95(NOTHING, NOTHING) == 0
    for pair in [(NOTHING, ONE), (ONE, NOTHING)]:
        assert dice(*pair) == 0
        assert hd95(*pair) == WORST_HD95 == 373.1287
    assert pytest.approx(np.sqrt(240**2 + 240**2 + 155**2), abs=1e-4) == WORST_HD95


def test_hd95_of_single_voxels_is_their_distance_in_mm() -> None:
    other = mask((4 + 1, 4 - 2, 4 + 2))
    assert hd95(ONE, ONE) == 0
    assert hd95(ONE, other) == pytest.approx(3)  # sqrt(1 + 4 + 4)
    assert hd95(ONE, other, (2, 0.5, 3)) == pytest.approx(np.sqrt(2**2 + 1**2 + 6**2))


def test_hd95_interpolates_the_95th_percentile() -> None:
    # A line of 19 voxels, and the same with one more, 10 mm away: of 20 distances 19 are 0 and one is 10.
    # The percentile is at position .95 * 19 = 18.05, so a twentieth of the way from 0 to 10.
    line = [(0, 0, z) for z in range(19)]
    a, b = mask(*line, shape=(12, 3, 20)), mask(*line, (10, 0, 0), shape=(12, 3, 20))
    assert hd95(a, b) == pytest.approx(0.5)
    assert hd95(b, a) == pytest.approx(0.5)


def test_hd95_is_the_larger_direction() -> None:
    # From the single voxel all is at hand; from the line most of it is far.
    line = mask(*[(0, 0, z) for z in range(9)])
    assert hd95(mask((0, 0, 0)), line) == hd95(line, mask((0, 0, 0))) == pytest.approx(0.95 * 8)


def test_hd95_counts_the_volume_s_border_as_surface() -> None:
    # All of a 5 x 5 x 5 volume against all but its last plane: 25 of 98 surface voxels are 1 mm away.
    whole = np.ones((5, 5, 5), bool)
    less = whole.copy()
    less[4] = False
    assert hd95(whole, less) == pytest.approx(1)
    assert hd95(whole, less, (3, 1, 1)) == pytest.approx(3)


def test_hd95_does_not_depend_on_empty_space_around() -> None:
    rng = np.random.default_rng(0)
    a, b = blob(rng), blob(rng)
    wide = [np.pad(array, ((7, 0), (3, 9), (0, 4))) for array in (a, b)]
    assert hd95(*wide, (1, 2, 0.5)) == pytest.approx(hd95(a, b, (1, 2, 0.5)))


@pytest.mark.parametrize("seed", range(20))
def test_dice_and_hd95_equal_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blob(rng), blob(rng)
    spacing = [1.0, 1.0, 1.0] if seed % 2 else [float(s) for s in rng.uniform(0.5, 3, 3)]
    tensors = [torch.from_numpy(array)[None, None].float() for array in (a, b)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert hd95(a, b, spacing) == pytest.approx(expected.item(), abs=1e-3)
    assert dice(a, b) == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)


def slow_dice(a: Bools, b: Bools) -> float:
    """Dice by sets of voxels: the definition, on its own."""
    one, other = ({tuple(voxel) for voxel in np.argwhere(mask).tolist()} for mask in (a, b))
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def slow_hd95(a: Bools, b: Bools, spacing: tuple[float, float, float]) -> float:
    """HD95 by every pair of surface voxels: one with a face neighbour outside the mask or the volume."""

    def surface(mask: Bools) -> np.ndarray:
        inside = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
        steps = [np.eye(3, dtype=int)[axis] * sign for axis in range(3) for sign in (1, -1)]
        kept = [voxel for voxel in inside if any(tuple((voxel + step).tolist()) not in inside for step in steps)]
        return np.array(kept) * spacing

    if not a.any() or not b.any():
        return 0.0 if a.any() == b.any() else 373.1287
    one, other = surface(a), surface(b)
    pairs = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    return float(max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95)))


def border_block() -> Bools:
    block = np.zeros((9, 9, 9), bool)
    block[:3, 4:, :] = True
    return block


HARD = {
    "both empty": (NOTHING, NOTHING),
    "prediction empty": (NOTHING, ONE),
    "truth empty": (border_block(), NOTHING),
    "one voxel each, the same": (ONE, ONE),
    "one voxel each, apart": (ONE, mask((0, 8, 3))),
    "one voxel against a block at the border": (ONE, border_block()),
    "corners of the volume": (mask((0, 0, 0)), mask((8, 8, 8))),
    "the whole volume": (np.ones((9, 9, 9), bool), border_block()),
    "two far parts against one": (mask((0, 0, 0), (8, 8, 8)), mask((0, 0, 1))),
}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.25, 3.0)], ids=["1 mm", "anisotropic"])
@pytest.mark.parametrize("pair", HARD.values(), ids=HARD.keys())
def test_hard_cases_equal_an_independent_implementation(
    pair: tuple[Bools, Bools], spacing: tuple[float, float, float]
) -> None:
    for a, b in (pair, pair[::-1]):
        assert dice(a, b) == pytest.approx(slow_dice(a, b), abs=1e-6)
        assert hd95(a, b, spacing) == pytest.approx(slow_hd95(a, b, spacing), abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_random_masks_equal_an_independent_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blob(rng, (12, 9, 10)), blob(rng, (12, 9, 10))
    assert dice(a, b) == pytest.approx(slow_dice(a, b), abs=1e-6)
    assert hd95(a, b, (1, 2, 0.7)) == pytest.approx(slow_hd95(a, b, (1, 2, 0.7)), abs=1e-3)


def test_sensitivity_and_specificity_by_hand() -> None:
    truth, prediction = (
        mask((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)),
        mask((0, 0, 0), (0, 0, 1), (0, 0, 2), (5, 5, 5)),
    )
    assert sensitivity(prediction, truth) == 3 / 4
    assert specificity(prediction, truth) == pytest.approx(1 - 1 / (9**3 - 4))
    assert specificity(prediction, truth, outside_voxels=1000) == pytest.approx(1 - 1 / (9**3 - 4 + 1000))


def test_sensitivity_and_specificity_of_empty_masks() -> None:
    everything = np.ones((9, 9, 9), bool)
    assert (sensitivity(NOTHING, NOTHING), sensitivity(ONE, NOTHING), sensitivity(NOTHING, ONE)) == (1, 1, 0)
    assert (specificity(NOTHING, ONE), specificity(everything, NOTHING), specificity(ONE, everything)) == (1, 0, 1)


def test_all_scores_of_a_case_are_of_the_right_pair_of_masks() -> None:
    rng = np.random.default_rng(3)
    prediction, truth = (rng.choice(np.array([0, 1, 2, 4], np.uint8), (6, 7, 8)) for _ in range(2))
    scores = score_case(prediction, truth, spacing=(1, 2, 3), outside_voxels=50)
    for region, a, b in zip(("WT", "TC", "ET"), labels_to_regions(prediction), labels_to_regions(truth), strict=True):
        assert scores[f"dice_{region}"] == dice(a, b)
        assert scores[f"hd95_{region}"] == hd95(a, b, (1, 2, 3))
        assert scores[f"sensitivity_{region}"] == sensitivity(a, b) != sensitivity(b, a)
        assert scores[f"specificity_{region}"] == specificity(a, b, 50)


def test_regions_hold_their_labels() -> None:
    label = np.array([0, 1, 2, 4], np.uint8).reshape(4, 1, 1)
    wt, tc, et = (region.ravel().tolist() for region in labels_to_regions(label))
    assert wt == [False, True, True, True]
    assert tc == [False, True, False, True]
    assert et == [False, False, False, True]


def test_labels_come_back_from_their_regions() -> None:
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (7, 6, 5))
    back = regions_to_labels(torch.from_numpy(labels_to_regions(label))).numpy()
    assert back.dtype == np.uint8
    assert np.array_equal(back, label)


def test_labels_are_nested_for_all_regions() -> None:
    regions = np.array(list(product([False, True], repeat=3))).T.reshape(3, 8, 1, 1)
    wt, tc, et = labels_to_regions(regions_to_labels(torch.from_numpy(regions)).numpy())
    assert np.array_equal(et, regions[2])
    assert np.array_equal(tc, regions[1] | regions[2])
    assert np.array_equal(wt, regions.any(0))


def test_case_scores_by_hand() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0, 0, :4] = (1, 1, 2, 2)
    prediction = np.zeros_like(truth)
    prediction[0, 0, :4] = (1, 2, 2, 0)
    scores = score_case(prediction, truth, spacing=(1, 1, 2))
    assert scores["dice_WT"] == pytest.approx(6 / 7)  # 3 of 3 and 4
    assert scores["dice_TC"] == pytest.approx(2 / 3)  # 1 of 1 and 2
    assert scores["dice_ET"] == 1  # none in either
    assert scores["dice_mean"] == pytest.approx((6 / 7 + 2 / 3 + 1) / 3)
    assert scores["hd95_WT"] == pytest.approx(2 * 0.85)  # distances 0, 0, 0, 2 mm at place .95 * 3 = 2.85
    assert scores["hd95_TC"] == pytest.approx(2 * 0.95)
    assert scores["hd95_ET"] == 0


def test_missed_enhancing_tumour_takes_the_worst_score() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[1, 1, 1:3] = (4, 1)
    prediction = np.where(truth == 4, 1, truth)
    scores = score_case(prediction, truth)
    assert (scores["dice_WT"], scores["dice_TC"], scores["dice_ET"]) == (1, 1, 0)
    assert (scores["hd95_TC"], scores["hd95_ET"]) == (0, WORST_HD95)


def test_mean_is_over_cases_not_voxels() -> None:
    assert mean_scores([{"dice_WT": 1.0}, {"dice_WT": 0.0}, {"dice_WT": 0.5}]) == {"dice_WT": 0.5}
    assert mean_scores(iter([])) == {}
