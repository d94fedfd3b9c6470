"""Batches on their way from the cache to the network: normalised and augmented on the device, one ahead of the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, pairwise

import torch
from torch import Tensor

from trainable.augment import augment, normalise, regions_tensor
from trainable.config import REGIONS, TrainConfig
from trainable.inference import network_input
from trainable.patches import Batch


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


def made_ahead(
    batches: Iterable[Batch], config: TrainConfig, device: torch.device, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches of an epoch: places of their cases (N,), and x and y as to_network makes them.

    On a GPU each is made while the step of the one before runs.
    """
    beside = stream_beside(device) if device.type == "cuda" else None

    def made() -> Iterator[tuple[Tensor, Tensor, Tensor, torch.cuda.Event | None]]:
        patches = 0
        for batch in batches:
            with contextlib.nullcontext() if beside is None else torch.cuda.stream(beside):
                x, y = to_network(batch, config, device, epoch, patches)
            yield batch["case"], x, y, None if beside is None else beside.record_event()
            patches += len(x)

    for batch, _ in pairwise(chain(made(), [None])):
        assert batch is not None
        places, x, y, done = batch
        if done is not None:
            here = torch.cuda.current_stream(device)
            here.wait_event(done)
            x.record_stream(here)
            y.record_stream(here)
        yield places, x, y


@lru_cache
def stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The stream that batches are made on in this process: torch keeps memory for each stream that was ever used."""
    return torch.cuda.Stream(device)


def to_network(
    batch: Batch, config: TrainConfig, device: torch.device, epoch: int, first: int
) -> tuple[Tensor, Tensor]:
    """A batch as read -> normalised, augmented image (N, 4, D, H, W), target bool (N, 3, D, H, W), on the device.

    first: index in the epoch of the batch's first patch. A patch is made at a time, since what that takes lies on the
    GPU beside a whole step.
    """
    image, label, mean, std = (batch[name].to(device, non_blocking=True) for name in ("image", "label", "mean", "std"))
    x = torch.empty(image.shape, **network_input(config, device))
    y = torch.empty(len(label), len(REGIONS), *label.shape[1:], dtype=torch.bool, device=device)
    for i in range(len(x)):
        patch, labels = normalise(image[i], mean[i], std[i]), label[i, None]
        if config.augment:
            patch, labels = augment(patch, labels, config, epoch, first + i)
        x[i], y[i] = patch, regions_tensor(labels[0])
    return x, y
