"""A BraTS case: the files of one folder, named after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainable.cases.folder_listing import Listing, composed, first_names, is_nifti, list_folder, stem_of
from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError

LAYOUT = "DATA/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz (BraTS2021) or DATA/CASE/CASE-{t2f,t1n,t1c,t2w,seg}.nii.gz"


class CaseError(InputError):
    """The error of one case that cannot be used; the message starts with the case's name."""


@dataclass(frozen=True)
class Naming:
    """How one year's BraTS names its files.

    Attributes:
        separator: between the case's name and the word of a file.
        images: words of the modalities, in the order of MODALITIES.
    """

    separator: str
    images: tuple[str, ...]


NAMES_2021 = Naming("_", MODALITIES)
NAMES_2023 = Naming("-", ("t2f", "t1n", "t1c", "t2w"))
NAMINGS = (NAMES_2021, NAMES_2023)


@dataclass(frozen=True)
class Case:
    """Files of one case.

    Attributes:
        images: in the order of MODALITIES.
        seg: None if there is none.
        naming: how they are named.
        doubles: pairs of an image or the seg and another file for the same volume: with another ending, or named as in
            another year.
    """

    name: str
    images: tuple[Path, ...]
    seg: Path | None
    naming: Naming
    doubles: tuple[tuple[Path, Path], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read: the images, the seg if there is one, and the other files for the same volumes."""
        return (*self.images, *([self.seg] if self.seg else []), *(other for _, other in self.own_doubles))

    @property
    def own_doubles(self) -> tuple[tuple[Path, Path], ...]:
        """The pairs in doubles whose first file is one of this case; without a seg it has none of a seg."""
        return tuple(pair for pair in self.doubles if pair[0] in (*self.images, self.seg))


def find_case(folder: Path, *, need_seg: bool) -> Case:
    """Return the case whose files are in a folder; the case has the folder's name.

    Raises:
        CaseError: if the folder cannot be read, or lacks a modality, or the seg if need_seg.
    """
    try:
        listing = list_folder(folder)
    except OSError as error:
        raise unreadable_case(folder, error) from None
    return case_of(folder, listing, need_seg=need_seg)


def case_of(folder: Path, listing: Listing, *, need_seg: bool) -> Case:
    """Return the case whose files are in a folder, given what the folder has.

    Raises:
        CaseError: if a modality is missing, or the seg if need_seg.
    """
    name, volumes = case_name(folder), listing.volumes

    def stem(naming: Naming, word: str) -> str:
        return f"{composed(name)}{naming.separator}{word}"

    naming = max(NAMINGS, key=lambda naming: sum(stem(naming, word) in volumes for word in naming.images))
    words = [*naming.images, "seg"] if need_seg else naming.images
    missing = [f"{name}{naming.separator}{word}.nii.gz" for word in words if stem(naming, word) not in volumes]
    if missing:
        if not has_modality(folder, listing) and (other := foreign_case(listing)):
            raise CaseError(
                f"{name}: {folder} has the files of {other}; expected files named as their folder; rename it"
            )
        raise CaseError(
            f"{name}: {' and '.join(missing)} missing in {folder}, which has {_content(listing, name)}"
            f"{_renamed(folder, listing, missing)}; expected {LAYOUT}"
        )
    images = tuple(volumes[stem(naming, word)] for word in naming.images)
    return Case(name, images, volumes.get(stem(naming, "seg")), naming, tuple(_doubles(name, listing, naming)))


def case_name(folder: Path) -> str:
    """Return the name of the case in a folder: the folder's own, also for "." and ".."."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def case_folder(case: Case) -> Path:
    """Return the folder of a case's files."""
    parent = case.images[0].parent
    return parent.parent if is_nifti(parent.name) else parent  # a modality may be a folder named like a file


def has_modality(folder: Path, listing: Listing) -> bool:
    """Return whether a folder has a modality of the case of its name, so that it is a case, whole or not.

    A link to a modality that was not fetched counts too: the case is there and lacks it.
    """
    links = [stem_of(path.name) for path in listing.dangling if is_nifti(path.name)]
    return not {*listing.volumes, *links}.isdisjoint(_modalities(case_name(folder)))


def foreign_case(listing: Listing) -> str | None:
    """Return the name of the one whole case, without seg, whose files are in a folder; None if there is not just one.

    Whoever renames a case's folder, and not the files in it, has a folder with a case of another name.
    """
    found = set()
    for naming in NAMINGS:
        first = f"{naming.separator}{naming.images[0]}"
        for stem in listing.volumes:
            prefix = stem.removesuffix(first)
            names = [f"{prefix}{naming.separator}{word}" for word in naming.images]
            found |= {prefix} if listing.volumes.keys() >= {*names} else set()
    return found.pop() if len(found) == 1 else None


def unreadable_case(folder: Path, error: OSError) -> CaseError:
    """Return the error of a case whose folder cannot be read."""
    return CaseError(f"{case_name(folder)}: {folder} cannot be read ({error.strerror}); expected {LAYOUT}")


def _doubles(name: str, listing: Listing, naming: Naming) -> Iterator[tuple[Path, Path]]:
    """Yield pairs of files for one volume of a case; the first of a pair is named as in `naming` if there is one."""
    namings = (naming, *(other for other in NAMINGS if other != naming))
    for words in zip(*((*each.images, "seg") for each in namings), strict=True):
        stems = [f"{composed(name)}{each.separator}{word}" for each, word in zip(namings, words, strict=True)]
        files = [path for stem in stems for path in listing.files_of(stem)]
        yield from ((files[0], other) for other in files[1:])


def _modalities(name: str) -> Iterator[str]:
    """Yield the names, without ending, that the modalities of a case may have."""
    for naming in NAMINGS:
        yield from (f"{composed(name)}{naming.separator}{word}" for word in naming.images)


def _content(listing: Listing, name: str) -> str:
    """Return the names of the files in a case's folder; those first that do not begin with the case's name."""
    names = sorted(listing.names, key=lambda file: (composed(file).startswith(composed(name)), file))
    return first_names(names) or "no file"


def _renamed(folder: Path, listing: Listing, missing: list[str]) -> str:
    """Return advice if one file is missing and one NIfTI file has a name of its own, as in BraTS2020's case 355."""
    name = composed(case_name(folder))
    odd = [file for file in listing.names if is_nifti(file) and not composed(file).startswith(name)]
    return f"; if {odd[0]} is the missing file, rename it" if len(missing) == len(odd) == 1 else ""
