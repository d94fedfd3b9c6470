"""What a folder has, as far as cases are concerned: NIfTI files under any usual ending, sub-folders, dangling links."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ENDINGS = (".nii.gz", ".nii")  # where a file is there with both, the first is read if the two are the same
MACOS_FOLDER = "__MACOSX"  # what a zip made by macOS adds beside its content
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """What a folder has; hidden entries, such as macOS's ._NAME, are left out.

    Attributes:
        volumes: NIfTI files by their names without ending, in Unicode's composed form. A folder that is named like a
            NIfTI file and contains one counts as that file.
        folders: the other sub-folders.
        dangling: links to nothing.
        names: of the files, as a message prints them, of dangling links and folders that are named like NIfTI files.
        doubles: by a name in volumes the further NIfTI files of the same name, under another ending.
    """

    volumes: dict[str, Path]
    folders: tuple[Path, ...]
    dangling: tuple[Path, ...]
    names: tuple[str, ...]
    doubles: dict[str, tuple[Path, ...]]

    def files_of(self, name: str) -> tuple[Path, ...]:
        """Return the NIfTI files of a name without ending; the one in volumes first."""
        return (self.volumes[name], *self.doubles.get(name, ())) if name in self.volumes else ()


def list_folder(folder: Path) -> Listing:
    """Return what a folder has, in the order of the names.

    Raises:
        OSError: if the folder cannot be read.
    """
    volumes: list[tuple[str, Path]] = []  # by name
    folders, dangling, names = [], [], []
    for entry in _visible_entries(folder):
        path = folder / entry.name
        if not _leads_somewhere(entry):
            dangling.append(path)
            names.append(f"{entry.name} (a link to nothing)")
        elif not entry.is_dir():
            names.append(entry.name)
            volumes += [(entry.name, path)] * is_nifti(entry.name)
        elif not is_nifti(entry.name):
            folders.append(path)
        else:
            inside = _nifti_files(path)
            volumes += [(entry.name, inside[0])] if len(inside) == 1 else []
            folders += [path] if len(inside) != 1 else []
            names.append(f"{entry.name}/ (a folder with {len(inside)} NIfTI files)" if len(inside) != 1 else entry.name)
    by_stem: dict[str, list[Path]] = {}
    for name, path in sorted(volumes, key=lambda volume: ENDINGS.index(_ending(volume[0]))):
        by_stem.setdefault(stem_of(name), []).append(path)
    first = {stem: paths[0] for stem, paths in by_stem.items()}
    doubles = {stem: tuple(paths[1:]) for stem, paths in by_stem.items() if paths[1:]}
    return Listing(first, tuple(folders), tuple(dangling), tuple(names), doubles)


def is_nifti(name: str) -> bool:
    """Return whether a name ends as a NIfTI file's does, in upper or lower case."""
    return name.lower().endswith(ENDINGS)


def stem_of(name: str) -> str:
    """Return a NIfTI file's name without its ending, in Unicode's composed form."""
    return composed(name[: -len(_ending(name))])


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC); macOS decomposes accents in names of folders, other systems not.

    Names that look the same are then the same.
    """
    return unicodedata.normalize("NFC", name)


def first_names(names: Sequence[object]) -> str:
    """Return names as a message lists them: at most NAMES_SHOWN, and how many more there are."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def _ending(name: str) -> str:
    """Return which of ENDINGS a NIfTI file's name has."""
    return next(ending for ending in ENDINGS if name.lower().endswith(ending))


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden ones and what macOS adds to a zip."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name != MACOS_FOLDER]
    return sorted(visible, key=lambda entry: entry.name)


def _leads_somewhere(entry: os.DirEntry[str]) -> bool:
    """Return False for a link to nothing, or in a circle."""
    return not entry.is_symlink() or os.path.exists(entry.path)


def _nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files directly in a folder; none if it cannot be read."""
    try:
        return [folder / entry.name for entry in _visible_entries(folder) if entry.is_file() and is_nifti(entry.name)]
    except OSError:
        return []
