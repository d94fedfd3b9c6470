"""Patches: which case, where in it, and that they depend only on (seed, epoch, index)."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from trainable.cases.case_search import find_cases
from trainable.core.brats import MODALITIES, labels_to_regions
from trainable.core.config import TrainConfig
from trainable.data.cache import open_case
from trainable.data.cache_writer import prepare
from trainable.data.patches import Batch, Key, PatchLoader, PatchReader, copy_patch
from trainable.data.prepare import Data

SMALL = {"depth": 2, "target_shape": (4, 4, 4), "augment": False}  # moved patches are in test_spatial.py
WITHOUT_ET = "Phantom_00005"
SIZE = (22, 24, 28)


def names_of(prepared: Data) -> list[str]:
    return sorted(prepared.split.train + prepared.split.val + prepared.split.test)


class Patches(PatchReader):
    """One patch at a time."""

    def __getitem__(self, key: Key) -> Batch:
        return {name: values[0] for name, values in self.read([key]).items()}


def dataset(prepared: Data, names: Iterable[str] | None = None, **options: Any) -> Patches:
    names = names_of(prepared) if names is None else names
    return Patches(prepared.folder, list(names), TrainConfig(**{**SMALL, **options}))


def loader(prepared: Data, **options: Any) -> PatchLoader:
    config = TrainConfig(**{"depth": 2, "target_shape": (16, 8, 12), "num_workers": 0, "augment": False, **options})
    return PatchLoader(prepared.folder, names_of(prepared), config, pin_memory=False)


def same(first: Batch, second: Batch) -> bool:
    return all(equal(one, other) for one, other in zip(first.values(), second.values(), strict=True))


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a batch are equal, as are the items of lists."""
    if isinstance(one, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def names_drawn(prepared: Data, patches: Patches, epoch: int, count: int) -> list[str]:
    """Return the case of each patch, recognised by its mean intensities."""
    by_mean = {tuple(open_case(prepared.folder, name).mean.tolist()): name for name in names_of(prepared)}
    assert len(by_mean) == 8
    return [by_mean[tuple(patches[epoch, index]["mean"].tolist())] for index in range(count)]


@pytest.fixture(scope="module")
def rulers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of cases whose voxels have their position as value.

    The tumour, of 8 voxels per side, is in the middle of the case Middle, and at 0 in Corner.
    """
    data = tmp_path_factory.mktemp("rulers")
    for name, corner in [("Middle", 8), ("Corner", 0)]:
        label = np.zeros(SIZE, np.uint8)
        for value, inset in [(2, 0), (1, 2), (4, 3)]:
            side = slice(corner and corner + inset, corner + 8 - inset)
            label[side, side, side] = value
        channels = dict(zip(MODALITIES, [*np.indices(SIZE) + 1, np.indices(SIZE).sum(axis=0) + 1], strict=True)) | {
            "seg": label
        }
        for word, volume in channels.items():
            (data / name).mkdir(exist_ok=True)
            around = np.pad(np.asarray(volume, np.int16), 3)  # a background, which is cropped away
            nifti = nib.Nifti1Image(around, np.diag([-1, -1, 1, 1]))
            nib.save(nifti, data / name / f"{name}_{word}.nii.gz")
    prepare(find_cases(data, need_seg=True)[0], data / "cache", workers=1, quiet=True)
    return data / "cache"


def start_of(patch: Batch) -> tuple[int, int, int]:
    """First voxel of a patch of a ruler."""
    x, y, z = (int(at) - 1 for at in patch["image"][:3, 0, 0, 0])
    return x, y, z


def region_at_centre(patch: Batch) -> list[bool]:
    """Whether the centre voxel is WT, TC, ET."""
    label = patch["label"].numpy()
    d, h, w = (size // 2 for size in label.shape)
    return [bool(region) for region in labels_to_regions(label)[:, d, h, w]]


def test_patch_is_a_piece_of_its_case_with_its_statistics(prepared: Data) -> None:
    name = names_of(prepared)[0]
    case = open_case(prepared.folder, name)
    patch = dataset(prepared, [name], target_shape=(8, 6, 4))[0, 0]
    assert patch["image"].dtype == torch.int16
    assert patch["label"].dtype == torch.uint8
    assert tuple(patch["image"].shape) == (4, 8, 6, 4)
    assert np.array_equal(patch["mean"], case.mean)
    assert np.array_equal(patch["std"], case.std)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(case.image[0]), (8, 6, 4))
    places = np.argwhere((windows == patch["image"][0].numpy()).all((3, 4, 5)))
    assert len(places) == 1
    start = tuple(int(at) for at in places[0])
    box = tuple(slice(first, first + size) for first, size in zip(start, (8, 6, 4), strict=True))
    assert np.array_equal(patch["image"], case.image[(..., *box)])
    assert np.array_equal(patch["label"], case.label[box])


def test_workers_do_not_change_the_patches(prepared: Data) -> None:
    without, with_threads = loader(prepared, num_workers=0), loader(prepared, num_workers=2)
    for epoch in (1, 2):
        first, second = list(without.epoch(epoch)), list(with_threads.epoch(epoch))
        assert len(first) == len(second) == 4
        assert all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_num_workers_threads_read_the_patches(prepared: Data, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    reading, plain = set(), PatchReader.read

    def read(self: PatchReader, keys: list[Key]) -> Batch:
        reading.add(threading.get_ident())
        time.sleep(0.05)  # so that every thread gets to read
        return plain(self, keys)

    monkeypatch.setattr(PatchReader, "read", read)
    assert len(list(loader(prepared, num_workers=workers).epoch(1))) == 4
    assert len(reading) == max(1, workers)
    assert (threading.get_ident() in reading) == (not workers)


def test_no_more_is_read_ahead_than_there_are_threads(prepared: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Key] = []
    monkeypatch.setattr(PatchReader, "read", lambda _, keys: read.extend(keys) or {})
    patches = loader(prepared, num_workers=3, batch_size=1, epochs=3)
    batches = patches.epoch(1)
    next(batches)
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(read) == 4  # the one that was taken and three
    assert len(list(batches)) == 7
    assert len(list(patches.epoch(2))) == 8
    assert sorted(read) == [(epoch, index) for epoch in (1, 2) for index in range(8)]  # nothing after the last epoch


def test_an_error_of_a_reading_thread_comes_up(prepared: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Batch:
        raise OSError("the disk is gone")

    monkeypatch.setattr(PatchReader, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader(prepared, num_workers=2).epoch(0))


def test_loader_names_the_cases_of_patches(prepared: Data) -> None:
    patches = loader(prepared)
    assert patches.case_names(1, range(patches.patches)) == names_drawn(
        prepared, dataset(prepared, target_shape=(16, 8, 12)), 1, 8
    )


def test_same_seed_gives_the_same_patches_and_another_other_ones(prepared: Data) -> None:
    first, again, other = (list(loader(prepared, seed=seed).epoch(1)) for seed in (3, 3, 4))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))


def test_seed_draws_the_place_of_a_patch_and_the_order_of_the_cases(rulers: Path, prepared: Data) -> None:
    config = TrainConfig(depth=2, target_shape=(4, 4, 4), tumour_share=0, augment=False)
    datasets = [Patches(rulers, ["Middle"], config.model_copy(update={"seed": seed})) for seed in (3, 3, 4)]
    starts = [[start_of(patches[1, index]) for index in range(8)] for patches in datasets]
    assert starts[0] == starts[1]
    assert not set(starts[0]) & set(starts[2])
    orders = [names_drawn(prepared, dataset(prepared, seed=seed), 1, 8) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_another_epoch_gives_other_patches_in_another_order(prepared: Data) -> None:
    patches = dataset(prepared)
    orders = [names_drawn(prepared, patches, epoch, 8) for epoch in (1, 2, 3)]
    assert orders[0] != orders[1] != orders[2]
    one_case = dataset(prepared, names_of(prepared)[:1])
    drawn = {one_case[epoch, 0]["image"].numpy().tobytes() for epoch in range(1, 11)}
    assert len(drawn) >= 9


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_does_not_depend_on_what_was_read_before(prepared: Data, workers: int) -> None:
    one, two = loader(prepared, num_workers=workers), loader(prepared)
    one.begin(0)
    next(one.epoch(1))  # left half read, as after an interruption
    assert all(same(a, b) for a, b in zip(one.epoch(2), two.epoch(2), strict=True))


def test_threads_end_with_their_loader(prepared: Data) -> None:
    before = threading.active_count()
    begun, half_read = loader(prepared, num_workers=2), loader(prepared, num_workers=2)
    begun.begin(0)
    next(half_read.epoch(0))
    assert threading.active_count() > before
    gc.disable()
    try:
        del begun, half_read
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before
    finally:
        gc.enable()


def test_order_in_which_cases_are_named_does_not_matter(prepared: Data) -> None:
    names = names_of(prepared)
    forwards, backwards = dataset(prepared, names), dataset(prepared, names[::-1])
    assert all(same(forwards[1, index], backwards[1, index]) for index in range(8))


@pytest.mark.parametrize("epoch", [1, 2])
def test_every_case_comes_once_before_any_comes_twice(prepared: Data, epoch: int) -> None:
    drawn = names_drawn(prepared, dataset(prepared), epoch, 20)
    assert sorted(drawn[:8]) == sorted(drawn[8:16]) == names_of(prepared)
    assert len(set(drawn[16:])) == 4
    assert drawn[:8] != drawn[8:16]


def test_epoch_has_one_patch_per_case_or_as_many_as_requested(prepared: Data) -> None:
    for options, sizes in [({}, [3, 3, 2]), ({"patches_per_epoch": 5}, [3, 2]), ({"patches_per_epoch": 12}, [3] * 4)]:
        result = [len(batch["image"]) for batch in loader(prepared, batch_size=3, **options).epoch(1)]
        assert result == sizes


def test_batch_has_the_patches_of_its_position_in_the_epoch(prepared: Data) -> None:
    patches = dataset(prepared, target_shape=(16, 8, 12))
    for place, batch in enumerate(loader(prepared, batch_size=2).epoch(5)):
        for i in range(2):
            assert same({key: values[i] for key, values in batch.items()}, patches[5, 2 * place + i])


def test_each_region_takes_its_turn_at_the_centre(rulers: Path) -> None:
    patches = Patches(rulers, ["Middle"], TrainConfig(**SMALL, tumour_share=1))
    centres = [[region_at_centre(patches[epoch, index]) for index in range(30)] for epoch in range(3)]
    for epoch, index in product(range(3), range(30)):
        assert centres[epoch][index][(epoch + index) % 3]
    # A turn of WT reaches oedema, one of TC the core next to ET: the turns differ.
    assert not all(tc for _, tc, _ in centres[0][0::3])
    assert not all(et for _, _, et in centres[0][1::3])


def test_centre_is_any_voxel_of_the_region(rulers: Path) -> None:
    patches = Patches(rulers, ["Middle"], TrainConfig(**SMALL, tumour_share=1))
    centres = {tuple(at + 2 for at in start_of(patches[epoch, 2])) for epoch in range(0, 180, 3)}
    assert centres == set(product((11, 12), repeat=3))  # all of ET


def test_case_without_the_region_is_centred_on_any_of_its_tumour(prepared: Data) -> None:
    assert not len(open_case(prepared.folder, WITHOUT_ET).foreground[2])
    patches = dataset(prepared, [WITHOUT_ET], tumour_share=1)
    for index in range(12):
        assert (patches[0, index]["label"] > 0).any()  # by the border the centre may be clipped away


def test_patch_by_the_border_is_moved_inside_and_keeps_its_tumour_voxel(rulers: Path) -> None:
    patches = Patches(
        rulers, ["Corner"], TrainConfig(depth=2, target_shape=(16, 16, 16), tumour_share=1, augment=False)
    )
    for epoch in range(3):
        for index in range(12):
            patch = patches[epoch, index]
            assert start_of(patch) == (0, 0, 0)  # all of this tumour is nearer to the corner than half a patch
            assert labels_to_regions(patch["label"].numpy())[(epoch + index) % 3].any()
    far = Patches(rulers, ["Middle"], TrainConfig(depth=2, target_shape=(18, 18, 26), tumour_share=1, augment=False))
    starts = np.array([start_of(far[0, index]) for index in range(40)])
    assert (starts <= np.array(SIZE) - (18, 18, 26)).all()
    assert (starts.max(0) == np.array(SIZE) - (18, 18, 26)).any()


@pytest.mark.parametrize(("share", "period"), [(1 / 3, 3), (0.5, 2), (0.25, 4)])
def test_tumour_share_is_met_at_even_intervals(rulers: Path, share: float, period: int) -> None:
    patches = Patches(rulers, ["Middle"], TrainConfig(**SMALL, tumour_share=share))
    hits = [region_at_centre(patches[1, index])[0] for index in range(16 * period)]
    assert all(hits[period - 1 :: period])
    others = [hit for index, hit in enumerate(hits) if index % period != period - 1]
    assert sum(others) < len(others) / 2  # the tumour fills a thirtieth of the case


def test_tumour_share_0_draws_from_all_of_the_case(prepared: Data) -> None:
    name = names_of(prepared)[0]
    label = open_case(prepared.folder, name).label
    patches = dataset(prepared, [name], tumour_share=0)
    result = np.mean([(patches[1, index]["label"] > 0).float().mean().item() for index in range(400)])
    assert result == pytest.approx((np.asarray(label) > 0).mean(), abs=0.05)


def test_every_place_of_a_case_is_drawn_alike(rulers: Path) -> None:
    config = TrainConfig(depth=2, target_shape=(20, 22, 28), tumour_share=0, augment=False)
    patches = Patches(rulers, ["Middle"], config)
    counts = Counter(start_of(patches[1, index]) for index in range(900))
    assert set(counts) == set(product(range(3), range(3), range(1)))
    assert 70 < min(counts.values()) <= max(counts.values()) < 130  # of 100 each


@pytest.mark.parametrize("share", [0, 1])
def test_case_smaller_than_the_patch_is_centred_in_zeros(prepared: Data, share: float) -> None:
    name = names_of(prepared)[0]
    case = open_case(prepared.folder, name)
    assert max(case.label.shape) < 64
    pads = [((64 - size + 1) // 2, (64 - size) // 2) for size in case.label.shape]
    patch = dataset(prepared, [name], target_shape=(64, 64, 64), depth=3, tumour_share=share)[1, 0]
    assert np.array_equal(patch["label"], np.pad(case.label, pads))
    assert np.array_equal(patch["image"], np.pad(case.image, [(0, 0), *pads]))


def test_case_smaller_along_one_axis_is_padded_only_along_it(prepared: Data) -> None:
    name = names_of(prepared)[0]
    case = open_case(prepared.folder, name)
    patch = dataset(prepared, [name], target_shape=(8, 64, 8), depth=3)[1, 0]["image"].numpy()
    height = case.label.shape[1]
    before = (64 - height + 1) // 2
    assert not patch[:, :, :before].any()
    assert not patch[:, :, before + height :].any()
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(case.image[0]), (8, height, 8))[:, 0]
    assert (windows == patch[0, :, before : before + height]).all((2, 3, 4)).any()


def piece(array: np.ndarray[Any, Any], start: tuple[int, int, int], *shape: int) -> np.ndarray[Any, Any]:
    out = np.full(shape, 99, array.dtype)  # what was there before must not show
    copy_patch(array, start, out)
    return out


def test_cut_takes_what_there_is_and_zeros_elsewhere() -> None:
    array = np.arange(1, 2 * 3 * 4 * 5 + 1, dtype=np.int16).reshape(2, 3, 4, 5)
    assert np.array_equal(piece(array, (1, 0, 2), 2, 2, 3, 3), array[:, 1:3, 0:3, 2:5])
    padded = np.pad(array, [(0, 0), (2, 2), (2, 2), (2, 2)])
    assert np.array_equal(piece(array, (-2, 1, -1), 2, 5, 5, 8), padded[:, 0:5, 3:8, 1:9])
    assert np.array_equal(piece(array[0], (0, 0, 0), 3, 4, 5), array[0])


def test_patch_overhang_lets_patches_reach_beyond_the_box_by_that_share(rulers: Path) -> None:
    """Without it the voxels at the ends of the box are in few random patches, and never in the middle of one."""
    shape, overhang = (8, 8, 16), (2, 2, 4)
    options: dict[str, Any] = {"depth": 2, "target_shape": shape, "tumour_share": 0, "augment": False}
    patches = Patches(rulers, ["Middle"], TrainConfig(**options, patch_overhang=0.25))
    starts = np.array([place(patches, index) for index in range(400)])
    assert (starts.min(0) == -np.array(overhang)).all()
    assert (starts.max(0) == np.array(SIZE) - shape + overhang).all()


def place(patches: Patches, index: int) -> list[int]:
    """First voxel of a patch of a ruler, which may lie before the case: from any of its voxels inside."""
    image = patches[1, index]["image"].numpy()
    inside = np.argwhere(image[3] > 0)[0]
    return [int(image[axis][tuple(inside)]) - 1 - int(inside[axis]) for axis in range(3)]


@pytest.mark.parametrize("share", [0, 1])
def test_what_hangs_over_is_0(rulers: Path, share: float) -> None:
    config = TrainConfig(depth=2, target_shape=(16, 16, 16), tumour_share=share, augment=False, patch_overhang=0.25)
    patches = Patches(rulers, ["Corner"], config)
    for index in range(12):
        start = place(patches, index)
        image, label = (patches[1, index][name].numpy() for name in ("image", "label"))  # type: ignore[literal-required]
        grid = np.stack(np.meshgrid(*[np.arange(16) + at for at in start], indexing="ij"))
        inside = ((grid >= 0) & (grid < np.array(SIZE)[:, None, None, None])).all(0)
        assert ((image[3] != 0) == inside).all()
        assert not label[~inside].any()
        if share:  # the tumour's voxels are at 0 to 7 along each axis, half a patch before them is -8 to -1
            assert -4 <= min(start) <= max(start) <= 0


@pytest.mark.parametrize("share", [0, 1])
def test_patch_overhang_of_a_case_smaller_than_the_patch(prepared: Data, share: float) -> None:
    """It is centred as long as the overhang does not make it fit."""
    name = names_of(prepared)[0]
    case = open_case(prepared.folder, name)
    options: dict[str, Any] = {"target_shape": (64, 64, 64), "depth": 3, "tumour_share": share}
    same_place = dataset(prepared, [name], **options, patch_overhang=0.02)[1, 0]
    assert torch.equal(same_place["label"], dataset(prepared, [name], **options)[1, 0]["label"])
    hanging = [dataset(prepared, [name], **options, patch_overhang=0.4)[1, index]["label"] for index in range(8)]
    assert len({each.numpy().tobytes() for each in hanging}) > 1
    assert max(int((each > 0).sum()) for each in hanging) <= (np.asarray(case.label) > 0).sum()
