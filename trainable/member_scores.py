"""What an ensemble gains: the Dice of each member alone beside that of the ensemble, paired by case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from trainable.core.brats import REGIONS, Labels
from trainable.core.counted import counted
from trainable.evaluation.comparison import Comparison, compare_predictions
from trainable.evaluation.metrics import Scores, dice_scores, mean_scores
from trainable.training.ensemble import Ensemble
from trainable.training.seen_cases import group_by_part

DICE = tuple(f"dice_{name}" for name in (*REGIONS, "mean"))


@dataclass
class MemberScores:
    """The Dice of each member of an ensemble, predicting alone, for each case; nothing for a single model.

    Attributes:
        names: of the members.
        cases: {case: one Scores of DICE per member, in their order}.
    """

    names: Sequence[str]
    cases: dict[str, list[Scores]] = field(default_factory=dict)

    @classmethod
    def of(cls, ensemble: Ensemble) -> MemberScores:
        """Return an object without scores for the members of an ensemble; without members for a single model."""
        return cls(ensemble.names if len(ensemble.members) > 1 else ())

    def add(self, case: str, predictions: Sequence[Labels], truth: Labels) -> None:
        """Score a case. predictions: the label map of each member, uint8 (D, H, W) as the truth; empty if it is one."""
        if self.names:
            labels = torch.from_numpy(np.array(truth))
            self.cases[case] = [dice_scores(torch.from_numpy(np.array(map_)), labels) for map_ in predictions]

    def with_earlier(self, by_member: Mapping[str, Mapping[str, Scores]]) -> MemberScores:
        """Return these scores and those of other cases, which for_json has returned as "member_scores".

        Those of members of other names are left out.
        """
        if not self.names or set(by_member) != set(self.names):
            return self
        cases = by_member[self.names[0]]
        earlier = {case: [dict(by_member[name][case]) for name in self.names] for case in cases}
        return MemberScores(self.names, {**earlier, **self.cases})

    def means(self, cases: Sequence[str]) -> dict[str, Scores]:
        """Return the mean scores of each member over cases, by the member's name."""
        return {name: mean_scores([self.cases[case][index] for case in cases]) for index, name in enumerate(self.names)}

    def gains(self, scores: Mapping[str, Scores], cases: Sequence[str]) -> dict[str, Comparison]:
        """Return the ensemble minus the mean of its members for each score of DICE, paired by case.

        Args:
            scores: of the ensemble, by case.
            cases: which of them are compared; at least one.
        """

        def of_case(case: str, name: str) -> float:
            return float(np.mean([one[name] for one in self.cases[case]]))

        return {
            name: compare_predictions(
                np.array([scores[case][name] for case in cases]), np.array([of_case(case, name) for case in cases])
            )
            for name in DICE
        }

    def for_json(
        self, scores: Mapping[str, Scores], parts: Mapping[str, str], *, with_gains: bool = True
    ) -> dict[str, Any]:
        """Return the members' scores by case, and by part their means and the gain, as plain values; {} if one model.

        Args:
            scores: of the ensemble, by case; those of earlier calls that lack scores of the members are left out.
            parts: what each case was to the ensemble, see Ensemble.parts_of.
            with_gains: with the gain, whose interval takes a while to compute.
        """
        if not self.names:
            return {}
        groups = self._groups(scores, parts)
        content: dict[str, Any] = {
            "member_scores": {
                name: {case: self.cases[case][index] for case in scores if case in self.cases}
                for index, name in enumerate(self.names)
            },
            "member_means": {part: self.means(cases) for part, cases in groups},
        }
        if with_gains:
            content["gain_over_members"] = {
                part: {name: plain(gain) for name, gain in self.gains(scores, cases).items()} for part, cases in groups
            }
        return content

    def table(self, scores: Mapping[str, Scores], parts: Mapping[str, str]) -> str:
        """Return the mean Dice of each member and of the ensemble for each part, and the gain; "" for a single model.

        The arguments are those of for_json.
        """
        groups = self._groups(scores, parts) if self.names else []
        return "\n".join(line for part, cases in groups for line in self._lines(scores, part, cases))

    def _groups(self, scores: Mapping[str, Scores], parts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
        """Return the cases that the members are scored on too, by part; parts without such cases are left out."""
        return list(group_by_part(parts, [case for case in scores if case in self.cases]).items())

    def _lines(self, scores: Mapping[str, Scores], part: str, cases: Sequence[str]) -> list[str]:
        """Return the lines of table for the cases of a part."""
        count = len(self.names)
        together, of_members = f"the ensemble of {count}", f"mean of its {count} members"
        means = self.means(cases)
        rows = {
            **means,
            of_members: mean_scores(means.values()),
            together: mean_scores([{name: scores[case][name] for name in DICE} for case in cases]),
        }
        width = max(map(len, [*rows, part]))
        heading = counted(len(cases), f"{part} case").ljust(width)
        lines = [heading + "  Dice" + "".join(f"{name.removeprefix('dice_'):>8}" for name in DICE)]
        lines += [f"{name:<{width}}      " + "".join(f"{row[key]:8.4f}" for key in DICE) for name, row in rows.items()]
        gains = self.gains(scores, cases)
        texts = [f"{name.removeprefix('dice_')} {gain_text(gains[name])}" for name in reversed(DICE)]
        probability = gains["dice_mean"].probability
        if not math.isnan(probability):
            texts[0] += f", better with probability {probability:.2f}"
        return [*lines, f"{together} against its members: Dice {'; '.join(texts)}"]


def gain_text(gain: Comparison) -> str:
    """Return a difference with its interval: "+0.012 [0.004, 0.021]"; without one if one case gives none."""
    interval = "" if math.isnan(gain.low) else f" [{gain.dice_low:+.3f}, {gain.dice_high:+.3f}]"
    return f"{gain.difference:+.3f}{interval}"


def plain(gain: Comparison) -> dict[str, float | None]:
    """Return a comparison as values for JSON; what cannot be estimated is None."""
    numbers = {name: getattr(gain, name) for name in ("difference", "low", "high", "probability")}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
