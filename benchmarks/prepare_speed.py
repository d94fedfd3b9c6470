"""Preprocessing on one CPU core: cases per second of `voxtune prepare` and of MONAI's transforms, on the same cases.

    python benchmarks/prepare_speed.py [--data FOLDER] [--cases 6]

One process, one thread, cases in turn, every second case by the other side first; the median of each. Ours checks the
case, crops it to the brain, computes the statistics and the places of each region, and writes int16 to disk. MONAI's
loads the files, makes the regions, crops to the foreground and normalises, and writes nothing. Without --data,
phantoms of 240 x 240 x 155 voxels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from trainable.core.brats import MODALITIES
from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data


def ours(case: Path, scratch: Path) -> None:
    """Prepare a folder with only this case, as `voxtune prepare` does, into an empty cache."""
    alone = Path(tempfile.mkdtemp(dir=scratch))
    (alone / case.name).symlink_to(case)
    config = TrainConfig(data_dir=alone, cache_dir=alone / "cache", val_fraction=0, test_fraction=0)
    prepare_data(config, quiet=True)


def monai_transforms() -> Any:
    """What a MONAI script does to a case before its random transforms."""
    import monai.transforms as mt

    keys = ["image", "label"]
    return mt.Compose(
        [
            mt.LoadImaged(keys),
            mt.EnsureChannelFirstd("image"),
            mt.EnsureTyped(keys),
            mt.ConvertToMultiChannelBasedOnBratsClassesd("label"),
            mt.CropForegroundd(keys, source_key="image"),
            mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]
    )


def files_of(case: Path) -> dict[str, Any]:
    """The files of a case for MONAI."""
    label = str(case / f"{case.name}_seg.nii.gz")
    return {"image": [str(case / f"{case.name}_{name}.nii.gz") for name in MODALITIES], "label": label}


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of BraTS2021 cases")
    parser.add_argument("--cases", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch, data = Path(name), asked.data
        if data is None:
            data = scratch / "data"
            write_phantoms(data, cases=asked.cases, shape=(240, 240, 155), workers=1)
        cases = sorted(folder.resolve() for folder in data.iterdir() if folder.is_dir())[: asked.cases]
        transforms = monai_transforms()
        sides: dict[str, Callable[[Path], object]] = {
            "voxtune": lambda case: ours(case, scratch),
            "MONAI": lambda case: transforms(files_of(case)),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides.values():  # imports, page cache
            side(cases[0])
        for index, case in enumerate(cases):
            for side in sorted(sides, reverse=bool(index % 2)):
                times[side].append(seconds(lambda: sides[side](case)))  # noqa: B023 - called in this turn
    print(__doc__)
    table = Table("", "seconds per case", "cases/s", "every case", box=None, header_style="bold")
    for side, found in times.items():
        each = " ".join(f"{value:.2f}" for value in found)
        table.add_row(side, f"{statistics.median(found):.2f}", f"{1 / statistics.median(found):.2f}", each)
    make_console().print(table)
    ratio = statistics.median(times["MONAI"]) / statistics.median(times["voxtune"])
    print(f"voxtune is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
