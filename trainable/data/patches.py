"""Draw patches from the cache. A patch depends only on (seed, epoch, index), not on the thread that reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainable.core.brats import MODALITIES, REGIONS
from trainable.core.config import Shape3, TrainConfig
from trainable.core.parallel import prefetch
from trainable.data.cache import CachedCase, open_case, require_same

Key = tuple[int, int]  # epoch, index of the patch in it


class Batch(TypedDict):
    """N patches as they are in the cache, not normalised.

    image: int16 (N, 4, D, H, W). label: uint8 (N, D, H, W). mean, std: float32 (N, 4), of each patch's case. case:
    int64 (N,), the index of each patch's case in PatchReader.names.
    """

    image: Tensor
    label: Tensor
    mean: Tensor
    std: Tensor
    case: Tensor


class PatchReader:
    """The patches of the training cases, by (epoch, index); several threads may read at once.

    Args:
        folder: the cache.
        names: of the cases; `names` of the reader are sorted.
        pin_memory: read into pinned memory, for copies to a GPU.
    """

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool = False) -> None:
        self.folder, self.names, self.config, self.pin_memory = folder, sorted(names), config, pin_memory
        self.contents: Mapping[str, str] = {}  # of the cases when the training began; a case not in it is not compared
        self._open: dict[str, CachedCase] = {}

    def read(self, keys: Sequence[Key]) -> Batch:
        """Read the patches of these keys into one batch.

        Raises:
            CacheError: if a case is missing in the cache, not whole, or not what it was when the training began.
        """
        new = partial(torch.empty, pin_memory=self.pin_memory)
        shape, channels = self.config.target_shape, len(MODALITIES)
        image = new((len(keys), channels, *shape), dtype=torch.int16)
        label = new((len(keys), *shape), dtype=torch.uint8)
        mean, std = new((len(keys), channels)), new((len(keys), channels))
        cases = [self._case_index(epoch, index) for epoch, index in keys]
        for i, (epoch, index) in enumerate(keys):
            case = self._case(self.names[cases[i]])
            rng = np.random.default_rng([self.config.seed, epoch, index])
            start = self._start(case, rng, self._region(epoch, index))
            copy_patch(case.image, start, image[i].numpy())
            copy_patch(case.label, start, label[i].numpy())
            mean[i], std[i] = torch.from_numpy(case.mean), torch.from_numpy(case.std)
        return {"image": image, "label": label, "mean": mean, "std": std, "case": torch.tensor(cases)}

    def _case_index(self, epoch: int, index: int) -> int:
        """Return the case of a patch: every case once before any comes twice, in another order each time."""
        lap, position = divmod(index, len(self.names))
        order = np.random.default_rng([self.config.seed, epoch, lap, 1]).permutation(len(self.names))
        return int(order[position])

    def _case(self, name: str) -> CachedCase:
        """Return a case, opened once."""
        if name not in self._open:
            case = open_case(self.folder, name)
            require_same({name: case.content}, self.contents)
            self._open[name] = case
        return self._open[name]

    def _region(self, epoch: int, index: int) -> int | None:
        """Return the region that a patch is centred on, each in turn; None for a patch anywhere."""
        before, after = int(index * self.config.tumour_share), int((index + 1) * self.config.tumour_share)
        return (epoch + before) % len(REGIONS) if after > before else None

    def _start(self, case: CachedCase, rng: np.random.Generator, region: int | None) -> Shape3:
        """Return the first voxel of a patch; below 0 along axes on which the case is smaller than the patch."""
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
    """Fill `out` with an array's values from `start` on along the last three axes, and with zero outside the array."""
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
    """Yield the keys of each batch of these epochs; no batch spans two epochs, so the last of an epoch may be smaller.

    Args:
        patches: number of patches per epoch.
    """
    size = config.batch_size
    for epoch in epochs:
        for first in range(0, patches, size):
            yield [(epoch, index) for index in range(first, min(first + size, patches))]


class PatchLoader:
    """The micro-batches of each epoch, read ahead by num_workers threads, also across the end of an epoch.

    Threads suffice: numpy releases the GIL while it copies. `names` and the arguments are those of PatchReader;
    `patches` is the number of patches per epoch.
    """

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool) -> None:
        self._reader = PatchReader(folder, names, config, pin_memory=pin_memory)
        self._config = config
        self.names, self.patches = self._reader.names, config.patches_per_epoch or len(names)
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None  # the epoch that _batches start with

    def expect(self, contents: Mapping[str, str]) -> None:
        """Refuse cases that are not what they were when the training began, see cache.require_same."""
        self._reader.contents = contents

    def begin(self, epoch: int) -> None:
        """Start reading the batches of an epoch, and then of later ones, in the threads, unless they already do."""
        if self._next != epoch:
            self._next = epoch
            keys = batch_keys(range(epoch, max(self._config.epochs, epoch + 1)), self.patches, self._config)
            self._batches = prefetch(self._reader.read, keys, self._config.num_workers)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, as PatchReader.read returns them; `begin` is called if it was not."""
        self.begin(epoch)
        self._next = None  # unknown until all batches of this epoch are consumed
        yield from islice(self._batches, math.ceil(self.patches / self._config.batch_size))
        self._next = epoch + 1

    def case_names(self, indices: Tensor) -> list[str]:
        """Return the names of the cases with these indices, a batch's `case`."""
        return [self.names[index] for index in indices.tolist()]
