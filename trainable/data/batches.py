"""Turn the patches read into the network's batches: normalised and augmented on its device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from trainable.core.brats import MODALITIES, REGIONS, labels_to_regions_torch
from trainable.core.config import TrainConfig
from trainable.core.device import input_format
from trainable.data.augment import augment
from trainable.data.normalise import normalise
from trainable.data.patches import Batch


class TimedIterator:
    """Iterates over batches and sums up in `seconds` the time spent waiting for them."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - start


def prefetch_to_device(
    batches: Iterable[Batch], config: TrainConfig, device: torch.device, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch: x and y of `prepare_batch`.

    On a GPU, the next batch is prepared on a side stream during the current step, not earlier, because a waiting batch
    occupies memory.

    Args:
        batches: all of the epoch, in order.
        epoch: counted from 0; the augmentation depends on it.
    """
    for batch in batches:
        if device.type == "cuda":
            side, main = side_stream(device), torch.cuda.current_stream(device)
            with torch.cuda.stream(side):
                x, y = prepare_batch(batch, config, device, epoch)
            main.wait_stream(side)
            for tensor in (x, y):
                tensor.record_stream(main)
            step_start = main.record_event()
            yield x, y
            step_start.synchronize()
        else:
            yield prepare_batch(batch, config, device, epoch)


@lru_cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device on which this process prepares batches.

    It is kept because torch holds memory for every stream ever used.
    """
    return torch.cuda.Stream(device)


def prepare_batch(batch: Batch, config: TrainConfig, device: torch.device, epoch: int) -> tuple[Tensor, Tensor]:
    """Return a batch's image (N, 4, D, H, W) in the `input_format`, and its target, bool (N, 3, D, H, W).

    The image is normalised and, with the option `augment`, augmented together with the target. Both are on the device.
    Patches are prepared one at a time, since the memory that this takes adds to that of a whole step.

    Args:
        batch: as PatchReader.read returns it.
    """
    mean, std = (tensor.to(device, non_blocking=True) for tensor in (batch["mean"], batch["std"]))
    count, shape = len(batch["image"]), config.target_shape
    x = torch.empty((count, len(MODALITIES), *shape), **input_format(config, device))
    y = torch.empty(count, len(REGIONS), *shape, dtype=torch.bool, device=device)
    for i in range(count):
        image, label = (tensors[i].to(device, non_blocking=True) for tensors in (batch["image"], batch["label"]))
        patch, labels = normalise(image, mean[i], std[i]), label[None]
        if config.augment:
            start = batch["start"][i]
            patch, labels = augment(patch, labels, config, epoch, batch["index"][i], start=start, shape=shape)
        x[i], y[i] = patch, labels_to_regions_torch(labels[0])
        del image, label, patch, labels
    return x, y
