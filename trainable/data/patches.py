"""Draws patches from the cache. A patch depends on (seed, epoch, index) alone, not on the thread that reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainable.core.brats import MODALITIES, REGIONS
from trainable.core.config import Shape3, TrainConfig
from trainable.core.workers import prefetch
from trainable.data.cache import CachedCase, open_case

Key = tuple[int, int]  # epoch, index of the patch in it
Batch = dict[str, Tensor]


class PatchReader:
    """The patches of the training cases, by (epoch, index); many threads may read."""

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool = False) -> None:
        self.folder, self.names, self.config, self.pin_memory = folder, sorted(names), config, pin_memory
        self._open: dict[str, CachedCase] = {}

    def read(self, keys: Sequence[Key]) -> Batch:
        """image int16 (N, 4, D, H, W), label uint8 (N, D, H, W), mean and std float32 (N, 4), case int64 (N,): its
        place in names."""
        made = partial(torch.empty, pin_memory=self.pin_memory)
        shape, channels = self.config.target_shape, len(MODALITIES)
        image = made((len(keys), channels, *shape), dtype=torch.int16)
        label = made((len(keys), *shape), dtype=torch.uint8)
        mean, std = made((len(keys), channels)), made((len(keys), channels))
        places = [self._place(epoch, index) for epoch, index in keys]
        for i, (epoch, index) in enumerate(keys):
            case = self._case(self.names[places[i]])
            rng = np.random.default_rng([self.config.seed, epoch, index])
            start = self._start(case, rng, self._region(epoch, index))
            copy_patch(case.image, start, image[i].numpy())
            copy_patch(case.label, start, label[i].numpy())
            mean[i], std[i] = torch.from_numpy(case.mean), torch.from_numpy(case.std)
        return {"image": image, "label": label, "mean": mean, "std": std, "case": torch.tensor(places)}

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


def copy_patch(array: NDArray[Any], start: Shape3, out: NDArray[Any]) -> None:
    """Fill out with what an array holds from `start` on in the last three axes, and zero where it has none."""
    source: list[Any] = [...]
    target: list[Any] = [...]
    for first, size, length in zip(start, array.shape[-3:], out.shape[-3:], strict=True):
        low, high = max(0, first), min(size, first + length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    inside = out[tuple(target)]
    if inside.shape != out.shape:
        out[...] = 0
    inside[...] = array[tuple(source)]


def batch_keys(epochs: Iterable[int], patches: int, config: TrainConfig) -> Iterator[list[Key]]:
    """The keys of each batch of some epochs, of so many patches each; no batch is of two."""
    size = config.batch_size
    for epoch in epochs:
        for first in range(0, patches, size):
            yield [(epoch, index) for index in range(first, min(first + size, patches))]


class PatchLoader:
    """Micro-batches of an epoch, read ahead by threads (numpy lets others run while it copies), across the end of an
    epoch too."""

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool) -> None:
        self._reader = PatchReader(folder, names, config, pin_memory=pin_memory)
        self._config = config
        self.names, self.patches = self._reader.names, config.patches_per_epoch or len(names)
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None  # the epoch that they begin with

    def begin(self, epoch: int) -> None:
        """Let the threads read the batches of an epoch."""
        if self._next != epoch:
            self._next = epoch
            keys = batch_keys(range(epoch, max(self._config.epochs, epoch + 1)), self.patches, self._config)
            self._batches = prefetch(self._reader.read, keys, self._config.num_workers)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: image (N, 4, D, H, W), label (N, D, H, W), mean and std (N, 4), case (N,)."""
        self.begin(epoch)
        self._next = None  # until all batches of this epoch were taken
        yield from islice(self._batches, math.ceil(self.patches / self._config.batch_size))
        self._next = epoch + 1

    def cases(self, places: Tensor) -> list[str]:
        """The names of the cases at these places: of a batch, its `case`."""
        return [self.names[place] for place in places.tolist()]
