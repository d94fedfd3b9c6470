"""Draw patches from the cache. A patch depends only on (seed, epoch, index), not on the thread that reads it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainable.core.brats import MODALITIES, REGIONS
from trainable.core.config import Shape3, TrainConfig
from trainable.core.division import Share, epoch_shares
from trainable.core.files import raise_open_files_limit
from trainable.core.parallel import prefetch
from trainable.core.ranks import rank, world_size
from trainable.data.cache import CachedCase, open_case, require_same
from trainable.data.spatial import augmentation_generator, draw_transform, source_block

Key = tuple[int, int]  # epoch, index of the patch in it
FILES_PER_CASE = 2  # that an opened case keeps open
OPEN_FILES_SHARE = 1 / 4  # of the files that this process may open, for the cases of a reader
ORDERS_KEPT = 8  # of the cases, for the patches that are read now
MAX_OPEN_CASES = 10_000  # Linux limits a process to 65,530 mapped files too


class Batch(TypedDict):
    """N patches as they are in the cache, not normalised.

    image: N of int16 (4, D, H, W). label: N of uint8 (D, H, W). Both are of target_shape, except for a patch that the
    augmentation rotates or zooms: they are then the block of the case that it is cropped from. start: the first voxel
    of each patch in its block. mean, std: float32 (N, 4), of each patch's case. index: of each patch in
    its epoch.
    """

    image: list[Tensor]
    label: list[Tensor]
    start: list[Shape3]
    mean: Tensor
    std: Tensor
    index: list[int]


class PatchReader:
    """The patches of the training cases, by (epoch, index); several threads may read at once.

    Cases stay open, up to `max_open` of them: then the one that was not read for longest is closed.

    Args:
        folder: the cache.
        names: of the cases; `names` of the reader are sorted.
        pin_memory: read into pinned memory, for copies to a GPU.
    """

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool = False) -> None:
        self.folder, self.names, self.config, self.pin_memory = folder, sorted(names), config, pin_memory
        self.contents: Mapping[str, str] = {}  # of the cases when the training began; a case not in it is not compared
        allowed = int(raise_open_files_limit() * OPEN_FILES_SHARE) // FILES_PER_CASE
        self.max_open = min(max(1, allowed), MAX_OPEN_CASES)
        self._open: OrderedDict[str, CachedCase] = OrderedDict()  # the one read last is at the end
        self._lock = threading.Lock()
        self._order = lru_cache(ORDERS_KEPT)(self._draw_order)

    def read(self, keys: Sequence[Key]) -> Batch:
        """Read the patches of these keys into one batch.

        Raises:
            CacheError: if a case is missing in the cache, not whole, or not what it was when the training began.
        """
        new = partial(torch.empty, pin_memory=self.pin_memory)
        channels = len(MODALITIES)
        images, labels, starts = list[Tensor](), list[Tensor](), list[Shape3]()
        mean, std = new((len(keys), channels)), new((len(keys), channels))
        for i, (epoch, index) in enumerate(keys):
            case = self._case(self.case_name(epoch, index))
            rng = np.random.default_rng([self.config.seed, epoch, index])
            patch_start = self._start(case, rng, self._region(epoch, index))
            start, shape = self._block(case, patch_start, epoch, index)
            images.append(new((channels, *shape), dtype=torch.int16))
            labels.append(new(shape, dtype=torch.uint8))
            copy_patch(case.image, start, images[i].numpy())
            copy_patch(case.label, start, labels[i].numpy())
            starts.append(_minus(patch_start, start))
            mean[i], std[i] = torch.from_numpy(case.mean), torch.from_numpy(case.std)
        return {
            "image": images,
            "label": labels,
            "start": starts,
            "mean": mean,
            "std": std,
            "index": [index for _, index in keys],
        }

    def case_name(self, epoch: int, index: int) -> str:
        """Return the case of a patch: every case once before any comes twice, in another order each time."""
        lap, position = divmod(index, len(self.names))
        return self.names[self._order(epoch, lap)[position]]

    def _draw_order(self, epoch: int, lap: int) -> NDArray[np.int64]:
        """Return in which order the cases come, by their positions in `names`."""
        return np.random.default_rng([self.config.seed, epoch, lap, 1]).permutation(len(self.names))

    def _case(self, name: str) -> CachedCase:
        """Return a case, open until the caller drops it."""
        with self._lock:
            case = self._open.get(name)
        if case is None:
            case = open_case(self.folder, name)  # outside of the lock: threads open cases at the same time
            require_same({name: case.content}, self.contents)
        with self._lock:
            self._open[name] = case
            self._open.move_to_end(name)
            while len(self._open) > self.max_open:
                self._open.popitem(last=False)  # its files are closed when no thread reads it any more
        return case

    def _region(self, epoch: int, index: int) -> int | None:
        """Return the region that a patch is centred on, each in turn; None for a patch anywhere."""
        before, after = int(index * self.config.tumour_share), int((index + 1) * self.config.tumour_share)
        return (epoch + before) % len(REGIONS) if after > before else None

    def _block(self, case: CachedCase, start: Shape3, epoch: int, index: int) -> tuple[Shape3, Shape3]:
        """Return the first voxel and the shape of what is read for a patch: more than it if the patch will be moved."""
        config = self.config
        if config.augment:
            matrix = draw_transform(augmentation_generator(config, epoch, index), config)
            if matrix is not None:
                return source_block(matrix, start, config.target_shape, case.label.shape)
        return start, config.target_shape

    def _start(self, case: CachedCase, rng: np.random.Generator, region: int | None) -> Shape3:
        """Return the first voxel of a patch.

        It is below 0 along axes on which the case is smaller than the patch, and by up to `patch_overhang`.
        """
        shape = np.array(self.config.target_shape)
        room = np.array(case.image.shape[1:]) - shape
        overhang = (shape * self.config.patch_overhang).astype(int)
        low, high = -overhang, room + overhang
        voxels = () if region is None else case.foreground[region]
        if not len(voxels) and region is not None:
            voxels = case.foreground[0]  # no such region in this case: any of its tumour
        if len(voxels):
            start = voxels[rng.integers(len(voxels))] - shape // 2
        else:
            start = low + rng.integers(np.maximum(high - low, 0) + 1)
        start = np.where(high < low, room // 2, np.clip(start, low, np.maximum(low, high)))
        return (int(start[0]), int(start[1]), int(start[2]))


def _minus(one: Shape3, other: Shape3) -> Shape3:
    """Return the difference of two positions."""
    return one[0] - other[0], one[1] - other[1], one[2] - other[2]


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


def batch_keys(epochs: Iterable[int], shares: Sequence[Share]) -> Iterator[list[Key]]:
    """Yield the keys of the patches of each share of each of these epochs."""
    for epoch in epochs:
        for share in shares:
            yield [(epoch, index) for index in range(share.first, share.first + share.count)]


class PatchLoader:
    """The micro-batches of each epoch, read ahead by num_workers threads, also across the end of an epoch.

    Threads suffice: numpy releases the GIL while it copies. `names` and the arguments are those of PatchReader;
    `patches` is the number of patches per epoch. Of several processes each reads its `shares` of them only.
    """

    def __init__(self, folder: Path, names: Sequence[str], config: TrainConfig, *, pin_memory: bool) -> None:
        self._reader = PatchReader(folder, names, config, pin_memory=pin_memory)
        self._config = config
        self.names, self.patches = self._reader.names, config.patches_per_epoch or len(names)
        self.shares = epoch_shares(self.patches, config, rank(), world_size())
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None  # the epoch that _batches start with

    def expect(self, contents: Mapping[str, str]) -> None:
        """Refuse cases that are not what they were when the training began, see cache.require_same."""
        self._reader.contents = contents

    def begin(self, epoch: int) -> None:
        """Start reading the batches of an epoch, and then of later ones, in the threads, unless they already do."""
        if self._next != epoch:
            self._next = epoch
            keys = batch_keys(range(epoch, max(self._config.epochs, epoch + 1)), self.shares)
            self._batches = prefetch(self._reader.read, keys, self._config.num_workers)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, as PatchReader.read returns them; `begin` is called if it was not."""
        self.begin(epoch)
        self._next = None  # unknown until all batches of this epoch are consumed
        yield from islice(self._batches, len(self.shares))
        self._next = epoch + 1

    def case_names(self, epoch: int, patches: Iterable[int]) -> list[str]:
        """Return the names of the cases of an epoch's patches, given by their indices."""
        return [self._reader.case_name(epoch, index) for index in patches]
