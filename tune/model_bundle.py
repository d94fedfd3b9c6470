"""A model of a sweep as a bundle of MONAI, with what the sweep's confirmation says of its recipe."""

from __future__ import annotations

from pathlib import Path

from trainable.bundle.contents import check_files, read_record


def export_model(model: Path, out: Path, *, authors: str = "", with_case_names: bool = False) -> Path:
    """Write the model of a training, or of RUN/retrain/NAME, as a bundle; return its folder.

    The arguments and errors are those of trainable.bundle.export.export_bundle.
    """
    from trainable.bundle.export import export_bundle  # here: torch takes seconds to import

    return export_bundle(model, out, authors=authors, confirmed="", with_case_names=with_case_names)


def verify_bundle(folder: Path, data_dir: Path | None) -> dict[str, list[str]]:
    """Return the findings of each check of a bundle by its name: its files, and with cases its scores.

    Raises:
        InputError: if voxtune.json is damaged, or none of the cases is on record.
    """
    checks = {f"files, those of the export: {len(read_record(folder)['files'])}": list(check_files(folder))}
    if data_dir is not None:
        from trainable.bundle.rescore import check_scores

        checks |= check_scores(folder, data_dir)
    return checks
