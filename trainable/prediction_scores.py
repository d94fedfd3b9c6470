"""The scores in the folder of predictions: scores.json and scores.csv, kept when more cases are predicted into it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.locks import one_at_a_time
from trainable.core.logger import logger
from trainable.evaluate import describe_members, save_scores
from trainable.evaluation.metrics import Scores
from trainable.member_scores import MemberScores
from trainable.training.ensemble import Ensemble

STEM = "scores"


@dataclass(frozen=True)
class ScoreFile:
    """Writes the scores of predictions, with those of earlier calls of the same model, and of others that run now.

    Attributes:
        stem: OUT/scores; .json and .csv are added.
        about: the model that predicts, by name, as it is written.
        earlier: names of cases of which there were scores of the same model at the start.
        members: the scores of each member of an ensemble in this call.
    """

    stem: Path
    about: Mapping[str, Any]
    earlier: Collection[str]
    members: MemberScores

    def replaced(self, names: Sequence[str]) -> str:
        """Return a line on the predictions of these cases that are there and not known to be of this model; "" if none.

        Only a case with a truth is known to be of a model, by its scores.
        """
        files = [self.stem.with_name(f"{name}.nii.gz") for name in names if name not in self.earlier]
        there = [file.name for file in files if file.exists()]
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        return f"{self.stem.parent}: {there[0]}{more} of another call will be replaced" if there else ""

    def save(
        self, scores: Mapping[str, Scores], parts: Mapping[str, str], predicted: Collection[str], *, last: bool = False
    ) -> None:
        """Write the scores of this call, and those there of cases that it has not predicted, sorted by case.

        The file is read anew, as another process may have added some. If this changes nothing in it, it is not written.

        Args:
            scores: of this call, by the case's name.
            parts: what each of these cases was to the model, see parts_of.
            predicted: names of all cases that this call has predicted.
            last: no more cases follow, so that the gain of an ensemble over its members is written too.
        """
        if not predicted:
            return
        with one_at_a_time(self.stem.parent, "writes the scores in"):
            before = scores_of_model(self.stem, self.about)
            there = before.get("cases", {})
            kept = {name: values for name, values in there.items() if name not in predicted}
            if not scores and len(kept) == len(there):
                return
            if together := {**kept, **scores}:
                names, known = sorted(together), {**before.get("parts", {}), **parts}
                by_case = {name: together[name] for name in names}
                of_names = {name: known[name] for name in names}
                members = self.members.with_earlier(before.get("member_scores", {}))
                more = members.for_json(by_case, of_names, with_gains=last or not scores)
                save_scores(by_case, self.stem, self.about, of_names, more)
            else:
                for ending in (".json", ".csv"):
                    self.stem.with_suffix(ending).unlink(missing_ok=True)

    def finish(self, scores: Mapping[str, Scores], parts: Mapping[str, str], predicted: Collection[str]) -> str:
        """Write the gain of an ensemble over its members, and return its table. The arguments are those of save.

        The scores of all cases are written once more: without locks (NFS) another process may have lost some.
        """
        self.save(scores, parts, predicted, last=True)
        return self.members.table(scores, parts)


def open_score_file(out: Path, model: Path, ensemble: Ensemble, *, mirror: bool) -> ScoreFile:
    """Return the score file of a folder of predictions, and say so if it has scores by another model.

    Args:
        model: the file of a single model, or what the user calls the ensemble.
        ensemble: the models; they are the same as before if the contents of their files are.
        mirror: whether predictions are averaged over mirrored volumes.

    Raises:
        InputError: if the folder has a file of the scores' names that is of something else.
    """
    about: dict[str, Any] = {"checkpoint": str(model), "checkpoint_hash": ensemble.digest, "mirror": mirror}
    members = MemberScores.of(ensemble)
    if members.names:
        about["members"] = describe_members(ensemble)
    stem = out / STEM
    before, earlier = read_scores(stem), scores_of_model(stem, about)
    if before.get("cases") and "parts" in before and not earlier:
        cases = counted(len(before["cases"]), "case")
        logger.info(f"{stem}.json has the scores of {cases} by another model; new scores replace them")
    return ScoreFile(stem, about, [*earlier.get("cases", {})], members)


def scores_of_model(stem: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what read_scores does, if it is of the model of `about`; else {}, also for what tells no parts (older)."""
    content = read_scores(stem)
    same = "parts" in content and all(content.get(name) == about[name] for name in ("checkpoint_hash", "mirror"))
    return content if same else {}


def read_scores(stem: Path) -> dict[str, Any]:
    """Return the content of STEM.json as save_scores has written it; {} if there is no such file, or only its STEM.csv.

    Raises:
        InputError: for a file of one of these names that save_scores has not written, or one that is damaged.
    """
    file, table = (stem.with_suffix(ending) for ending in (".json", ".csv"))
    # a table alone is what a kill leaves of the first scores
    if not file.exists() and (not table.exists() or table.read_bytes().startswith(b"case,part,dice_")):
        return {}
    try:
        content = json.loads(file.read_text())
        if {"checkpoint", "cases"} <= content.keys() and isinstance(content["cases"], dict):
            return dict(content)
    except (OSError, ValueError, AttributeError):
        pass
    other = file if file.exists() else table
    raise InputError(f"{other} is not of predictions, and would be overwritten; take another --out, or move it")
