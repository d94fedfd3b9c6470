"""Scores against numbers worked out by hand, the BraTS conventions, and MONAI."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage

from trainable.metrics import WORST_HD95, Bools, dice, hd95, label_of, mean_scores, regions_of, score_case

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
    # A line of 19 voxels, and the same with one more 10 mm aside: of 20 distances 19 are 0 and one is 10.
    # The percentile lies at place .95 * 19 = 18.05, so a twentieth of the way from 0 to 10.
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
    wide = [np.pad(each, ((7, 0), (3, 9), (0, 4))) for each in (a, b)]
    assert hd95(*wide, (1, 2, 0.5)) == pytest.approx(hd95(a, b, (1, 2, 0.5)))


@pytest.mark.parametrize("seed", range(20))
def test_dice_and_hd95_equal_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blob(rng), blob(rng)
    spacing = [1.0, 1.0, 1.0] if seed % 2 else [float(s) for s in rng.uniform(0.5, 3, 3)]
    tensors = [torch.from_numpy(each)[None, None].float() for each in (a, b)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert hd95(a, b, spacing) == pytest.approx(expected.item(), abs=1e-3)
    assert dice(a, b) == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)


def test_regions_hold_their_labels() -> None:
    label = np.array([0, 1, 2, 4], np.uint8).reshape(4, 1, 1)
    wt, tc, et = (region.ravel().tolist() for region in regions_of(label))
    assert wt == [False, True, True, True]
    assert tc == [False, True, False, True]
    assert et == [False, False, False, True]


def test_labels_come_back_from_their_regions() -> None:
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (7, 6, 5))
    back = label_of(regions_of(label))
    assert back.dtype == np.uint8
    assert np.array_equal(back, label)


def test_labels_are_nested_whatever_the_regions() -> None:
    regions = np.array(list(product([False, True], repeat=3))).T.reshape(3, 8, 1, 1)
    wt, tc, et = regions_of(label_of(regions))
    assert np.array_equal(et, regions[2])
    assert np.array_equal(tc, regions[1] | regions[2])
    assert np.array_equal(wt, regions.any(0))


def test_case_scores_by_hand() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0, 0, :4] = (1, 1, 2, 2)
    prediction = np.zeros_like(truth)
    prediction[0, 0, :4] = (1, 2, 2, 0)
    scores = score_case(prediction, truth, spacing=(1, 1, 2), distances=True)
    assert scores["dice_WT"] == pytest.approx(6 / 7)  # 3 of 3 and 4
    assert scores["dice_TC"] == pytest.approx(2 / 3)  # 1 of 1 and 2
    assert scores["dice_ET"] == 1  # none in either
    assert scores["dice_mean"] == pytest.approx((6 / 7 + 2 / 3 + 1) / 3)
    assert scores["hd95_WT"] == pytest.approx(2 * 0.85)  # distances 0, 0, 0, 2 mm at place .95 * 3 = 2.85
    assert scores["hd95_TC"] == pytest.approx(2 * 0.95)
    assert scores["hd95_ET"] == 0
    assert set(score_case(prediction, truth)) == {"dice_WT", "dice_TC", "dice_ET", "dice_mean"}


def test_missed_enhancing_tumour_takes_the_worst_score() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[1, 1, 1:3] = (4, 1)
    prediction = np.where(truth == 4, 1, truth)
    scores = score_case(prediction, truth, distances=True)
    assert (scores["dice_WT"], scores["dice_TC"], scores["dice_ET"]) == (1, 1, 0)
    assert (scores["hd95_TC"], scores["hd95_ET"]) == (0, WORST_HD95)


def test_mean_is_over_cases_not_voxels() -> None:
    assert mean_scores([{"dice_WT": 1.0}, {"dice_WT": 0.0}, {"dice_WT": 0.5}]) == {"dice_WT": 0.5}
    assert mean_scores(iter([])) == {}
