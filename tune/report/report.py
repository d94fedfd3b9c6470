"""Writes the report of a sweep, of several, of a training or of a confirmation as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.files import refuse_unusable, unwritable_as_input_error
from trainable.training.training_dir import EnsembleDir, TrainingDir
from tune.report.case_views import ImageChoice
from tune.report.page import Page, write_page
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import read_run
from tune.run.run_dir import RunDir

NAME = "report.html"
EXPECTED = (
    "expected the folder of a sweep (with study.yaml), of a retraining (RUN/retrain/NAME), or of a confirmation "
    "(RUN/confirm)"
)


def write_report(
    folders: Sequence[Path],
    output: Path | None = None,
    *,
    images: ImageChoice = "make",
    anonymous: bool = True,
    quiet: bool = False,
) -> Path:
    """Write the report and return its path.

    Args:
        folders: a run's, a training's, an ensemble's, a confirmation's; or those of several runs, to compare them.
        output: the file; None for report.html in the first folder.
        images: as for case_views.
        anonymous: names no case, machine or folder.
        quiet: no progress bar.

    Raises:
        InputError: if a folder is of something else, or what is in it is damaged, or the file cannot be written.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"{missing[0]}: no such folder; {EXPECTED}")
    path = output or folders[0] / NAME
    refuse_unusable(path, "-o", NAME)
    page = make_page(folders, images=images, anonymous=anonymous, quiet=quiet)
    with unwritable_as_input_error(path, "-o"):
        write_page(page, path)
    return path


def make_page(folders: Sequence[Path], *, images: ImageChoice, anonymous: bool, quiet: bool) -> Page:
    """Return the report of one folder, or the comparison of several runs. Arguments and errors as of write_report."""
    if len(folders) > 1:
        from tune.report.comparison_report import comparison_page

        return comparison_page([read_run(folder) for folder in folders], anonymous=anonymous)
    folder = folders[0]
    if RunDir(folder).config.exists():
        from tune.report.sweep_report import sweep_page

        return sweep_page(read_run(folder), images=images, anonymous=anonymous, quiet=quiet)
    if ConfirmDir(folder).plan.exists():
        from tune.report.confirm_report import confirm_page

        return confirm_page(read_run(folder.resolve().parent), anonymous=anonymous)
    if TrainingDir(folder).config.exists() or EnsembleDir(folder).members.is_dir():
        from tune.report.training_report import training_page

        return training_page(folder, images=images, anonymous=anonymous, quiet=quiet)
    raise InputError(f"{folder}: nothing there to report on; {EXPECTED}")
