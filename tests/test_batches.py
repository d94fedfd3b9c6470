"""Batches as the network gets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainable.core.brats import labels_to_regions_torch
from trainable.core.config import TrainConfig
from trainable.data.batches import TimedIterator, prefetch_to_device, prepare_batch
from trainable.data.normalise import normalise
from trainable.data.patches import Batch, PatchLoader, PatchReader
from trainable.data.prepare import Data

CPU = torch.device("cpu")


def config_of(**options: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "target_shape": (16, 24, 32),
        "patches_per_epoch": 6,
        "num_workers": 0,
        "depth": 4,
        "seed": 5,
    }
    return TrainConfig(**base | options)


def read(prepared: Data, config: TrainConfig) -> list[Batch]:
    return list(PatchLoader(prepared.folder, prepared.split.train, config, pin_memory=False).epoch(0))


def normalised(batch: Batch) -> Tensor:
    """The images of a batch without moved patches, (N, 4, D, H, W)."""
    return normalise(torch.stack(batch["image"]), batch["mean"], batch["std"])


def test_a_batch_is_normalised_and_its_targets_are_the_regions_of_its_labels(prepared: Data) -> None:
    config = config_of(augment=False, batch_size=2)
    for batch in read(prepared, config):
        x, y = prepare_batch(batch, config, CPU, 0)
        assert (x.dtype, y.dtype) == (torch.float32, torch.bool)
        assert torch.equal(x, normalised(batch))
        assert torch.equal(y, labels_to_regions_torch(torch.stack(batch["label"])))


def test_augmentation_can_be_switched_off(prepared: Data) -> None:
    for on in (True, False):
        config = config_of(augment=on, flip_prob=1.0, rotate_prob=0, zoom_prob=0)
        batch = read(prepared, config)[0]
        x, _ = prepare_batch(batch, config, CPU, 0)
        assert torch.equal(x, normalised(batch)) != on


def test_a_patch_is_augmented_by_its_position_in_the_epoch_in_every_batch(prepared: Data) -> None:
    def made(batch_size: int) -> list[Tensor]:
        config = config_of(batch_size=batch_size, flip_prob=0.5, noise_prob=0.5, rotate_prob=0.5)
        result = list(prefetch_to_device(read(prepared, config), config, CPU, epoch=3))
        return [torch.cat(parts) for parts in zip(*result, strict=True)]

    whole = made(6)
    for size in (1, 2, 4):
        assert all(torch.equal(a, b) for a, b in zip(whole, made(size), strict=True))


def test_two_equal_patches_of_a_batch_are_augmented_differently(prepared: Data) -> None:
    config = config_of(shift_prob=1.0, rotate_prob=0, zoom_prob=0, flip_prob=0)
    reader = PatchReader(prepared.folder, prepared.split.train[:1], config)
    batch = reader.read([(0, 0), (0, 0)])
    batch["index"] = [0, 1]
    x, _ = prepare_batch(batch, config, CPU, 0)
    assert not torch.equal(x[0], x[1])


def test_only_the_waiting_for_items_is_timed(monkeypatch: Any) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def slow() -> Any:
        nonlocal now
        for _ in range(3):
            now += 2
            yield {}

    batches = TimedIterator(slow())
    for _ in batches:
        now += 5
    assert batches.seconds == 6


@pytest.mark.gpu
def test_a_gpu_gets_the_batches_of_a_cpu_and_keeps_two_of_them(prepared: Data) -> None:
    config = config_of(
        batch_size=1, patches_per_epoch=20, augment=False, fast=False, depth=3, target_shape=(64, 64, 64)
    )
    batches, device = read(prepared, config), torch.device("cuda")
    for number, made in enumerate(prefetch_to_device(batches, config, device, 0)):
        expected = prepare_batch(batches[number], config, CPU, 0)
        torch.testing.assert_close([each.cpu() for each in made], list(expected), atol=1e-6, rtol=1e-6)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in prefetch_to_device(batches, config, device, 0):
        torch.cuda._sleep(20_000_000)  # a slow step
    of_a_batch = sum(each.nbytes for each in expected)
    assert torch.cuda.max_memory_allocated() - before < 6 * of_a_batch  # a patch takes some to be made
