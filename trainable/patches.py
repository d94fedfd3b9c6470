"""Draws patches from the cache. A patch depends on (seed, epoch, index) alone, not on the worker that reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainable.cache import CachedCase, open_case
from trainable.config import REGIONS, Shape3, TrainConfig

Key = tuple[int, int]  # epoch, index of the patch in it
Batch = dict[str, Tensor]


class PatchDataset(Dataset[Batch]):
    """The patches of the training cases, by (epoch, index)."""

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig) -> None:
        self.folder, self.names, self.config = folder, sorted(names), config
        self._open: dict[str, CachedCase] = {}  # filled in the process that reads

    def __getitem__(self, key: Key) -> Batch:
        """image int16 (4, D, H, W), label uint8 (D, H, W), mean and std float32 (4,), case int64 (): place in names."""
        epoch, index = key
        place = self._place(epoch, index)
        case = self._case(self.names[place])
        rng = np.random.default_rng([self.config.seed, epoch, index])
        start = self._start(case, rng, self._region(epoch, index))
        shape = self.config.target_shape
        return {
            "image": torch.from_numpy(cut(case.image, start, shape)),
            "label": torch.from_numpy(cut(case.label, start, shape)),
            "mean": torch.from_numpy(case.mean),
            "std": torch.from_numpy(case.std),
            "case": torch.tensor(place),
        }

    def _place(self, epoch: int, index: int) -> int:
        """Every case once before any comes twice, in an order of its own each time round."""
        lap, place = divmod(index, len(self.names))
        order = np.random.default_rng([self.config.seed, epoch, lap, 1]).permutation(len(self.names))
        return int(order[place])

    def _case(self, name: str) -> CachedCase:
        if name not in self._open:
            self._open[name] = open_case(self.folder, name)
        return self._open[name]

    def _region(self, epoch: int, index: int) -> int | None:
        """The region that this patch is centred on, each its turn; None for a patch anywhere."""
        before, after = int(index * self.config.tumour_share), int((index + 1) * self.config.tumour_share)
        return (epoch + before) % len(REGIONS) if after > before else None

    def _start(self, case: CachedCase, rng: np.random.Generator, region: int | None) -> Shape3:
        """First voxel of the patch; below 0 where the case is smaller than the patch."""
        room = np.array(case.image.shape[1:]) - self.config.target_shape
        voxels = () if region is None else case.foreground[region]
        if not len(voxels) and region is not None:
            voxels = case.foreground[0]  # no such region in this case: any of its tumour
        if len(voxels):
            start = voxels[rng.integers(len(voxels))] - np.array(self.config.target_shape) // 2
        else:
            start = rng.integers(np.maximum(room, 0) + 1)
        start = np.where(room < 0, room // 2, np.clip(start, 0, np.maximum(room, 0)))
        return (int(start[0]), int(start[1]), int(start[2]))


def cut(array: NDArray[Any], start: Shape3, shape: Shape3) -> NDArray[Any]:
    """A copy of `shape` voxels from `start` on in the last three axes, zero where the array has none."""
    source: list[Any] = [...]
    target: list[Any] = [...]
    for first, size, length in zip(start, array.shape[-3:], shape, strict=True):
        low, high = max(0, first), min(size, first + length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    patch = np.zeros((*array.shape[:-3], *shape), array.dtype)
    patch[tuple(target)] = array[tuple(source)]
    return patch


class BatchSampler(Sampler[list[Key]]):
    """The keys of each batch of one epoch after the other, from `epoch` on; no batch is of two epochs."""

    def __init__(self, patches: int, batch_size: int, epochs: int) -> None:
        self.patches, self.batch_size, self.epochs, self.epoch = patches, batch_size, epochs, 0

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.epoch, max(self.epochs, self.epoch + 1)):
            for first in range(0, self.patches, self.batch_size):
                yield [(epoch, index) for index in range(first, min(first + self.batch_size, self.patches))]


class PatchLoader:
    """Micro-batches of an epoch, read ahead by worker processes, across the end of an epoch too."""

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool) -> None:
        dataset = PatchDataset(folder, names, config)
        self.names, self.patches = dataset.names, config.patches_per_epoch or len(names)
        self._sampler = BatchSampler(self.patches, config.batch_size, config.epochs)
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None  # the epoch that they begin with
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._sampler,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else it draws from torch's own, but not in each epoch, and dropout shifts
        )

    def begin(self, epoch: int) -> None:
        """Let the workers read the batches of an epoch."""
        if self._next != epoch:
            self._sampler.epoch, self._next = epoch, epoch
            self._batches = iter(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: image (N, 4, D, H, W), label (N, D, H, W), mean and std (N, 4), case (N,)."""
        self.begin(epoch)
        self._next = None  # until all batches of this epoch were taken
        yield from islice(self._batches, math.ceil(self.patches / self._sampler.batch_size))
        self._next = epoch + 1

    def cases(self, places: Tensor) -> list[str]:
        """The names of the cases at these places: of a batch, its `case`."""
        return [self.names[place] for place in places.tolist()]
