"""The verbs that make or prepare cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainable.core.counted import counted
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.core.storage import place_of_data
from tune.cli.command import Labels, SkipBadCases, app


@app.command(epilog="Example: voxtune phantom DIR --cases 20 --shape 64 64 48")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    cases: Annotated[int, typer.Option(metavar="N", help="Number of cases.")] = 12,
    shape: Annotated[tuple[int, int, int], typer.Option(metavar="N", help="Voxels: x, y, z.")] = (240, 240, 155),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another seed gives other cases.")] = 0,
) -> None:
    """Write synthetic cases in the file format of BraTS."""
    from trainable.data.phantom import write_phantoms

    earlier = set(out.glob("Phantom_*"))
    written = write_phantoms(out, cases=cases, shape=shape, seed=seed)
    size, again = " x ".join(map(str, shape)), len(earlier & set(written))
    known = f"; {again} of them were there already, and are the same" if again else ""
    logger.info(f"wrote {counted(cases, 'synthetic case')} of {size} voxels, one folder each, to {out}{known}")


@app.command("convert_msd", epilog="Example: voxtune convert_msd Task01_BrainTumour DIR")
def convert_msd(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder Task01_BrainTumour, as it was unpacked.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write the cases in.")],
) -> None:
    """Make cases of the Medical Segmentation Decathlon's brain tumours; called again, it writes what is missing."""
    from trainable.cases.msd import convert_msd

    convert_msd(source, destination)


@app.command(epilog="Example: voxtune prepare DIR --skip_bad_cases")
def prepare(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Folder with one sub-folder per case; or its URI, such as s3://bucket/cases."
        ),
    ],
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache_dir", metavar="DIR", help="By default next to DIR; of a URI in ~/.cache."),
    ] = None,
    labels: Labels = None,
    skip_bad_cases: SkipBadCases = False,
    background: Annotated[
        str, typer.Option(metavar="VALUE", help="Value of the images' background, or auto; train with the same one.")
    ] = "0",
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample cases of another voxel size than most; train with it too.")
    ] = False,
) -> None:
    """Check the cases of a folder and preprocess them once for all trainings."""
    from trainable.data.prepare import prepare_data

    # without val and test, for which a few cases may be too few
    options: dict[str, Any] = {
        "val_fraction": 0,
        "test_fraction": 0,
        "skip_bad_cases": skip_bad_cases,
        "labels": labels,
        "resample": resample,
    }
    options |= {"data_dir": place_of_data(data), "cache_dir": cache_dir, "background": background}
    prepared = prepare_data(make_config(options, "voxtune prepare"))
    logger.info(f"cache: {prepared.folder}")
