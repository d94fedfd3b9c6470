"""case_scores.csv: the Dice of each case and region at each validated epoch of a training, or of a sweep's trial.

Scores are written with all their digits, so that their means are exactly those in metrics.csv. What goes from a trial
to the driver of a sweep, and into a checkpoint, is the text of the rows themselves.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.core.files import atomic_write

if TYPE_CHECKING:  # it imports torch, and what only reads a run does without it
    from trainable.evaluation.metrics import Scores

SCORE_COLUMNS = tuple(f"dice_{name}" for name in (*REGIONS, "mean"))
COLUMNS = ("epoch", "case", *SCORE_COLUMNS)


def case_rows(epoch: int, scores: Mapping[str, Scores]) -> str:
    """Return an epoch's rows of case_scores.csv as text, one line per case; "" without cases.

    Args:
        epoch: its number, from 1.
        scores: those of SCORE_COLUMNS at least, by case, in the order in which metrics.csv averages them.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([epoch, case, *(of_case[name] for name in SCORE_COLUMNS)] for case, of_case in scores.items())
    return text.getvalue()


def read_case_scores(path: Path) -> dict[int, dict[str, Scores]]:
    """Return the scores in a case_scores.csv: epoch -> case -> {dice_WT, dice_TC, dice_ET, dice_mean}.

    Epochs and cases are in the order of the file; {} if there is no file.

    Raises:
        InputError: naming the file and the line, if it is damaged.
    """
    scores: dict[int, dict[str, Scores]] = {}
    if not path.exists():
        return scores
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        try:
            if tuple(next(reader, ())) != COLUMNS:
                raise ValueError(f"expected the columns {','.join(COLUMNS)}")
            for row in reader:
                if len(row) != len(COLUMNS):
                    raise ValueError(f"expected {len(COLUMNS)} values, found {len(row)}")
                epoch, case, *dice = row
                scores.setdefault(int(epoch), {})[case] = dict(zip(SCORE_COLUMNS, map(float, dice), strict=True))
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path}: line {reader.line_num} is damaged ({error}); restore or delete it") from None
    return scores


class CaseScoreFile:
    """Writes a case_scores.csv as epochs are validated; the file is whole after each write.

    The text of each epoch is kept, so that a write costs one copy of the file.

    path: of the file; epochs that are in it already are kept.

    Raises:
        InputError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = {epoch: case_rows(epoch, scores).encode() for epoch, scores in read_case_scores(path).items()}

    def write(self, epoch: int, rows: str) -> None:
        """Add an epoch's rows, as case_rows returns them; those of this epoch and of later ones are replaced.

        rows: "" for an epoch that was not validated.

        Raises:
            OSError: if the file cannot be written (a full disk); the old one is then still whole.
        """
        kept = {earlier: text for earlier, text in self.rows.items() if earlier < epoch}
        if not rows and len(kept) == len(self.rows):
            return
        self.rows = {**kept, epoch: rows.encode()} if rows else kept
        header = ",".join(COLUMNS).encode() + b"\n"
        atomic_write(self.path, lambda file: file.writelines([header, *self.rows.values()]), fsync=False)
