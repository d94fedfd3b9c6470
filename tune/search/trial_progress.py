"""What the journal says of a trial: how far it has come, and what early stopping decided."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, cast

from optuna.trial import FrozenTrial

from trainable.core.brats import REGIONS
from trainable.training.epoch_result import EndReason
from tune.search.asha import PAUSE, STOP, RungDecision
from tune.search.score_noise import RECENT_SCORES
from tune.spec.sweep_config import SweepConfig
from tune.spec.trial_spec import Report

LATE_SHARE = 4  # the last quarter of a training's validations


def late_validations(config: SweepConfig) -> int:
    """Return how many of a whole training's last validations `study.rank_by: late` looks at, at least one."""
    return max(1, round(config.fixed("epochs") // config.fixed("val_freq") / LATE_SHARE))


@dataclass(frozen=True)
class BestEpoch:
    """The best validated epoch of a trial: its score, and the Dice of each region."""

    epoch: int
    score: float
    dice: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a trial has come: the attribute "progress".

    epoch: the last reported one, 0 before. seconds: training time so far, over all attempts. end_reason: why the trial
    ended by itself, NONE if it did not. checkpoint: path of the newest one below the run's storage. best: None until an
    epoch is validated. device: name of the GPU or CPU that trained it last, None if no epoch is reported. data: hash of
    the cases that it was scored on, None if unknown. case_scores: number of epochs whose scores per case were reported.
    gpu_seconds: GPU seconds so far, of a trial that was begun with other resources than its study has; None of others.
    recent: the scores of the last validated epochs, by epoch, in a sweep with a cost, of which Optuna takes no scores:
    RECENT_SCORES, or as many as late_validations if these are more. furthest: the last epoch that was reported before
    the trial went back to an earlier checkpoint, as later ones were damaged; 0 if it never did.
    extra: keys of other versions of voxtune, kept as they are.
    """

    epoch: int = 0
    seconds: float = 0.0
    end_reason: EndReason = EndReason.NONE
    checkpoint: str | None = None
    best: BestEpoch | None = None
    device: str | None = None
    data: str | None = None
    case_scores: int = 0
    gpu_seconds: float | None = None
    recent: dict[int, float] = field(default_factory=dict)
    furthest: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        """Return the progress in a trial's user attributes; that of a trial without a report if there is none."""
        stored = dict(attrs.get("progress", {}))
        best = stored.pop("best", {})
        return cls(
            epoch=stored.pop("epoch", 0),
            seconds=stored.pop("seconds", 0.0),
            end_reason=EndReason(stored.pop("end_reason", "")),
            checkpoint=stored.pop("checkpoint", None),
            best=BestEpoch(best["epoch"], best["score"], best.get("dice", {})) if best else None,
            device=stored.pop("device", None),
            data=stored.pop("data", None),
            case_scores=stored.pop("case_scores", 0),
            gpu_seconds=stored.pop("gpu_seconds", None),
            recent={int(epoch): score for epoch, score in stored.pop("recent", {}).items()},
            furthest=stored.pop("furthest", 0),
            extra=stored,
        )

    def to_attrs(self) -> dict[str, Any]:
        """Return the value of the attribute "progress", which from_attrs reads back."""
        stored: dict[str, Any] = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "end_reason": self.end_reason.value,
            "checkpoint": self.checkpoint,
            "best": asdict(self.best) if self.best else {},
        }
        if self.epoch:  # a trial that ended before its first epoch has not reported its device
            stored["device"] = self.device
        if self.data:
            stored["data"] = self.data
        if self.case_scores:
            stored["case_scores"] = self.case_scores
        if self.gpu_seconds is not None:
            stored["gpu_seconds"] = self.gpu_seconds
        if self.recent:
            stored["recent"] = {str(epoch): score for epoch, score in self.recent.items()}
        if self.furthest:
            stored["furthest"] = self.furthest
        return {**stored, **self.extra}

    def all_gpu_seconds(self, config: SweepConfig) -> float:
        """Return the GPU seconds so far, 0 on a CPU; config: of the study that the trial is in."""
        return self.seconds * config.resources.all_gpus if self.gpu_seconds is None else self.gpu_seconds

    def with_time(self, seconds: float, config: SweepConfig) -> Self:
        """Return a copy that has trained for so many more seconds, with the resources of a config."""
        known = self.gpu_seconds
        gpu_seconds = None if known is None else known + seconds * config.resources.all_gpus
        return replace(self, seconds=self.seconds + seconds, gpu_seconds=gpu_seconds)

    def with_recent(self, epoch: int, score: float, config: SweepConfig) -> Self:
        """Return a copy with one more score in `recent`; config: of the sweep."""
        recent = dict([*self.recent.items(), (epoch, score)][-max(RECENT_SCORES, late_validations(config)) :])
        return replace(self, recent=recent)

    @property
    def best_score(self) -> float | None:
        """The score at the best epoch, None until an epoch is validated."""
        return self.best.score if self.best else None


def gone_back(before: Progress, report: Report, checkpoint: str | None, config: SweepConfig) -> Progress:
    """Return the progress of a trial that goes on after an earlier epoch, or begins again.

    Args:
        before: how far it had come.
        report: of that epoch; its epoch is 0 if it begins again.
        checkpoint: the path of that epoch's checkpoint below the storage; None if it begins again.
        config: of the sweep.
    """
    epoch, best, val_freq = report["epoch"], before.best, config.fixed("val_freq")
    if best is not None and best.epoch > epoch:
        best = None
        if at := report.get("best_epoch", 0):  # the Dice of each region is known if the report's own epoch is best
            scores = cast(Mapping[str, float], report)
            dice = {region: scores[f"val_dice_{region}"] for region in REGIONS} if at == epoch else {}
            best = BestEpoch(at, report["best_score"], dice)
    return replace(
        before,
        epoch=epoch,
        best=best,
        checkpoint=checkpoint,
        case_scores=max(0, before.case_scores - (before.epoch // val_freq - epoch // val_freq)),
        recent={at: score for at, score in before.recent.items() if at <= epoch},
        furthest=max(before.epoch, before.furthest),
    )


def rung_decisions(attrs: Mapping[str, Any]) -> dict[int, RungDecision]:
    """Return the attribute "rungs" of a trial: the decision at each rung that it has reached, by epoch; {} before."""
    stored = attrs.get("rungs") or {}
    return {
        int(epoch): RungDecision(
            rung["value"],
            rung["decision"],
            rung.get("kept", ""),
            rung.get("needed"),
            rung.get("among", 0),
            rung.get("margin", 0.0),
        )
        for epoch, rung in stored.items()
    }


def with_decision(attrs: Mapping[str, Any], epoch: int, decided: RungDecision) -> dict[str, Any]:
    """Return the attribute "rungs" of a trial with one more decision, which rung_decisions reads back."""
    rung: dict[str, Any] = {"value": decided.value, "decision": decided.decision}
    rung |= {"kept": decided.kept} if decided.kept else {}
    rung |= {"needed": decided.needed, "among": decided.among} if decided.needed is not None else {}
    rung |= {"margin": decided.margin} if decided.margin else {}
    return {**attrs.get("rungs", {}), str(epoch): rung}


def find_default(trials: Iterable[FrozenTrial], config: SweepConfig) -> int | None:
    """Return the number of the first trial that tries the default recipe in this sweep itself; None if none does."""
    params = config.space.default_params()
    own = (trial for trial in trials if "source" not in trial.user_attrs and "outside" not in trial.user_attrs)
    return next((trial.number for trial in own if trial.params == params), None)


def stopped_at(attrs: Mapping[str, Any]) -> int | None:
    """Return the epoch at which early stopping decided to stop a trial; None if it did not."""
    return next((epoch for epoch, rung in rung_decisions(attrs).items() if rung.decision == STOP), None)


def paused_at(attrs: Mapping[str, Any]) -> int | None:
    """Return the epoch at which a trial pauses until early stopping has decided on it; None if it does not."""
    return next((epoch for epoch, rung in rung_decisions(attrs).items() if rung.decision == PAUSE), None)


def known_scores(frozen: FrozenTrial) -> dict[int, float]:
    """Return the scores of a trial's validated epochs that the journal has, by epoch, in a sweep with a cost the last.

    See Progress.recent.
    """
    return frozen.intermediate_values or Progress.from_attrs(frozen.user_attrs).recent


def error_summary(error: str) -> str:
    """Return the last line of a traceback that names an error, which other lines may follow.

    Without such a line it is the last line; "unknown error" for an empty text. Of Ray's file of several failures the
    last one counts.
    """
    lines = re.split(r"^Failure # \d+ .*", error, flags=re.MULTILINE)[-1].strip().splitlines() or ["unknown error"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return (named or lines)[-1]
