"""Batches on their way from the cache to the network: normalised and augmented on its device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from trainable.core.brats import REGIONS, labels_to_regions_torch
from trainable.core.config import TrainConfig
from trainable.core.device import input_format
from trainable.data.augment import augment, normalise
from trainable.data.patches import Batch


class Stopwatch:
    """An iterator, and the seconds that its items were waited for."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - asked


def prefetch_to_device(
    batches: Iterable[Batch], config: TrainConfig, device: torch.device, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches of an epoch: places of their cases (N,), and x and y as prepare_batch makes them.

    On a GPU each is made on a stream of its own while the step of the one before runs, and no earlier: a batch that
    waits takes memory.
    """
    patches = 0
    for batch in batches:
        if device.type == "cuda":
            beside, here = side_stream(device), torch.cuda.current_stream(device)
            with torch.cuda.stream(beside):
                x, y = prepare_batch(batch, config, device, epoch, patches)
            here.wait_stream(beside)
            for tensor in (x, y):
                tensor.record_stream(here)
            begins = here.record_event()
            yield batch["case"], x, y
            begins.synchronize()
        else:
            yield batch["case"], *prepare_batch(batch, config, device, epoch, patches)
        patches += len(batch["case"])


@lru_cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that batches are made on in this process: torch keeps memory for each stream that was ever used."""
    return torch.cuda.Stream(device)


def prepare_batch(
    batch: Batch, config: TrainConfig, device: torch.device, epoch: int, first: int
) -> tuple[Tensor, Tensor]:
    """A batch as read -> normalised, augmented image (N, 4, D, H, W), target bool (N, 3, D, H, W), on the device.

    first: index in the epoch of the batch's first patch. A patch is made at a time, since what that takes lies on the
    GPU beside a whole step.
    """
    label, mean, std = (batch[name].to(device, non_blocking=True) for name in ("label", "mean", "std"))
    x = torch.empty(batch["image"].shape, **input_format(config, device))
    y = torch.empty(len(label), len(REGIONS), *label.shape[1:], dtype=torch.bool, device=device)
    for i in range(len(x)):
        image = batch["image"][i].to(device, non_blocking=True)
        patch, labels = normalise(image, mean[i], std[i]), label[i, None]
        if config.augment:
            patch, labels = augment(patch, labels, config, epoch, first + i)
        x[i], y[i] = patch, labels_to_regions_torch(labels[0])
        del image, patch
    return x, y
